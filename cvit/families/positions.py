"""A position embedding for another grid of patches: each library's own rule, as one matrix an axis.

A rule is a filter and where its taps lie. Every one of them is linear and separable, so that the new positions are
W_rows · grid · W_columnsᵀ, channel by channel, with the weights in float64 and the result in float32.

    "bicubic"              torch's interpolate, mode "bicubic" (a = -0.75), taps outside the grid moved to its edge
    "bicubic antialias"    torch's with antialias=True (a = -0.5, filter as wide as a step between new positions)
    "bicubic corners"      torch's with align_corners=True (a = -0.75)
    "bilinear"             torch's, mode "bilinear"
    "bilinear antialias"   torch's with antialias=True
    "bilinear corners"     torch's with align_corners=True, and scipy.ndimage.zoom of order 1
"""

from __future__ import annotations

import functools

import numpy as np

from ..base.errors import check


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981) at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _linear(x: np.ndarray, a: float) -> np.ndarray:
    """The triangle at distances x >= 0; `a` is not used."""
    return np.maximum(1 - x, 0.0)


FILTERS = {"bicubic": (_cubic, 2), "bilinear": (_linear, 1)}  # and how far they reach
RULES = tuple(f"{mode}{how}" for mode in FILTERS for how in ("", " antialias", " corners"))


@functools.lru_cache(maxsize=32)
def weights(old: int, new: int, rule: str) -> np.ndarray:
    """(new, old): what each of `new` positions takes of each of `old` ones along one axis."""
    check(rule in RULES, f"rule must be one of {RULES}, got {rule!r}")
    mode, _, how = rule.partition(" ")
    kernel, reach = FILTERS[mode]
    matrix = np.zeros((new, old))
    scale = old / new
    for i in range(new):
        if how == "antialias":
            centre, wide = scale * (i + 0.5), max(scale, 1.0)
            first = max(int(centre - reach * wide + 0.5), 0)
            stop = min(int(centre + reach * wide + 0.5), old)
            taps = np.arange(first, stop)
            share = kernel(np.abs((taps - centre + 0.5) / wide), -0.5)
            share = share / share.sum()
        else:
            centre = i * (old - 1) / (new - 1) if how and new > 1 else 0.0 if how else (i + 0.5) * scale - 0.5
            if mode == "bilinear":
                centre = max(centre, 0.0)
            taps = int(np.floor(centre)) + np.arange(1 - reach, 1 + reach)
            share = kernel(np.abs(centre - taps), -0.75)
            taps = np.clip(taps, 0, old - 1)
        np.add.at(matrix[i], taps, share)
    matrix.flags.writeable = False
    return matrix


def resample(positions: np.ndarray, prefix: int, old: tuple[int, int], new: tuple[int, int], rule: str) -> np.ndarray:
    """Positions (prefix + new rows · columns, D), float32, of positions (prefix + old rows · columns, D).

    The first `prefix` rows are those of tokens before the patches, and stay.
    """
    if old == new:
        return positions
    down, across = weights(old[0], new[0], rule), weights(old[1], new[1], rule)
    grid = positions[prefix:].reshape(*old, -1).astype(np.float64)
    grid = np.einsum("ab,bcd->acd", down, grid)
    grid = np.einsum("ec,acd->aed", across, grid).reshape(new[0] * new[1], -1)
    return np.concatenate([positions[:prefix], grid.astype(positions.dtype)])
