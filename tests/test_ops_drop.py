"""The kernel of dropout and stochastic depth, alone and as `cvit.ops.drop`: its masks are those of drop_masks.py, and
they are as random as they should be."""

import numpy as np
import pytest
from checks import assert_rounded, normal, on_all_threads, same_bits, wide
from drop_masks import branch_word, branches, element_words, elements, hashed, key_of
from hypothesis import given
from hypothesis import strategies as st
from kernel_calls import Table, matrix
from test_errors import ids, refuses
from test_kernels_rows import assert_guards, call, empty, guarded

from cvit import ops

SIZES = [(1, 1), (3, 5), (2, 16), (7, 31), (1, 33), (5, 64), (2, 70), (9, 197), (2, 261)]


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_hash_is_threefry(counter, key, words):
    """The known answers for Threefry-2x32 of 20 rounds in the authors' library, Random123 (kat_vectors)."""
    found = hashed(key[0] << 32 | key[1], counter[:1], counter[1:])
    assert tuple(int(word[0]) for word in found) == words


# ------------------------------------------------------------------------------------------------------- the kernel
@pytest.mark.parametrize("path, rate", [(0.0, 0.0), (0.0, 0.3), (0.5, 0.0), (0.4, 0.6)])
@pytest.mark.parametrize("m, n", SIZES)
def test_the_kernel(isa, dtype, rng, m, n, path, rate):
    """To rows of its own, over x and over the residual, the same bits; without a residual as with zeros."""
    K = Table(dtype)
    seed, place, branch, row, left_out = 2**63 + 11, 5, 3, 4, 0
    for sample in (0, 1, 2, 3, 2**33, 2**63):
        x, add = (guarded(normal(rng, m, n, dtype=dtype)) for _ in range(2))
        before, residual = x.copy(), add.copy()
        own = empty(dtype, m, n)
        members = dict(rows=m, n=n, seed=seed, sample=sample, row=row, place=place, branch=branch, path=path, rate=rate)
        factor = np.ones((m, n))
        if path:
            factor *= (branch_word(key_of(seed, branch, sample)) >= int(path * 2**32)) / (1 - path)
            left_out += not factor.any()
        if rate:
            words = element_words(key_of(seed, place, sample), np.arange(row, row + m), n)
            factor *= (words >= int(rate * 2**32)) / (1 - rate)
        product = before.astype(np.float64) * factor
        results = []
        for target in (own, x, add):
            x[:], add[:] = before, residual
            K.drop(call("drop", **members, x=matrix(x), add=matrix(add), y=matrix(target)))
            assert_guards(x=x, add=add, y=target)
            results.append(target.copy())
        assert same_bits(results[1:], [results[0]] * 2)
        assert_rounded(results[0], product + residual, abs(product) + abs(residual), 4, "y")
        K.drop(call("drop", **members, x=matrix(guarded(before)), y=matrix(own)))
        assert_guards(y=own)
        assert_rounded(own, product, abs(product), 3, "dx")
        assert not own[factor == 0].any()
    assert not path or 0 < left_out < 6


# --------------------------------------------------------------------------------------------------------- cvit.ops
@given(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 150), st.sampled_from([0.0, 0.25, 0.9]),
    st.sampled_from([0.0, 0.25, 0.9]), st.integers(0, 2**64 - 1), st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_drop_of_any_shape(N, T, D, path, rate, seed, dtype):
    rng = np.random.default_rng(D)
    x, add = (normal(rng, N, T, D, dtype=dtype) for _ in range(2))
    how = dict(path=path, rate=rate, place=seed % 7, first=seed // 5)
    y, dx = on_all_threads(lambda: (ops.drop(x, seed, add=add, **how), ops.drop_backward(x, seed, **how)))
    where = seed, how["place"], how["first"]
    mask = branches(path, *where, N) * elements(rate, *where, x.shape)
    x64, add = wide(x, add)
    assert_rounded(y, x64 * mask + add, abs(x64 * mask) + abs(add), 4, "y")
    assert_rounded(dx, x64 * mask, abs(x64 * mask), 3, "dx")
    assert same_bits(ops.drop(x, seed, **how), dx)


def test_what_is_dropped_is_no_number_at_all_afterwards(isa, dtype):
    """A dropped element is 0, whatever it was."""
    x = np.full((9, 5, 37), np.inf, dtype)
    y = ops.drop(x, 1, path=0.5, rate=0.5)
    assert not np.isnan(y).any() and (y == 0).any() and np.isinf(y).any()


X = np.ones((1, 2, 3))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(path=1.0), ValueError, "path must be below 1, got 1.0"),
        (dict(rate=-1), ValueError, "rate must be finite and at least 0, got -1"),
        (dict(seed=2**64), ValueError, f"seed must be at most {2**64 - 1}, got {2**64}"),
        (dict(seed=1.5), ValueError, "seed must be a whole number, got 1.5"),
        (dict(place=-1), ValueError, "place must be at least 0, got -1"),
        (dict(place=2**31), ValueError, f"place must be at most {2**31 - 1}, got {2**31}"),
        (dict(first=2**63), ValueError, f"first must be at most {2**63 - 1}, got {2**63}"),
        (dict(x=X[0]), ValueError, "x must have shape (N, T, D), got (2, 3)"),
        (dict(x=X[:, :0]), ValueError, "x must not be empty, got shape (1, 0, 3)"),
        (dict(add=X[:, :1]), ValueError, "add must have shape (1, 2, 3), got (1, 1, 3)"),
    ],
    ids=ids,
)
def test_wrong_arguments(arguments, error, message):
    refuses(lambda: ops.drop(**{"x": X, "seed": 0, **arguments}), (), error, message)


# ------------------------------------------------------------------------------------------------------- statistics
COUNT = 60_000


def dropped(shape, seed, **how):
    """Which elements are."""
    return ops.drop(np.ones(shape, np.float32), seed, **how) == 0


def within(share, rate, count, sigmas=5):
    """Whether a share of `count` draws lies within the binomial distribution's bounds."""
    return abs(share - rate) <= sigmas * np.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(rate):
    mask = dropped((30, 50, 40), 11, rate=rate, place=3)
    assert within(mask.mean(), rate, COUNT)
    for axes in ((0, 1), (0, 2), (1, 2)):  # of every channel, token and image
        shares = mask.mean(axis=axes)
        assert all(within(share, rate, COUNT // len(shares)) for share in shares)
    images = dropped((COUNT, 1, 1), 11, path=rate, place=3)
    assert within(images.mean(), rate, COUNT)


def test_masks_of_places_seeds_images_and_rows_are_independent():
    """Two fair masks agree in half of their elements, and so does one with itself moved by a row or a column."""
    masks = [
        dropped((10, 60, 100), seed, rate=0.5, place=place, first=first)
        for seed, place, first in ((1, 0, 0), (2, 0, 0), (2**32 + 1, 0, 0), (1, 1, 0), (1, 0, 10), (1, 0, 2**40))
    ]
    for i, one in enumerate(masks):
        assert all(within((one == other).mean(), 0.5, COUNT) for other in masks[:i])
    one = masks[0]
    for rows, columns in ((1, 0), (0, 1), (1, 1), (0, 16), (0, 32), (5, 64)):
        moved = one[:, rows:, columns:] == one[:, : 60 - rows, : 100 - columns]
        assert within(moved.mean(), 0.5, moved.size)
    assert same_bits(dropped((2, 60, 100), 1, rate=0.5, first=3), one[3:5])
    paths = [dropped((COUNT, 1, 1), 1, path=0.5, place=place) for place in range(6)]
    for i, one in enumerate(paths):
        assert within((one[1:] == one[:-1]).mean(), 0.5, COUNT)
        assert all(within((one == other).mean(), 0.5, COUNT) for other in paths[:i])


def test_words_are_of_32_even_bits():
    """A branch's word is none of its elements'."""
    key = key_of(5, 2, 9)
    drawn = element_words(key, np.arange(300), 200)
    bits = (drawn[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    assert all(within(share, 0.5, COUNT) for share in bits.reshape(-1, 32).mean(axis=0))
    assert len(np.unique(drawn)) > COUNT - 10 and branch_word(key) not in drawn
