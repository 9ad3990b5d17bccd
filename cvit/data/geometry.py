"""Pictures made to cover a size and moved by affine maps, and the colour of what comes from outside them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from ..base.errors import check
from ..base.numbers import as_int, finite, shown
from ..pictures.open import pillow
from ..pictures.pixels import MOST_PIXELS, Size, crop_origin, resized_size
from ..pictures.preprocessing import Preprocessing

Fill = float | tuple[float, ...]  # a value of all channels, or one a channel


def covering(image, size, filter):
    """The picture resized so that it just covers the size, its middle cut out; itself where it has the size."""
    now = image.height, image.width
    if now == size:
        return image
    how = _cover(size)
    high, wide = resized_size(now, how)
    top, left = crop_origin((high, wide), size, how.rounding)
    if high * wide > MOST_PIXELS:  # a picture hundreds of times longer than wide: only the middle is made
        down, across = now[0] / high, now[1] / wide
        box = (left * across, top * down, min((left + size[1]) * across, now[1]), min((top + size[0]) * down, now[0]))
        return image.resize((size[1], size[0]), filter, box=box)
    image = image.resize((wide, high), filter)
    return image.crop((left, top, left + size[1], top + size[0]))


@functools.lru_cache(maxsize=32)
def _cover(size: Size) -> Preprocessing:
    """The settings of a picture that just covers a size."""
    return Preprocessing(size=size, resize="short_edge")


def moved(image, affine, row, colour):
    """The picture under an affine map, computed on its bytes as `batch` does it on values."""
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
    planes = affine(np.moveaxis(pixels, -1, 0)[None], [row], colour)[0]
    pixels = np.moveaxis(np.rint(planes), 0, -1).astype(np.uint8)
    return pillow().fromarray(np.ascontiguousarray(pixels if image.mode == "RGB" else pixels[:, :, 0]))


def fill_of(mean: Sequence[float]) -> tuple[int, ...]:
    """The colour that stands for nothing, 0 .. 255 a channel: the mean (0 .. 1) with which a model normalizes.

    timm fills with it what RandAugment moves into a picture.
    """
    return tuple(min(255, max(0, round(255 * channel))) for channel in mean)


def colour(fill: Fill, mode: str) -> int | tuple[int, ...]:
    """A fill for Pillow: whole numbers, one for each band."""
    bands = len(mode)  # RGB or L
    numbers = fill if isinstance(fill, (list, tuple)) else (fill,) * bands
    check(len(numbers) == bands, f"fill must be one number, or {bands} for a picture of mode {mode}, got {shown(fill)}")
    colour = tuple(as_int("fill", number, minimum=0, maximum=255) for number in numbers)
    return colour if bands > 1 else colour[0]


def fill_values(fill: Fill, channels: int) -> np.ndarray:
    """A fill for values, (channels,) float32."""
    numbers = list(fill) if isinstance(fill, (list, tuple, np.ndarray)) else [fill] * channels
    check(len(numbers) == channels, f"fill must be one number, or {channels}, one a channel, got {shown(fill)}")
    largest = float(np.finfo(np.float32).max)
    numbers = [finite("fill", number, minimum=-math.inf) for number in numbers]
    check(all(abs(number) <= largest for number in numbers), f"fill must fit float32, got {shown(fill)}")
    return np.array(numbers, np.float32)
