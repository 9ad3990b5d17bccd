"""Images as scikit-learn's users have them: pixels in any layout, or rows of values, as (n, C, h, w).

scikit-learn's own checks see rows (n, values) only: 3-D and 4-D arrays are flattened for them, so that nan, infinities,
complex numbers and a changed number of values are refused in every layout, with the same words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data
from threadpoolctl import threadpool_limits

from ..base.errors import check
from ..base.numbers import as_int, shown

Shape = tuple[int, ...]


def flattened(X) -> tuple[Any, Shape | None]:
    """X as rows, and the shape of an image if X is (n, h, w), (n, h, w, c) or (n, c, h, w); else X itself and None."""
    shape = getattr(X, "shape", None)
    if shape is None:
        X = np.asarray(X)
        shape = X.shape
    if len(shape) not in (3, 4):
        return X, None
    X = np.asarray(X)
    return X.reshape(len(X), math.prod(X.shape[1:])), X.shape[1:]


def validated(estimator, X, y=None, *, reset: bool, with_y: bool = False):
    """Rows of numbers (n, values) that scikit-learn has checked, the shape of an image or None, and the labels.

    Sets (`reset`) or compares the estimator's `n_features_in_` and `feature_names_in_`.
    """
    rows, shape = flattened(X)
    if with_y:
        rows, y = validate_data(estimator, rows, y, reset=reset)
    else:
        rows = validate_data(estimator, rows, reset=reset)
    return rows, shape, y


def channels_come_first(shape: Shape) -> bool:
    """Whether three lengths are (c, h, w), not (h, w, c): the channels are the shorter one of first and last axis.

    Where both are equal the last one is the channels.
    """
    return shape[0] < shape[2]


def channels_first(shape: Shape) -> Shape:
    """The shape (C, h, w) of an image (h, w), (h, w, c) or (c, h, w)."""
    if len(shape) == 2:
        return 1, *shape
    return shape if channels_come_first(shape) else (shape[2], *shape[:2])


def checked_image_shape(value) -> Shape | None:
    """The parameter `image_shape`, None or two or three whole numbers from 1."""
    if value is None:
        return None
    right = isinstance(value, (tuple, list)) and len(value) in (2, 3)
    check(right, f"image_shape must be (h, w), (h, w, c) or (c, h, w), got {shown(value)}")
    return tuple(as_int("image_shape", length) for length in value)


@dataclasses.dataclass(frozen=True)
class Form:
    """How a row of values is an image: of the shape `axes`, or (None) of one channel, with zeros to the next square."""

    axes: Shape | None
    features: int

    @classmethod
    def of(cls, features: int, image_shape, seen: Shape | None) -> Form:
        """From the number of values, the parameter `image_shape`, and the shape of X's images, None of rows.

        Raises
        ------
        ValueError
            `image_shape` is not the shape of X's images, or has another number of values.
        """
        wanted = checked_image_shape(image_shape)
        if wanted is not None:
            count = math.prod(wanted)
            right = features == count if seen is None else channels_first(seen) == channels_first(wanted)
            got = f"{features} values in a row" if seen is None else f"images of shape {seen}"
            check(right, f"X must have images of image_shape={wanted}, {count} values each, got {got}")
        return cls(seen or wanted, features)

    @property
    def shape(self) -> Shape:
        """Channels, height and width of the images."""
        if self.axes is not None:
            return channels_first(self.axes)
        side = math.isqrt(self.features - 1) + 1
        return 1, side, side

    def images(self, rows: np.ndarray, seen: Shape | None) -> np.ndarray:
        """Rows (n, values) as images (n, C, h, w) of the same dtype, a view where that is possible.

        `seen` is the shape that the rows had as images, None of rows; any layout of the same images will do.
        """
        axes = seen or self.axes
        if axes is None:
            missing = math.prod(self.shape) - self.features
            rows = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
            return rows.reshape(len(rows), *self.shape)
        check(
            channels_first(axes) == self.shape,
            f"X must have images of {self.shape} (channels, height, width), as in fit, got images of shape {axes}",
        )
        images = rows.reshape(len(rows), *axes)
        if len(axes) == 2:
            return images[:, None]
        return images if channels_come_first(axes) else np.moveaxis(images, 3, 1)


def limited(n_threads):
    """A context in which cvit uses at most `n_threads` threads; None limits nothing."""
    if n_threads is None:
        return contextlib.nullcontext()
    return threadpool_limits(as_int("n_threads", n_threads), user_api="openmp")
