"""Random numbers as a pure function of (seed, epoch, picture): no stream, so no order in which they are taken.

A picture's numbers are those of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")
from a start that is scrambled out of the seed, the epoch and the picture's index. Whichever thread prepares a picture,
beside whichever others, it meets the same numbers. They are fixed for ever: a run can be repeated and resumed by any
later version.
"""

from __future__ import annotations

import math

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..base.numbers import as_int, shown

LARGEST = 2**64 - 1  # of a seed, an epoch and an index
_STEP = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment: 2**64 divided by the golden ratio


def uniforms(seed: int, epoch: int, indices: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers for each picture, evenly drawn from [0, 1): float64 (n, count) with 53 random bits each.

    Row i is a function of `seed`, `epoch` and `indices[i]` alone, and its first numbers do not depend on `count`.

    Parameters
    ----------
    seed, epoch : int
        At least 0 and less than 2**64.
    indices : (n,) integers
        At least 0.
    count : int
        At least 0.

    Raises
    ------
    TypeError, ValueError
        An argument is no whole number, or out of its range.
    """
    seed, epoch = (
        as_int(name, value, minimum=0, maximum=LARGEST) for name, value in (("seed", seed), ("epoch", epoch))
    )
    count = as_int("count", count, minimum=0)
    indices = as_array("indices", indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must have an integer dtype, got {indices.dtype}")
    check(indices.ndim == 1, f"indices must have shape (n,), got {indices.shape}")
    lowest = indices.min(initial=0)
    check(lowest >= 0, f"indices must be at least 0, got {shown(int(lowest))}")
    start = np.zeros(1, np.uint64)
    for word in (np.array([seed], np.uint64), np.array([epoch], np.uint64), indices.astype(np.uint64)):
        start = _scrambled((start ^ word) + _STEP)
    counter = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return (_scrambled(start[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _scrambled(words: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: every bit of the result depends on every bit of the word. uint64, any shape."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def normal(first: float, second: float) -> float:
    """A standard normal number from two even ones of [0, 1), by Box and Muller's formula."""
    return math.sqrt(-2 * math.log1p(-first)) * math.cos(2 * math.pi * second)


def whole(draw: float, count: int) -> int:
    """One of 0 … count - 1, all alike, from an even number of [0, 1)."""
    return int(draw * count)


def between(draw: float, low: float, high: float) -> float:
    """A number of [low, high], all alike, from an even one of [0, 1)."""
    return low + (high - low) * draw
