"""Kernels over rows of tokens and heads, called by themselves: rotary positions, attention of one query, norms without
a shift.

Every array that a kernel writes stands amid guard values, which stay what they are. They are NaN, as is all around the
arrays that it reads: none of it reaches a result.
"""

import math

import numpy as np
import pytest
import reference as ref
from checks import assert_rounded, normal, same_bits, wide
from kernel_calls import Table, aligned, at, call, matrix

GUARD = 19  # values on either side: more than a vector's


def guarded(values):
    """A copy of a vector, or of a matrix row by row, amid NaN: a view of its `.base`."""
    rows = values.reshape(-1, values.shape[-1])
    base = np.full((len(rows) + 2, rows.shape[1] + 2 * GUARD), np.nan, values.dtype)
    inside = base[1:-1, GUARD:-GUARD]
    inside[:] = rows
    return inside if values.ndim > 1 else inside[0]


def empty(dtype, *shape):
    return guarded(np.full(shape, np.nan, dtype))


def assert_guards(**arrays):
    """Nothing around these arrays was written, and in them no NaN is left."""
    for name, array in arrays.items():
        assert np.isnan(array.base).sum() == array.base.size - array.size, name
        assert not np.isnan(array).any(), name


# ------------------------------------------------------------------------------------------------- rotary positions


def turning(rng, dtype, rows, heads, half, each_head):
    """x (rows, heads * 2 half), and the cosines and sines of angles, all guarded."""
    angles = normal(rng, rows, (heads if each_head else 1) * half) * 3
    x = guarded(normal(rng, rows, heads * 2 * half, dtype=dtype))
    return x, guarded(np.cos(angles).astype(dtype)), guarded(np.sin(angles).astype(dtype))


def per_head(array, heads):
    """(rows, heads * n) -> (heads, rows, n)."""
    return array.reshape(len(array), heads, -1).swapaxes(0, 1)


@pytest.mark.parametrize("each_head", [0, 1])
@pytest.mark.parametrize("half", [1, 2, 5, 17])
@pytest.mark.parametrize("rows, heads", [(1, 1), (2, 3), (7, 1), (9, 2), (197, 3)])
def test_rotate(isa, dtype, rng, rows, heads, half, each_head):
    """Forward by the formula, backward by the transposed one, which undoes the forward."""
    K = Table(dtype)
    x, cosines, sines = turning(rng, dtype, rows, heads, half, each_head)
    members = dict(rows=rows, heads=heads, half=half, x=matrix(x), cosines=matrix(cosines), sines=matrix(sines))
    before = per_head(*wide(x), heads)
    a, b = before[..., :half], before[..., half:]
    cos, sin = (per_head(array, heads if each_head else 1) for array in wide(cosines, sines))
    size = np.concatenate([abs(a * cos) + abs(b * sin), abs(b * cos) + abs(a * sin)], axis=-1)
    given = cosines.copy(), sines.copy()

    def turn(back):
        K.rotate(call("rotate", **members, each_head=each_head, back=back))
        assert_guards(x=x, cosines=cosines, sines=sines)
        return per_head(x, heads)

    expected = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    assert_rounded(turn(0), expected, size, 3, "y")
    # the rounded cosines and sines are off a rotation's by a rounding each
    lengths = np.tile(np.hypot(a, b), 2)
    assert_rounded(turn(1), before, lengths, 16, "x again")
    expected = np.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)
    x[:] = before.swapaxes(0, 1).reshape(x.shape)
    assert_rounded(turn(1), expected, size, 3, "dx")
    assert same_bits((cosines.copy(), sines.copy()), given)


@pytest.mark.parametrize("half", [1, 2, 5, 17])
@pytest.mark.parametrize("rows, heads", [(1, 1), (2, 3), (7, 1), (9, 2), (197, 3)])
def test_rotate_frequencies(isa, dtype, rng, rows, heads, half):
    """Added to what is there: the reference's gradient of each angle, times the row's two coordinates."""
    y, dy = (guarded(normal(rng, rows, heads * 2 * half, dtype=dtype)) for _ in range(2))
    places, start = normal(rng, rows, 2, dtype=dtype), normal(rng, 2 * heads * half, dtype=dtype)
    sums = guarded(start)
    Table(dtype).rotate_frequencies(
        call(
            "rotate_frequencies", rows=rows, heads=heads, half=half, y=matrix(y), dy=matrix(dy), coordinates=at(places),
            sums=at(sums),
        )
    )  # fmt: skip
    assert_guards(sums=sums, y=y, dy=dy)
    y64, dy64, places64, start64 = wide(per_head(y, heads), per_head(dy, heads), places, start)
    dangle = ref.rotate_backward(dy64[None], y64[None], np.zeros((heads, rows, half)))[1]
    expected = start64.reshape(2, heads, half) + np.einsum("hrj,ra->ahj", dangle, places64)
    parts = abs(dy64[..., half:] * y64[..., :half]) + abs(dy64[..., :half] * y64[..., half:])
    size = abs(start64).reshape(2, heads, half) + np.einsum("hrj,ra->ahj", parts, abs(places64))
    assert_rounded(sums.reshape(2, heads, half), expected, size, rows + 5, "sums")


# ------------------------------------------------------------------------------------------- attention of one query


def pooled(rng, dtype, tokens, dh, spread=1.0):
    """A query, keys, values and the result's gradient, guarded; and scratch."""
    q, d_o = (guarded(normal(rng, dh, dtype=dtype)) for _ in range(2))
    q *= dtype(spread)
    k, v = (guarded(normal(rng, tokens, dh, dtype=dtype)) for _ in range(2))
    size = Table(dtype).attend_scratch(tokens)
    scratch = aligned(size + GUARD, dtype)
    return q, k, v, d_o, scratch, size


def check_attend(rng, dtype, tokens, dh, spread=1.0):
    K = Table(dtype)
    q, k, v, d_o, scratch, size = pooled(rng, dtype, tokens, dh, spread)
    o, dq, dk, dv = (empty(dtype, *shape) for shape in ((dh,), (dh,), (tokens, dh), (tokens, dh)))
    members = dict(tokens=tokens, dh=dh, q=at(q), k=matrix(k), v=matrix(v), scratch=at(scratch))
    K.attend(call("attend", **members, o=at(o)))
    assert_guards(o=o, q=q, k=k, v=v)
    scratch[:size] = np.nan  # the backward takes nothing from the forward
    K.attend_backward(call("attend_backward", **members, d_o=at(d_o), dq=at(dq), dk=matrix(dk), dv=matrix(dv)))
    assert_guards(dq=dq, dk=dk, dv=dv, q=q, k=k, v=v, d_o=d_o)
    assert np.isnan(scratch[size:]).all()

    q, k, v, d_o = wide(q[None], k, v, d_o[None])
    heads = [array[None, None] for array in (q, k, v)]
    expected, lse = ref.attention_forward(*heads)
    scale = 1 / math.sqrt(dh)
    p = np.exp(q @ k.T * scale - lse[0, 0])
    # a score's error, in magnitude, is e^score's relative one, above the line and below
    score = (abs(q) @ abs(k.T)).max() * scale
    growth = 2 * (dh + 4) * score + 2 * tokens + 24
    assert_rounded(o, expected[0, 0, 0], (p @ abs(v))[0], growth, "o")

    gradients = ref.attention_backward(d_o[None, None], *heads, expected, lse)
    of_values = abs(d_o) @ abs(v.T)
    ds = p * (of_values + (p * of_values).sum()) * scale  # in magnitude
    assert_rounded(dq, gradients[0][0, 0, 0], (ds @ abs(k))[0], 2 * growth + dh, "dq")
    assert_rounded(dk, gradients[1][0, 0], ds.T * abs(q), 2 * growth + dh, "dk")
    assert_rounded(dv, gradients[2][0, 0], p.T * abs(d_o), growth, "dv")


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 197])
@pytest.mark.parametrize("dh", [1, 4, 13, 64, 72])
def test_attend(isa, dtype, rng, tokens, dh):
    check_attend(rng, dtype, tokens, dh)


@pytest.mark.parametrize("tokens", [2, 9, 197])
def test_attend_with_large_scores(isa, dtype, rng, tokens):
    """Scores in the hundreds: nothing overflows."""
    check_attend(rng, dtype, tokens, 13, spread=100.0)


@pytest.mark.parametrize("tokens", [1, 5, 8, 197])
def test_attend_to_one_key_alone(isa, dtype, rng, tokens):
    """All scores but one are far below: its value comes out, whichever token it is; all of the gradient goes there."""
    K, dh = Table(dtype), 5
    for chosen in {0, tokens // 2, tokens - 1}:
        q, k, v, d_o, scratch, _ = pooled(rng, dtype, tokens, dh)
        q[:], k[:] = 1000, -100
        k[chosen] = -99  # the largest of scores below zero, whatever the lanes beyond them hold
        o, dq, dk, dv = (empty(dtype, *shape) for shape in ((dh,), (dh,), (tokens, dh), (tokens, dh)))
        members = dict(tokens=tokens, dh=dh, q=at(q), k=matrix(k), v=matrix(v), scratch=at(scratch))
        K.attend(call("attend", **members, o=at(o)))
        K.attend_backward(call("attend_backward", **members, d_o=at(d_o), dq=at(dq), dk=matrix(dk), dv=matrix(dv)))
        assert same_bits(o.copy(), v[chosen].copy()) and same_bits(dv[chosen].copy(), d_o.copy())
        assert not np.delete(dv, chosen, axis=0).any() and not np.delete(dk, chosen, axis=0).any()


# ------------------------------------------------------------------------------------------------------------ norms

NORMS = [(1, 2), (2, 5), (7, 17), (8, 64), (9, 72), (3, 131), (197, 13)]


def normalised(x, rms, eps=1e-6):
    """The reference's n, mean and rstd, with columns for the last two."""
    if rms:
        n, rstd = ref.rmsnorm_forward(x, None, eps)
        return n, np.zeros_like(rstd), rstd
    return ref.layernorm_forward(x, None, None, eps)


@pytest.mark.parametrize("rms", [0, 1])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("m, d", [(1, 1), *NORMS])
def test_a_norm_without_shift(isa, dtype, rng, m, d, scaled, rms):
    """To rows of its own and in place, the same bits; its statistics kept or not."""
    K = Table(dtype)
    x = guarded(normal(rng, m, d, dtype=dtype) * dtype(3) + dtype(1))
    scale = guarded(normal(rng, d, dtype=dtype)) if scaled else None
    y, mean, rstd = empty(dtype, m, d), empty(dtype, m), empty(dtype, m)
    before = x.copy()
    members = dict(rows=m, d=d, rms=rms, x=matrix(x), scale=at(scale), eps=1e-6)
    K.norm(call("norm", **members, y=matrix(y), mean=at(mean), rstd=at(rstd)))
    assert_guards(x=x, y=y, mean=mean, rstd=rstd)
    assert same_bits(x.copy(), before)
    K.norm(call("norm", **members, y=matrix(x)))
    assert_guards(x=x)
    assert same_bits(x.copy(), y.copy())

    (x,) = wide(before)
    gain = np.ones(d) if scale is None else wide(scale)[0]
    n, m64, r64 = normalised(x, rms)
    if rms:
        assert not mean.any()
    else:
        assert_rounded(mean, m64[:, 0], abs(x).mean(axis=1), d + 2, "mean")
        if d == 1:  # the variance is what rounding leaves of x - x
            return
    spread = (0 if rms else 1) * abs(x).mean(axis=1, keepdims=True)
    growth = (d + 8) / 2 + d * spread * r64
    assert_rounded(rstd, r64[:, 0], r64[:, 0], growth[:, 0], "rstd")
    assert_rounded(y, n * gain, abs(gain) * (r64 * spread + abs(n)), growth + d / 2 + 4, "y")


@pytest.mark.parametrize("rms", [0, 1])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("m, d", [(1, 1), *NORMS])
def test_a_norms_gradients_without_shift(isa, dtype, rng, m, d, scaled, rms):
    """dx to rows of its own, over dy and over the residual, the same bits; dscale is added to, dshift left out."""
    K = Table(dtype)
    x, dy, residual = (guarded(normal(rng, m, d, dtype=dtype)) for _ in range(3))
    scale = guarded(normal(rng, d, dtype=dtype)) if scaled else None
    mean, rstd = (guarded(array[:, 0].astype(dtype)) for array in normalised(*wide(x), rms, 0.1)[1:])
    start = normal(rng, d, dtype=dtype)
    given, results = (dy.copy(), residual.copy()), []
    for target in (empty(dtype, m, d), dy, residual):
        dy[:], residual[:] = given
        dscale = guarded(start)
        members = dict(rows=m, d=d, rms=rms, dy=matrix(dy), x=matrix(x), mean=at(mean), rstd=at(rstd), scale=at(scale))
        into = dict(residual=matrix(residual), dx=matrix(target), dscale=at(dscale))
        K.norm_backward(call("norm_backward", **members, **into))
        assert_guards(dx=target, dscale=dscale, x=x, dy=dy, residual=residual, mean=mean, rstd=rstd)
        results.append((target.copy(), dscale.copy()))
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])

    x, mean, rstd, start, dy, residual = wide(x, mean[:, None], rstd[:, None], start, *given)
    gain = np.ones(d) if scale is None else wide(scale)[0]
    if rms:
        dx, dgain = ref.rmsnorm_backward(dy, x, rstd, gain)
    else:
        dx, dgain, _ = ref.layernorm_backward(dy, x, mean, rstd, gain)
    n, g = (abs(x) + abs(mean)) * rstd, abs(dy * gain)
    size = rstd * (g + g.mean(axis=1, keepdims=True) + n * (g * n).mean(axis=1, keepdims=True)) + abs(residual)
    assert_rounded(results[0][0], dx + residual, size, d + 13, "dx")
    assert_rounded(results[0][1], start + dgain, abs(start) + (abs(dy) * n).sum(axis=0), m + 5, "dscale")
