"""The optimizers against their formulas in NumPy and against torch.optim; clipping, schedule, and bad calls."""

import copy
import functools
import math
import pickle
import re

import numpy as np
import pytest
from checks import peer, same_bits

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
    torch = peer("torch")
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", ["large", "small", "one"])
def test_a_norm_whose_squares_leave_the_element_type(dtype, largest):
    """A gradient that holds one 2e19 is finite, though its square is none in float32."""
    w, grads = vectors(dtype, 1)
    limits = np.finfo(dtype)
    grad = grads[0] if largest == "one" else np.ones_like(grads[0])
    if largest == "one":
        grad[3] = 2e19 if dtype == np.float32 else 2e200
    elif largest == "large":
        grad *= limits.max / 100
    else:
        grad *= limits.tiny * 2
    exact = math.hypot(*grad.tolist())
    before = w.copy()
    optimizer = SGD(LAYOUT, 1.0, dtype=dtype)
    assert optimizer.step(w, grad, clip_norm=1.0) == pytest.approx(exact, rel=1e-6)
    if largest != "small":  # a small gradient is not clipped, and changes nothing
        np.testing.assert_allclose(before - w, grad.astype(np.float64) / exact, atol=1e-6)
    assert clip(grad, 1.0) == pytest.approx(exact, rel=1e-6)
    assert np.square(grad, dtype=np.float64).sum() == pytest.approx(min(1.0, exact) ** 2, rel=1e-6)


def test_clipping_by_a_factor_that_float32_does_not_have():
    """From a norm of 1e30 to 1e-20: 1e-50 would be 0."""
    grad = np.full(LAYOUT.size, 1e30, np.float32)
    w, expected = np.zeros_like(grad), 1e-20 / math.sqrt(grad.size)
    SGD(LAYOUT, 1.0).step(w, grad, clip_norm=1e-20)
    np.testing.assert_allclose(w, -expected, rtol=1e-6)
    clip(grad, 1e-20)
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite(value):
    w, grads = vectors(np.float32, 1)
    grads[0][5] = value
    for call in (lambda: SGD(LAYOUT).step(w, grads[0], clip_norm=1), lambda: clip(grads[0], 1)):
        with pytest.raises(ValueError, match=r"grad must be finite, but its norm is (nan|inf)"):
            call()


# ------------------------------------------------------------------------------------------------- options and state


def options(optimizer):
    """Everything that may be set, as it is."""
    state = optimizer.state_dict()
    return {name: copy.copy(value) for name, value in state.items()}


BAD_VECTORS = [
    (lambda size: np.zeros(3, np.float32), ValueError, "must have shape"),
    (lambda size: np.zeros((size, 1), np.float32), ValueError, "must have shape"),
    (lambda size: np.zeros(size), TypeError, "must be float32, as the optimizer is, got float64"),
    (lambda size: np.zeros(size, np.int32), TypeError, "must be float32 or float64, got int32"),
    (lambda size: np.ma.zeros(size, np.float32), TypeError, "is a masked array"),
]
BAD_OPTIONS = [
    (AdamW, "lr", math.nan, ValueError, "lr must be finite"),
    (SGD, "lr", -1, ValueError, "lr must be finite and at least 0, got -1"),
    (SGD, "lr", 1e39, ValueError, "lr must be at most 3.403e+38, the largest float32, got 1e+39"),
    (SGD, "lr", "fast", TypeError, "lr must be a number"),
    (AdamW, "weight_decay", 1e39, ValueError, "weight_decay must be at most"),
    (AdamW, "weight_decay", None, TypeError, "weight_decay must be a number, got None"),
    (AdamW, "eps", 1e-46, ValueError, "eps must be at least 1.175e-38, the smallest normal float32, got 1e-46"),
    (AdamW, "eps", 0, ValueError, "eps must be greater than 0, got 0"),
    (AdamW, "betas", (0.9, 1 - 1e-9), ValueError, "betas must be below 1, got 0.999999999 (it rounds to 1 in float32)"),
    (AdamW, "betas", (0.9, math.nan), ValueError, "betas must be finite"),
    (AdamW, "betas", [0.9], ValueError, "betas must be two numbers, got [0.9]"),
    (SGD, "momentum", 1 - 1e-9, ValueError, "momentum must be below 1, got 0.999999999 (it rounds to 1 in float32)"),
    (SGD, "momentum", 0, ValueError, "nesterov needs a momentum greater than 0"),
    (SGD, "steps", -1, ValueError, "steps must be at least 0, got -1"),
    (SGD, "steps", 1.5, ValueError, "steps must be a whole number"),
    (SGD, "steps", 2**63, ValueError, "steps must be at most"),
    (SGD, "velocity", None, ValueError, "with a momentum above 0, got None"),
    *[(AdamW, "m", *bad) for bad in BAD_VECTORS],
    *[(AdamW, "v", *bad) for bad in BAD_VECTORS],
    *[(SGD, "velocity", *bad) for bad in BAD_VECTORS],
    (AdamW, "v", lambda size: np.full(size, -1, np.float32), ValueError, "v must not be negative, got -1"),
    (AdamW, "m", None, TypeError, "m must be an array, got None"),
]


def stepped(optimizer_class):
    """An optimizer of all options that has a state."""
    chosen = dict(momentum=0.9, nesterov=True) if optimizer_class is SGD else dict(betas=(0.8, 0.99), eps=1e-6)
    optimizer = optimizer_class(LAYOUT, 0.01, weight_decay=0.1, **chosen)
    w, grads = vectors(np.float32, 3)
    for grad in grads:
        optimizer.step(w, grad)
    return optimizer, w


@pytest.mark.parametrize("optimizer_class, name, value, error, message", BAD_OPTIONS)
def test_a_bad_option_is_refused_and_changes_nothing(optimizer_class, name, value, error, message):
    """When it is set as when it is loaded."""
    optimizer, _ = stepped(optimizer_class)
    before = options(optimizer)
    value = value(LAYOUT.size) if callable(value) else value
    for change in (setattr, lambda o, name, value: o.load_state_dict({**before, "lr": 9.0, name: value})):
        with pytest.raises(error, match=re.escape(message)):
            change(optimizer, name, value)
        assert same_bits(list(options(optimizer).values()), list(before.values()))


@pytest.mark.parametrize("name", ["size", "dtype"])
def test_what_an_optimizer_is_can_not_be_set(name):
    with pytest.raises(AttributeError, match=name):
        setattr(SGD(LAYOUT), name, 3)


def test_options_may_change_between_steps():
    (w, grads), (other, _) = vectors(np.float64, 2), vectors(np.float64, 2)
    optimizer = AdamW(LAYOUT, 1.0, dtype=np.float64)
    optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay = 0.5, [0.8, 0.9], 1e-3, 0.2
    expected = AdamW(LAYOUT, 0.5, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2, dtype=np.float64)
    for grad in grads:
        optimizer.step(w, grad)
        expected.step(other, grad)
    assert same_bits(w, other)


def test_momentum_may_come_and_go():
    optimizer = SGD(LAYOUT)
    with pytest.raises(ValueError, match="velocity must be None without momentum, got an array"):
        optimizer.velocity = np.zeros(LAYOUT.size, np.float32)
    optimizer.velocity = None
    optimizer.momentum = 0.9
    assert optimizer.velocity.shape == (LAYOUT.size,) and not optimizer.velocity.any()
    optimizer.nesterov = True
    optimizer.nesterov = False
    optimizer.momentum = 0
    assert optimizer.velocity is None


def test_a_vector_that_is_assigned_is_copied():
    optimizer, vector = AdamW(LAYOUT), np.ones(LAYOUT.size, ">f4")
    optimizer.m = vector
    vector[:] = 7
    assert (optimizer.m == 1).all() and optimizer.m.dtype == np.float32
    optimizer.m *= np.float32(2)
    assert (optimizer.m == 2).all()
    for name in ("m", "v"):
        with pytest.raises(ValueError, match="resize"):
            getattr(optimizer, name).resize(3, refcheck=False)


@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_a_state_goes_on_in_another_optimizer(optimizer_class):
    optimizer, w = stepped(optimizer_class)
    state, others = optimizer.state_dict(), w.copy()
    other = optimizer_class(LAYOUT)
    other.load_state_dict(state)
    _, grads = vectors(np.float32, 2, seed=5)
    for grad in grads:
        optimizer.step(w, grad)
    for vector in state.values():  # copies on both ways
        if isinstance(vector, np.ndarray):
            vector[:] = np.nan
    for grad in grads:
        other.step(others, grad)
    assert same_bits(w, others) and other.steps == optimizer.steps == 5
    assert same_bits(list(options(other).values()), list(options(optimizer).values()))


def test_a_state_without_momentum():
    optimizer, _ = stepped(SGD)
    optimizer.load_state_dict(SGD(LAYOUT, 0.3).state_dict())
    assert optimizer.state_dict() == dict(
        steps=0, lr=0.3, weight_decay=0.0, momentum=0.0, nesterov=False, velocity=None
    )


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda s: s.pop("m"), ValueError, "state lacks m"),
        (lambda s: (s.pop("v"), s.pop("lr")), ValueError, "state lacks lr, v"),
        (lambda s: s.update(momentum=0.9), ValueError, "state has keys that AdamW does not know: 'momentum'"),
        (lambda s: s.update({"x" * 10**5: 0}), ValueError, "state has keys that AdamW does not know: 'xxx"),
    ],
)
def test_a_state_of_other_keys(change, error, message):
    optimizer, _ = stepped(AdamW)
    before = options(optimizer)
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(error, match=re.escape(message)) as caught:
        optimizer.load_state_dict(state)
    assert len(str(caught.value)) < 300
    assert same_bits(list(options(optimizer).values()), list(before.values()))
    with pytest.raises(TypeError, match="state must be a mapping, as state_dict"):
        optimizer.load_state_dict([state])
    with pytest.raises(ValueError, match="state lacks betas, eps, m, v"):
        optimizer.load_state_dict(SGD(LAYOUT).state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_a_copy_goes_on_alone(optimizer_class, duplicate):
    optimizer, w = stepped(optimizer_class)
    other, others = duplicate(optimizer), w.copy()
    _, grads = vectors(np.float32, 2, seed=5)
    for grad in grads:
        optimizer.step(w, grad)
    for grad in grads:
        other.step(others, grad)
    assert same_bits(w, others)


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
        (lambda: AdamW(LAYOUT, eps=1e-46), ValueError, "eps must be at least 1.175e-38"),
        (lambda: SGD(LAYOUT, 1e39), ValueError, "lr must be at most 3.403e\\+38, the largest float32"),
        (lambda: warmup_cosine("a", 10, 1, 0.1), TypeError, "step must be an integer, got 'a'"),
        (lambda: warmup_cosine(math.nan, 10, 1, 0.1), TypeError, "step must be an integer, got nan"),
        (lambda: warmup_cosine(0.5, 10, 1, 0.1), ValueError, "step must be a whole number, got 0.5"),
        (lambda: warmup_cosine(0, None, 1, 0.1), TypeError, "total must be an integer, got None"),
        (lambda: warmup_cosine(0, -1, 0, 0.1), ValueError, "total must be at least 0, got -1"),
        (lambda: warmup_cosine(0, 10, [1], 0.1), TypeError, "warmup must be an integer, got \\[1\\]"),
        (lambda: warmup_cosine(0, 10, 1, "high"), TypeError, "base_lr must be a number, got 'high'"),
        (lambda: warmup_cosine(0, 10, 11, 0.1), ValueError, "warmup must lie between 0 and total = 10, got 11"),
        (lambda: warmup_cosine(-1, 10, 1, 0.1), ValueError, "step must be at least 0"),
        (lambda: warmup_cosine(0, 10, 1, math.nan), ValueError, "base_lr"),
        (lambda: warmup_cosine(0, 10, 1, 0.1, -1), ValueError, "final_lr"),
        (lambda: warmup_cosine(0, 10, 1, 0.1, warmup_lr=-1), ValueError, "warmup_lr must be finite and at least 0"),
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
        (lambda w, g: dict(lr=1e39), ValueError, "lr must be at most"),
        (lambda w, g: dict(grad=np.ma.masked_array(g)), TypeError, "grad is a masked array"),
        (lambda w, g: dict(weights=np.ma.masked_array(w)), TypeError, "weights is a masked array"),
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
    started = functools.partial(schedule, warmup_lr=1e-6)  # as DeiT's
    assert started(0) == 1e-6 and started(5) == pytest.approx((2.0 + 1e-6) / 2) and started(10) == 2.0
    assert started(60) == schedule(60) and warmup_cosine(0, 5, 0, 1.0, warmup_lr=0.5) == 1.0
