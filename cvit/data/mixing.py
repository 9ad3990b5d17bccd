"""Mixup and CutMix: a batch is mixed with itself in reverse order, and so are its labels.

Zhang et al. 2017, "mixup: Beyond empirical risk minimization" (arXiv 1710.09412); Yun et al. 2019, "CutMix" (arXiv
1905.04899). It is done as timm's `Mixup(mode="batch")` does, whose settings are DeiT's as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base.arrays import any_float, as_array, as_labels
from ..base.errors import check
from ..base.numbers import as_int, finite, shown
from . import settings
from .arrays import check_generator

LARGEST_ALPHA = 1e6
SMALLEST_ALPHA = 1e-6


@dataclass(frozen=True)
class Mixing:
    """How batches and their labels are mixed.

    Parameters
    ----------
    mixup, cutmix : float
        The parameters alpha of the distributions Beta(alpha, alpha) of lam, the share of a picture's own; 0 turns
        either off. Mixup makes `lam x + (1 - lam) x'`; CutMix puts a rectangle of x', a share of `1 - lam`, into x.
    prob : float
        Of a batch to be mixed at all.
    switch : float
        Of a batch that is mixed to be mixed by CutMix, where both are on.
    smoothing : float
        Label smoothing, of mixed and unmixed batches: a label's target is `1 - smoothing` and an even share of
        `smoothing`, all others have that share. At least 0, below 1. The loss must not smooth again.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self):
        for name in ("mixup", "cutmix", "prob", "switch", "smoothing"):
            object.__setattr__(self, name, finite(name, getattr(self, name)))
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            right = alpha == 0 or SMALLEST_ALPHA <= alpha <= LARGEST_ALPHA
            check(right, f"{name} must be 0 or from {SMALLEST_ALPHA:g} to {LARGEST_ALPHA:g}, got {shown(alpha)}")
        for name in ("prob", "switch"):
            share = getattr(self, name)
            check(share <= 1, f"{name} must be a probability, at most 1, got {shown(share)}")
        check(self.smoothing < 1, f"smoothing must be below 1, got {shown(self.smoothing)}")

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, classes: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, C, H, W) and labels (n,) to mixed images, of their dtype, and targets (n, classes), float32.

        Picture i is mixed with picture n - 1 - i, all of a batch in the same way. What comes in is left as it is; where
        nothing is mixed, the images come back themselves. `rng` is used up in timm's order: whether, which, lam, and of
        CutMix the middle's row and column.

        Raises
        ------
        TypeError, ValueError
            The images are no floats of four axes, the labels no integers in [0, classes) as many as the images, or
            `rng` is no generator.
        """
        images = any_float("images", as_array("images", images), ("N", "C", "H", "W"))
        classes = as_int("classes", classes)
        labels = as_labels("labels", labels, len(images), classes)
        check_generator(rng)
        images, share = self._mixed(images, rng) if self.mixes(rng) and images.size else (images, 1.0)
        off = self.smoothing / classes
        targets = np.full((len(labels), classes), off, np.float32)
        targets[np.arange(len(labels)), labels] = 1.0 - self.smoothing + off
        if share == 1:
            return images, targets
        return images, targets * np.float32(share) + targets[::-1] * np.float32(1.0 - share)

    def mixes(self, rng: np.random.Generator) -> bool:
        """Whether a batch with this generator is mixed at all, the first number that is drawn."""
        return bool(self.mixup or self.cutmix) and rng.random() < self.prob

    def _mixed(self, images, rng):
        """The images mixed, and the share lam of each that is its own."""
        alphas = self.mixup, self.cutmix
        cut = rng.random() < self.switch if all(alphas) else self.cutmix > 0
        share = rng.beta(alphas[cut], alphas[cut])
        if share == 1:
            return images, 1.0
        if not cut:
            return images * images.dtype.type(share) + images[::-1] * images.dtype.type(1.0 - share), share
        _, _, H, W = images.shape
        top, bottom, left, right = cut_box(H, W, share, int(rng.integers(H)), int(rng.integers(W)))
        mixed = images.copy()
        mixed[:, :, top:bottom, left:right] = images[::-1, :, top:bottom, left:right]
        return mixed, 1.0 - (bottom - top) * (right - left) / (H * W)

    def to_json(self) -> dict[str, Any]:
        """All fields as a dict of JSON's types."""
        return settings.to_json(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Mixing:
        """What `to_json` made. Raises ValueError where a field is missing, unknown or wrong."""
        return settings.from_json(cls, "mixing", fields)


def cut_box(height: int, width: int, share: float, row: int, column: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of CutMix's rectangle about (row, column), a share of `1 - share` of the picture.

    What would lie outside the picture is cut off, so that its true share is to be counted.
    """
    edge = math.sqrt(1 - share)
    high, wide = int(height * edge), int(width * edge)
    return (
        max(row - high // 2, 0), min(row + (high + 1) // 2, height),
        max(column - wide // 2, 0), min(column + (wide + 1) // 2, width),
    )  # fmt: skip
