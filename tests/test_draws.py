"""A picture's random numbers: fixed for ever, a function of seed, epoch and index alone, and even."""

import math

import numpy as np
import pytest
from checks import same_bits

from cvit.data import uniforms
from cvit.data.draws import _scrambled, between, normal, whole

WORD = 2**64


def scrambled(word):
    """SplitMix64's output function in Python's whole numbers."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


def test_the_hash_is_splitmix64():
    """The first numbers of the published generator from the seed 1234567, which other implementations print, too."""
    step = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + step * k) % WORD for k in (1, 2, 3)], np.uint64)
    assert _scrambled(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_equal_the_formula_in_whole_numbers():
    step, seed, epoch, index = 0x9E3779B97F4A7C15, WORD - 1, 7, 2**63 + 5
    start = 0
    for word in (seed, epoch, index):
        start = scrambled(((start ^ word) + step) % WORD)
    expected = [(scrambled((start + k * step) % WORD) >> 11) / 2**53 for k in range(1, 6)]
    assert uniforms(seed, epoch, np.array([index], np.uint64), 5).tolist() == [expected]


KNOWN = [[0.1296456182997474, 0.049920065672091285], [0.8513026201288322, 0.18670452030252627]]
LATER = 0.29450423512481183


def test_draws_are_fixed_for_ever():
    """Pins them: were they to change, a run could not be repeated or resumed."""
    assert uniforms(0, 0, [0, 1], 2).tolist() == KNOWN
    assert uniforms(20261128, 12, [345], 3)[0, 2] == LATER


def test_a_picture_has_the_same_draws_in_every_company():
    indices = np.random.default_rng(0).permutation(50)
    draws = uniforms(3, 4, np.arange(50), 8)
    assert draws.shape == (50, 8) and draws.dtype == np.float64
    assert same_bits(uniforms(3, 4, indices, 8), draws[indices])
    for index in (0, 17):
        assert same_bits(uniforms(3, 4, [index], 8)[0], draws[index])
        assert same_bits(uniforms(3, 4, np.array([index], np.int8), 3)[0], draws[index, :3])


def test_none_at_all():
    assert uniforms(0, 0, np.zeros(0, int), 4).shape == (0, 4)
    assert uniforms(0, 0, [1, 2], 0).shape == (2, 0)


def test_seed_epoch_and_index_are_told_apart():
    """Small numbers in any of the three places give other numbers: 8 x 8 x 8 starts, none twice."""
    starts = [uniforms(seed, epoch, np.arange(8), 2) for seed in range(8) for epoch in range(8)]
    assert len(np.unique(np.concatenate(starts))) == 8 * 8 * 8 * 2


def test_draws_are_even_and_without_correlation():
    draws = uniforms(1, 2, np.arange(4000), 50)
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.bincount((draws * 100).astype(int).ravel(), minlength=100)
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()  # 99 degrees of freedom: deviation sqrt(198)
    assert abs(chi_squared - 99) < 5 * math.sqrt(198)
    error = 5 / 12 / math.sqrt(draws.size)  # five standard errors of a product of two such numbers less their means
    centred = draws - 0.5
    for a, b in (
        (centred[1:], centred[:-1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred, uniforms(2, 2, range(4000), 50) - 0.5),
    ):
        assert abs((a * b).mean()) < error


def test_normal_numbers_have_the_moments_of_the_distribution():
    draws = uniforms(0, 0, np.arange(40000), 2)
    numbers = np.array([normal(*row) for row in draws.tolist()])
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((numbers**power).mean() - expected) < 5 * math.sqrt(variance / len(numbers))
    assert normal(0.0, 0.3) == 0
    assert np.isfinite(normal(1 - 2**-53, 0.0)) and normal(1 - 2**-53, 0.0) > 8


def test_whole_and_between_stay_inside():
    almost_one = 1 - 2**-53
    for count in (1, 3, 7, 1000, 2**31 + 1):
        assert whole(0.0, count) == 0 and whole(almost_one, count) == count - 1
    assert between(0.0, -2, 3) == -2 and between(0.5, -2, 3) == 0.5


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((-1, 0, [0], 1), ValueError, "seed must be at least 0, got -1"),
        ((WORD, 0, [0], 1), ValueError, "seed must be at most 18446744073709551615"),
        ((0, 0.5, [0], 1), ValueError, "epoch must be a whole number, got 0.5"),
        ((0, 0, [0], -1), ValueError, "count must be at least 0, got -1"),
        ((0, 0, [0, -3], 1), ValueError, "indices must be at least 0, got -3"),
        ((0, 0, [[0]], 1), ValueError, r"indices must have shape \(n,\), got \(1, 1\)"),
        ((0, 0, [0.0], 1), TypeError, "indices must have an integer dtype, got float64"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        uniforms(*arguments)
