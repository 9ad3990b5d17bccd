"""The training loop: that it learns, repeats itself, stops cleanly and goes on; evaluation; bad calls."""

import csv
import dataclasses
import functools
import math
import os

import numpy as np
import pytest

from cvit.data import Dataset
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT
from cvit.plots.curves import curves
from cvit.train import Epoch, History, confusion_matrix, evaluate, fit
from cvit.train.optim import SGD, AdamW, warmup_cosine

CONFIG = ViTConfig(image_size=4, patch_size=2, channels=1, width=8, depth=1, heads=2, hidden=16, classes=3)


def stripes(N, seed) -> Dataset:
    """Three classes that are easy to tell apart: bright rows, bright columns, neither; and some noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, N)
    images = 0.3 * rng.normal(size=(N, 1, 4, 4))
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    return Dataset(images.astype(np.float32), labels)


TRAIN, TEST = stripes(150, seed=1), stripes(40, seed=2)


def run(model=None, epochs=3, optimizer=None, **options):
    model = ViT(CONFIG, seed=0) if model is None else model
    optimizer = AdamW(model, lr=5e-3) if optimizer is None else optimizer
    return model, fit(model, TRAIN, TEST, epochs=epochs, batch_size=32, optimizer=optimizer, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_learns(dtype):
    model, history = run(ViT(CONFIG, seed=0, dtype=dtype), epochs=15)
    last = history.epochs[-1]
    assert last.test_accuracy >= 0.95 and last.test_loss < history.epochs[0].test_loss / 2
    assert [epoch.epoch for epoch in history.epochs] == list(range(1, 16)) and not history.interrupted
    result = evaluate(model, *TEST)
    assert (result.loss, result.accuracy) == (last.test_loss, last.test_accuracy)


def test_sgd_with_schedule_clipping_and_smoothing_learns():
    model = ViT(CONFIG, seed=0)
    schedule = functools.partial(warmup_cosine, total=75, warmup=5, base_lr=0.2)
    _, history = run(
        model, epochs=15, optimizer=SGD(model, momentum=0.9), schedule=schedule, clip_norm=1.0, label_smoothing=0.1
    )
    assert history.epochs[-1].test_accuracy >= 0.95
    assert history.epochs[-1].lr == schedule(74)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    (a, _), (b, _), (c, _) = run(seed=3), run(seed=3), run(seed=4)
    np.testing.assert_array_equal(a.weights, b.weights)
    assert not np.array_equal(a.weights, c.weights)


def test_steps_and_epochs_are_reported():
    steps, epochs = [], []
    model, history = run(epochs=2, on_step=steps.append, on_epoch=epochs.append)
    assert [(step.epoch, step.step, step.images) for step in steps] == [
        (epoch, step, min(32 * step, 150)) for epoch in (1, 2) for step in (1, 2, 3, 4, 5)
    ]
    assert epochs == history.epochs
    assert (steps[-1].loss, steps[-1].accuracy) == (epochs[-1].train_loss, epochs[-1].train_accuracy)


def test_the_reported_training_loss_is_the_mean_over_images():
    """With a learning rate of 0 the weights stand still, so the batches' mean is the loss of the whole."""
    model, history = run(epochs=1, optimizer=SGD(ViT(CONFIG, seed=0), lr=0))
    result = evaluate(model, *TRAIN)
    assert history.epochs[0].train_loss == pytest.approx(result.loss, rel=1e-5)
    assert history.epochs[0].train_accuracy == pytest.approx(result.accuracy)


def test_without_test_data_its_columns_are_nan():
    model = ViT(CONFIG, seed=0)
    [epoch] = fit(model, TRAIN, epochs=1).epochs
    assert math.isnan(epoch.test_loss) and math.isnan(epoch.test_accuracy)


def interrupt_at(epoch, step):
    def on_step(state):
        if (state.epoch, state.step) == (epoch, step):
            raise KeyboardInterrupt

    return on_step


def test_ctrl_c_returns_what_was_learnt():
    start = ViT(CONFIG, seed=0).weights.copy()
    model, history = run(on_step=interrupt_at(2, 3))
    assert history.interrupted and len(history.epochs) == 1
    assert np.isfinite(model.weights).all() and not np.array_equal(model.weights, start)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped():
    whole, _ = run(epochs=4, schedule=lambda step: 1e-3 / (1 + step))
    model = ViT(CONFIG, seed=0)
    optimizer = AdamW(model, lr=5e-3)
    go_on = functools.partial(run, model, optimizer=optimizer, schedule=lambda step: 1e-3 / (1 + step))
    _, history = go_on(epochs=2)
    _, same = go_on(epochs=4, history=history)
    assert same is history and [epoch.epoch for epoch in history.epochs] == [1, 2, 3, 4]
    np.testing.assert_array_equal(model.weights, whole.weights)


def test_a_loss_that_is_not_finite_stops_the_run():
    model = ViT(CONFIG, seed=0)
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) in epoch \d+, step \d+"):
        fit(model, TRAIN, epochs=5, optimizer=SGD(model, lr=1e30))


def with_nan(data, index):
    images = data.images.copy()
    images[index, 0, 3, 3] = np.nan
    return images


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(epochs=0), ValueError, "epochs must be at least 1, got 0"),
        (dict(epochs=1.5), ValueError, "epochs must be a whole number, got 1.5"),
        (dict(batch_size=0), ValueError, "batch_size must be at least 1"),
        (dict(seed=-1), ValueError, "seed must be at least 0"),
        (dict(label_smoothing=1.0), ValueError, "label_smoothing must be below 1"),
        (dict(clip_norm=0), ValueError, "clip_norm must be greater than 0"),
        (dict(clip_norm=math.nan), ValueError, "clip_norm must be finite"),
        (dict(train=TRAIN.images), ValueError, r"train must be a pair \(images, labels\)"),
        (dict(train=(TRAIN.images[:0], TRAIN.labels[:0])), ValueError, "train images must not be empty"),
        (dict(train=(TRAIN.images[:, 0], TRAIN.labels)), ValueError, r"images must have shape \(N, 1, 4, 4\), got"),
        (dict(train=(TRAIN.images, TRAIN.labels[:-1])), ValueError, r"labels must have shape \(150,\), .* got"),
        (dict(train=(TRAIN.images, TRAIN.labels / 2)), TypeError, "labels must have an integer dtype"),
        (dict(train=(TRAIN.images, TRAIN.labels + 1)), ValueError, r"train labels must lie in \[0, 3\), got .* 1 to 3"),
        (dict(train=(TRAIN.images, TRAIN.labels, 1)), ValueError, "train must be a pair .* got a sequence of 3"),
        (dict(train=(with_nan(TRAIN, 7), TRAIN.labels)), ValueError, "train images must be finite, but image 7 holds"),
        (dict(test=(with_nan(TEST, 39), TEST.labels)), ValueError, "test images must be finite, but image 39 holds"),
        (dict(optimizer="adamw"), TypeError, "optimizer must be one, .* got 'adamw'"),
        (dict(optimizer=AdamW), TypeError, "optimizer must be one, .* got <class"),
        (dict(schedule=1e-3), TypeError, "schedule must be a function, got 0.001"),
        (dict(schedule=lambda step: None), TypeError, "learning rate that schedule gives for step 0 .* got None"),
        (dict(schedule=lambda step: -1.0), ValueError, "schedule gives for step 0 must be finite and at least 0"),
        (dict(history=[]), TypeError, "history must be the History of an earlier call"),
        (dict(test=(TEST.images, TEST.labels - 1)), ValueError, r"test labels must lie in \[0, 3\), got .* -1 to 1"),
    ],
)
def test_bad_calls_change_nothing(options, error, message):
    model = ViT(CONFIG, seed=0)
    before = model.weights.copy()
    with pytest.raises(error, match=message):
        fit(model, **{"train": TRAIN, "test": TEST, "epochs": 1, **options})
    np.testing.assert_array_equal(model.weights, before)


def test_evaluate_is_the_mean_over_all_images():
    model = ViT(CONFIG, seed=0)
    model.weights[:] = np.random.default_rng(0).normal(size=model.layout.size)
    logits = model.forward(TEST.images).astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(40), TEST.labels]
    for batch_size in (1, 7, 40, 99):
        result = evaluate(model, *TEST, batch_size=batch_size)
        assert result.loss == pytest.approx(losses.mean(), rel=1e-5)
        np.testing.assert_array_equal(result.predictions, logits.argmax(axis=1))
        assert result.accuracy == np.mean(logits.argmax(axis=1) == TEST.labels)


def test_confusion_matrix():
    np.testing.assert_array_equal(
        confusion_matrix([0, 0, 1, 2, 2], [0, 1, 1, 0, 2], classes=3), [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    )


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_confusion_matrix_counts_in_any_integer_dtype(kind):
    """13 * 20 + 13 does not fit into 8 bits."""
    counts = confusion_matrix(np.array([13, 19], kind), np.array([13, 2], kind), 20)
    assert counts.dtype == np.int64 and counts.sum() == 2
    assert counts[13, 13] == counts[19, 2] == 1


def test_confusion_matrix_refuses_what_is_no_class():
    with pytest.raises(ValueError, match=r"predictions must lie in \[0, 3\)"):
        confusion_matrix([0, 1], [0, 3], classes=3)
    with pytest.raises(ValueError, match=r"predictions must have shape \(2,\)"):
        confusion_matrix([0, 1], [0], classes=3)


class Answers:
    """A model that has given logits for every image."""

    dtype = np.dtype(np.float32)

    def __init__(self, logits):
        self.logits = np.array([logits], np.float32)
        self.config = dataclasses.replace(CONFIG, classes=len(logits))

    def forward(self, x):
        return self.logits


@pytest.mark.parametrize(
    "logits, loss",
    [([0, -np.inf, 1], math.log(1 + math.e)), ([1e38] * 10, math.log(10)), ([-3e38, -3e38], math.log(2))],
)
def test_cross_entropy_of_extreme_logits(logits, loss):
    """1.3133, 2.3026 and 0.6931: a class of probability 0 adds nothing, and the largest logit is taken off first."""
    assert evaluate(Answers(logits), TEST.images[:1], [0]).loss == pytest.approx(loss, rel=1e-7)


def test_any_sequence_of_two_is_a_pair():
    (a, _), b = run(epochs=1), ViT(CONFIG, seed=0)
    fit(b, list(TRAIN), list(TEST), epochs=1, batch_size=32, optimizer=AdamW(b, lr=5e-3))
    np.testing.assert_array_equal(a.weights, b.weights)


def test_images_that_augment_spoils_are_not_blamed_on_the_learning_rate():
    model = ViT(CONFIG, seed=0)
    with pytest.raises(FloatingPointError, match="pictures were not finite, augmentation or the data"):
        fit(model, TRAIN, epochs=1, augment=lambda images, rng: images * np.nan)


def test_the_gradient_of_a_run_is_one_vector(monkeypatch):
    """Also one of its own: a gradient that the caller holds stays as it is."""
    model, seen = ViT(CONFIG, seed=0), set()
    _, held = model.loss_and_grad(*TRAIN)
    before, loss_and_grad = held.copy(), ViT.loss_and_grad

    def watched(self, x, y, **options):
        loss, grad = loss_and_grad(self, x, y, **options)
        seen.add(grad.ctypes.data)
        return loss, grad

    monkeypatch.setattr(ViT, "loss_and_grad", watched)
    run(model, epochs=2)
    assert len(seen) == 1
    np.testing.assert_array_equal(held, before)


def test_history_as_csv_and_curves(tmp_path):
    _, history = run(epochs=2)
    history.write_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(Epoch._fields)
    assert [tuple(map(float, row.values())) for row in rows] == history.epochs

    pytest.importorskip("matplotlib")
    for name, shown in ("history.png", history), ("empty.png", History()):
        curves(shown, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["empty.png", "history.csv", "history.png"]
