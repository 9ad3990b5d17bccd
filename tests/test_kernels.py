"""Kernels called by themselves, for what cvit.ops does not show: packed results, factors, strides of their own."""

import numpy as np
import pytest
from checks import assert_close, assert_rounded, normal, same_bits, wide
from kernel_calls import STRUCTS, Table, aligned, at, call, matrix, panels, rows

from cvit import ops

SHAPES = [(1, 1), (3, 7), (5, 16), (4, 33), (9, 40), (2, 131)]
KINDS = range(len(ops.ACTIVATIONS))


def padded(rng, m, n, dtype, gap=3):
    """A matrix (m, n) whose rows are n + gap apart."""
    return normal(rng, m, n + gap, dtype=dtype)[:, :n]


def assert_gaps(before, after, n):
    """Nothing between the rows of the array that `after` is a view of was written."""
    assert same_bits(after.base[:, n:].copy(), before[:, n:].copy())


# -------------------------------------------------------------------------------------------------------- rows, columns


@pytest.mark.parametrize("m, n", SHAPES)
def test_add_rows(isa, dtype, rng, m, n):
    K = Table(dtype)
    x, add, y = (padded(rng, m, n, dtype) for _ in range(3))
    before = y.base.copy()
    K.add_rows(call("add_rows", rows=m, n=n, x=matrix(x), factor=0.3, add=matrix(add), y=matrix(y)))
    expected = wide(x)[0] * float(dtype(0.3)) + wide(add)[0]
    assert_rounded(y, expected, np.abs(x) + np.abs(add), 3)
    assert_gaps(before, y, n)
    K.add_rows(call("add_rows", rows=m, n=n, x=matrix(x), factor=1.0, add=matrix(y), y=matrix(y)))  # in place
    assert_rounded(y, expected + x, 2 * np.abs(x) + np.abs(add), 5)
    K.add_rows(call("add_rows", rows=m, n=n, x=matrix(x), factor=1.0, add=matrix(add), y=matrix(y)))
    assert same_bits(y.copy(), x + add)
    one = call("add_rows", rows=m, n=n, x=matrix(x[:1]), factor=0.5, y=matrix(y))  # one row for all
    one.x.ld = 0
    K.add_rows(one)
    assert same_bits(y.copy(), np.broadcast_to(x[0] * dtype(0.5), (m, n)).copy())


@pytest.mark.parametrize("m, n", SHAPES)
def test_unscale(isa, dtype, rng, m, n):
    """W' = W factor: the factor's gradient is what its columns of W and dW' make, W's is dW' factor."""
    w, dw, factor, sums = (
        padded(rng, m, n, dtype),
        padded(rng, m, n, dtype, 5),
        normal(rng, n, dtype=dtype),
        np.zeros(n, dtype),
    )
    before, (w64, dw64) = dw.base.copy(), wide(w.copy(), dw.copy())
    kernel = call("unscale", rows=m, n=n, w=matrix(w), dw=matrix(dw), factor=at(factor), sums=at(sums))
    Table(dtype).unscale(kernel)
    assert_rounded(sums, (w64 * dw64).sum(0), np.abs(w64 * dw64).sum(0), m + 2)
    assert same_bits(dw.copy(), before[:, :n] * factor)
    assert_gaps(before, dw, n)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("k, n", [(1, 1), (7, 5), (16, 33), (40, 70), (33, 130), (20, 17)])
def test_a_factor_on_the_way_to_panels(isa, dtype, rng, transposed, k, n):
    """The same bits as packing x times the factor, at some rows of deeper panels; every other row is left alone."""
    K, depth, row = Table(dtype), k + 5, 3
    x = padded(rng, *((n, k) if transposed else (k, n)), dtype)
    factor = normal(rng, x.shape[1], dtype=dtype)
    found, expected = aligned(K.panels_size(depth, n), dtype), aligned(K.panels_size(depth, n), dtype)
    scaled = x * factor
    pack = K.pack_panels_transposed if transposed else K.pack_panels
    pack(call("pack_panels", k=k, n=n, x=matrix(x), factor=at(factor), b=panels(found, depth, row)))
    pack(call("pack_panels", k=k, n=n, x=matrix(scaled), b=panels(expected, depth, row)))
    b = K.unpacked(found, depth, n)
    np.testing.assert_array_equal(found, expected)  # beyond the last column zeros, of either sign
    assert same_bits(b[row : row + k], np.ascontiguousarray(scaled.T if transposed else scaled))
    assert np.isnan(b[:row]).all() and np.isnan(b[row + k :]).all()


# ------------------------------------------------------------------------------------------------------- packed results


@pytest.mark.parametrize("m, d", [(1, 1), (3, 17), (20, 64), (33, 400), (5, 1030)])
def test_a_norm_to_packed_rows(isa, dtype, rng, m, d):
    """The same bits as a norm to rows, packed, in blocks of kc columns; and its mean and rstd."""
    K = Table(dtype)
    x, scale, shift, y = padded(rng, m, d, dtype), *normal(rng, 2, d, dtype=dtype), padded(rng, m, d, dtype)
    size = m * K.lda * -(-d // K.kc)
    found, expected = aligned(size, dtype), aligned(size, dtype)
    stats = np.zeros((4, m), dtype)
    members = dict(rows=m, d=d, x=matrix(x), scale=at(scale), shift=at(shift), eps=1e-6)
    K.norm(call("norm", **members, y=matrix(y), mean=at(stats[0]), rstd=at(stats[1])))
    K.norm(call("norm", **members, a=rows(found, m), mean=at(stats[2]), rstd=at(stats[3])))
    K.pack_rows(call("pack_rows", rows=m, k=d, x=matrix(y), scale=1.0, a=rows(expected, m)))
    assert same_bits(found, expected)
    assert same_bits(stats[:2], stats[2:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m, n", [(1, 1), (3, 7), (4, 33), (9, 40), (2, 131), (5, 200)])
@pytest.mark.parametrize("gated", [False, True])
def test_an_activation_to_packed_rows(isa, dtype, rng, kind, m, n, gated):
    """The same bits as to rows. Packed rows may begin where x does (then x has their stride)."""
    K = Table(dtype)
    value = padded(rng, m, n, dtype) if gated else None
    block = aligned(m * K.lda, dtype).reshape(m, K.lda)
    block[:, :n] = normal(rng, m, n, dtype=dtype)
    x, y = block[:, :n].copy(), np.zeros((m, n), dtype)
    K.activation(call("activation", kind=kind, rows=m, n=n, x=matrix(x), value=matrix(value), y=matrix(y)))
    inside = call("activation", kind=kind, rows=m, n=n, x=matrix(block), value=matrix(value), a=rows(block, m))
    K.activation(inside)
    assert same_bits(block[:, :n].copy(), y)
    assert np.isnan(block[:, n:]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m, n", [(1, 1), (3, 7), (4, 33), (9, 40), (2, 131), (5, 200)])
@pytest.mark.parametrize("gated", [False, True])
def test_an_activation_backward_to_packed_rows_and_panels(isa, dtype, rng, kind, m, n, gated):
    """dx and dvalue in every form have the bits of the plain ones; panels get them at their rows alone."""
    K, depth, row = Table(dtype), m + 4, 2
    x, dy, value = padded(rng, m, n, dtype), padded(rng, m, n, dtype), padded(rng, m, n, dtype) if gated else None
    plain = {"x": x.copy(), "dy": dy.copy(), "dvalue": np.zeros((m, n), dtype) if gated else None}
    members = dict(kind=kind, rows=m, n=n, value=matrix(value))
    K.activation_backward(
        call(
            "activation_backward",
            **members,
            **{name: matrix(array) for name, array in plain.items() if array is not None},
        )
    )
    a, a_value = (aligned(m * K.lda, dtype) for _ in range(2))
    b, b_value = (aligned(K.panels_size(depth, n), dtype) for _ in range(2))
    before = dy.copy()
    packed = call("activation_backward", **members, x=matrix(x), dy=matrix(dy), a=rows(a, m), b=panels(b, depth, row))
    if gated:
        packed.a_value, packed.b_value = rows(a_value, m), panels(b_value, depth, row)
    K.activation_backward(packed)
    assert same_bits(x.copy(), plain["x"]) and same_bits(dy.copy(), before)
    for name, found_a, found_b in (("dy", a, b), ("dvalue", a_value, b_value))[: 1 + gated]:
        assert same_bits(found_a.reshape(m, K.lda)[:, :n].copy(), plain[name]), name
        unpacked = K.unpacked(found_b, depth, n)
        assert same_bits(unpacked[row : row + m].copy(), plain[name]), name
        assert np.isnan(unpacked[:row]).all() and np.isnan(unpacked[row + m :]).all(), name


# --------------------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("tokens", [7, 90, 400])
def test_attention_gradients_with_strides_of_their_own(isa, dtype, rng, tokens):
    """dq, and dk with dv, may lie elsewhere than q, k, v: the same bits."""
    K, dh = Table(dtype), 24
    q, k, v = (normal(rng, tokens, 3 * dh, dtype=dtype)[:, :dh] for _ in range(3))
    d_o, o, lse = normal(rng, tokens, dh, dtype=dtype), np.zeros((tokens, dh), dtype), np.zeros(tokens, dtype)
    scratch = aligned(max(K.attention_scratch(tokens, dh, backward) for backward in (0, 1)), dtype)
    heads = dict(
        tokens=tokens, dh=dh, first=0, count=tokens, q=matrix(q), k=matrix(k), v=matrix(v), o=matrix(o), lse=at(lse)
    )
    K.attention(call("attention", **heads, scratch=at(scratch)))
    results = []
    for gap in (2 * dh, 0, 5):
        dq, dk, dv = (padded(rng, tokens, dh, dtype, gap if i else gap + 1) for i in range(3))
        given = dict(d_o=matrix(d_o), dq=matrix(dq), dk=matrix(dk), dv=matrix(dv))
        K.attention_backward(call("attention_backward", **heads, **given, scratch=at(scratch)))
        results.append((dq.copy(), dk.copy(), dv.copy()))
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


@pytest.mark.parametrize("m, n, k", [(3, 5, 7), (30, 40, 20), (57, 130, 300)])
def test_hints_change_no_bit(isa, dtype, rng, m, n, k):
    """Whatever is prefetched, and wherever it lies."""
    K = Table(dtype)
    x, w, bias, elsewhere = (normal(rng, *shape, dtype=dtype) for shape in ((m, k), (k, n), (n,), (m, n)))
    a, b = aligned(m * K.lda * -(-k // K.kc), dtype), aligned(K.panels_size(k, n), dtype)
    K.pack_rows(call("pack_rows", rows=m, k=k, x=matrix(x), scale=1.0, a=rows(a, m)))
    K.pack_panels(call("pack_panels", k=k, n=n, x=matrix(w), b=panels(b, k)))
    results = []
    for cached in (0, 1):
        for following in (None, elsewhere):
            c = np.zeros((m, n), dtype)
            hint = STRUCTS["cvit_prefetch"](cached, matrix(following))
            g = call("gemm", m=m, n=n, k=k, a=rows(a, m), b=panels(b, k), c=matrix(c), bias=at(bias), hint=hint)
            K.gemm(g)
            results.append(c)
    assert all(same_bits(results[0], c) for c in results)
    assert_close(results[0], x.astype(np.float64) @ w + bias, 1e-10 if dtype == np.float64 else 1e-4)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_sum_of_squares_that_float_cannot_hold(isa, rng, n):
    """The square of 2e19 is beyond float32; the sum is right all the same, and NaN and infinity stay what they are."""
    x = normal(rng, n, dtype=np.float32)
    K = Table(np.float32)
    assert_close(K.sum_of_squares(n, at(x)), (x.astype(np.float64) ** 2).sum(), 1e-6)
    x[n // 2] = 2e19
    assert_close(K.sum_of_squares(n, at(x)), (x.astype(np.float64) ** 2).sum(), 1e-12)
    x[n // 2] = np.inf
    assert K.sum_of_squares(n, at(x)) == np.inf
    x[n // 2] = np.nan
    assert np.isnan(K.sum_of_squares(n, at(x)))
