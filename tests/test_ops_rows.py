"""cvit.ops beside those of test_ops.py: RMSNorm, rotary positions, attention of one query; the same checks."""

import math

import numpy as np
import pytest
import reference as ref
from checks import assert_close, assert_rounded, normal, on_all_threads, same_bits, wide
from hypothesis import given
from hypothesis import strategies as st
from test_errors import ids, refuses

from cvit import ops
from cvit.ops import _heads

DTYPES = st.sampled_from([np.float32, np.float64])

# ---------------------------------------------------------------------------------------------------------- RMSNorm


def check_rmsnorm(rng, dtype, M, D, scaled, eps=1e-6):
    x, dy = normal(rng, M, D, dtype=dtype) * dtype(3) + dtype(1), normal(rng, M, D, dtype=dtype)
    scale = normal(rng, D, dtype=dtype) if scaled else None
    y, rstd = on_all_threads(lambda: ops.rmsnorm(x, scale, eps))
    dx, dscale = on_all_threads(lambda: ops.rmsnorm_backward(dy, x, rstd, scale))
    x, dy, rstd64, gain = wide(x, dy, rstd[:, None], scale if scaled else np.ones(D))
    expected, r = ref.rmsnorm_forward(x, gain, eps)
    assert_rounded(rstd, r[:, 0], r[:, 0], (D + 8) / 2, "rstd")
    assert_rounded(y, expected, abs(expected), D / 2 + 8, "y")

    n, g = x * rstd64, dy * gain  # the backward of the very rstd that it was given
    size = rstd64 * (abs(g) + abs(n) * abs(g * n).mean(axis=1, keepdims=True))
    expected = ref.rmsnorm_backward(dy, x, rstd64, gain)
    assert_rounded(dx, expected[0], size, D + 12, "dx")
    if scaled:
        assert_rounded(dscale, expected[1], abs(dy * n).sum(axis=0), M + 4, "dscale")
    else:
        assert dscale is None


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("M, D", [(1, 1), (3, 2), (1, 17), (60, 64), (29, 255), (130, 261), (5, 769)])
def test_rmsnorm(isa, rng, dtype, M, D, scaled):
    check_rmsnorm(rng, dtype, M, D, scaled)


@given(st.integers(1, 130), st.integers(1, 300), st.booleans(), DTYPES)
def test_rmsnorm_of_any_shape(M, D, scaled, dtype):
    check_rmsnorm(np.random.default_rng(D), dtype, M, D, scaled, eps=1e-5)


def test_rmsnorm_keeps_leading_axes(rng):
    x, scale = normal(rng, 2, 3, 4, 5), normal(rng, 5)
    y, rstd = ops.rmsnorm(x, scale)
    dx, dscale = ops.rmsnorm_backward(x, x, rstd, scale)
    assert y.shape == dx.shape == x.shape and rstd.shape == (2, 3, 4) and dscale.shape == (5,)
    assert ops.rmsnorm(x[0, 0, 0])[1].shape == ()


def test_rmsnorm_of_zeros(isa, dtype):
    """eps alone keeps the root from zero."""
    y, rstd = ops.rmsnorm(np.zeros((3, 21), dtype), eps=1e-6)
    assert not y.any()
    np.testing.assert_allclose(rstd, 1e3, rtol=4 * np.finfo(dtype).eps)


# ------------------------------------------------------------------------------------------------- rotary positions


def check_rotate(rng, dtype, N, H, T, half, each_head):
    x, dy = (normal(rng, N, H, T, 2 * half, dtype=dtype) for _ in range(2))
    angles = normal(rng, *((H, T, half) if each_head else (T, half)), dtype=dtype) * dtype(3)
    y, dx = on_all_threads(lambda: (ops.rotate(x, angles), ops.rotate_backward(dy, angles)))
    places = normal(rng, T, 2, dtype=dtype)
    frequencies = on_all_threads(lambda: ops.rotate_frequencies(dy, y, places))
    x, dy, angles, y64, places = wide(x, dy, angles, y, places)

    def length(a):
        return np.tile(np.hypot(a[..., :half], a[..., half:]), 2)

    assert_rounded(y, ref.rotate_forward(x, angles), length(x), 7, "y")
    expected, _ = ref.rotate_backward(dy, y64, angles)
    assert_rounded(dx, expected, length(dy), 7, "dx")
    dangle = ref.rotate_backward(dy, y64, np.zeros((H, T, half)))[1]
    parts = (abs(dy[..., half:] * y64[..., :half]) + abs(dy[..., :half] * y64[..., half:])).sum(axis=0)
    size = np.einsum("htj,ta->ahj", parts, abs(places))
    assert_rounded(frequencies, np.einsum("htj,ta->ahj", dangle, places), size, N * T + 5, "frequencies")


@pytest.mark.parametrize("each_head", [False, True])
@pytest.mark.parametrize("N, H, T, half", [(1, 1, 1, 1), (2, 3, 2, 2), (3, 1, 9, 5), (1, 4, 197, 17), (2, 2, 8, 36)])
def test_rotate(isa, rng, dtype, N, H, T, half, each_head):
    check_rotate(rng, dtype, N, H, T, half, each_head)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70), st.integers(1, 40), st.booleans(), DTYPES)
def test_rotate_of_any_shape(N, H, T, half, each_head, dtype):
    check_rotate(np.random.default_rng(T), dtype, N, H, T, half, each_head)


def test_a_turn_by_nothing_and_by_a_quarter(isa, rng, dtype):
    """Angle 0 changes no bit, which is how tokens without a place are left alone."""
    x = normal(rng, 1, 2, 3, 10, dtype=dtype)
    assert same_bits(ops.rotate(x, np.zeros((3, 5), dtype)), x)
    quarter = ops.rotate(x, np.full((2, 3, 5), math.pi / 2, dtype))
    np.testing.assert_allclose(quarter, np.concatenate([-x[..., 5:], x[..., :5]], -1), atol=8 * np.finfo(dtype).eps)


def test_scores_depend_on_distances_alone(rng):
    """What rotary positions are for: q and k turned by p f and r f have a product of p - r alone."""
    q, k, f = normal(rng, 12), normal(rng, 12), normal(rng, 6)
    turned = ops.rotate(np.stack([np.tile(q, (20, 1)), np.tile(k, (20, 1))])[None], np.arange(20)[:, None] * f)[0]
    scores = turned[0] @ turned[1].T
    assert_close(scores[1:, 1:], scores[:-1, :-1])


def test_frequencies_by_differences(rng):
    x, weights, places = normal(rng, 2, 3, 7, 10), normal(rng, 2, 3, 7, 10), normal(rng, 7, 2)
    frequencies, h = normal(rng, 2, 3, 5), 1e-5

    def loss(f):
        return (weights * ops.rotate(x, np.einsum("ta,ahj->htj", places, f))).sum()

    y = ops.rotate(x, np.einsum("ta,ahj->htj", places, frequencies))
    steps = h * np.eye(frequencies.size).reshape(-1, *frequencies.shape)
    expected = [(loss(frequencies + step) - loss(frequencies - step)) / (2 * h) for step in steps]
    found = ops.rotate_frequencies(weights, y, places)
    assert_close(found, np.reshape(expected, frequencies.shape), 1e-8)


# ------------------------------------------------------------------------------------------- attention of one query


def check_attend(rng, dtype, N, H, T, dh, spread=1.0):
    q, do = normal(rng, N, H, dh, dtype=dtype) * dtype(spread), normal(rng, N, H, dh, dtype=dtype)
    k, v = normal(rng, 2, N, H, T, dh, dtype=dtype)
    o = on_all_threads(lambda: ops.attend(q, k, v))
    dq, dk, dv = on_all_threads(lambda: ops.attend_backward(do, q, k, v))
    q, k, v, do = wide(q[:, :, None], k, v, do[:, :, None])
    expected, lse = ref.attention_forward(q, k, v)
    scale = 1 / math.sqrt(dh)

    def t(array):
        return array.swapaxes(-1, -2)

    p = np.exp(q @ t(k) * scale - lse)
    score = (abs(q) @ abs(t(k))).max() * scale  # in magnitude; its error is e^score's relative one
    growth = 2 * (dh + 4) * score + 2 * T + 24
    assert_rounded(o, expected[:, :, 0], (p @ abs(v))[:, :, 0], growth, "o")
    of_values = abs(do) @ abs(t(v))
    ds = p * (of_values + (p * of_values).sum(axis=-1, keepdims=True)) * scale
    expected = ref.attention_backward(do, q, k, v, expected, lse)
    assert_rounded(dq, expected[0][:, :, 0], (ds @ abs(k))[:, :, 0], 2 * growth + dh, "dq")
    assert_rounded(dk, expected[1], t(ds) @ abs(q), 2 * growth + dh, "dk")
    assert_rounded(dv, expected[2], t(p) @ abs(do), growth, "dv")


@pytest.mark.parametrize(
    "N, H, T, dh", [(1, 1, 1, 1), (2, 3, 2, 4), (1, 2, 7, 13), (3, 1, 8, 64), (2, 2, 9, 72), (1, 3, 197, 64)]
)
def test_attend(isa, rng, dtype, N, H, T, dh):
    check_attend(rng, dtype, N, H, T, dh)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 300), st.integers(1, 70), DTYPES)
def test_attend_of_any_shape(N, H, T, dh, dtype):
    check_attend(np.random.default_rng(T), dtype, N, H, T, dh)


def test_attend_with_large_scores(isa, rng, dtype):
    check_attend(rng, dtype, 1, 2, 300, 8, spread=100.0)


def test_attend_is_attention_of_that_query(isa, rng, dtype):
    """With all queries equal, attention's rows are attend's, but for rounding."""
    q, k, v = normal(rng, 2, 3, 1, 16), normal(rng, 2, 3, 33, 16), normal(rng, 2, 3, 33, 16)
    o, _ = ops.attention(np.repeat(q, 33, axis=2), k, v)
    assert_close(ops.attend(q[:, :, 0], k, v), o[:, :, 5])


# ----------------------------------------------------------------------------------------------- what they leave alone


def test_scratch_starts_from_nothing(isa, rng, dtype, monkeypatch):
    """Scratch that is full of NaN gives the same bits."""
    allocate = _heads.allocate

    def full_of_nan(count, dtype):
        memory = allocate(count, dtype)
        memory[:] = np.nan
        return memory

    q, k = normal(rng, 1, 2, 9, dtype=dtype), normal(rng, 1, 2, 27, 9, dtype=dtype)
    calls = lambda: (ops.attend(q, k, k), ops.attend_backward(q, q, k, k))
    expected = calls()
    monkeypatch.setattr(_heads, "allocate", full_of_nan)
    assert same_bits(calls(), expected)


X, ROW, SCALE = np.ones((3, 4)), np.ones(3), np.ones(4)
HEADS, ONE, ANGLES, PLACES = np.ones((1, 2, 3, 4)), np.ones((1, 2, 4)), np.ones((3, 2)), np.ones((3, 2))


@pytest.mark.parametrize(
    "op, arguments",
    [
        (ops.rmsnorm, (X, SCALE)), (ops.rmsnorm, (X,)), (ops.rmsnorm_backward, (X, X, ROW, SCALE)),
        (ops.rotate, (HEADS, ANGLES)), (ops.rotate_backward, (HEADS, np.stack([ANGLES, ANGLES]))),
        (ops.rotate_frequencies, (HEADS, HEADS, PLACES)), (ops.attend, (ONE, HEADS, HEADS)),
        (ops.attend_backward, (ONE, ONE, HEADS, HEADS)),
    ],
    ids=ids,
)  # fmt: skip
def test_arguments_are_only_read(rng, op, arguments):
    """Read-only arguments of any strides work alike, and no result shares memory with an argument."""
    arrays = [normal(rng, *a.shape) for a in arguments]
    expected = op(*(a.copy() for a in arrays))
    for a in arrays:
        a.flags.writeable = False
    results = op(*arrays)
    for result in results if isinstance(results, tuple) else (results,):
        assert not any(np.may_share_memory(result, a) for a in arrays)
        assert result is None or result.flags.c_contiguous
    assert same_bits(results, expected)
    assert same_bits(op(*(np.asfortranarray(a).astype(">f8") for a in arrays)), expected)
    narrow = op(*(a.astype(np.float32) for a in arrays))
    assert all(r is None or r.dtype == np.float32 for r in (narrow if isinstance(narrow, tuple) else (narrow,)))


@pytest.mark.parametrize(
    "op, arguments, error, message",
    [
        (ops.rmsnorm, (X, ROW), ValueError, "scale must have shape (4,), got (3,)"),
        (ops.rmsnorm, (X[:, :0],), ValueError, "x must not be empty, got shape (3, 0)"),
        (ops.rmsnorm, (np.float64(3),), ValueError, "x must have at least one axis, got a scalar"),
        (ops.rmsnorm, (X.astype(int),), TypeError, "x must be float32 or float64, got int64"),
        (ops.rmsnorm, (X, None, -1), ValueError, "eps must be finite and at least 0, got -1"),
        (ops.rmsnorm, (X, None, "small"), TypeError, "eps must be a number, got 'small'"),
        (ops.rmsnorm, (X.astype("f4"), None, 1e-46), ValueError, "eps must be at least 1.175e-38, the smallest"),
        (ops.rmsnorm_backward, (X[:2], X, ROW), ValueError, "dy must have shape (3, 4), got (2, 4)"),
        (ops.rmsnorm_backward, (X, X, ROW[:2]), ValueError, "rstd must have shape (3,), got (2,)"),
        (ops.rmsnorm_backward, (X, X, None), TypeError, "rstd must be an array, got None"),
        (ops.rmsnorm_backward, (X, X, ROW, ROW), ValueError, "scale must have shape (4,), got (3,)"),
        *[
            (op, arguments, error, message.format(name))
            for op, name in ((ops.rotate, "x"), (ops.rotate_backward, "dy"))
            for arguments, error, message in [
                ((HEADS[0], ANGLES), ValueError, "{} must have shape (N, H, T, dh), got (2, 3, 4)"),
                ((HEADS[:0], ANGLES), ValueError, "{} must not be empty, got shape (0, 2, 3, 4)"),
                ((HEADS[..., :3], ANGLES), ValueError, "{}'s last axis must be even: pairs of channels turn; got"),
                ((None, ANGLES), TypeError, "{} must be an array, got None"),
                ((HEADS, None), TypeError, "angles must be an array, got None"),
                ((HEADS, ANGLES.astype(int)), TypeError, "angles must be float32 or float64, got int64"),
                ((HEADS, ANGLES[:2]), ValueError, "angles must have shape (3, 2), got (2, 2)"),
                ((HEADS, HEADS[0]), ValueError, "angles must have shape (2, 3, 2), got (2, 3, 4)"),
                ((HEADS, SCALE), ValueError, "angles must have shape (3, 2), got (4,)"),
            ]
        ],
        (ops.rotate_frequencies, (HEADS[:, :1], HEADS, PLACES), ValueError, "dy must have shape (1, 2, 3, 4), got"),
        (ops.rotate_frequencies, (HEADS, HEADS[0], PLACES), ValueError, "y must have shape (N, H, T, dh), got (2,"),
        (ops.rotate_frequencies, (HEADS, HEADS[..., :1], PLACES), ValueError, "y's last axis must be even: pairs"),
        (ops.rotate_frequencies, (HEADS, HEADS, PLACES[:2]), ValueError, "coordinates must have shape (3, 2), got (2,"),
        (ops.rotate_frequencies, (HEADS, HEADS, None), TypeError, "coordinates must be an array, got None"),
        (ops.attend, (ONE, HEADS[0], HEADS), ValueError, "k must have shape (N, H, T, dh), got (2, 3, 4)"),
        (ops.attend, (ONE, HEADS[:, :, :0], HEADS), ValueError, "k must not be empty, got shape (1, 2, 0, 4)"),
        (ops.attend, (ONE, HEADS, HEADS[..., :2]), ValueError, "v must have shape (1, 2, 3, 4), got (1, 2, 3, 2)"),
        (ops.attend, (HEADS, HEADS, HEADS), ValueError, "q must have shape (1, 2, 4), got (1, 2, 3, 4)"),
        (ops.attend, (ONE.astype(int), HEADS, HEADS), TypeError, "q must be float32 or float64, got int64"),
        (ops.attend_backward, (ONE[..., :3], ONE, HEADS, HEADS), ValueError, "do must have shape (1, 2, 4), got (1,"),
        (ops.attend_backward, (None, ONE, HEADS, HEADS), TypeError, "do must be an array, got None"),
        (ops.attend_backward, (ONE, ONE[:, :1], HEADS, HEADS), ValueError, "q must have shape (1, 2, 4), got (1,"),
    ],
    ids=ids,
)  # fmt: skip
def test_wrong_arguments(op, arguments, error, message):
    refuses(op, arguments, error, message)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("n", [1, 3, 16, 33, 4001])
def test_tanh(isa, rng, dtype, n, gated):
    """The one activation that is no x · gate(x): with its slope it is off by a few last places of 1."""
    x, dy, value = (normal(rng, 2, n, dtype=dtype) for _ in range(3))
    x *= dtype(3)
    few = 16 * np.finfo(dtype).eps
    exact, factor = np.tanh(x.astype(np.float64)), value.astype(np.float64) if gated else 1.0
    y = ops.activation(x, "tanh", value if gated else None)
    np.testing.assert_allclose(y, exact * factor, rtol=few, atol=0)
    found = ops.activation_backward(dy, x, "tanh", value if gated else None)
    dx, dvalue = found if gated else (found, dy * exact)
    size = np.abs(dy * factor).max()
    np.testing.assert_allclose(dx, dy * factor * (1 - exact**2), rtol=0, atol=few * size)
    np.testing.assert_allclose(dvalue, dy * exact, rtol=few)
    ends = np.array([np.inf, -np.inf, np.nan, 1e30, 0], dtype)
    assert np.array_equal(ops.activation(ends, "tanh"), np.array([1, -1, np.nan, 1, 0], dtype), equal_nan=True)
    slopes = ops.activation_backward(np.ones_like(ends), ends, "tanh")
    assert np.array_equal(slopes, np.array([0, 0, np.nan, 0, 1], dtype), equal_nan=True)
