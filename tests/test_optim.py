"""The optimizers against their formulas in NumPy and against torch.optim; clipping, schedule, and bad calls."""

import functools
import math

import numpy as np
import pytest

from cvit.model.config import ViTConfig
from cvit.model.layout import Layout
from cvit.train.optim import SGD, AdamW, clip, warmup_cosine

LAYOUT = Layout.of(ViTConfig(image_size=8, patch_size=4, channels=1, width=6, depth=2, heads=2, hidden=10, classes=3))
DTYPES = [np.float32, np.float64]
# Rounding of a few operations a step; float32 moments divided by their square root lose a little more.
RTOL = {np.float32: 2e-5, np.float64: 1e-13}

SGD_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
]
ADAMW_OPTIONS = [
    {},
    {"weight_decay": 0.0},
    {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
    {"betas": (0.0, 0.0)},
]


def vectors(dtype, steps, seed=0):
    """Weights (size,) and one gradient (size,) a step."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=LAYOUT.size).astype(dtype), rng.normal(size=(steps, LAYOUT.size)).astype(dtype)


def sgd_formula(w, grads, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    w, velocity = w.astype(np.float64), 0.0
    for grad in grads.astype(np.float64):
        d = grad + weight_decay * LAYOUT.decay_mask() * w
        velocity = momentum * velocity + d
        w = w - lr * (d + momentum * velocity if nesterov else velocity)
    return w


def adamw_formula(w, grads, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    w, m, v = w.astype(np.float64), 0.0, 0.0
    for t, grad in enumerate(grads.astype(np.float64), start=1):
        w = w * (1 - lr * weight_decay * LAYOUT.decay_mask())
        m = betas[0] * m + (1 - betas[0]) * grad
        v = betas[1] * v + (1 - betas[1]) * grad**2
        w = w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


CASES = [(SGD, sgd_formula, options) for options in SGD_OPTIONS]
CASES += [(AdamW, adamw_formula, options) for options in ADAMW_OPTIONS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer_class, formula, options", CASES)
def test_formula(optimizer_class, formula, options, dtype):
    w, grads = vectors(dtype, steps=7)
    expected = formula(w, grads, 0.05, **options)
    optimizer = optimizer_class(LAYOUT, 0.05, dtype=dtype, **options)
    kept = grads.copy()
    for grad in grads:
        assert optimizer.step(w, grad) is None
    assert w.dtype == dtype and optimizer.steps == 7
    np.testing.assert_allclose(w, expected, rtol=RTOL[dtype], atol=RTOL[dtype])
    np.testing.assert_array_equal(grads, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer_class, formula, options", CASES)
def test_torch(optimizer_class, formula, options, dtype):
    torch = pytest.importorskip("torch")
    w, grads = vectors(dtype, steps=7)
    mask = LAYOUT.decay_mask()
    decayed, free = (torch.from_numpy(w[part].copy()).requires_grad_() for part in (mask, ~mask))
    options_torch = {"weight_decay": 0.01 if optimizer_class is AdamW else 0.0, **options}
    theirs = getattr(torch.optim, optimizer_class.__name__)(
        [{"params": [decayed]}, {"params": [free], "weight_decay": 0.0}], lr=0.05, **options_torch
    )
    ours = optimizer_class(LAYOUT, 0.05, dtype=dtype, **options)
    for grad in grads:
        decayed.grad, free.grad = torch.from_numpy(grad[mask]), torch.from_numpy(grad[~mask])
        theirs.step()
        ours.step(w, grad)
    for part, tensor in ((mask, decayed), (~mask, free)):
        np.testing.assert_allclose(w[part], tensor.detach().numpy(), rtol=RTOL[dtype], atol=RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer_class, formula", [(SGD, sgd_formula), (AdamW, adamw_formula)])
def test_clipping_is_the_update_with_a_scaled_gradient(optimizer_class, formula, dtype):
    w, grads = vectors(dtype, steps=3)
    norms = np.linalg.norm(grads.astype(np.float64), axis=1)
    limit = float(np.sort(norms)[1])  # one gradient is shorter and left as it is, one is longer
    expected = formula(w, grads * np.minimum(1, limit / norms)[:, None], 0.05)
    optimizer = optimizer_class(LAYOUT, 0.05, dtype=dtype)
    returned = [optimizer.step(w, grad, clip_norm=limit) for grad in grads]
    np.testing.assert_allclose(returned, norms, rtol=1e-6 if dtype == np.float32 else 1e-13)
    np.testing.assert_allclose(w, expected, rtol=RTOL[dtype], atol=RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip(dtype):
    grad = np.array([3, 4], dtype)
    assert clip(grad, 10) == 5
    np.testing.assert_array_equal(grad, [3, 4])
    assert clip(grad, 1) == 5
    np.testing.assert_allclose(grad, [0.6, 0.8], rtol=1e-6)
    assert clip(np.zeros(2, dtype), 1) == 0


def test_a_zero_gradient_with_clipping_changes_nothing():
    w, _ = vectors(np.float32, 1)
    before = w.copy()
    assert SGD(LAYOUT).step(w, np.zeros_like(w), clip_norm=1.0) == 0
    np.testing.assert_array_equal(w, before)


def test_lr_of_the_step_stands_in_for_the_optimizers():
    (w, grads), (other, _) = vectors(np.float64, 1), vectors(np.float64, 1)
    SGD(LAYOUT, 0.5, dtype=np.float64).step(w, grads[0])
    SGD(LAYOUT, 99, dtype=np.float64).step(other, grads[0], lr=0.5)
    np.testing.assert_array_equal(w, other)


def test_sgd_without_momentum_keeps_no_state():
    assert SGD(LAYOUT).velocity is None


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: SGD(LAYOUT, -0.1), ValueError, "lr must be finite and at least 0"),
        (lambda: SGD(LAYOUT, math.nan), ValueError, "lr must be finite"),
        (lambda: SGD(LAYOUT, math.inf), ValueError, "lr must be finite"),
        (lambda: SGD(LAYOUT, "fast"), TypeError, "lr must be a number, got 'fast'"),
        (lambda: SGD(LAYOUT, 0.1, momentum=1.0), ValueError, "momentum must be below 1, got 1.0"),
        (lambda: SGD(LAYOUT, 0.1, momentum=-0.1), ValueError, "momentum"),
        (lambda: SGD(LAYOUT, 0.1, nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda: SGD(LAYOUT, 0.1, weight_decay=-1), ValueError, "weight_decay"),
        (lambda: SGD(LAYOUT, 0.1, dtype=np.float16), TypeError, "dtype must be float32 or float64, got float16"),
        (lambda: SGD(np.zeros(3), 0.1), TypeError, "model must be a ViT or a Layout, got ndarray"),
        (lambda: AdamW(LAYOUT, betas=(0.9, 1.0)), ValueError, "betas must be below 1"),
        (lambda: AdamW(LAYOUT, betas=0.9), ValueError, "betas must be two numbers"),
        (lambda: AdamW(LAYOUT, eps=0), ValueError, "eps must be greater than 0"),
        (lambda: warmup_cosine(0, 10, 11, 0.1), ValueError, "warmup must lie between 0 and total = 10, got 11"),
        (lambda: warmup_cosine(-1, 10, 1, 0.1), ValueError, "step must be at least 0"),
        (lambda: warmup_cosine(0, 10, 1, math.nan), ValueError, "base_lr"),
        (lambda: warmup_cosine(0, 10, 1, 0.1, -1), ValueError, "final_lr"),
        (lambda: clip(np.zeros(3), 0), ValueError, "clip_norm must be greater than 0"),
        (lambda: clip(np.array([1, math.inf]), 1), ValueError, "grad must be finite, but its norm is inf"),
        (lambda: clip([1.0], 1), TypeError, "grad must be a NumPy array"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("optimizer_class", [functools.partial(SGD, momentum=0.9), AdamW])
@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda w, g: dict(weights=w[:-1]), ValueError, r"weights must have shape \(\d+,\), got"),
        (lambda w, g: dict(weights=w.astype(np.float64)), TypeError, "weights must be .* of float32, got float64"),
        (lambda w, g: dict(weights=list(w)), TypeError, "weights must be a NumPy array of float32, got list"),
        (lambda w, g: dict(weights=np.repeat(w, 2)[::2]), ValueError, "weights must be contiguous"),
        (lambda w, g: dict(weights=read_only(w)), ValueError, "weights must be writable"),
        (lambda w, g: dict(grad=g[None]), ValueError, "grad must have shape"),
        (lambda w, g: dict(grad=g.astype(np.float16)), TypeError, "grad must be .* of float32, got float16"),
        (lambda w, g: dict(grad=g[::-1]), ValueError, "grad must be contiguous"),
        (lambda w, g: dict(grad=w), ValueError, "must not overlap"),
        (lambda w, g: dict(lr=math.nan), ValueError, "lr must be finite"),
        (lambda w, g: dict(lr=-1.0), ValueError, "lr must be finite"),
        (lambda w, g: dict(clip_norm=0), ValueError, "clip_norm must be greater than 0"),
        (lambda w, g: dict(clip_norm=math.nan), ValueError, "clip_norm must be finite"),
        (lambda w, g: dict(grad=np.full_like(g, math.nan), clip_norm=1), ValueError, "grad must be finite"),
    ],
)
def test_a_bad_step_changes_nothing(optimizer_class, change, error, message):
    w, grads = vectors(np.float32, 1)
    optimizer = optimizer_class(LAYOUT)
    before = w.copy()
    with pytest.raises(error, match=message):
        optimizer.step(**{"weights": w, "grad": grads[0], **change(w, grads[0])})
    np.testing.assert_array_equal(w, before)
    assert optimizer.steps == 0
    state = [optimizer.m, optimizer.v] if isinstance(optimizer, AdamW) else [optimizer.velocity]
    assert not any(vector.any() for vector in state)


def test_a_read_only_gradient_is_fine():
    w, grads = vectors(np.float32, 1)
    SGD(LAYOUT).step(w, read_only(grads[0]))


def test_warmup_cosine():
    schedule = functools.partial(warmup_cosine, total=110, warmup=10, base_lr=2.0, final_lr=0.5)
    assert schedule(0) == pytest.approx(0.2)
    assert schedule(9) == schedule(10) == 2.0
    assert schedule(60) == pytest.approx(1.25)  # half way down
    assert schedule(110) == schedule(1000) == 0.5
    rates = [schedule(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    assert warmup_cosine(0, 5, 0, 1.0) == 1.0
    assert warmup_cosine(4, 5, 5, 1.0) == 1.0 and warmup_cosine(5, 5, 5, 1.0) == 0.0
