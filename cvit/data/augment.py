"""Random changes of training images: small affine maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..base.arrays import any_float
from ..base.errors import check
from ..base.numbers import finite, representable, shown
from .arrays import check_generator
from .draws import between

_BLOCK = 1 << 14  # pixels whose places are computed at a time
LARGEST_ZOOM = 100.0  # exp(100) = 3e43: any more overflows sooner or later
AFFINE_DRAWS = 6  # of an image: angle, factor, slant, the shifts down and to the right, whether it is touched
SINGLE = np.dtype(np.float32)


def random_affine(
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    shift: float = 0.75,
    rotation: float = 0.2,
    zoom: float = 0.12,
    shear: float = 0.15,
    untouched: float = 0.25,
    fill: float = -1.0,
) -> np.ndarray:
    """Each image (N, C, H, W) moved, turned, scaled and sheared a little about its centre, resampled bilinearly.

    Drawn evenly: a shift of up to `shift` pixels each way, an angle of up to `rotation` radians, a factor between
    exp(-zoom) and exp(zoom), a shear of up to `shear` pixels a row. Outside an image there is `fill`. A share of about
    `untouched` stays as it is: resampling blurs, and the images to be recognised later are sharp.

    The images (N, C, H, W) are float32 or float64, and the result is new. `rng` is a `numpy.random.Generator`; shift,
    rotation, zoom and shear are finite and at least 0, untouched is between 0 and 1. Else TypeError or ValueError.
    """
    images = any_float("images", images, ("N", "C", "H", "W"))
    check_generator(rng)
    limits = Affine(shift, rotation, zoom, shear, untouched)
    fill, largest = finite("fill", fill, minimum=-math.inf), float(np.finfo(images.dtype).max)
    check(abs(fill) <= largest, f"fill must be at most {largest:.4g} in magnitude, got {shown(fill)}")
    N = len(images)
    uniform = lambda limit: rng.uniform(-limit, limit, (N, 1, 1))
    angle, factor, slant = uniform(limits.rotation), np.exp(uniform(limits.zoom)), uniform(limits.shear)
    shift_y, shift_x = uniform(limits.shift), uniform(limits.shift)
    moved = _mapped(images, np.cos(angle), np.sin(angle), factor, slant, shift_y, shift_x, fill)
    return np.where(rng.random((N, 1, 1, 1)) < limits.untouched, images, moved)


@dataclass(frozen=True)
class Affine:
    """Limits of small affine maps about the centre of an image, see `random_affine`.

    A shift of up to `shift` pixels each way, an angle of up to `rotation` radians, a factor between exp(-zoom) and
    exp(zoom), a shear of up to `shear` pixels a row; a share `untouched` of the images stays as it is.
    """

    shift: float = 0.75
    rotation: float = 0.2
    zoom: float = 0.12
    shear: float = 0.15
    untouched: float = 0.25

    def __post_init__(self):
        for name in ("shift", "rotation", "zoom", "shear"):
            object.__setattr__(self, name, representable(name, getattr(self, name), SINGLE))
        object.__setattr__(self, "untouched", finite("untouched", self.untouched))
        check(self.zoom <= LARGEST_ZOOM, f"zoom must be at most {LARGEST_ZOOM:g}, got {shown(self.zoom)}")
        check(self.untouched <= 1, f"untouched must be a share, at most 1, got {shown(self.untouched)}")

    def __call__(self, images: np.ndarray, draws: Sequence[Sequence[float]], fill) -> np.ndarray:
        """The images (n, C, H, W), of a floating type, each moved as its own row of draws says; a new array.

        A row holds `AFFINE_DRAWS` even numbers of [0, 1). `fill`, what stands outside, is a number or one a channel.
        Each image is a function of its row alone: its sine and cosine are taken one by one, as NumPy's may differ in
        the last bit with the place in an array.
        """
        images = images.copy()
        touched = [number for number, row in enumerate(draws) if row[5] >= self.untouched]
        if not touched:
            return images
        rows = [draws[number] for number in touched]
        column = lambda values: np.array(values)[:, None, None]
        spread = lambda slot, limit: column([between(row[slot], -limit, limit) for row in rows])
        angles = [between(row[0], -self.rotation, self.rotation) for row in rows]
        cosine, sine = column([math.cos(angle) for angle in angles]), column([math.sin(angle) for angle in angles])
        factor = column([math.exp(between(row[1], -self.zoom, self.zoom)) for row in rows])
        slant, shift_y, shift_x = spread(2, self.shear), spread(3, self.shift), spread(4, self.shift)
        images[touched] = _mapped(images[touched], cosine, sine, factor, slant, shift_y, shift_x, fill)
        return images


def _mapped(images, cosine, sine, factor, slant, shift_y, shift_x, fill):
    """The images (N, C, H, W) under affine maps whose parameters are (N, 1, 1) each, resampled bilinearly.

    Outside an image there is `fill`, a number or one a channel. A few images at a time, so that the many passes over
    their pixels stay in the cache.
    """
    N, C, H, W = images.shape
    y, x = np.arange(H)[:, None] - (H - 1) / 2, np.arange(W) - (W - 1) / 2
    moved, step = np.empty((N, C, H, W), images.dtype), max(_BLOCK // max(H * W, 1), 1)
    for start in range(0, N, step):
        part = slice(start, start + step)
        cos, sin, zoom = cosine[part], sine[part], factor[part]
        # Where each new pixel lies in the old image, in coordinates of the image with a border of one pixel.
        source_y = zoom * (cos * y - sin * x) + shift_y[part] + (H + 1) / 2
        source_x = zoom * (sin * y + cos * x) + slant[part] * y + shift_x[part] + (W + 1) / 2
        _bilinear(bordered(images[part], 1, fill), source_y, source_x, moved[part])
    return moved


def bordered(images: np.ndarray, width: int, fill) -> np.ndarray:
    """The images (N, C, H, W) with a border, `width` pixels wide, of `fill`, a number or one a channel."""
    N, C, H, W = images.shape
    padded = np.empty((N, C, H + 2 * width, W + 2 * width), images.dtype)
    padded[...] = np.reshape(np.asarray(fill, images.dtype), (-1, 1, 1))
    padded[:, :, width : width + H, width : width + W] = images
    return padded


def _bilinear(images, y, x, out):
    """The images (N, C, H, W), contiguous, at the points y, x (N, h, w), clipped to them, to `out` (N, C, h, w)."""
    N, C, H, W = images.shape
    y, x = np.clip(y, 0, H - 1), np.clip(x, 0, W - 1)
    top, left = np.minimum(y.astype(int), H - 2), np.minimum(x.astype(int), W - 2)
    down, right = (y - top).astype(images.dtype), (x - left).astype(images.dtype)
    up, other = 1 - down, 1 - right
    flat, corner = images.reshape(-1), np.arange(N)[:, None, None] * (C * H * W) + top * W + left
    pixel = lambda offset: np.take(flat, corner + offset, mode="clip")  # clip: without a check of each index
    for channel in range(C):
        offset = channel * H * W
        upper = other * pixel(offset) + right * pixel(offset + 1)
        lower = other * pixel(offset + W) + right * pixel(offset + W + 1)
        out[:, channel] = up * upper + down * lower
