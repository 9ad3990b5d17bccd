"""Images and labels in memory: a data set, and its batches in order or shuffled from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..base.numbers import as_int, shown


class Dataset(NamedTuple):
    """Images (N, C, H, W) and their labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    rng: np.random.Generator | None = None,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images, labels) of at most `batch_size` images each, every image once.

    With `rng` in a random order, else as they stand. The last batch holds what is left; `drop_last` leaves it out when
    it is not full. `augment(images, rng)` is applied to every batch and needs `rng`.
    """
    images, labels = as_array("images", images), as_array("labels", labels)
    check(images.ndim > 0, "images must have an axis of images, got a single number")
    check(labels.ndim > 0, "labels must have an axis of images, got a single number")
    batch_size = as_int("batch_size", batch_size)
    if rng is not None:
        check_generator(rng)
    if augment is not None and not callable(augment):
        raise TypeError(f"augment must be a function of images and rng, got {shown(augment)}")
    check(len(images) == len(labels), f"labels must be as many as the images, {len(images)}, got {len(labels)}")
    check(augment is None or rng is not None, "augment needs rng")
    return _batches(images, labels, batch_size, rng, augment, drop_last)


def check_generator(rng) -> None:
    """Raise unless `rng` is a NumPy generator."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a generator, numpy.random.default_rng(0) for example, got {shown(rng)}")


def _batches(images, labels, batch_size, rng, augment, drop_last):
    N = len(images)
    order = np.arange(N) if rng is None else rng.permutation(N)
    for start in range(0, N - N % batch_size if drop_last else N, batch_size):
        chosen = order[start : start + batch_size]
        x = images[chosen]
        yield x if augment is None else augment(x, rng), labels[chosen]
