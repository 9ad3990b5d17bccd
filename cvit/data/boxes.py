"""Rectangles of random area and aspect ratio: what a random resized crop keeps, and what random erasing erases.

Both try up to ten times for one that fits. A trial takes two draws, its area and its aspect ratio; where the rectangle
lies, takes two more, which all trials share as only one of them succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .draws import between, whole

TRIALS = 10
DRAWS = 2 + 2 * TRIALS  # top, left, and (area, aspect ratio) of each trial
ERASED_AREA = (0.02, 1 / 3)  # of the picture's, timm's and Zhong et al.'s
ERASED_ASPECT = (0.3, 1 / 0.3)  # height to width

Box = tuple[int, int, int, int]  # top, left, height, width
Range = tuple[float, float]


def crop_box(height: int, width: int, scale: Range, ratio: Range, draws: Sequence[float]) -> Box:
    """The part of a picture that a random resized crop keeps, as timm's RandomResizedCropAndInterpolation draws it.

    Its area is even between `scale[0]` and `scale[1]` of the picture's, the logarithm of width to height between those
    of `ratio`; it has at least one pixel, which timm's may lack in a tiny picture. Where none of ten trials fits, it is
    the largest part in the middle whose ratio lies within `ratio`.
    (Szegedy et al. 2015, "Going deeper with convolutions".) `draws` are `DRAWS` even numbers of [0, 1).
    """
    for across, down in _trials(height * width, scale, ratio, draws[2:]):
        across, down = max(across, 1), max(down, 1)
        if across <= width and down <= height:
            return whole(draws[0], height - down + 1), whole(draws[1], width - across + 1), down, across
    down, across = height, width
    if width / height < ratio[0]:
        down = round(width / ratio[0])
    elif width / height > ratio[1]:
        across = round(height * ratio[1])
    down, across = max(down, 1), max(across, 1)
    return (height - down) // 2, (width - across) // 2, down, across


def erased_box(height: int, width: int, draws: Sequence[float]) -> Box | None:
    """The part that random erasing erases, as timm's RandomErasing draws it; None where no trial fits.

    (Zhong et al. 2017, "Random erasing data augmentation".) `draws` are `DRAWS` even numbers of [0, 1).
    """
    for down, across in _trials(height * width, ERASED_AREA, ERASED_ASPECT, draws[2:]):
        if across < width and down < height:
            return whole(draws[0], height - down + 1), whole(draws[1], width - across + 1), down, across
    return None


def _trials(area: int, scale: Range, ratio: Range, draws: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Edges, in whole pixels, of rectangles of a share of `area` within `scale`, the first to the second as `ratio`."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for trial in range(TRIALS):
        target = between(draws[2 * trial], *scale) * area
        aspect = math.exp(between(draws[2 * trial + 1], low, high))
        yield round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
