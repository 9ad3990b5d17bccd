"""The moving average of the weights: the formula, timm's, the kernel, the state."""

import copy
import re

import numpy as np
import pytest
from checks import assert_rounded, normal, on_all_threads, peer, same_bits
from kernel_calls import Table, at

from cvit.model.config import ViTConfig
from cvit.model.vit import ViT
from cvit.train.ema import EMA

SMALL = dict(image_size=8, patch_size=4, channels=1, width=6, depth=2, heads=2, hidden=10, classes=3)


def model_of(dtype=np.float32, **changes):
    model = ViT(ViTConfig(**{**SMALL, **changes}), dtype=dtype)
    model.weights[:] = normal(np.random.default_rng(7), model.layout.size)
    return model


@pytest.mark.parametrize("n", [1, 3, 15, 16, 17, 64, 100, 1001])
def test_the_kernel(isa, dtype, rng, n):
    x, e = normal(rng, n + 1, dtype=dtype), normal(rng, n + 1, dtype=dtype)
    before, rate = e.copy(), float(dtype(0.3))
    Table(dtype).average(n, 0.3, at(x), at(e))
    expected = before.astype(np.float64) + rate * (x.astype(np.float64) - before)
    assert_rounded(e[:n], expected[:n], np.abs(before[:n]) + np.abs(x[:n]), 3)
    assert e[n] == before[n]


@pytest.mark.parametrize("warmup", [False, True])
def test_the_formula(dtype, rng, warmup):
    model = model_of(dtype)
    ema, expected = EMA(model, 0.6, warmup), model.weights.astype(np.float64)
    for t in range(1, 15):
        weights = normal(rng, model.layout.size, dtype=dtype)
        decay = min(0.6, (1 + t) / (10 + t)) if warmup else 0.6
        expected += (1 - decay) * (weights - expected)
        ema.update(weights)
    assert ema.updates == 14 and ema.weights.dtype == dtype
    np.testing.assert_allclose(ema.weights, expected, rtol=1e-5 if dtype == np.float32 else 1e-13, atol=1e-6)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_of_timm(dtype, rng, warmup):
    """timm's warm-up is another one: it is given ours."""
    torch = peer("torch")
    peer("timm")
    from timm.utils.model_ema import ModelEmaV3

    model = model_of(dtype)
    theirs_model = torch.nn.Module()
    theirs_model.weights = torch.nn.Parameter(torch.from_numpy(model.weights.copy()))
    theirs, ours = ModelEmaV3(theirs_model, decay=0.9), EMA(model, 0.9, warmup)
    for t in range(1, 101):
        model.weights[:] = normal(rng, model.layout.size, dtype=dtype)
        with torch.no_grad():
            theirs_model.weights.copy_(torch.from_numpy(model.weights))
        theirs.decay = min(0.9, (1 + t) / (10 + t)) if warmup else 0.9
        theirs.update(theirs_model)
        ours.update(model.weights)
    bound = 1e-5 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(ours.weights, theirs.module.weights.detach().numpy(), rtol=bound, atol=bound)


def test_what_is_not_trained_is_neither_read_nor_written(rng):
    model = model_of()
    ema = EMA(model, 0.5, False, trained=["blocks.1.*"])
    weights = np.full_like(model.weights, np.nan)
    model.layout.views(weights)["blocks.1.attn.q.weight"][:] = 3
    ema.update(weights)
    before, after = model.layout.views(model.weights), model.layout.views(ema.weights.copy())
    for name, tensor in after.items():
        if not name.startswith("blocks.1."):
            assert same_bits(tensor, before[name])
    np.testing.assert_allclose(after["blocks.1.attn.q.weight"], (before["blocks.1.attn.q.weight"] + 3) / 2, 1e-6, 1e-6)


def test_any_number_of_threads_gives_the_same_bits(rng):
    model = model_of(width=128, hidden=512)
    weights = normal(rng, model.layout.size, dtype=np.float32)

    def call():
        ema = EMA(model, 0.99)
        ema.update(weights)
        return ema.weights

    on_all_threads(call)


def test_the_average_is_a_copy_that_only_updates_change(rng):
    model = model_of()
    ema = EMA(model)
    model.weights[:] = 0
    assert ema.weights.all()
    with pytest.raises(ValueError, match="read-only"):
        ema.weights[:] = 0
    model.weights[:] = ema.weights
    assert same_bits(model.weights, ema.weights)


def test_a_state_goes_on(rng):
    model = model_of()
    ema, other = EMA(model, 0.95), EMA(model_of(), 0.1, False)
    for _ in range(3):
        ema.update(normal(rng, model.layout.size, dtype=np.float32))
    state = ema.state_dict()
    other.load_state_dict(state)
    state["weights"][:] = np.nan
    last = normal(rng, model.layout.size, dtype=np.float32)
    ema.update(last), other.update(last)
    assert same_bits(ema.weights, other.weights)
    assert (other.decay, other.warmup, other.updates) == (0.95, True, 4)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda s: s.pop("decay"), ValueError, "state lacks decay"),
        (lambda s: s.update(m=1), ValueError, "state has keys that EMA does not know: 'm'"),
        (lambda s: s.update(decay=1.0), ValueError, "decay must be below 1"),
        (lambda s: s.update(updates=-1), ValueError, "updates must be at least 0"),
        (lambda s: s.update(weights=np.zeros(3, np.float32)), ValueError, "weights must have shape"),
        (lambda s: s.update(weights=s["weights"].astype(np.float64)), TypeError, "of float32, got float64"),
    ],
)
def test_a_wrong_state_changes_nothing(change, error, message):
    ema = EMA(model_of(), 0.5)
    before, state = ema.state_dict(), ema.state_dict()
    change(state)
    with pytest.raises(error, match=re.escape(message)):
        ema.load_state_dict(state)
    assert same_bits(list(ema.state_dict().values()), list(before.values()))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda m: EMA(m.layout), TypeError, "model must be a ViT, got Layout"),
        (lambda m: EMA(m, 1), ValueError, "decay must be below 1"),
        (lambda m: EMA(m, -0.1), ValueError, "decay must be finite and at least 0"),
        (lambda m: EMA(m, trained=["x"]), ValueError, "trained: 'x' matches no tensor"),
        (lambda m: EMA(m).update(m.weights[1:]), ValueError, "weights must have shape"),
        (lambda m: EMA(m).update(m.weights.astype(np.float64)), TypeError, "of float32, got float64"),
        (lambda m: (e := EMA(m)).update(e.weights), ValueError, "weights must not be the average itself"),
        (lambda m: EMA(m).load_state_dict([1]), TypeError, "state must be a mapping"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(model_of())


def test_a_copy_goes_on_alone():
    ema = EMA(model_of(), 0.5)
    other = copy.deepcopy(ema)
    ema.update(ema.weights + np.float32(1))
    assert other.updates == 0 and not same_bits(ema.weights, other.weights)
