"""`Pictures`: pictures with labels, in files or in arrays, decoded when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..base.arrays import as_array, as_labels
from ..base.errors import check
from ..base.numbers import as_int
from ..pictures.open import pillow
from ..pictures.pixels import byte_values
from ..pictures.preprocessing import Preprocessing
from .cache import Cache
from .sources import Source

if TYPE_CHECKING:
    from PIL import Image

# A picture of which an augmentation is to cut a part is kept with a short edge of up to LARGEST times the model's; a
# larger one is reduced to REDUCED times. So what is cached has a bound, a crop of less than half of the picture's edge
# still has as many pixels as the model takes, and pictures of about the right size are not resampled twice.
LARGEST, REDUCED = 2.0, 1.5
LOOKED_AT = 64  # pictures whose edges tell the usual background


class Pictures:
    """Pictures with labels.

    `cvit.data.find` and `cvit.data.from_arrays` make them.

    Attributes
    ----------
    source : Source
        Where the pictures are.
    labels : int64 array (n,)
        Numbers of classes.
    class_names : tuple of str
    weights : float64 array (n,) or None
        How much each picture counts in the loss; None: all the same.
    names : list of str
        What users know the pictures by: names of files, relative to the data's folder, or "train[17]".
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray,
        class_names: Sequence[str],
        weights: np.ndarray | None = None,
    ):
        self.source, self.class_names = source, tuple(class_names)
        self.labels = as_labels("labels", labels, len(source), len(self.class_names))
        self.weights = None if weights is None else as_array("weights", weights).astype(np.float64)
        right = self.weights is None or (
            self.weights.shape == self.labels.shape and bool((np.isfinite(self.weights) & (self.weights >= 0)).all())
        )
        check(right, f"weights must be {len(source)} finite numbers of at least 0, one a picture")

    def __len__(self) -> int:
        return len(self.source)

    @property
    def names(self) -> list[str]:
        """What users know the pictures by."""
        return self.source.names

    @property
    def channels(self) -> int:
        """1 where all pictures are grey, else 3."""
        return 1 if len(self) and bool(self.source.grey.all()) else 3

    @property
    def size(self) -> tuple[int, int]:
        """The median of the pictures' heights and of their widths: what they all have, where they are of one size."""
        height, width = np.median(self.source.sizes, axis=0).astype(int).tolist()
        return height, width

    def take(self, indices: Sequence[int] | np.ndarray) -> Pictures:
        """These pictures only, in this order."""
        chosen = np.asarray(indices, np.int64)
        weights = None if self.weights is None else self.weights[chosen]
        return Pictures(self.source.take(chosen), self.labels[chosen], self.class_names, weights)

    def background(self, channels: int) -> tuple[int, ...]:
        """The usual colour at the pictures' edges, a byte for each channel: the median over the border pixels of a few.

        An augmentation that moves a picture fills with it what comes from outside.
        """
        rows = []
        for index in range(0, len(self), max(1, len(self) // LOOKED_AT)):
            pixels = np.asarray(self.decoded(index, channels)).reshape(-1, self.source.sizes[index][1], channels)
            inside = pixels[1:-1]
            rows += [pixels[0], pixels[-1], inside[:, 0], inside[:, -1]]
        return tuple(int(number) for number in np.median(np.concatenate(rows), axis=0))

    def digest(self) -> str:
        """A hash of names, labels, weights and the contents that the pictures had when they were found.

        Two data sets with one digest give the same batches.
        """
        whole = hashlib.sha256(repr((self.class_names, self.names, self.source.hashes)).encode())
        whole.update(self.labels.tobytes())
        if self.weights is not None:
            whole.update(self.weights.tobytes())
        return whole.hexdigest()

    def decoded(self, index: int, channels: int = 3) -> Image.Image:
        """Picture number `index`, whole and upright, of mode RGB, or L with `channels` 1.

        Raises
        ------
        OSError, ValueError
            As `open_picture`, with the file's name: it was removed or damaged since it was found.
        """
        return self.source.decoded(as_int("index", index, minimum=0, maximum=len(self) - 1), channels)

    def plain(self, indices: Sequence[int] | np.ndarray, how: Preprocessing, cache: Cache | None = None) -> np.ndarray:
        """What `how` makes of these pictures, to the same bits: float32 (n, C, H, W)."""
        chosen = np.asarray(indices, np.int64)
        whole = self.source.batch(chosen, how)
        if whole is not None:
            return whole
        out = np.empty((len(chosen), *how.shape), np.float32)
        for index, row in zip(chosen.tolist(), out):
            self.write_plain(index, how, row, cache)
        return out

    def write_plain(self, index: int, how: Preprocessing, out: np.ndarray, cache: Cache | None = None) -> None:
        """Write to `out` (C, H, W), float32, what `how` makes of one picture."""
        make = lambda: self.source.prepared(index, how)
        prepared = make() if cache is None else cache.get((self.source, how, index), make)
        if prepared.dtype == np.uint8:
            byte_values(prepared, how, out)
        else:
            out[...] = prepared

    def reduced(self, index: int, how: Preprocessing, cache: Cache | None = None) -> Image.Image:
        """One picture for an augmentation, of mode RGB or L, reduced where it is far larger than the model's.

        The short edge has at most `LARGEST` times the pixels of the longer edge of `how.size`. A larger picture is
        reduced to `REDUCED` times that, of which a JPEG is decoded at a half, a quarter or an eighth where that is
        enough. The same pixels come with a cache and without.
        """
        if cache is None or self.source.vectorised:
            return self._reduced(index, how)
        key = (self.source, "reduced", max(how.size), how.channels, how.alpha, index)
        return pillow().fromarray(cache.get(key, lambda: np.asarray(self._reduced(index, how))))

    def _reduced(self, index: int, how: Preprocessing) -> Image.Image:
        edge = max(how.size)
        image = self.source.decoded(index, how.channels, how.alpha, short_edge=int(REDUCED * edge))
        image.info.clear()  # a file's transparent colour, say, would change what Pillow does later; the cache has none
        short = min(image.size)
        if short <= LARGEST * edge:
            return image
        ratio = REDUCED * edge / short
        size = max(round(image.width * ratio), 1), max(round(image.height * ratio), 1)
        return image.resize(size, resample=3, reducing_gap=2.0)  # bicubic, averaging whole pixels before
