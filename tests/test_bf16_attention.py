"""Attention of the bfloat16 tables: the bits of docs/bfloat16.md's definition on every instruction set."""

import numpy as np
import pytest
import reference_bf16
import reference_bf16_attention as reference
from checks import normal, same_bits, wide
from kernel_calls import aligned, at, bf16_table, call, matrix

SHAPES = [(T, dh) for T in (1, 2, 17, 33, 65) for dh in (1, 8, 20, 32, 64, 80)] + [(197, 64), (400, 20), (90, 400)]


@pytest.fixture
def K(bf16_isa):
    table = bf16_table()
    table.enter()
    yield table
    table.leave()


def laid_out(x, half, gap=5):
    """x as float32 or bfloat16, rows `gap` further apart than they are long, with NaN between them."""
    x = reference_bf16.half_of(x) if half else x
    array = np.full((x.shape[0], x.shape[1] + gap), 0xFFFF if half else np.nan, x.dtype)[:, : x.shape[1]]
    array[:] = x
    return array


def assert_untouched_gaps(x):
    gaps = x.base[:, x.shape[1] :]
    assert (gaps == 0xFFFF).all() if x.dtype == np.uint16 else np.isnan(gaps).all()


def scratch_of(K, tokens, dh, backward):
    """As large as it has to be, full of NaN; behind it numbers that must stay."""
    size = K.attention_scratch(tokens, dh, backward)
    scratch = aligned(size + 256, np.float32)
    scratch[size:] = 7
    return scratch, scratch[size:]


def attention(K, q, k, v, half=False, first=0, count=None):
    """o and lse of queries [first, first + count)."""
    tokens, dh = q.shape
    count = tokens - first if count is None else count
    q, k, v = (laid_out(x, half) for x in (q, k, v))
    o, lse = laid_out(np.zeros((count, dh), np.float32), half), np.zeros(count, np.float32)
    scratch, behind = scratch_of(K, tokens, dh, 0)
    heads = dict(tokens=tokens, dh=dh, first=first, count=count, q=matrix(q), k=matrix(k), v=matrix(v))
    K.attention(call("attention", **heads, o=matrix(o), lse=at(lse), scratch=at(scratch)))
    assert_untouched_gaps(o)
    assert (behind == 7).all()
    return o.copy(), lse


def backward(K, q, k, v, o, d_o, lse, half=False, first=0, count=None):
    """dq, and dk and dv of keys [first, first + count), the rows of others as they were."""
    tokens, dh = q.shape
    q, k, v = (laid_out(x, half) for x in (q, k, v))
    o = o if o.dtype == np.uint16 else laid_out(o, False)
    d_o, dq, dk, dv = (laid_out(x, False) for x in (d_o, *np.full((3, tokens, dh), 3, np.float32)))
    scratch, behind = scratch_of(K, tokens, dh, 1)
    heads = dict(tokens=tokens, dh=dh, first=first, count=tokens - first if count is None else count)
    heads |= dict(q=matrix(q), k=matrix(k), v=matrix(v), o=matrix(o), d_o=matrix(d_o), lse=at(lse))
    gradients = dict(dq=matrix(dq), dk=matrix(dk), dv=matrix(dv))
    K.attention_backward(call("attention_backward", **heads, **gradients, scratch=at(scratch)))
    for x in (dq, dk, dv):
        assert_untouched_gaps(x)
    assert (behind == 7).all()
    return dq.copy(), dk.copy(), dv.copy()


def operands(rng, tokens, dh, count=4):
    return [1.5 * x for x in normal(rng, count, tokens, dh, dtype=np.float32)]


@pytest.fixture(scope="module")
def expected():
    """Operands and results by the definition, made once for all instruction sets."""
    known = {}

    def of(tokens, dh):
        if (tokens, dh) not in known:
            q, k, v, d_o = operands(np.random.default_rng(dh), tokens, dh)
            o, lse = reference.attention(q, k, v)
            known[tokens, dh] = (q, k, v, d_o), (o, lse), reference.backward(q, k, v, o, d_o, lse)
        return known[tokens, dh]

    return of


@pytest.mark.parametrize("tokens, dh", SHAPES)
def test_the_bits_of_the_definition(K, expected, tokens, dh):
    """From floats, which are rounded on the way, and from rows that are bfloat16 already; o may be that, too."""
    (q, k, v, d_o), (o, lse), gradients = expected(tokens, dh)
    assert same_bits(attention(K, q, k, v), (o, lse))
    assert same_bits(attention(K, q, k, v, half=True), (reference_bf16.half_of(o), lse))
    assert same_bits(backward(K, q, k, v, o, d_o, lse), gradients)
    assert same_bits(backward(K, q, k, v, o, d_o, lse, half=True), gradients)
    if (tokens, dh) in ((33, 20), (65, 64)):
        o = reference_bf16.half_of(o)
        gradients = reference.backward(q, k, v, reference_bf16.float_of(o), d_o, lse)
        assert same_bits(backward(K, q, k, v, o, d_o, lse, half=True), gradients)


@pytest.mark.parametrize("tokens, dh", [(17, 64), (65, 32), (197, 64), (400, 20)])
def test_parts_of_the_queries(K, expected, tokens, dh):
    (q, k, v, _), (o, lse), _ = expected(tokens, dh)
    for first, count in ((0, 1), (0, tokens // 2), (tokens // 2, tokens - tokens // 2), (tokens - 1, 1), (3, 5)):
        rows = slice(first, first + count)
        assert same_bits(attention(K, q, k, v, first=first, count=count), (o[rows], lse[rows])), (first, count)


@pytest.mark.parametrize("tokens, dh", [(17, 64), (65, 32), (197, 64), (400, 20)])
def test_parts_of_the_keys(K, expected, tokens, dh):
    """dk and dv are the whole's; dq is that of these keys, whose sum begins with the first of them."""
    (q, k, v, d_o), (o, lse), (_, dk, dv) = expected(tokens, dh)
    for first, count in ((0, tokens // 2), (tokens // 2, tokens - tokens // 2), (tokens - 1, 1)):
        rows, found = slice(first, first + count), backward(K, q, k, v, o, d_o, lse, True, first, count)
        part = reference.backward(q, k, v, o, d_o, lse, first, count)
        assert same_bits(found[0], part[0]), (first, count)
        assert same_bits((found[1][rows], found[2][rows]), (dk[rows], dv[rows])), (first, count)
        for whole in found[1:]:
            assert (whole[:first] == 3).all() and (whole[first + count :] == 3).all()


@pytest.mark.parametrize("tokens", [17, 65, 197, 400])
def test_against_float64(K, rng, tokens):
    """Close to attention in float64 of the rounded operands: probabilities and gradients are rounded once more."""
    q, k, v, d_o = (reference_bf16.rounded(x) for x in operands(rng, tokens, 48))
    o, lse = attention(K, q, k, v)
    found = backward(K, q, k, v, o, d_o, lse)
    q, k, v, d_o = wide(q, k, v, d_o)
    s = q @ k.T / np.sqrt(48)
    exact_lse = np.log(np.exp(s).sum(1))
    p = np.exp(s - exact_lse[:, None])
    exact = p @ v
    assert np.abs(lse - exact_lse).max() < 1e-5
    assert (np.abs(o - exact) <= 2.0**-8 * (p @ np.abs(v))).all()
    ds = p * (d_o @ v.T - (d_o * exact).sum(1, keepdims=True)) / np.sqrt(48)
    for gradient, exact in zip(found, (ds @ k, ds.T @ q, p.T @ d_o), strict=True):
        assert np.linalg.norm(gradient - exact) <= 2.0**-8 * np.linalg.norm(exact)


@pytest.mark.parametrize("tokens", [17, 65, 100, 400])
def test_extreme_scores(K, rng, tokens):
    """Scores of 10^4 and -10^4 leave a key alone, or all of them alike; nothing overflows."""
    q, k, v = np.zeros((3, tokens, 16), np.float32)
    v[:] = reference_bf16.rounded(normal(rng, tokens, 16, dtype=np.float32))
    best = tokens // 2
    q[:, 0], k[:, 0], k[best, 0] = 200, -200, 200
    o, lse = attention(K, q, k, v)
    np.testing.assert_allclose(o, np.broadcast_to(v[best], v.shape), rtol=2.0**-8)
    np.testing.assert_allclose(lse, 1e4, rtol=1e-6)
    gradients = backward(K, q, k, v, o, v, lse)
    assert all(np.isfinite(x).all() for x in gradients)
    assert np.abs(np.delete(gradients[2], best, 0)).max() < 1e-30
    k[best, 0] = -200
    o, lse = attention(K, q, k, v)
    np.testing.assert_allclose(lse, -1e4 + np.log(tokens), rtol=1e-6)
    np.testing.assert_allclose(o, np.broadcast_to(wide(v)[0].mean(0), v.shape), atol=2.0**-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tokens, half", [(1, False), (17, False), (17, True), (33, True), (100, True), (400, False)])
def test_what_is_not_finite(K, rng, tokens, half, bad):
    """A bad query spoils its own row, a bad value a column, a bad key every query; in the gradients they stay, too."""
    row = tokens - 1 if tokens % 2 else tokens // 3
    others = np.arange(tokens) != row
    q, k, v, d_o = operands(rng, tokens, 20)
    clean, lse = attention(K, q, k, v)
    q[row, 3] = bad
    o, spoilt = attention(K, q, k, v)
    assert np.isnan(o[row]).all() and np.isnan(spoilt[row])
    assert same_bits((o[others], spoilt[others]), (clean[others], lse[others]))
    assert np.isnan(reference_bf16.float_of(attention(K, q, k, v, half=True)[0])[row]).all()
    dq, dk, dv = backward(K, q, k, v, clean, d_o, spoilt, half)
    assert np.isnan(dq[row]).all() and np.isfinite(dq[others]).all()
    assert np.isnan(dk).all() and np.isnan(dv).all()
    q[row, 3], v[row, 7] = 1, bad
    o = attention(K, q, k, v)[0]
    assert not np.isfinite(o[:, 7]).any() and np.isfinite(np.delete(o, 7, 1)).all()
    v[row, 7], k[row, 2] = 1, np.nan
    assert all(np.isnan(x).all() for x in attention(K, q, k, v))
    k[row, 2], d_o[row, 1] = 1, bad
    dq, dk, dv = backward(K, q, k, v, clean, d_o, lse, half)
    assert not np.isfinite(dq[row]).any() and not np.isfinite(dk).any() and not np.isfinite(dv[:, 1]).any()
    assert np.isfinite(dq[others]).all() and np.isfinite(np.delete(dv, 1, 1)).all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFC00000])
def test_every_nan_stays_one(K, rng, bits):
    """Whatever its bits, in what the backward is given as floats."""
    odd = np.array(bits, np.uint32).view(np.float32)
    for tokens in (5, 33):
        q, k, v, d_o = operands(rng, tokens, 20)
        o, lse = attention(K, q, k, v)
        for name in ("lse", "d_o", "o"):
            given = {"lse": lse.copy(), "d_o": d_o.copy(), "o": o.copy()}
            given[name][4, ...] = odd
            dq, dk, dv = backward(K, q, k, v, given["o"], given["d_o"], given["lse"])
            assert np.isnan(dq[4]).all() and np.isnan(dk).all(), name
            assert name == "o" or np.isnan(dv).all(), name
