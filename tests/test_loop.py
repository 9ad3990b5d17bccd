"""What `fit` takes beside arrays, and does beside plain steps: parts of batches, weights, frozen fronts, averages,
early stops, runs that are written down and taken up again."""

import json

import numpy as np
import pytest

from cvit.data import ArrayFeed, Mixing
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT
from cvit.train import EMA, SGD, AdamW, History, evaluate, fit
from cvit.train.class_weights import class_weights
from cvit.train.front import Front
from cvit.train.loop import Loop

CONFIG = ViTConfig(image_size=4, patch_size=2, channels=1, width=8, depth=3, heads=2, hidden=16, classes=3)
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.normal(size=(50, 1, 4, 4)).astype(np.float32), RNG.integers(0, 3, 50)
TEST = RNG.normal(size=(20, 1, 4, 4)).astype(np.float32), RNG.integers(0, 3, 20)


def model_of(seed=0, dtype=np.float32):
    model = ViT(CONFIG, seed=seed, dtype=dtype)
    model.weights[:] += 0.1 * np.random.default_rng(9).normal(size=model.layout.size)  # a head that is not zero
    return model


def trained(model=None, train=(IMAGES, LABELS), optimizer=AdamW, **options):
    model = model_of() if model is None else model
    made = optimizer(model) if callable(optimizer) else optimizer
    history = fit(model, train, **{"epochs": 2, "batch_size": 16, "optimizer": made, **options})
    return model, history


# ------------------------------------------------------------------------------------------------------ what is fed
def test_arrays_a_feed_and_batches_give_the_same_bits():
    expected, _ = trained()
    feed = ArrayFeed(IMAGES, LABELS, 16, seed=0)
    batches = [[(b.images, b.targets) for b in feed.epoch(epoch)] for epoch in (0, 1)]
    for train in (feed, lambda epoch: batches[epoch], lambda epoch: iter(batches[epoch])):
        model, history = trained(train=train)
        np.testing.assert_array_equal(model.weights, expected.weights)
        assert len(history.epochs) == 2


def test_targets_may_be_distributions():
    onehot = np.eye(3, dtype=np.float32)[LABELS]
    expected, _ = trained(train=[(IMAGES, LABELS)] * 2, optimizer=SGD)
    model, _ = trained(train=[(IMAGES, onehot)] * 2, optimizer=SGD)
    np.testing.assert_allclose(model.weights, expected.weights, atol=1e-6)


@pytest.mark.parametrize(
    "train, message",
    [
        ([IMAGES], r"batch 1 of train must be \(images, targets\)"),
        ([(IMAGES[:, :, :2], LABELS)], r"batch 1 of train: images must have shape \(N, 1, 4, 4\)"),
        ([(IMAGES, LABELS + 1)], r"batch 1 of train: targets must lie in \[0, 3\)"),
        ([(IMAGES, LABELS), (IMAGES * np.nan, LABELS)], "batch 2 of train: images must be finite, but image 0"),
        ([], "train gave no batch in epoch 1"),
    ],
)
def test_wrong_batches_are_named(train, message):
    with pytest.raises(ValueError, match=message):
        trained(train=train)


def test_mixed_batches_train():
    model, history = trained(train=ArrayFeed(IMAGES, LABELS, 16, mixing=Mixing(), classes=3))
    assert np.isfinite(model.weights).all() and history.epochs[-1].train_loss > 0


# ---------------------------------------------------------------------------------------------------------- a step
@pytest.mark.parametrize("parts", [2, 3, 16, 99])
@pytest.mark.parametrize("options", [dict(), dict(class_weight=[1, 2, 0.5]), dict(drop_path=0.3, dropout=0.2)])
def test_parts_of_a_batch_give_its_gradient(parts, options):
    """Up to rounding: (parts + 1) epsilon of the sum of the parts' sizes, which is at most 17 · 2.2e-16 · 16 here."""

    def gradient(accumulate):
        model = model_of(dtype=np.float64)
        loop = Loop(
            model, (IMAGES.astype(np.float64), LABELS), epochs=1, batch_size=16, accumulate=accumulate,
            optimizer=SGD(model, lr=0.0), **options,
        )  # fmt: skip
        batch = next(loop.feed.epoch(0))
        loss, right = loop.stepper._loss_and_grad(batch.images, batch, 0)
        return loss, right, loop.stepper.grad

    loss, right, grad = gradient(1)
    part_loss, part_right, part_grad = gradient(parts)
    assert part_loss == pytest.approx(loss, rel=1e-13) and part_right == right
    np.testing.assert_allclose(part_grad, grad, rtol=0, atol=1e-13 * np.abs(grad).max() * parts)


def test_class_weights_are_scikit_learns():
    labels = np.array([0, 0, 0, 2])
    np.testing.assert_allclose(class_weights("balanced", labels, 4), [4 / 6, 0, 2, 0])
    utils = pytest.importorskip("sklearn.utils.class_weight")
    np.testing.assert_allclose(class_weights("balanced", LABELS, 3), utils.compute_class_weight(
        "balanced", classes=np.arange(3), y=LABELS))  # fmt: skip
    assert class_weights(None, labels, 4) is None


@pytest.mark.parametrize(
    "given, message",
    [
        ("even", "class_weight must be None, 'balanced' or numbers, got 'even'"),
        ([1, 2], r"class_weight must have shape \(3,\), one a class, got \(2,\)"),
        ([1, -1, 1], "class_weight must be finite numbers, none negative"),
        ([0, 0, 0], "class_weight must be above 0 for at least one class"),
    ],
)
def test_wrong_class_weights(given, message):
    with pytest.raises(ValueError, match=message):
        trained(class_weight=given)


def test_a_class_that_weighs_nothing_is_as_if_it_were_not_there():
    keep = LABELS != 1
    expected, _ = trained(train=[(IMAGES[keep], LABELS[keep])] * 2, optimizer=SGD)
    model, _ = trained(train=[(IMAGES, LABELS)] * 2, optimizer=SGD, class_weight=[1, 0, 1])
    np.testing.assert_allclose(model.weights, expected.weights, atol=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = model_of()
    before = model.weights.copy()

    class Endless(ViT):
        def loss_and_grad(self, x, y, **options):
            loss, grad = ViT.loss_and_grad(self, x, y, **options)
            grad[3] = np.inf
            return loss, grad

    model.__class__ = Endless
    with pytest.raises(FloatingPointError, match=r"gradient is not finite.* epoch 1, step 1 \(learning rate 0.001\)"):
        trained(model)
    np.testing.assert_array_equal(model.weights, before)


# ----------------------------------------------------------------------------------------------------- frozen fronts
@pytest.mark.parametrize("patterns, first", [(["head.*"], "head"), (["norm.*", "head.*"], 3), (["blocks.2.*"], 2)])
def test_a_frozen_front_gives_the_same_bits_cached_or_not(patterns, first):
    """Cached rows, rows made anew each time, and the same run on images whose gradient is cut to the trained part."""
    start = model_of().weights.copy()
    models = {}
    for name, cache in (("cached", 100), ("half", 0.004), ("anew", 0)):
        model = model_of()
        history = fit(
            model, (IMAGES, LABELS), epochs=3, batch_size=16, cache_mb=cache,
            optimizer=AdamW(model, lr=1e-2, trained=patterns),
        )  # fmt: skip
        models[name] = model.weights
        assert len(history.epochs) == 3
    np.testing.assert_array_equal(models["cached"], models["anew"])
    np.testing.assert_array_equal(models["half"], models["anew"])
    views = model.layout.views
    for name, before in views(start).items():
        moved = not np.array_equal(before, views(models["anew"])[name])
        assert moved == any(name.startswith(pattern[:-1]) for pattern in patterns), name
    whole = model_of()
    optimizer = AdamW(whole, lr=1e-2, trained=patterns)
    feed = ArrayFeed(IMAGES, LABELS, 16, seed=0)
    for epoch in range(3):
        for batch in feed.epoch(epoch):
            optimizer.step(whole.weights, whole.loss_and_grad(batch.images, batch.targets)[1])
    np.testing.assert_array_equal(whole.weights, models["anew"])


def test_a_front_is_computed_once_for_pictures_that_stay(monkeypatch):
    model, calls = model_of(), []
    front = ViT.front
    monkeypatch.setattr(ViT, "front", lambda self, x, first: calls.append(len(x)) or front(self, x, first))
    optimizer = AdamW(model, trained=["head.*"])
    trained(model, optimizer=optimizer, epochs=5)
    assert sum(calls) == 50
    calls.clear()
    trained(model, optimizer=optimizer, epochs=5, augment=lambda x, rng: x)
    assert sum(calls) == 250


@pytest.mark.parametrize("patterns", [["head.*"], ["norm.*", "head.*"]])
def test_evaluations_behind_a_front_are_those_of_the_whole_model(monkeypatch, patterns):
    """The test pictures go through the front once, and the figures are the same bits."""
    histories = []
    for cache in (100, 0):
        model, calls = model_of(), []
        forward = ViT.forward
        monkeypatch.setattr(ViT, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
        average = EMA(model, decay=0.5)
        history = fit(
            model, (IMAGES, LABELS), TEST, epochs=3, batch_size=16, cache_mb=cache, ema=average,
            optimizer=AdamW(model, lr=1e-2, trained=patterns),
        )  # fmt: skip
        monkeypatch.undo()
        histories.append([epoch[:6] for epoch in history.epochs])
        assert sum(calls) == (0 if cache else 60)
    assert histories[0] == histories[1]


def test_a_front_keeps_no_more_than_it_may():
    model = model_of()
    row = model.front(IMAGES[:1], 2).nbytes
    front = Front(model, 2, keep=True, most_bytes=3 * row + 1)
    numbers = np.arange(5)
    for _ in range(2):
        np.testing.assert_array_equal(front.rows(IMAGES[:5], numbers), model.front(IMAGES[:5], 2))
    assert len(front.kept) == 3


# ------------------------------------------------------------------------------------- averages, patience, resuming
def test_the_average_is_what_is_evaluated():
    model = model_of()
    average = EMA(model, decay=0.5, warmup=False)
    _, history = trained(model, test=TEST, ema=average)
    result = evaluate(ViT(CONFIG, average.weights), *TEST)
    assert (history.epochs[-1].test_loss, history.epochs[-1].test_accuracy) == (result.loss, result.accuracy)
    assert not np.array_equal(average.weights, model.weights)


def test_no_progress_ends_a_run():
    _, history = trained(optimizer=lambda model: SGD(model, lr=0.0), test=TEST, epochs=20, patience=3)
    assert len(history.epochs) == 4 and history.stopped_early and history.best.epoch == 1
    with pytest.raises(ValueError, match="patience needs test"):
        trained(patience=3)


def test_the_best_epoch():
    history = History()
    assert history.best is None
    trained(test=TEST, epochs=4, history=history)
    best = max(history.epochs, key=lambda epoch: (epoch.test_accuracy, -epoch.test_loss))
    assert history.best == best


@pytest.mark.parametrize("optimizer", [AdamW, lambda model: SGD(model, momentum=0.9), lambda model: SGD(model)])
@pytest.mark.parametrize("epoch, step", [(1, 1), (1, 4), (2, 2), (3, 4)])
def test_a_loop_that_is_written_down_goes_on_to_the_same_bits(optimizer, epoch, step):
    options = dict(
        epochs=3, batch_size=16, test=TEST, augment=lambda x, rng: x + rng.normal(size=x.shape).astype(np.float32),
        schedule=lambda step: 1e-2 / (1 + step), drop_path=0.2, dropout=0.1, seed=5,
    )  # fmt: skip

    def make(stop=None):
        model = model_of()
        return Loop(
            model, (IMAGES, LABELS), optimizer=optimizer(model), ema=EMA(model, 0.9), on_step=stop, **options
        )  # fmt: skip

    def stop(now):
        if (now.epoch, now.step) == (epoch, step):
            raise KeyboardInterrupt

    whole, stopped, resumed = make(), make(stop), make()
    whole.run()
    assert stopped.run().interrupted
    arrays, facts = stopped.state()
    resumed.restore({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(facts)))
    resumed.run()
    np.testing.assert_array_equal(resumed.model.weights, whole.model.weights)
    np.testing.assert_array_equal(resumed.evaluated.weights, whole.evaluated.weights)
    assert [e[:6] for e in resumed.history.epochs] == [e[:6] for e in whole.history.epochs]


def test_the_state_of_another_run_is_refused():
    model, other = model_of(), ViT(CONFIG, seed=1)
    loop = Loop(model, (IMAGES, LABELS), epochs=1, optimizer=AdamW(model))
    plain = Loop(other, (IMAGES, LABELS), epochs=1, optimizer=SGD(other))
    before = other.weights.copy()
    with pytest.raises(ValueError):
        plain.restore(*loop.state())
    np.testing.assert_array_equal(other.weights, before)
