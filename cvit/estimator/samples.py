"""Weighted examples: which there are, and their batches as the model takes them.

Training sees a set of distinct examples, each with the sum of its weights, in an order that follows from their values.
So an example of weight 3 is three times that example, one of weight 0 is none, and the order of X does not matter: the
trained weights are the same bits. With augmentation equal examples stay apart, since each is changed in its own way.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from ..base.errors import check
from ..data import random_affine
from .standardize import Standardizer, chunks

SHIFT = 0.09  # of the shorter edge; of 8 x 8 pixels the default of `random_affine`
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def distinct(images, labels, weights, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `rows` one of each set of equal pairs (image, label), and the sum of their weights.

    Values are compared as float64, whatever their dtype, and in the order of their digests (128 bits of BLAKE2).
    """
    digests = bytearray()
    for some in chunks(len(rows), images.shape[1:]):
        values = np.ascontiguousarray(images[rows[some]], np.float64) + 0.0  # -0.0 becomes 0.0
        for image, label in zip(values, labels[rows[some]]):
            digests += hashlib.blake2b(image.tobytes() + int(label).to_bytes(8, "little"), digest_size=16).digest()
    keys = np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(axis=1)))
    return rows[starts], np.add.reduceat(weights[rows], starts)


def padded(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images (n, C, h, w) with zeros at the bottom and at the right, up to `size`."""
    down, across = size[0] - images.shape[2], size[1] - images.shape[3]
    return np.pad(images, ((0, 0), (0, 0), (0, down), (0, across))) if down or across else images


def border_value(images: np.ndarray, rows: np.ndarray) -> float:
    """The median of the outermost pixels of some images: what `random_affine` fills in from beyond the border."""
    some = images[rows[:1024]]
    edges = some[:, :, 0], some[:, :, -1], some[:, :, :, 0], some[:, :, :, -1]
    return float(np.median(np.concatenate([edge.reshape(-1) for edge in edges]).astype(np.float64)))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Examples to train on.

    images (n, C, h, w) of any numbers; rows (m,), which of them; labels (m,) int64; weights (m,) float64 of mean 1, or
    None where all are equal; size, height and width that the model takes.
    """

    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    size: tuple[int, int]
    augment: Augment | None = None

    @classmethod
    def of(cls, images, labels, weights, size, augment) -> tuple[Samples, np.ndarray]:
        """From labels (n,) and weights (n,), and the weights (m,) of the rows as they are.

        augment is None, "affine", or a function of float32 images and a generator.
        """
        rows = np.flatnonzero(weights)
        if augment is None:
            rows, weights = distinct(images, labels, weights, rows)
        else:
            weights = weights[rows]
        if isinstance(augment, str):
            augment = _Affine(SHIFT * min(images.shape[2:]), border_value(images, rows))
        relative = None if (weights == weights[0]).all() else weights / weights.mean()
        return cls(images, rows, labels[rows], relative, size, augment), weights

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, standardizer: Standardizer, batch_size: int, seed: int, epoch: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Yield standardised images, labels, and weights or None, every example once, in the order of this epoch."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        for number, start in enumerate(range(0, len(self), batch_size)):
            chosen = order[start : start + batch_size]
            x = self.images[self.rows[chosen]]
            if self.augment is not None:
                x = self._augmented(x, np.random.default_rng([seed, epoch, number]))
            weights = None if self.weights is None else self.weights[chosen]
            yield padded(standardizer(x), self.size), self.labels[chosen], weights

    def _augmented(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert self.augment is not None
        result = np.asarray(self.augment(x.astype(np.float32), rng))
        check(result.shape == x.shape, f"augment must give images of shape {x.shape}, as it got, got {result.shape}")
        check(bool(np.isfinite(result).all()), "augment gave images that are not finite")
        return result


@dataclasses.dataclass(frozen=True)
class _Affine:
    """`random_affine` with shifts of up to `shift` pixels that fills in `fill`."""

    shift: float
    fill: float

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return random_affine(images, rng, shift=self.shift, fill=self.fill)
