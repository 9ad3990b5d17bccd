"""Random changes of training images: small affine maps."""

from __future__ import annotations

import math

import numpy as np

from ..base.arrays import any_float
from ..base.errors import check
from ..base.numbers import finite, representable, shown
from .arrays import check_generator

LARGEST_ZOOM = 100.0  # exp(100) = 3e43: any more overflows sooner or later
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
    shift, rotation, zoom, shear = (
        representable(name, limit, SINGLE)
        for name, limit in (("shift", shift), ("rotation", rotation), ("zoom", zoom), ("shear", shear))
    )
    untouched = finite("untouched", untouched)
    check(zoom <= LARGEST_ZOOM, f"zoom must be at most {LARGEST_ZOOM:g}, got {shown(zoom)}")
    check(untouched <= 1, f"untouched must be a share, at most 1, got {shown(untouched)}")
    fill, largest = finite("fill", fill, minimum=-math.inf), float(np.finfo(images.dtype).max)
    check(abs(fill) <= largest, f"fill must be at most {largest:.4g} in magnitude, got {shown(fill)}")
    N, _, H, W = images.shape
    uniform = lambda limit: rng.uniform(-limit, limit, (N, 1, 1))
    angle, factor, slant = uniform(rotation), np.exp(uniform(zoom)), uniform(shear)
    y, x = np.arange(H)[:, None] - (H - 1) / 2, np.arange(W) - (W - 1) / 2
    # Where each new pixel lies in the old image, in coordinates of the image with a border of one pixel.
    source_y = factor * (np.cos(angle) * y - np.sin(angle) * x) + uniform(shift) + (H + 1) / 2
    source_x = factor * (np.sin(angle) * y + np.cos(angle) * x) + slant * y + uniform(shift) + (W + 1) / 2
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=fill)
    return np.where(rng.random((N, 1, 1, 1)) < untouched, images, _bilinear(padded, source_y, source_x))


def _bilinear(images, y, x):
    """The images (N, C, H, W) at the points y, x (N, h, w), clipped to them: (N, C, h, w)."""
    N, _, H, W = images.shape
    y, x = np.clip(y, 0, H - 1), np.clip(x, 0, W - 1)
    top, left = np.minimum(y.astype(int), H - 2), np.minimum(x.astype(int), W - 2)
    down, right = ((y - top)[..., None].astype(images.dtype), (x - left)[..., None].astype(images.dtype))
    n = np.arange(N)[:, None, None]
    pixel = lambda i, j: images[n, :, top + i, left + j]  # (N, h, w, C)
    upper = (1 - right) * pixel(0, 0) + right * pixel(0, 1)
    lower = (1 - right) * pixel(1, 0) + right * pixel(1, 1)
    return np.moveaxis((1 - down) * upper + down * lower, -1, 1)
