"""bfloat16's packers and products, on every instruction set, to the bit of tests/reference_bf16.py. (AMX packs in a
form of its own: test_amx.py compares it with AVX-512.)

Memory that nothing must read is full of NaN. A kernel runs in the float mode of a pass, in which subnormal numbers are
zero; NumPy's own arithmetic stays outside.
"""

import numpy as np
import pytest
import reference_bf16 as reference
from checks import normal, same_bits
from float_modes import FLUSH, mode, needed
from kernel_calls import STRUCTS, at, bf16_table, call, matrix, panels, rows
from packed import packed_columns, packed_panels, packed_rows, panel_room, round_up, row_room

pytestmark = needed

SHAPES = [(1, 1, 1), (3, 33, 2), (14, 65, 31), (33, 31, 33), (29, 16, 64), (20, 40, 400), (7, 130, 385), (97, 64, 35)]
SPECIAL = [0x7F800000, 0xFF800000, 0x7FC00000, 0xFF800001, 0x7F80FFFF, 0x7F7FFFFF, 0x80000000, 0, 0x3F808000,
           0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF838000, 0x7F7F8000, 0x7F7F7FFF, 0x00800000, 0x80808000]  # fmt: skip


@pytest.fixture
def K(isa):
    return bf16_table(around=lambda: mode(FLUSH))


def equal(found, expected):
    """The same bits, but for those of a NaN."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if found.dtype == np.uint16:
        found, expected = reference.float_of(found), reference.float_of(expected)
    nan = np.isnan(expected)
    return same_bits(np.where(nan, 0, found), np.where(nan, 0, expected)) and np.isnan(found[nan]).all()


def numbers(rng, *shape):
    """Normal numbers of many sizes, some zeros of both signs."""
    x = normal(rng, *shape, dtype=np.float32) * np.float32(2) ** rng.integers(-3, 4, shape).astype(np.float32)
    return np.where(rng.random(shape) < 0.1, np.copysign(np.float32(0), x), x)


# -------------------------------------------------------------------------------------------------------------- packing
def unpacked_rows(K, a, m, k):
    blocks = a.view(np.float32).reshape(-1, m, K.lda)
    assert np.isnan(blocks[:, :, K.kc :]).all() and np.isnan(blocks[-1, :, k - (len(blocks) - 1) * K.kc :]).all()
    return np.concatenate(list(blocks[:, :, : K.kc]), axis=1)[:, :k]


def unpacked_panels(b, depth, n):
    """From panels of 32 columns whose pairs of rows are interleaved: whole ones, and a depth of whole 32, too."""
    blocks = b.view(np.uint16).reshape(-1, round_up(depth, 32) // 2, 32, 2)
    return blocks.transpose(1, 3, 0, 2).reshape(round_up(depth, 32), round_up(n, 32))


def assert_panels(b, expected, row, depth):
    """Rows [row, row + k) of panels are `expected`; zeros where there are no columns, in an odd last row's partner, and
    behind the last row of all; else nothing was written."""
    k, n = expected.shape
    found = unpacked_panels(b, depth, n)
    assert equal(found[row : row + k, :n].copy(), expected)
    end = round_up(depth, 32) if row + k == depth else row + k + k % 2
    assert not (found[row : row + k, n:] & 0x7FFF).any() and not (found[row + k : end] & 0x7FFF).any()
    assert (found[:row] == 0xFFFF).all() and (found[end:] == 0xFFFF).all()


@pytest.mark.parametrize("start", [0, 1, 5])
def test_rounding(K, rng, start):
    """To nearest, ties to even, in every lane; infinities, NaN and -0 stay, subnormal numbers are zero."""
    bits = np.concatenate([np.zeros(start, np.uint32), np.array(SPECIAL, np.uint32),
                           rng.integers(0, 1 << 32, 300, np.uint32)])  # fmt: skip
    subnormal = np.array([1, 0x80000001, 0x7F7FFF, 0x7F8000, 0x7FFFFF, 0x807FFFFF], np.uint32)
    x = np.concatenate([bits, subnormal]).view(np.float32)[None]
    expected = reference.rounded(x)
    assert np.isnan(expected).sum() >= 3 and not expected[0, -6:].any()
    assert equal(unpacked_rows(K, packed_rows(K, x), 1, x.shape[1]), expected)
    assert equal(unpacked_panels(packed_panels(K, x), 1, x.shape[1])[:1, : x.shape[1]].copy(), reference.half_of(x))
    column = packed_panels(K, x, transposed=True)
    assert equal(unpacked_panels(column, x.shape[1], 1)[: x.shape[1], :1].copy(), reference.half_of(x.T))
    assert reference.half_of(np.float32([1 + 2**-8, 1 + 3 * 2**-8])).tolist() == [0x3F80, 0x3F82]


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("m, k", [(1, 1), (5, 33), (8, 384), (3, 385), (17, 800)])
def test_rows(K, rng, m, k, is_half):
    """By themselves, scaled, and with panels."""
    x = numbers(rng, m, k + 3)
    x = (reference.half_of(x) if is_half else x)[:, :k]
    plain = reference.float_of(x) if is_half else x
    for scale in (1.0, 0.3):
        a = packed_rows(K, x, scale)
        assert equal(unpacked_rows(K, a, m, k), reference.rounded(plain * np.float32(scale)))
    for row, depth in ((0, m), (2, m + 2), (32, m + 50)):
        a, b = row_room(K, m, k), panel_room(K, depth, k)
        K.pack_both(call("pack_rows", rows=m, k=k, x=matrix(x), scale=1.0, a=rows(a, m), b=panels(b, depth, row)))
        assert equal(unpacked_rows(K, a, m, k), reference.rounded(plain))
        assert_panels(b, reference.half_of(plain), row, depth)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("k, n", [(1, 1), (2, 31), (33, 5), (31, 33), (64, 64), (40, 70), (97, 17)])
def test_panels(K, rng, k, n, transposed):
    x = numbers(rng, *((n, k + 3) if transposed else (k, n + 3)))[:, : k if transposed else n]
    factor = numbers(rng, x.shape[1])
    for given in (None, factor):
        expected = reference.half_of(x if given is None else x * given)
        for row, depth in ((0, k), (2, k + 2), (32, k + 64)):
            b = packed_panels(K, x, row, depth, given, transposed)
            assert_panels(b, expected.T.copy() if transposed else expected, row, depth)


# ------------------------------------------------------------------------------------------------------------- products
def gemm(K, x, w, row=0, depth=None, c=None, **members):
    """c, or a new one, = x @ w + what the members say, w at some row of deeper panels."""
    (m, k), n = x.shape, w.shape[1]
    depth = depth or row + k
    a, b = packed_rows(K, x), packed_panels(K, w, row, depth)
    c = np.full((m, n), np.nan, np.float32) if c is None else c
    K.gemm(call("gemm", m=m, n=n, k=k, a=rows(a, m), b=panels(b, depth, row), c=matrix(c), **members))
    return c


@pytest.mark.parametrize("m, n, k", SHAPES)
def test_a_product(K, rng, m, n, k):
    """With and without bias and addend, kept in bfloat16, added to what is there, of deeper panels, hints or none."""
    x, w, bias, addend = numbers(rng, m, k), numbers(rng, k, n), numbers(rng, n), numbers(rng, m, n + 5)[:, :n]
    bare, biased = reference.product(x, w), reference.product(x, w, bias)
    assert same_bits(gemm(K, x, w), bare)
    assert same_bits(gemm(K, x, w, 32, k + 64, bias=at(bias)), biased)
    half = gemm(K, x, w, c=np.full((m, n), 0xFFFF, np.uint16), bias=at(bias))
    assert same_bits(half, reference.half_of(biased))
    full = reference.product(x, w, bias, addend)
    assert same_bits(gemm(K, x, w, bias=at(bias), add=matrix(addend)), full)
    hint = STRUCTS["cvit_prefetch"](1, matrix(x))
    assert same_bits(gemm(K, x, w, bias=at(bias), add=matrix(addend), hint=hint), full)
    wide = np.full((m, n + 5), 7, np.float32)
    wide[:, :n] = addend
    gemm(K, x, w, c=wide[:, :n], add=matrix(wide))
    assert same_bits(wide[:, :n].copy(), reference.product(x, w, None, addend)) and (wide[:, n:] == 7).all()


@pytest.mark.parametrize("cut", [32, 384, 416])
def test_a_product_cut_at_32_has_the_same_bits(K, rng, cut):
    x, w = numbers(rng, 15, 450), numbers(rng, 450, 40)
    c = gemm(K, x[:, :cut].copy(), w[:cut])
    gemm(K, x[:, cut:].copy(), w[cut:], c=c, add=matrix(c))
    assert same_bits(c, gemm(K, x, w))


def test_a_row_is_the_same_whatever_its_neighbours(K, rng):
    x, w = numbers(rng, 50, 70), numbers(rng, 70, 75)
    c = gemm(K, x, w)
    for first, count in ((0, 1), (1, 14), (10, 15), (33, 17)):
        assert same_bits(gemm(K, x[first : first + count], w), c[first : first + count])
    assert same_bits(gemm(K, x, w[:, 32:50].copy()), c[:, 32:50].copy())


@pytest.mark.parametrize("m, n, k", SHAPES)
@pytest.mark.parametrize("is_half", [False, True])
def test_a_weight_gradient(K, rng, m, n, k, is_half):
    """Set and added, with the column sums; the rows behind those of the product are another's."""
    x, dy = numbers(rng, k, m + 3)[:, :m], numbers(rng, k, n)
    operand = reference.half_of(x) if is_half else x
    a, b = packed_columns(K, operand), packed_panels(K, np.concatenate([dy, np.full((3, n), np.nan, np.float32)]), 32)
    c, sums = np.full((m, n + 2), np.nan, np.float32)[:, :n], np.full(n, np.nan, np.float32)
    members = dict(m=m, n=n, k=k, a=at(a), b=panels(b, 32 + k + 3, 32), c=matrix(c), column_sums=at(sums))
    K.gemm_columns(call("gemm_columns", **members))
    once, sums_once = reference.product(x.T, dy), reference.column_sums(dy)
    assert same_bits(c.copy(), once) and same_bits(sums, sums_once) and np.isnan(c.base[:, n:]).all()
    K.gemm_columns(call("gemm_columns", **members, accumulate=1))
    assert same_bits(c.copy(), reference.product(x.T, dy, None, once))
    assert same_bits(sums, reference.column_sums(dy, sums_once))


@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("k, m", [(1, 1), (3, 40), (50, 29)])
def test_normalised_columns(K, rng, k, m, given):
    """(x - mean) rstd, times a scale, or by one multiply-add with a shift; seen through a product with the identity."""
    x, mean, rstd, scale, shift = numbers(rng, k, m), *numbers(rng, 2, k), *numbers(rng, 2, m)
    t = (x - mean[:, None]) * rstd[:, None]
    if given == 1:
        t = t * scale
    elif given == 2:
        # exact enough: a float32 product is exact in float64, and so no tie is made where there was none
        t = (t.astype(np.float64) * scale + shift).astype(np.float32)
    names = ("mean", "rstd", "scale", "shift")[: 2 + given]
    a = packed_columns(K, x, **dict(zip(names, (mean, rstd, scale, shift))))
    c = np.zeros((m, k), np.float32)
    one = packed_panels(K, np.eye(k, dtype=np.float32))
    K.gemm_columns(call("gemm_columns", m=m, n=k, k=k, a=at(a), b=panels(one, k), c=matrix(c)))
    assert same_bits(c + 0, reference.rounded(t).T + np.float32(0))


# ------------------------------------------------------------------------------------------------------------- extremes
@pytest.mark.parametrize("m, n, k", [(5, 33, 70), (17, 9, 33)])
def test_what_is_not_finite_stays_so(K, rng, m, n, k):
    x, w = numbers(rng, m, k), numbers(rng, k, n)
    x[0, 1], x[1, 0], x[2, k - 1], w[3, 2], w[k - 1, 1] = np.inf, np.nan, -np.inf, np.nan, np.inf
    with np.errstate(all="ignore"):
        expected = reference.product(x, w)
    assert np.isnan(expected).any() and np.isinf(expected).any() and np.isfinite(expected).any()
    assert equal(gemm(K, x, w), expected)
    sums, c = np.zeros(n, np.float32), np.zeros((m, n), np.float32)
    a, b = packed_columns(K, x.T.copy()), packed_panels(K, w)
    K.gemm_columns(call("gemm_columns", m=m, n=n, k=k, a=at(a), b=panels(b, k), c=matrix(c), column_sums=at(sums)))
    assert equal(c, expected) and equal(sums, reference.column_sums(w))


@pytest.mark.parametrize("low, high", [(-75, -45), (-70, 5), (50, 67)])
def test_products_beyond_the_normal_numbers(K, rng, low, high):
    """A product by itself may be smaller or larger than any float32 where the multiply-add's result is one."""
    x, w = (numbers(rng, *shape) * np.exp2(rng.integers(low, high, shape)).astype(np.float32)
            for shape in ((13, 70), (70, 37)))  # fmt: skip
    expected = reference.product(x, w)
    plain = [np.abs(np.float64(x[:, p : p + 1]) * w[p]) for p in range(70)]
    assert any(((p < 2.0**-126) & (p > 0)).any() or (p > 3.5e38).any() for p in plain)
    assert equal(gemm(K, x, w), expected)
