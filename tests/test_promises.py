"""The engine's promises: the same bits for any number of threads, images that do not see each other, no allocation in a
step.

(The fourth, a clear error before anything is changed, is test_errors.py.) That single calls give the same bits with 1,
2, 3 and 5 threads is also checked wherever a test uses `on_all_threads`.
"""

import dataclasses
import os
import tracemalloc

import numpy as np
import pytest
from checks import on_all_threads, same_bits

import cvit
from cvit import SGD, AdamW, ViT, ViTConfig
from cvit.engine import plan as _engine
from cvit.model.program import program_of

SMALL = ViTConfig(image_size=(8, 12), patch_size=2, channels=2, width=30, depth=2, heads=3, hidden=50, classes=7)
CONFIGS = {
    "class token": SMALL,
    "mean": ViTConfig(**{**SMALL.__dict__, "pool": "mean", "gelu": "erf"}),
    "plain": ViTConfig.plain(image_size=8, patch_size=2, channels=1, width=64, depth=2, heads=4, classes=10),
    "many tokens": ViTConfig(image_size=17, patch_size=1, channels=1, width=16, depth=1, heads=2, hidden=24, classes=3),
    "many tokens, mean": ViTConfig(image_size=17, patch_size=1, channels=1, width=16, depth=1, heads=1, hidden=24,
                                   classes=3, pool="mean"),
    "wide": ViTConfig(image_size=4, patch_size=2, width=261, depth=1, heads=3, hidden=515, classes=300),
}  # fmt: skip


def batch(config, N, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, config.channels, *config.image_size)).astype(dtype), rng.integers(
        config.classes, size=N
    )


def model(config, dtype=np.float32):
    """With weights that are nowhere zero, as a trained model's."""
    weights = cvit.init_weights(config, 0, dtype=dtype)
    weights += 0.1 * np.random.default_rng(1).standard_normal(weights.size).astype(dtype)
    return ViT(config, weights)


# ------------------------------------------------------------------------------- 1: the same bits for any number of
# threads


@pytest.mark.parametrize("optimizer", [
    lambda layout, dtype: SGD(layout, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3, dtype=dtype),
    lambda layout, dtype: AdamW(layout, 1e-3, weight_decay=0.05, dtype=dtype),
], ids=["SGD", "AdamW"])  # fmt: skip
@pytest.mark.parametrize("name", ["class token", "mean", "wide"])
def test_training_gives_the_same_weights(isa, dtype, optimizer, name):
    """Twenty steps with clipping and label smoothing: weights, losses and gradient norms, bit for bit."""
    config, steps = CONFIGS[name], 20 if name != "wide" else 4
    batches = [batch(config, 13, dtype, seed) for seed in range(steps)]

    def train():
        trained = model(config, dtype)
        step = optimizer(trained.layout, dtype).step
        record = []
        for x, y in batches:
            loss, grad = trained.loss_and_grad(x, y, label_smoothing=0.1)
            record.append((loss, step(trained.weights, grad, clip_norm=1.0)))
        return trained.weights, record

    weights, record = on_all_threads(train)
    assert np.isfinite(weights).all() and record[-1][0] < record[0][0]


def test_threads_may_change_between_steps():
    config = CONFIGS["class token"]
    x, y = batch(config, 9)

    def train(threads):
        trained = model(config)
        optimizer = SGD(trained, 0.05, momentum=0.9)
        for step in range(12):
            cvit.set_num_threads(threads[step % len(threads)])
            optimizer.step(trained.weights, trained.loss_and_grad(x, y)[1])
        return trained.weights

    assert same_bits(train([1]), train([5, 1, 3, 2]))


@pytest.mark.parametrize("checkpoint", [None, "block"])
@pytest.mark.parametrize("name", ["plain", "class token"])
def test_short_images_go_through_a_block_together_or_not(name, checkpoint):
    """It depends on batch and threads which stages a task takes; the bits do not."""
    config, seen = CONFIGS[name], set()
    for N in (1, 4, 9, 32):
        x, y = batch(config, N)
        net, results = ViT(config, model(config).weights, checkpoint=checkpoint), []
        for threads in (1, 2, 3, 5, 8):
            cvit.set_num_threads(threads)
            seen.add(net._engine(N, "train").whole_blocks)
            loss, grad = net.loss_and_grad(x, y)
            results.append((loss, grad.copy(), net.forward(x)))
        assert all(same_bits(other, results[0]) for other in results)
    assert seen == ({False, True} if checkpoint is None else {False})


@pytest.mark.parametrize("precision", ["f32", "f64", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_of_rows_fit_a_threads_scratch(precision, name):
    """However they are cut: the plan asserts it."""
    dtype = np.float64 if precision == "f64" else np.float32
    for N in (*range(1, 40), 64, 100, 128):
        plan = _engine.Plan(program_of(CONFIGS[name]), N, dtype, "train", precision=precision, dry=True)
        for threads in (*range(1, 18), 33, 64, 100):
            cvit.set_num_threads(threads)
            assert plan.stages()


# ------------------------------------------------------------------------------- 2: images do not see each other


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_equals_one_by_one(isa, dtype, name, rng):
    """Every batch size cuts the work in other pieces; an image's logits and features stay the same bits, wherever it
    stands."""
    config = CONFIGS[name]
    net = model(config, dtype)
    sizes = (1, 2, 3, 8, 33, 57, 65, 71) if config.tokens < 200 else (1, 2, 3, 5, 9, 17)
    x, _ = batch(config, max(sizes), dtype)
    logits, features = (
        np.concatenate([call(x[n : n + 1]) for n in range(len(x))]) for call in (net.forward, net.features)
    )
    for N in sizes:
        cvit.set_num_threads(int(rng.integers(1, 6)))
        chosen = rng.choice(len(x), size=N, replace=False)
        assert same_bits(net.forward(x[chosen]), logits[chosen])
        assert same_bits(net.features(x[chosen]), features[chosen])


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_gives_the_same_bits(isa, dtype, name):
    config = CONFIGS[name]
    net, frozen = model(config, dtype), model(config, dtype).freeze()
    for N in (1, 3, 20):
        x, _ = batch(config, N, dtype)
        assert same_bits(
            on_all_threads(lambda: (frozen.forward(x), frozen.features(x))), (net.forward(x), net.features(x))
        )


def test_a_neighbour_of_nan_does_no_harm(isa):
    config = CONFIGS["class token"]
    net = model(config)
    x, _ = batch(config, 5)
    expected = net.forward(x)
    x[2] = np.nan
    logits = net.forward(x)
    assert np.isnan(logits[2]).all()
    others = [0, 1, 3, 4]
    assert same_bits(logits[others], expected[others])


# ------------------------------------------------------------------------------- freezing


def test_freezing_and_back():
    config = CONFIGS["class token"]
    net = model(config)
    x, y = batch(config, 4)
    weights, logits = net.weights, net.forward(x)
    assert net.freeze() is net and not net.weights.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        net.weights[0] = 1
    with pytest.raises(ValueError, match="frozen"):
        net.loss_and_grad(x, y)
    assert same_bits(net.forward(x), logits)
    net.freeze()  # twice is as good as once
    assert net.unfreeze() is net and net.unfreeze().weights.flags.writeable
    assert np.shares_memory(net.weights, weights)
    net.weights *= np.float32(0.5)  # and it is this model's weights that a step changes
    assert not same_bits(net.forward(x), logits)
    net.loss_and_grad(x, y)
    assert same_bits(net.freeze().forward(x), ViT(config, weights.copy()).forward(x))


def test_a_frozen_model_follows_the_instruction_set():
    config = CONFIGS["plain"]
    frozen, net = model(config).freeze(), model(config)
    x, _ = batch(config, 3)
    for isa in cvit.available_isas() + cvit.available_isas()[::-1]:
        cvit.set_isa(isa)
        assert same_bits(frozen.forward(x), net.forward(x))


# ------------------------------------------------------------------------------- 3: no allocation in a step

TRAINED = ViTConfig(image_size=16, patch_size=4, channels=3, width=96, depth=3, heads=3, hidden=192, classes=10)


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_a_step_allocates_nothing(optimizer):
    """After the first step Python's allocator (NumPy's arrays go through it) sees a few small objects come and go, no
    array."""
    net = model(TRAINED)
    update = optimizer(net, 1e-3, weight_decay=0.1, **({"momentum": 0.9} if optimizer is SGD else {}))
    x, y = batch(TRAINED, 32)

    def step():
        _, grad = net.loss_and_grad(x, y)
        update.step(net.weights, grad, clip_norm=1.0)

    for _ in range(3):
        step()
    tracemalloc.start()
    step()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for _ in range(10):
        step()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert net.plan(32).bytes > 5_000_000
    assert after - before < 2_000 and peak - before < 20_000


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_the_process_does_not_grow():
    """Nor does anything below Python allocate: resident memory stays as it is over a hundred steps and forwards."""
    net = model(TRAINED)
    update = AdamW(net, 1e-3)
    x, y = batch(TRAINED, 16)

    def step():
        _, grad = net.loss_and_grad(x, y)
        update.step(net.weights, grad)
        net.forward(x)

    for _ in range(10):
        step()
    before = resident()
    for _ in range(100):
        step()
    assert resident() - before < 300_000


def test_models_give_their_memory_back():
    """A model that goes takes its arena with it."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("reads /proc")
    x, y = batch(TRAINED, 16)

    def use():
        model(TRAINED).loss_and_grad(x, y)

    for _ in range(3):
        use()
    before = resident()
    for _ in range(10):
        use()
    assert resident() - before < ViT(TRAINED).plan(16).bytes


@pytest.fixture
def allocated(monkeypatch):
    """The bytes of every arena that is made."""
    sizes = []
    allocate = _engine.allocate

    def recorded(count, dtype):
        sizes.append(count * np.dtype(dtype).itemsize)
        return allocate(count, dtype)

    monkeypatch.setattr(_engine, "allocate", recorded)
    return sizes


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_plan_tells_the_bytes(allocated, dtype, name, threads):
    config = CONFIGS[name]
    cvit.set_num_threads(threads)
    for N in (1, 6, 40):
        x, y = batch(config, N, dtype)
        net = model(config, dtype)
        plan, infer = net.plan(N), net.plan(N, "infer")
        assert not allocated  # a plan is made before anything is
        out = np.empty_like(net.weights)
        net.loss_and_grad(x, y, out=out)
        assert sum(allocated) == plan.bytes == sum(plan.buffers.values())
        allocated.clear()
        net.forward(x)
        assert sum(allocated) == infer.bytes
        allocated.clear()
        net.loss_and_grad(x, y, out=out)
        net.forward(x)
        assert not allocated


def test_activations_may_lie_in_the_gradient():
    """The room of gradients that are not written yet holds activations: wherever that vector begins, whatever it
    held."""
    config = dataclasses.replace(TRAINED, depth=5)
    net = model(config)
    plan = net.plan(2)
    assert plan.lent > 4 * (plan.buffers["block inputs"] + plan.buffers["q, k, v"]) and "in the gradient's room" in str(
        plan
    )
    x, y = batch(config, 2)
    loss, grad = net.loss_and_grad(x, y)
    expected, logits = grad.copy(), net.logits.copy()
    for shift in (1, 3, 16, 21):
        out = np.full(grad.size + shift, np.nan, np.float32)[shift:]
        again, _ = net.loss_and_grad(x, y, out=out)
        assert again == loss and same_bits(out, expected) and same_bits(net.logits, logits)


def test_a_plan_can_be_printed():
    text = str(ViT(TRAINED).plan(8))
    assert "training, batch 8" in text and "q, k, v" in text and "packed weights" in text
    assert f"{ViT(TRAINED).plan(8).bytes / 1e6:.3f} MB" in text.splitlines()[-1]
    assert "inference" in str(ViT(TRAINED).plan(8, "infer"))


def test_memory_grows_linearly_in_tokens():
    """Nothing of size T x T: four times the tokens, four times the memory."""
    size = lambda side: (
        ViT(ViTConfig(image_size=side, patch_size=1, channels=1, width=32, depth=2, heads=2, hidden=64, classes=2))
        .plan(1)
        .bytes
    )
    assert size(64) < 4.2 * size(32)
