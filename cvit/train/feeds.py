"""What `fit` trains on, as one interface: arrays, a feed of pictures, or any iterable of batches.

A feed has `epoch(number, skip, share)`, which gives the batches of an epoch from batch `skip` on, the own images of
each that `share` says (None: all); `steps`, how many an epoch has (None where that is only known at its end); `labels`
of all its images, or None; and `fixed`, whether an image is the same in every epoch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import NamedTuple

import numpy as np

from ..base.arrays import any_float, as_array, as_labels
from ..base.errors import check
from ..base.numbers import shown
from .evaluation import checked_pair, is_pair, not_finite


class AnyBatch(NamedTuple):
    """A batch of the caller's iterable: images (n, C, H, W), targets (n,) or (n, classes), and nothing else."""

    images: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None
    indices: np.ndarray | None = None
    whole: int | None = None  # images of the batch that these are a share of


class IterableFeed:
    """Any iterable of (images, targets) or (images, targets, weights), or a function from an epoch's number to one.

    The iterable is gone through once an epoch, so it must be one that begins anew, a list or a torch DataLoader for
    instance; a generator lasts one epoch.
    """

    labels = None
    fixed = False
    steps: int | None

    def __init__(self, source: Iterable | Callable[[int], Iterable], model):
        self.source, self.config, self.dtype = source, model.config, model.dtype
        self.steps = len(source) if isinstance(source, Sized) else None

    def epoch(self, number: int, skip: int = 0, share: Callable[[int], slice] | None = None) -> Iterator[AnyBatch]:
        """The batches of epoch `number` from batch `skip` on, each checked; with `share` the own images of each."""
        from ..data.feed import share_of  # `import cvit` goes without

        source = self.source(number) if callable(self.source) else self.source
        for place, batch in enumerate(itertools.islice(source, skip, None), start=skip):
            yield share_of(self._checked(f"batch {place + 1} of train", batch), share)

    def _checked(self, name: str, batch) -> AnyBatch:
        right = isinstance(batch, (tuple, list)) and len(batch) in (2, 3)
        check(right, f"{name} must be (images, targets) or (images, targets, weights), got {shown(type(batch))}")
        config = self.config
        images = any_float(f"{name}: images", batch[0], ("N", config.channels, *config.image_size))
        check(len(images) > 0, f"{name} must not be empty")
        targets = as_array(f"{name}: targets", batch[1])
        if targets.ndim == 1:
            targets = as_labels(f"{name}: targets", targets, len(images), config.classes)
        found = not_finite(images)
        check(found is None, f"{name}: images must be finite, but image {found} holds a nan or an infinity")
        return AnyBatch(images, targets, None if len(batch) == 2 else as_array(f"{name}: weights", batch[2]))


def feed_of(train, model, batch_size: int, augment, seed: int):
    """`train` as a feed: see `fit`."""
    if hasattr(train, "epoch") and hasattr(train, "steps"):
        check(augment is None, "augment goes with arrays; a feed has an augmentation of its own")
        return train
    whole = is_pair(train) or isinstance(train, np.ndarray) or _is_tuple_of_arrays(train)
    if whole or not (callable(train) or isinstance(train, Iterable)):
        from ..data.array_feed import ArrayFeed  # `import cvit` goes without

        images, labels = checked_pair("train", train, model)
        return ArrayFeed(images, labels, batch_size, augment=augment, seed=seed)
    check(augment is None, "augment goes with arrays; batches of an iterable are taken as they are")
    return IterableFeed(train, model)


def _is_tuple_of_arrays(train) -> bool:
    """Whether `train` was meant as (images, labels), of whatever length: no tuple of batches."""
    return isinstance(train, tuple) and not all(isinstance(part, tuple) for part in train)
