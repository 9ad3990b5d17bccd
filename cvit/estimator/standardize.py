"""Values to zero mean and unit variance, pixel by pixel or channel by channel, in float64 whatever the dtype.

A pixel that does not vary becomes 0: its variance, of which only rounding errors remain, counts as 1. A pixel that
rarely differs from its mean, as in the corners of handwritten digits, has a tiny variance, and where it does differ it
would drown all others: standardised values are clipped at `LARGEST`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from ..base.errors import check

LARGEST = 5.0  # standard deviations from the mean
TOGETHER = 1 << 22  # values of images that are taken together: 32 MB as float64


def chunks(count: int, shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of `count` images of a shape, of at most `TOGETHER` values each, or of one image."""
    some = max(1, TOGETHER // math.prod(shape))
    for start in range(0, count, some):
        yield slice(start, start + some)


@dataclasses.dataclass(frozen=True)
class Standardizer:
    """Mean and variance, (C, h, w) float64, or (C, 1, 1) for channels.

    And of how many values they are, and the sum of their weights. They are sums over images in their order, on one
    thread: the same bits for any number of threads.
    """

    mean: np.ndarray
    variance: np.ndarray
    count: int
    weight: float

    @classmethod
    def of(cls, images: np.ndarray, rows: np.ndarray, weights: np.ndarray, by_channel: bool) -> Standardizer:
        """Of images[rows], images (n, C, h, w) of any numbers, with weights (m,), one a row, which are not all 0."""
        axes = (0, 2, 3) if by_channel else (0,)
        pixels = images.shape[2] * images.shape[3] if by_channel else 1
        total = float(weights.sum()) * pixels

        def mean_of(values) -> np.ndarray:
            """The weighted mean of `values(x)` over the images, in their order."""
            result = np.zeros((images.shape[1], 1, 1) if by_channel else images.shape[1:])
            for some in chunks(len(rows), images.shape[1:]):
                weighted = values(images[rows[some]].astype(np.float64)) * weights[some, None, None, None]
                result += weighted.sum(axis=axes, keepdims=True)[0]
            return result / total

        with np.errstate(over="ignore", invalid="ignore"):
            mean = mean_of(lambda x: x)
            variance = mean_of(lambda x: np.square(x - mean))
        finite = np.isfinite(mean).all() and np.isfinite(variance).all()
        check(finite, "X has values that are too large to be standardised: the variance is not a finite float64")
        return cls(mean, variance, len(rows) * pixels, total)

    def merged(self, other: Standardizer) -> Standardizer:
        """Of the images of both (Chan et al. 1983, Algorithms for computing the sample variance, formula 2.1)."""
        weight = self.weight + other.weight
        share, difference = other.weight / weight, other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * np.square(difference)
        return Standardizer(self.mean + share * difference, variance, self.count + other.count, weight)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (n, C, h, w) of any numbers as float32, standardised and clipped; each by itself."""
        rounding = (
            self.count * np.finfo(np.float64).eps * np.abs(self.mean)
        )  # of the mean, at most: Higham, section 4.2
        deviation = np.sqrt(self.variance)
        scale = np.where(deviation > rounding, deviation, 1.0)
        with np.errstate(over="ignore"):  # of a value far outside what fit has seen: clipped
            values = (images.astype(np.float64) - self.mean) / scale
        return np.clip(values, -LARGEST, LARGEST).astype(np.float32)
