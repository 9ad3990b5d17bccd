"""`ArrayFeed`: batches of a model's own inputs in memory, with the methods of `Feed`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..base.numbers import as_int, shown
from .feed import Batch, BatchMixing, Share, batch_rng, epoch_order, share_of


class ArrayFeed:
    """Batches of images in memory that are a model's input already, with the methods of `Feed`.

    Parameters
    ----------
    images : (N, C, H, W) floats
        Or of any shape with N first.
    labels : (N,) integers, or (N, classes) floats
        Numbers of classes, or distributions over them.
    batch_size : int
        The last batch of an epoch holds what is left.
    augment : (images, rng) -> images, optional
        Applied to each batch of `epoch`, as `random_affine` is. Batch b of epoch e has the generator
        `numpy.random.default_rng([seed, e, b])`, so that any batch can be made without those before it.
    mixing : Mixing, optional
        Then mixes images and labels, with the same generator.
    seed : int
        Of the order, the augmentation and the mixing.
    classes : int, optional
        How many there are; by default the labels' largest + 1.
    weights : (N,) floats, optional
        How much each image counts in the loss.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        *,
        mixing: BatchMixing | None = None,
        seed: int = 0,
        classes: int | None = None,
        weights: np.ndarray | None = None,
    ):
        self._images, self.labels = as_array("images", images), as_array("labels", labels)
        check(self._images.ndim > 0 and len(self._images) > 0, "images must hold at least one image, got none")
        N = len(self._images)
        right = self.labels.ndim in (1, 2) and len(self.labels) == N
        check(right, f"labels must have shape ({N},) or ({N}, classes), got {self.labels.shape}")
        self.weights = None if weights is None else as_array("weights", weights)
        right = self.weights is None or self.weights.shape == (N,)
        check(right, f"weights must have shape ({N},), got {getattr(self.weights, 'shape', None)}")
        if augment is not None and not callable(augment):
            raise TypeError(f"augment must be a function of images and rng, got {shown(augment)}")
        self.batch_size, self.seed = as_int("batch_size", batch_size), as_int("seed", seed, minimum=0)
        self.augment, self.mixing = augment, mixing
        known = self.labels.shape[1] if self.labels.ndim == 2 else int(self.labels.max()) + 1
        self.classes = known if classes is None else as_int("classes", classes, minimum=known)

    @property
    def images(self) -> int:
        """How many images an epoch has."""
        return len(self._images)

    @property
    def fixed(self) -> bool:
        """Whether an image is the same in every epoch."""
        return self.augment is None and self.mixing is None

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return math.ceil(self.images / self.batch_size)

    def digest(self) -> str:
        """What tells these images and labels from others."""
        arrays = [array for array in (self._images, self.labels, self.weights) if array is not None]
        return " ".join(f"{zlib.crc32(np.ascontiguousarray(array).data):08x}" for array in arrays)

    def epoch(self, number: int, skip: int = 0, share: Share | None = None) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, from 0, in its own order, from batch `skip` on; with `share` the own
        images of each."""
        number = as_int("number", number, minimum=0)
        skip = as_int("skip", skip, minimum=0, maximum=self.steps)
        return self.run(number * self.steps + skip, (number + 1) * self.steps, share)

    def run(self, first: int, last: int, share: Share | None = None) -> Iterator[Batch]:
        """Yield the batches first ... last - 1 of a whole run: batch `number * steps + k` is batch k of an epoch."""
        first = as_int("first", first, minimum=0)
        return self._run(first, as_int("last", last, minimum=first), share)

    def _run(self, first, last, share):
        order, of = np.empty(0), -1
        for step in range(first, last):
            epoch, number = divmod(step, self.steps)
            if epoch != of:
                order, of = epoch_order(self.images, self.seed, epoch), epoch
            batch = self._batch(order[number * self.batch_size : (number + 1) * self.batch_size])
            rng = batch_rng(self.seed, epoch, number)
            if self.augment is not None:
                batch = batch._replace(images=self.augment(batch.images, rng))
            if self.mixing is not None:
                images, targets = self.mixing(batch.images, batch.targets, self.classes, rng)
                batch = batch._replace(images=images, targets=targets)
            yield share_of(batch, share)

    def plain(self, batch_size: int | None = None, share: Share | None = None) -> Iterator[Batch]:
        """Yield all images in order, or the own ones of a share, as they are, with their labels: for an evaluation."""
        size = self.batch_size if batch_size is None else as_int("batch_size", batch_size)
        own = np.arange(self.images) if share is None else np.arange(self.images)[share(self.images)]
        return (self._batch(own[start : start + size]) for start in range(0, len(own), size))

    def _batch(self, indices: np.ndarray) -> Batch:
        weights = None if self.weights is None else self.weights[indices]
        return Batch(self._images[indices], self.labels[indices], indices, weights)
