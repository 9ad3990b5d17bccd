"""Where a data set's pictures are: in files, or in an array of bytes or of floats.

A source gives picture number i decoded, as its pixels or values for a model, and knows what is needed to name it and
to tell it from others.
"""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..base.files import open_regular
from ..pictures.open import inspect, open_picture, pillow
from ..pictures.pixels import byte_values, float_values, keeps_size, normalize, pixels, values
from ..pictures.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

HASH_BYTES = 16
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Pillow's grey of a colour


class Source(abc.ABC):
    """Pictures by number, from 0 to len - 1.

    Attributes
    ----------
    names : list of str
        Shown to users.
    hashes : list of bytes
        Equal where two pictures have the same content.
    sizes : int array (n, 2)
        Heights and widths.
    grey : bool array (n,)
        Which pictures have no colours.
    vectorised : bool
        Whether pictures are arrays already, so that many of them together take little time.
    """

    names: list[str]
    hashes: list[bytes]
    sizes: np.ndarray
    grey: np.ndarray
    vectorised = False

    def __len__(self) -> int:
        return len(self.names)

    @abc.abstractmethod
    def take(self, indices: Sequence[int] | np.ndarray) -> Source:
        """A source of these pictures only, in this order."""

    @abc.abstractmethod
    def decoded(self, index: int, channels: int = 3, alpha: str = "drop", short_edge: int | None = None) -> Image.Image:
        """The picture, upright, of mode RGB (`channels` 3) or L (1); `alpha` and `short_edge` as in `open_picture`."""

    @abc.abstractmethod
    def prepared(self, index: int, how: Preprocessing) -> np.ndarray:
        """What `how` makes of the picture: bytes (H, W, C), or, where bytes would not do, values (C, H, W), float32."""

    def batch(self, indices: np.ndarray, how: Preprocessing) -> np.ndarray | None:
        """The values (n, C, H, W) of pictures that `how` neither resizes nor crops, all at once; None for others."""
        return None


class Files(Source):
    """Pictures in files. `hashes`, `sizes` and `grey` are known once `checked` has opened them all."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str]):
        self.paths, self.names = list(paths), list(names)
        self.hashes = []
        self.sizes, self.grey = np.empty((0, 2), np.int64), np.empty(0, bool)

    def take(self, indices):
        some = Files([self.paths[i] for i in indices], [self.names[i] for i in indices])
        if self.hashes:
            some.hashes = [self.hashes[i] for i in indices]
            some.sizes, some.grey = self.sizes[indices], self.grey[indices]
        return some

    def checked(
        self, threads: int, on_check: Callable[[int, int], None] | None = None
    ) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Open every file and decode it. Return which can be used, and of the others name and reason.

        `on_check(done, all)` is told of each file that was opened.
        """
        from concurrent.futures import ThreadPoolExecutor

        found: list[tuple | None] = []
        broken: list[tuple[str, str]] = []
        pool = ThreadPoolExecutor(threads, thread_name_prefix="cvit-checker")
        try:
            for name, (facts, reason) in zip(self.names, pool.map(_looked_at, self.paths)):
                found.append(facts)
                if facts is None:
                    broken.append((name, reason))
                if on_check is not None:
                    on_check(len(found), len(self))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        usable = np.flatnonzero([facts is not None for facts in found])
        known = [facts or (b"", 0, 0, False) for facts in found]
        self.hashes = [digest for digest, *_ in known]
        self.sizes = np.array([(height, width) for _, height, width, _ in known], np.int64).reshape(-1, 2)
        self.grey = np.array([grey for *_, grey in known], bool)
        return usable, broken

    def decoded(self, index, channels=3, alpha="drop", short_edge=None):
        return open_picture(self.paths[index], channels=channels, alpha=alpha, short_edge=short_edge)

    def prepared(self, index, how):
        return _prepared(how.opened(self.paths[index]), how)


def _prepared(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """`Source.prepared` of an opened picture."""
    if not how.rescale_first:
        return pixels(image, how)
    out = np.empty(how.shape, np.float32)
    values(image, how, out)
    return out


def _looked_at(path: Path) -> tuple[tuple | None, str]:
    """(hash, height, width, grey) of a file with a picture, or None and why it cannot be used."""
    try:
        with open_regular(path) as file:
            data = file.read()
        return (hashlib.blake2b(data, digest_size=HASH_BYTES).digest(), *inspect(data, path.name)), ""
    except OSError as error:
        return None, os.strerror(error.errno) if error.errno is not None else str(error)
    except ValueError as error:
        return None, str(error).removeprefix(f"{path.name} ")


class Arrays(Source):
    """Pictures of one size in an array (n, h, w, c): uint8 with c = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.

    images : array (n, h, w, c)
    name : str
        Pictures are called name[i].
    """

    vectorised = True

    def __init__(self, images: np.ndarray, name: str):
        self.images = np.ascontiguousarray(images)
        self.names = [f"{name}[{i}]" for i in range(len(images))]
        self.hashes = [hashlib.blake2b(image, digest_size=HASH_BYTES).digest() for image in self.images]
        self.sizes = np.full((len(images), 2), images.shape[1:3], np.int64)
        self.grey = np.full(len(images), images.shape[3] < 3)

    def take(self, indices):
        some = object.__new__(type(self))
        some.images, some.names = self.images[indices], [self.names[i] for i in indices]
        some.hashes, some.sizes, some.grey = [self.hashes[i] for i in indices], self.sizes[indices], self.grey[indices]
        return some

    def decoded(self, index, channels=3, alpha="drop", short_edge=None):
        return open_picture(self.images[index], channels=channels, alpha=alpha)

    def prepared(self, index, how):
        return _prepared(how.opened(self.images[index]), how)

    def batch(self, indices, how):
        channels = self.images.shape[3]
        to_grey, opaque = channels > 2 and how.channels == 1, channels in (1, 3) or how.alpha == "drop"
        if to_grey or not opaque or not keeps_size(self.images.shape[1:3], how):
            return None
        height, width = how.shape[1:]
        chosen = self.images[indices, :height, :width, : 3 if channels > 2 else 1]
        chosen = np.broadcast_to(chosen, (*chosen.shape[:3], how.channels))
        out = np.empty((len(indices), *how.shape), np.float32)
        if how.rescale_first:
            np.multiply(np.moveaxis(chosen, 3, 1), np.float32(how.rescale), out=out)
            normalize(how, out)
        else:
            byte_values(chosen, how, out)
        return out


class Floats(Arrays):
    """Pictures of one size in a float32 array (n, h, w, c) from 0 to 255, c = 1 grey or 3 RGB, not rounded to bytes.

    Only an augmentation that is Pillow's has them rounded.
    """

    def decoded(self, index, channels=3, alpha="drop", short_edge=None):
        """The picture rounded to bytes, to be looked at."""
        image = self.images[index]
        image = image[:, :, 0] if image.shape[2] == 1 else image
        return pillow().fromarray(np.rint(image).astype(np.uint8)).convert("RGB" if channels == 3 else "L")

    def prepared(self, index, how):
        out = np.empty(how.shape, np.float32)
        float_values(self._planes(self.images[index], how.channels), how, out)
        return out

    def batch(self, indices, how):
        if not keeps_size(self.images.shape[1:3], how):
            return None
        height, width = how.shape[1:]
        planes = self._planes(self.images[indices, :height, :width], how.channels)
        out = np.empty((len(indices), *how.shape), np.float32)
        np.multiply(np.moveaxis(planes, -1, 1), np.float32(how.rescale), out=out)
        normalize(how, out)
        return out

    @staticmethod
    def _planes(planes: np.ndarray, channels: int) -> np.ndarray:
        """(..., h, w, c) with as many channels as a model takes: grey three times, or colours' luma."""
        if planes.shape[-1] > channels:
            return (planes * LUMA).sum(axis=-1, keepdims=True)
        return np.broadcast_to(planes, (*planes.shape[:-1], channels))
