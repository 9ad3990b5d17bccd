"""One picture to the values of a model's input: resized, cropped, scaled and normalized.

The resizing is Pillow's, whose filters widen when a picture shrinks (antialiasing). Where the edges of a resized
picture and the origin of a crop are not whole numbers, timm (with torchvision) and transformers round differently, by
up to one pixel. Both ways are here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .open import pillow

if TYPE_CHECKING:
    from PIL import Image

    from .preprocessing import Preprocessing

Size = tuple[int, int]  # height, width

INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
# Of a resized picture as a whole, 128 MiB. Of a larger one, hundreds of times longer than wide, only what the crop
# keeps is made. Pillow then may take rows before columns instead of columns before rows, and as it clips to 0 .. 255 in
# between, "bicubic" and "lanczos" can give other pixels where they overshoot.
MOST_PIXELS = 1 << 25
# The same for a picture so many times longer than wide that has, with the resized one and what Pillow makes between the
# two, more than 50 million pixels.
LONG, MOST_TOGETHER = 256, 50_000_000


def resized_size(size: Size, how: Preprocessing) -> Size:
    """The size to which a picture of `size` is resized, before the crop."""
    height, width = size
    if how.resize is None or how.resize_size is None:
        return size
    high, wide = how.resize_size
    if how.resize == "squash":
        return high, wide
    if how.resize == "short_edge" and high == wide:  # torchvision and transformers cut the long edge's fraction off
        if width <= height:
            return max(int(high * height / width), 1), high
        return high, max(int(high * width / height), 1)
    ratios = height / high, width / wide
    ratio = min(ratios) if how.resize == "short_edge" else max(ratios)
    return max(round(height / ratio), 1), max(round(width / ratio), 1)  # timm rounds


def crop_origin(size: Size, crop: Size, rounding: str) -> Size:
    """Top and left of the crop in a picture of `size`; negative where the picture is smaller and gets a border."""
    if rounding == "transformers":
        return (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    top, left = (round((s - c) / 2) if s >= c else -((c - s) // 2) for s, c in zip(size, crop))
    return top, left


def values(image: Image.Image, how: Preprocessing, out: np.ndarray) -> None:
    """Write a picture's values to `out` (C, H, W), float32. `image` is of mode RGB or L, as `how.channels` says."""
    if how.rescale_first:
        float_values(np.asarray(image).reshape(image.height, image.width, how.channels), how, out)
    else:
        byte_values(pixels(image, how), how, out)


def pixels(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """A picture resized and cropped: bytes (H, W, C). Not where `how.rescale_first` has floats resized."""
    _, height, width = how.shape
    border = tuple(min(max(round(255 * m), 0), 255) if how.resize == "long_edge" else 0 for m in how.mean)
    return np.asarray(_resized_and_cropped(image, how, border)).reshape(*how.size, how.channels)[:height, :width]


def byte_values(pixels: np.ndarray, how: Preprocessing, out: np.ndarray) -> None:
    """Write the values of bytes (..., H, W, C), of one picture or of many, to `out` (..., C, H, W), float32."""
    mean, std = (np.array(x, np.float64)[:, None] for x in (how.mean, how.std))
    table = ((np.arange(256) * how.rescale - mean) / std).astype(np.float32)  # (C, 256): each byte's value
    for channel in range(how.channels):
        np.take(table[channel], pixels[..., channel], out=out[..., channel, :, :], mode="clip")  # clip: no buffer


def float_values(planes: np.ndarray, how: Preprocessing, out: np.ndarray) -> None:
    """Write the values of bytes or float32 (h, w, C), from 0 to 255, to `out` (C, H, W): resized, too, as floats."""
    _, height, width = how.shape
    for channel, plane in enumerate(out):
        floats = _resized_and_cropped(_floats(planes[:, :, channel], how), how, (0.0,))
        plane[...] = np.asarray(floats)[:height, :width]
    normalize(how, out)


def _floats(plane: np.ndarray, how: Preprocessing) -> Image.Image:
    """One channel (h, w), scaled, of mode F."""
    floats = plane.astype(np.float32, "C")
    floats *= np.float32(how.rescale)
    return pillow().fromarray(floats)


def normalize(how: Preprocessing, out: np.ndarray) -> None:
    """Subtract the mean from `out` (..., C, H, W), float32, and divide by the standard deviation, in place."""
    mean, std = (np.array(x, np.float64)[:, None, None].astype(np.float32) for x in (how.mean, how.std))
    out -= mean
    out /= std


def keeps_size(size: Size, how: Preprocessing) -> bool:
    """Whether a picture of `size` is neither resized nor cropped nor gets a border."""
    return size == how.size and resized_size(size, how) == size


def _resized_and_cropped(image: Image.Image, how: Preprocessing, border: tuple) -> Image.Image:
    """The image resized and cropped to `how.size`; where it is smaller, there is a border of the colour `border`."""
    size = resized_size((image.height, image.width), how)
    origin = crop_origin(size, how.size, how.rounding) if how.crop else (0, 0)
    # the part of the resized picture that the crop keeps
    top, left = max(origin[0], 0), max(origin[1], 0)
    bottom, right = min(origin[0] + how.size[0], size[0]), min(origin[1] + how.size[1], size[1])
    filter = INTERPOLATIONS[how.interpolation]
    count = math.prod(size)
    together = count + image.height * (image.width + size[1])
    large = count > MOST_PIXELS or (max(size) > LONG * min(size) and together > MOST_TOGETHER)
    if large and size != (image.height, image.width):
        high, wide = image.height / size[0], image.width / size[1]
        box = (left * wide, top * high, min(right * wide, image.width), min(bottom * high, image.height))
        part = image.resize((right - left, bottom - top), filter, box=box)
    else:
        if size != (image.height, image.width):
            image = image.resize((size[1], size[0]), filter)
        whole = (left, top, right, bottom) == (0, 0, size[1], size[0])
        part = image if whole else image.crop((left, top, right, bottom))
    if (part.height, part.width) == how.size:
        return part
    framed = pillow().new(image.mode, (how.size[1], how.size[0]), border if len(border) > 1 else border[0])
    framed.paste(part, (left - origin[1], top - origin[0]))
    return framed
