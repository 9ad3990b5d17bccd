"""Each kernel of cvit.ops against tests/reference.py: every instruction set, both dtypes, 1, 2, 3 and 5 threads with
equal bits.

The growth factors below count roundings of half a unit each, see checks.py; they are worst cases of the op's own sums.
"""

import math

import numpy as np
import pytest
import reference as ref
from checks import assert_close, assert_rounded, normal, on_all_threads, same_bits, wide
from hypothesis import given
from hypothesis import strategies as st

from cvit import ops
from cvit.ops import _kernels as _ops

# --------------------------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize(
    "N, C, rows, columns, P", [(1, 1, 1, 1, 1), (2, 3, 3, 5, 2), (5, 2, 1, 4, 7), (3, 4, 2, 2, 16), (70, 1, 4, 4, 2)]
)
def test_patches(rng, dtype, N, C, rows, columns, P):
    """A permutation: exact, and its backward is its inverse."""
    x = normal(rng, N, C, rows * P, columns * P, dtype=dtype)
    out = on_all_threads(lambda: ops.patches(x, P))
    assert same_bits(out, np.ascontiguousarray(ref.patches_forward(x, P)))
    assert same_bits(on_all_threads(lambda: ops.patches_backward(out, x.shape[1:], P)), x)


# ---------------------------------------------------------------------------------------------------------- linear


def check_linear(rng, dtype, M, K, N):
    x, w, bias, dy = (normal(rng, *shape, dtype=dtype) for shape in ((M, K), (K, N), (N,), (M, N)))
    y, plain = on_all_threads(lambda: (ops.linear(x, w, bias), ops.linear(x, w)))
    dx, dw, db = on_all_threads(lambda: ops.linear_backward(dy, x, w))
    x, w, bias, dy = wide(x, w, bias, dy)
    ax, aw, ab, ady = map(np.abs, (x, w, bias, dy))
    assert_rounded(y, ref.linear_forward(x, w, bias), ax @ aw + ab, K + 2, "y")
    assert_rounded(plain, ref.linear_forward(x, w), ax @ aw, K + 2, "y without bias")
    expected = ref.linear_backward(dy, x, w)
    assert_rounded(dx, expected[0], ady @ aw.T, N + 2, "dx")
    assert_rounded(dw, expected[1], ax.T @ ady, M + 2, "dw")
    assert_rounded(db, expected[2], ady.sum(axis=0), M + 2, "db")


@pytest.mark.parametrize(
    "M, K, N",
    [
        (1, 1, 1), (1, 7, 1), (3, 1, 5), (2, 16, 32), (15, 64, 33), (29, 257, 31), (57, 33, 17), (130, 300, 129),
        (600, 20, 48), (300, 519, 7),
    ],
)  # fmt: skip
def test_linear(isa, rng, dtype, M, K, N):
    check_linear(rng, dtype, M, K, N)


@given(st.integers(1, 90), st.integers(1, 300), st.integers(1, 150), st.sampled_from([np.float32, np.float64]))
def test_linear_of_any_shape(M, K, N, dtype):
    check_linear(np.random.default_rng(M), dtype, M, K, N)


def test_linear_keeps_leading_axes(rng):
    x, w, dy = normal(rng, 2, 3, 4, 5), normal(rng, 5, 6), normal(rng, 2, 3, 4, 6)
    assert_close(ops.linear(x, w), x @ w)
    assert ops.linear(x[0, 0, 0], w).shape == (6,)
    dx, dw, db = ops.linear_backward(dy, x, w)
    assert dx.shape == x.shape and dw.shape == w.shape and db.shape == (6,)


# ------------------------------------------------------------------------------------------------------ layer norm


def check_layernorm(rng, dtype, M, D, affine, eps=1e-6):
    x, dy = normal(rng, M, D, dtype=dtype) * dtype(3) + dtype(1), normal(rng, M, D, dtype=dtype)
    scale, shift = normal(rng, 2, D, dtype=dtype) if affine else (None, None)
    y, mean, rstd = on_all_threads(lambda: ops.layernorm(x, scale, shift, eps))
    dx, dscale, dshift = on_all_threads(lambda: ops.layernorm_backward(dy, x, mean, rstd, scale))
    x, dy, mean64, rstd64 = wide(x, dy, mean[:, None], rstd[:, None])
    gain, offset = wide(scale, shift) if affine else (np.ones(D), np.zeros(D))

    expected, m, r = ref.layernorm_forward(x, gain, offset, eps)
    # mean: a sum of D terms; the variance's rounding counts by half, through the square root
    spread = np.abs(x).mean(axis=1, keepdims=True)
    assert_rounded(mean, m[:, 0], spread[:, 0], D + 2, "mean")
    if D > 1:  # with one column the variance is what rounding leaves of x - x
        relative = (D + 8) / 2 + D * spread * r
        assert_rounded(rstd, r[:, 0], r[:, 0], relative[:, 0], "rstd")
        size = np.abs(gain) * (r * spread + np.abs((x - m) * r)) + np.abs(offset)
        assert_rounded(y, expected, size, D + 8 + D * spread * r, "y")

    # the backward of the very mean and rstd that it was given
    n, g = (x - mean64) * rstd64, dy * gain
    size = rstd64 * (
        np.abs(g) + np.abs(g).mean(axis=1, keepdims=True) + np.abs(n) * np.abs(g * n).mean(axis=1, keepdims=True)
    )
    expected = ref.layernorm_backward(dy, x, mean64, rstd64, gain)
    assert_rounded(dx, expected[0], size, D + 12, "dx")
    if affine:
        assert_rounded(dscale, expected[1], np.abs(dy * n).sum(axis=0), M + 4, "dscale")
        assert_rounded(dshift, expected[2], np.abs(dy).sum(axis=0), M + 2, "dshift")
    else:
        assert dscale is None and dshift is None


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("M, D", [(1, 1), (3, 2), (1, 17), (60, 64), (29, 255), (130, 261), (5, 769)])
def test_layernorm(isa, rng, dtype, M, D, affine):
    check_layernorm(rng, dtype, M, D, affine)


@given(st.integers(1, 130), st.integers(2, 300), st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_layernorm_of_any_shape(M, D, affine, dtype):
    check_layernorm(np.random.default_rng(D), dtype, M, D, affine, eps=1e-5)


def test_layernorm_of_equal_entries(isa, dtype):
    """No variance: eps alone keeps the root from zero."""
    x = np.full((3, 21), 7, dtype)
    y, mean, rstd = ops.layernorm(x, eps=1e-6)
    assert (y == 0).all() and (mean == 7).all()
    np.testing.assert_allclose(rstd, 1e3, rtol=4 * np.finfo(dtype).eps)


def test_layernorm_far_from_zero(isa, rng):
    """The variance is that of x - mean: a large mean does not cancel it away."""
    x = (normal(rng, 4, 100) + 1000).astype(np.float32)
    y = ops.layernorm(x)[0]
    assert_close(y, ref.layernorm_forward(*wide(x), eps=1e-6)[0], 1e-4)


# ------------------------------------------------------------------------------------------------------------ GELU


def check_gelu(rng, dtype, form, shape):
    x, dy = normal(rng, *shape, dtype=dtype) * dtype(3), normal(rng, *shape, dtype=dtype)
    y = on_all_threads(lambda: ops.gelu(x, form))
    dx = on_all_threads(lambda: ops.gelu_backward(dy, x, form))
    x, dy = wide(x, dy)
    # P(x) is off by a few roundings of itself, and by those of its argument, which matter where P' is not small
    assert_rounded(y, ref.gelu_forward(x, form), np.abs(x), 16, "y")
    assert_rounded(dx, ref.gelu_backward(dy, x, form), np.abs(dy) * np.maximum(1, np.abs(x)), 16, "dx")


@pytest.mark.parametrize("form", ["tanh", "erf"])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7), (16, 64), (40000,)], ids=str)
def test_gelu(isa, rng, dtype, form, shape):
    check_gelu(rng, dtype, form, shape)


@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_gelu_of_large_numbers(isa, dtype, form):
    """The identity far above zero, zero far below it, and no overflow on the way."""
    x = np.array([0.0, 1e-30, 12, 100, 1e4, 1e6, -14, -100, -1e4, -1e6], dtype)
    y, dx = ops.gelu(x, form), ops.gelu_backward(np.ones_like(x), x, form)
    assert same_bits(y[2:6], x[2:6]) and same_bits(dx[2:6], np.ones_like(x[2:6]))
    assert np.abs(y[6:]).max() <= 1e-20 and np.abs(dx[6:]).max() <= 1e-20
    assert y[0] == 0 and y[1] == dtype(0.5e-30) and (dx[:2] == 0.5).all()


# ------------------------------------------------------------------------------------------------------- attention


def check_attention(rng, dtype, N, H, T, dh, spread=1.0):
    q, k, v, do = (normal(rng, N, H, T, dh, dtype=dtype) for _ in range(4))
    q *= dtype(spread)
    o, lse = on_all_threads(lambda: ops.attention(q, k, v))
    dq, dk, dv = on_all_threads(lambda: ops.attention_backward(do, q, k, v, o, lse))
    assert lse.shape == (N, H, T)
    q, k, v, do, o64, lse64 = wide(q, k, v, do, o, lse[..., None])
    t = lambda array: array.swapaxes(-1, -2)
    scale = 1 / math.sqrt(dh)

    expected, expected_lse = ref.attention_forward(q, k, v)
    p = np.exp(q @ t(k) * scale - expected_lse)
    score = (
        np.abs(q) @ np.abs(t(k))
    ).max() * scale  # in magnitude; its error, (dh + 4) / 2 eps, is e^score's relative one
    assert_rounded(o, expected, p @ np.abs(v), 2 * (dh + 4) * score + 2 * T + 24, "o")
    assert_rounded(lse, expected_lse[..., 0], score + np.abs(expected_lse[..., 0]) + 1, dh + T + 16, "lse")

    # the backward of the very o and lse that it was given
    p = np.exp(q @ t(k) * scale - lse64)
    delta = np.abs(do * o64).sum(axis=-1, keepdims=True)
    ds = p * (np.abs(do) @ np.abs(t(v)) + delta) * scale  # in magnitude
    growth = (dh + 4) * score + np.abs(lse64).max() + 16
    expected = ref.attention_backward(do, q, k, v, o64, lse64)
    assert_rounded(dq, expected[0], ds @ np.abs(k), growth + dh + T, "dq")
    assert_rounded(dk, expected[1], t(ds) @ np.abs(q), growth + dh + T, "dk")
    assert_rounded(dv, expected[2], t(p) @ np.abs(do), growth + T, "dv")


@pytest.mark.parametrize(
    "N, H, T, dh",
    [
        (1, 1, 1, 1), (2, 1, 1, 5), (1, 3, 2, 1), (2, 2, 17, 16), (1, 1, 50, 33), (3, 2, 65, 64), (1, 2, 113, 7),
        (1, 1, 256, 8), (1, 2, 257, 9), (1, 1, 600, 13), (1, 1, 530, 128), (1, 1, 9, 300), (1, 2, 17, 400),
        (2, 1, 33, 24), (1, 1, 64, 16), (1, 2, 80, 40), (1, 2, 81, 40), (1, 1, 90, 390), (1, 1, 577, 10),
    ],
)  # fmt: skip
def test_attention(isa, rng, dtype, N, H, T, dh):
    """T beyond 80 takes strips of queries, beyond 112 several blocks of them, beyond 384 several of keys (the online
    softmax); backward beyond 112 strips of keys, beyond 384 several blocks of queries. With 1 more than a multiple of
    16 the last query goes alone."""
    check_attention(rng, dtype, N, H, T, dh)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(1, 70),
    st.sampled_from([np.float32, np.float64]),
)
def test_attention_of_any_shape(N, H, T, dh, dtype):
    check_attention(np.random.default_rng(T), dtype, N, H, T, dh)


@pytest.mark.parametrize("T", [7, 300])
def test_attention_with_large_scores(isa, rng, dtype, T):
    """Scores in the hundreds make softmax nearly a choice; nothing overflows, in whichever block of keys the largest
    stands."""
    check_attention(rng, dtype, 1, 2, T, 8, spread=100.0)


@pytest.mark.parametrize("T", [5, 300])
def test_attention_of_equal_keys_is_the_mean(isa, dtype, T):
    v = np.arange(2 * T, dtype=dtype).reshape(1, 1, T, 2)
    q = k = np.ones((1, 1, T, 2), dtype)
    o, lse = ops.attention(q, k, v)
    np.testing.assert_allclose(o[0, 0], np.broadcast_to([T - 1, T], (T, 2)), rtol=T * np.finfo(dtype).eps)
    np.testing.assert_allclose(lse, math.sqrt(2) + math.log(T), rtol=T * np.finfo(dtype).eps)


# --------------------------------------------------------------------------------------------------- cross-entropy


def check_cross_entropy(rng, dtype, N, classes, smoothing):
    logits, labels = normal(rng, N, classes, dtype=dtype) * dtype(4), rng.integers(classes, size=N)
    loss, dlogits = on_all_threads(
        lambda: (ops.cross_entropy(logits, labels, smoothing), ops.cross_entropy_backward(logits, labels, smoothing))
    )
    (logits,) = wide(logits)
    expected, logp = ref.cross_entropy_forward(logits, labels, smoothing)
    assert isinstance(loss, float)
    top = np.abs(logits).max() + abs(expected) + 1
    assert_rounded(dtype(loss), expected, top, classes + 16, "loss")
    size = (np.exp(logp) + ref.smooth_targets(labels, classes, smoothing)) / N
    assert_rounded(
        dlogits, ref.cross_entropy_backward(logp, labels, smoothing), size, classes + 2 * top + 16, "dlogits"
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("N, classes", [(1, 1), (3, 1), (1, 2), (5, 10), (40, 17), (9, 1000)])
def test_cross_entropy(isa, rng, dtype, N, classes, smoothing):
    check_cross_entropy(rng, dtype, N, classes, smoothing)


@given(st.integers(1, 40), st.integers(1, 200), st.floats(0, 0.99), st.sampled_from([np.float32, np.float64]))
def test_cross_entropy_of_any_shape(N, classes, smoothing, dtype):
    check_cross_entropy(np.random.default_rng(classes), dtype, N, classes, smoothing)


def test_cross_entropy_of_one_class_is_nothing(isa, dtype):
    assert ops.cross_entropy(np.full((2, 1), 5, dtype), [0, 0]) == 0
    assert not ops.cross_entropy_backward(np.full((2, 1), 5, dtype), [0, 0]).any()


def test_cross_entropy_of_large_logits(isa, dtype):
    """Logits in the thousands: the loss is their difference, the gradient 0 or 1, and nothing overflows."""
    logits = np.array([[0, 5000, -5000], [3000, 0, 0]], dtype)
    assert ops.cross_entropy(logits, [0, 0]) == 2500
    assert same_bits(ops.cross_entropy_backward(logits, [0, 0]), np.array([[-0.5, 0.5, 0], [0, 0, 0]], dtype))


# ----------------------------------------------------------------------------------------- what they leave alone


def test_scratch_starts_from_nothing(isa, rng, dtype, monkeypatch):
    """Scratch that is full of NaN gives the same bits: nothing in it is read before it was written."""
    allocate = _ops.allocate

    def full_of_nan(count, dtype):
        memory = allocate(count, dtype)
        memory[:] = np.nan
        return memory

    x, w, dy = normal(rng, 70, 21, dtype=dtype), normal(rng, 21, 33, dtype=dtype), normal(rng, 70, 33, dtype=dtype)
    q = normal(rng, 1, 2, 270, 9, dtype=dtype)
    o, lse = ops.attention(q, q, q)
    calls = lambda: (
        ops.linear(x, w), ops.linear_backward(dy, x, w), ops.attention(q, q, q),
        ops.attention_backward(q, q, q, q, o, lse),
    )  # fmt: skip
    expected = calls()
    monkeypatch.setattr(_ops, "allocate", full_of_nan)
    assert same_bits(calls(), expected)


def test_arguments_are_only_read(rng):
    """Read-only arguments work, and no result shares memory with an argument."""
    x, w, bias, dy = normal(rng, 3, 4), normal(rng, 4, 5), normal(rng, 5), normal(rng, 3, 5)
    heads = normal(rng, 1, 2, 3, 4)
    o, lse = ops.attention(heads, heads, heads)
    _, mean, rstd = ops.layernorm(x)
    images = normal(rng, 1, 1, 2, 2)
    calls = [
        (ops.patches, images, 2), (ops.patches_backward, normal(rng, 1, 1, 4), (1, 2, 2), 2), (ops.linear, x, w, bias),
        (ops.linear_backward, dy, x, w), (ops.layernorm, x, w[:, 0].copy(), w[:, 1].copy()),
        (ops.layernorm_backward, x, x, mean, rstd, w[:, 0].copy()), (ops.gelu, x), (ops.gelu, x, "erf"),
        (ops.gelu_backward, x, x), (ops.attention, heads, heads, heads),
        (ops.attention_backward, heads, heads, heads, heads, o, lse),
        (ops.cross_entropy_backward, x, np.array([0, 1, 2])), (ops.exp, x), (ops.tanh, x), (ops.erf, x),
    ]  # fmt: skip
    for op, *arguments in calls:
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        before = [a.copy() for a in arrays]
        for a in arrays:
            a.flags.writeable = False
        results = op(*arguments)
        for result in results if isinstance(results, tuple) else (results,):
            assert not any(np.may_share_memory(result, a) for a in arrays), op.__name__
        for a, copy in zip(arrays, before):
            assert same_bits(a, copy), op.__name__
            a.flags.writeable = True


@pytest.mark.parametrize("order", ["strided", "fortran", "big-endian"])
def test_any_memory_layout(rng, order):
    x, w = normal(rng, 6, 8), normal(rng, 8, 5)
    change = {
        "strided": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
        "fortran": np.asfortranarray,
        "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    }[order]
    assert same_bits(ops.linear(change(x), change(w)), ops.linear(x, w))
    assert same_bits(ops.gelu(change(x)), ops.gelu(x))
    assert same_bits(ops.layernorm(change(x)), ops.layernorm(x))
    assert same_bits(
        ops.cross_entropy_backward(change(x), np.arange(6, dtype=">u2")), ops.cross_entropy_backward(x, range(6))
    )
