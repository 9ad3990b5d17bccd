"""Clipping of the gradient by its global norm (Pascanu et al. 2013, arXiv:1211.5063)."""

from __future__ import annotations

import math

import numpy as np

from ..base.arrays import FLOATS, as_array, as_vector
from ..base.errors import check
from ..base.numbers import finite
from ..engine import update
from ..model.precision import resolved


def _norm(grad: np.ndarray, runs: np.ndarray, precision: str | None) -> float:
    """The Euclidean norm of the runs of `grad`, or a `ValueError` where it is not a finite number."""
    if len(grad) == 0 or len(runs) == 0:
        return 0.0
    total = update.sum_of_squares(grad, runs, precision)
    normal = float(np.finfo(grad.dtype).tiny)
    if total > len(grad) * normal * 2**30 and math.isfinite(total):
        return math.sqrt(total)
    # The kernel squares in the gradient's own type: large squares may have overflowed, and small ones are lost beside
    # these few.
    parts = [grad[run["start"] : run["stop"]] for run in runs]
    largest = float(np.max([max(part.max(), -part.min()) for part in parts]))
    norm = largest
    if largest > 0 and math.isfinite(largest):
        norm *= math.sqrt(sum(np.square(part / np.float64(largest)).sum() for part in parts))
    check(math.isfinite(norm), f"grad must be finite, but its norm is {norm}")
    return norm


def norm_and_scale(
    grad: np.ndarray, max_norm: float, runs: np.ndarray, precision: str | None = None
) -> tuple[float, float]:
    """The norm of the runs of `grad`, and the factor that brings it down to `max_norm` (1 where it is no longer).

    `runs` is an array of `engine.update.RUN`; other parts of `grad` are not read. The same bits for any number of
    threads. `precision` says whose kernel adds up the squares, None is that of the vector's type.
    """
    max_norm = finite("clip_norm", max_norm)
    check(max_norm > 0, "clip_norm must be greater than 0, got 0 (None means no clipping)")
    norm = _norm(grad, runs, precision)
    return norm, min(1.0, max_norm / norm) if norm else 1.0


def too_small(scale: float, dtype: np.dtype) -> bool:
    """Whether a factor would lose its digits in `dtype`."""
    return scale < 1 and scale < np.finfo(dtype).tiny


def clip(grad: np.ndarray, clip_norm: float, precision: str | None = None) -> float:
    """Scale `grad` (size,) in place to at most `clip_norm`, and return the norm it had.

    The optimizers' `step(..., clip_norm=...)` does the same without a pass of its own. `precision` is the model's, None
    that of the vector's type.
    """
    if not isinstance(grad, np.ndarray) or np.asarray(grad).dtype not in FLOATS:
        raise TypeError("grad must be a NumPy array of float32 or float64")
    grad = as_array("grad", grad)
    grad = as_vector("grad", grad, grad.size, grad.dtype, writable=True)
    precision = resolved(precision, grad.dtype, "grad")
    norm, scale = norm_and_scale(grad, clip_norm, update.run_of(0, grad.size), precision)
    if too_small(scale, grad.dtype):
        np.multiply(grad, scale, out=grad, dtype=np.float64, casting="same_kind")
    elif scale < 1:
        grad *= grad.dtype.type(scale)
    return norm
