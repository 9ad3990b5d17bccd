"""Batches for training and evaluation, made ahead on threads: decoded, augmented, mixed.

A batch is a function of the data, the settings, the seed, the epoch and the batch's number. No random stream is shared
by batches or pictures, so that neither the number of threads nor the cache changes a bit, and any batch can be made
without those before it: that is how a run is resumed within an epoch. Of a batch that several processes share out each
makes its own images.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol

import numpy as np

from ..base.errors import check
from ..base.numbers import as_int, shown
from ..pictures.pixels import byte_values
from ..pictures.preprocessing import Preprocessing
from .ahead import DEPTH, Stopped, ahead
from .cache import Cache
from .draws import uniforms
from .geometry import fill_of
from .pictures import Pictures

AHEAD = 256 << 20  # bytes that batches made ahead may take, where one alone does not take more


class Batch(NamedTuple):
    """A batch of n images.

    images : (n, C, H, W)
    targets : (n,) integers, or (n, classes) distributions where images are mixed
    indices : int64 (n,), the pictures' numbers in the data set
    weights : float64 (n,) or None, how much each counts in the loss; of a mixed image, its first picture's
    whole : how many images the batch has that these are a share of; None where they are all
    """

    images: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    weights: np.ndarray | None = None
    whole: int | None = None


Share = Callable[[int], slice]  # of so many images, those that are this process's own


def share_of(batch, share: Share | None):
    """The own images of a whole batch."""
    if share is None:
        return batch
    some, names = share(len(batch.images)), ("images", "targets", "indices", "weights")
    arrays = {name: array[some] for name in names if (array := getattr(batch, name)) is not None}
    return batch._replace(**arrays, whole=len(batch.images))


class PictureAugmentation(Protocol):
    """What a `Feed` asks of an augmentation; `cvit.data.Augmentation` is one.

    draws : how many uniform numbers a picture needs
    vectorised : whether `batch` does all there is to do, on values alone

    pixels(image, size, draws, fill) : a Pillow image of `size` (height, width) out of one of any size
    erase(values, draws) : changes values (C, H, W) in place
    batch(values, draws, fill) : the values (n, C, H, W) of a whole batch, changed; draws (n, count)

    `fill` is what comes from outside a picture, bytes or values, one a channel.
    """

    @property
    def draws(self) -> int: ...
    @property
    def vectorised(self) -> bool: ...
    def pixels(self, image, size, draws, fill): ...
    def erase(self, values, draws): ...
    def batch(self, values, draws, fill): ...


class BatchMixing(Protocol):
    """What a feed asks of mixup and cutmix; `cvit.data.Mixing` is one.

    Picture i of n is mixed with picture n - 1 - i and no other, in the same way all over a batch, whatever n is.
    `mixes(rng)` tells whether it will be, by what `rng` gives first.
    """

    def __call__(self, images, labels, classes, rng) -> tuple[np.ndarray, np.ndarray]: ...
    def mixes(self, rng) -> bool: ...


class Feed:
    """Batches of pictures, made ahead on threads.

    Parameters
    ----------
    pictures : Pictures
        At least one.
    how : Preprocessing
        What the model's pictures are made by.
    batch_size : int
        The last batch of an epoch holds what is left.
    augmentation : Augmentation, optional
        For `epoch`. Without one pictures are as in an evaluation.
    mixing : Mixing, optional
        For `epoch`: mixes the images of a batch, and their labels to distributions.
    seed : int
        Of the order, the augmentation and the mixing.
    decoders : int
        Threads that make batches. One is enough for most models, see `bench/pipeline.py`.
    cache : Cache, optional
        Where decoded pictures are kept; several feeds may share one.
    fill : tuple of int, optional
        The colour that an augmentation takes for what lies outside a picture, 0 .. 255 a channel. By default the mean
        that `how` subtracts, as timm does; `Pictures.background` tells what surrounds the pictures themselves.
    """

    def __init__(
        self,
        pictures: Pictures,
        how: Preprocessing,
        batch_size: int,
        *,
        augmentation: PictureAugmentation | None = None,
        mixing: BatchMixing | None = None,
        seed: int = 0,
        decoders: int = 1,
        cache: Cache | None = None,
        fill: tuple[int, ...] | None = None,
    ):
        for name, value, kind in (("pictures", pictures, Pictures), ("how", how, Preprocessing)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {shown(value)}")
        if cache is not None and not isinstance(cache, Cache):
            raise TypeError(f"cache must be a Cache, got {shown(cache)}")
        check(len(pictures) > 0, "pictures must be at least one, got none")
        self.pictures, self.how, self.batch_size = pictures, how, as_int("batch_size", batch_size)
        self.augmentation, self.mixing = augmentation, mixing
        self.seed, self.decoders = as_int("seed", seed, minimum=0), as_int("decoders", decoders)
        self.cache = cache
        self.fill = (
            fill_of(how.mean) if fill is None else tuple(as_int("fill", x, minimum=0, maximum=255) for x in fill)
        )
        check(len(self.fill) == how.channels, f"fill must be {how.channels} numbers, one a channel, got {shown(fill)}")

    @property
    def images(self) -> int:
        """How many images an epoch has."""
        return len(self.pictures)

    @property
    def labels(self) -> np.ndarray:
        """The labels (N,) of all images."""
        return self.pictures.labels

    @property
    def weights(self) -> np.ndarray | None:
        """How much each image counts in the loss (N,), None for all the same."""
        return self.pictures.weights

    @property
    def fixed(self) -> bool:
        """Whether an image is the same in every epoch."""
        return self.augmentation is None and self.mixing is None

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return math.ceil(self.images / self.batch_size)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.pictures.class_names)

    def digest(self) -> str:
        """What tells these pictures from others, see `Pictures.digest`."""
        return self.pictures.digest()

    def epoch(self, number: int, skip: int = 0, share: Share | None = None) -> Generator[Batch]:
        """Yield the batches of epoch `number`, from 0, in its own order, from batch `skip` on.

        With `share` a batch holds the own images alone, and no others are decoded but the partners that mixing needs:
        the shares of several processes are together the batch of one, to the same bits. Close the generator, or come to
        its end, and its threads end.

        Raises
        ------
        OSError, ValueError
            A picture, which is named, has become unreadable; where its batch would have come.
        """
        number = as_int("number", number, minimum=0)
        skip = as_int("skip", skip, minimum=0, maximum=self.steps)
        return self.run(number * self.steps + skip, (number + 1) * self.steps, share)

    def run(self, first: int, last: int, share: Share | None = None) -> Generator[Batch]:
        """Yield the batches first ... last - 1 of a whole run, in which one epoch follows the other.

        Batch `number * steps + k` is batch k of epoch `number`, to the same bits as `epoch` gives. What differs is the
        time: the first batches of an epoch are made while the model trains on the last ones before, or is validated.
        """
        first = as_int("first", first, minimum=0)
        last = as_int("last", last, minimum=first)
        order = functools.lru_cache(maxsize=2)(functools.partial(epoch_order, self.images, self.seed))
        make = functools.partial(self._training_batch, order, share)
        return ahead(make, range(first, last), self.decoders, self._depth(self.batch_size))

    def plain(self, batch_size: int | None = None, share: Share | None = None) -> Generator[Batch]:
        """Yield all pictures in order, as `how` makes them, with their labels: for an evaluation. With `share` the own
        ones alone."""
        size = self.batch_size if batch_size is None else as_int("batch_size", batch_size)
        own = np.arange(self.images) if share is None else np.arange(self.images)[share(self.images)]
        make = functools.partial(self._plain_batch, own, size)
        return ahead(make, range(math.ceil(len(own) / size)), self.decoders, self._depth(size))

    def _depth(self, batch_size: int) -> int:
        """How many batches to make ahead: `DEPTH`, or as many as take up to `AHEAD` bytes."""
        size = min(batch_size, self.images) * math.prod(self.how.shape) * 4
        return max(1, min(DEPTH, AHEAD // size))

    def _training_batch(
        self, order: Callable[[int], np.ndarray], share: Share | None, step: int, stop: threading.Event
    ) -> Batch:
        epoch, number = divmod(step, self.steps)
        batch = order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        rng = functools.partial(batch_rng, self.seed, epoch, number)
        n = len(batch)
        own = made = np.arange(n) if share is None else np.arange(n)[share(n)]
        if self.mixing is not None and self.mixing.mixes(rng()):
            made = np.union1d(own, n - 1 - own)  # with the partners, which lie where mixing looks for them
        images, targets = self._augmented(epoch, batch[made], stop), self.pictures.labels[batch[made]]
        if self.mixing is not None:
            images, targets = self.mixing(images, targets, self.classes, rng())
        begin = int(np.searchsorted(made, own[0])) if len(own) else 0
        some = slice(begin, begin + len(own))
        weights = self._weights(batch[own])
        return Batch(images[some], targets[some], batch[own], weights, None if share is None else n)

    def _plain_batch(self, own: np.ndarray, size: int, number: int, stop: threading.Event) -> Batch:
        indices = own[number * size : (number + 1) * size]
        return Batch(self._values(indices, stop), self.pictures.labels[indices], indices, self._weights(indices))

    def _weights(self, indices: np.ndarray) -> np.ndarray | None:
        return None if self.pictures.weights is None else self.pictures.weights[indices]

    def _augmented(self, epoch: int, indices: np.ndarray, stop: threading.Event) -> np.ndarray:
        """The images (n, C, H, W), augmented."""
        if self.augmentation is None:
            return self._values(indices, stop)
        draws = uniforms(self.seed, epoch, indices, self.augmentation.draws)
        if self.augmentation.vectorised:
            fill = [(x * self.how.rescale - mean) / std for x, mean, std in zip(self.fill, self.how.mean, self.how.std)]
            return self.augmentation.batch(self._values(indices, stop), draws, fill)
        out = np.empty((len(indices), *self.how.shape), np.float32)
        _, height, width = self.how.shape
        for index, numbers, row in zip(indices.tolist(), draws, out):
            _check_running(stop)
            image = self.pictures.reduced(index, self.how, self.cache)
            image = self.augmentation.pixels(image, self.how.size, numbers, self.fill)
            pixels = np.asarray(image).reshape(*self.how.size, self.how.channels)
            byte_values(pixels[:height, :width], self.how, row)
            self.augmentation.erase(row, numbers)
        return out

    def _values(self, indices: np.ndarray, stop: threading.Event) -> np.ndarray:
        """The images (n, C, H, W), as in an evaluation."""
        whole = self.pictures.source.batch(indices, self.how)
        if whole is not None:
            return whole
        out = np.empty((len(indices), *self.how.shape), np.float32)
        for index, row in zip(indices.tolist(), out):
            _check_running(stop)
            self.pictures.write_plain(index, self.how, row, self.cache)
        return out


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch takes `count` pictures."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_rng(seed: int, epoch: int, number: int) -> np.random.Generator:
    """What a batch draws from where it draws as a whole."""
    return np.random.default_rng([seed, epoch, number])


def _check_running(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped
