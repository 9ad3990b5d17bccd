"""Dropout and stochastic depth of an array, with their backward: csrc/kernels/drop.inc alone."""

from __future__ import annotations

import numpy as np

from ..base.arrays import as_array, as_float, common_dtype
from ..base.errors import check
from ..base.numbers import as_int, representable
from . import _kernels as _ops


def drop(x, seed: int, *, path: float = 0.0, rate: float = 0.0, place: int = 0, first: int = 0, add=None) -> np.ndarray:
    """y = x * mask + add: elements dropped at random (Srivastava et al. 2014), and whole samples (Huang et al. 2016).

    Parameters
    ----------
    x : array (N, T, D), float32 or float64
    seed : int in [0, 2**64)
    path : float in [0, 1)
        The probability that all of x[n] is dropped.
    rate : float in [0, 1)
        The probability that an element is. The mask of those that stay is 1 / ((1 - path) (1 - rate)).
    place : int in [0, 2**31)
        Numbers a model's drops: masks of places that differ are independent.
    first : int in [0, 2**63)
        Number of the sample x[0].
    add : array (N, T, D), optional
        A residual.

    Returns
    -------
    y : array (N, T, D)

    The mask of an element is a function of (seed, place, first + n, t, d) alone: Threefry-2x32 of these (Salmon et al.
    2011), the same on every instruction set.
    """
    return _dropped("x", x, seed, path, rate, place, first, add)


def drop_backward(dy, seed: int, *, path: float = 0.0, rate: float = 0.0, place: int = 0, first: int = 0) -> np.ndarray:
    """dx = dy * mask (N, T, D) from dy (N, T, D) and drop's arguments; the residual's gradient is dy."""
    return _dropped("dy", dy, seed, path, rate, place, first, None)


def _dropped(name: str, value, seed, path, rate, place, first, add) -> np.ndarray:
    dtype = common_dtype(**{name: value}, **({} if add is None else {"add": add}))
    x = as_float(name, as_array(name, value), ("N", "T", "D"), dtype)
    check(x.size > 0, f"{name} must not be empty, got shape {x.shape}")
    if add is not None:
        add = as_float("add", add, x.shape, dtype)
    y = np.empty_like(x)
    _ops.drop(
        x,
        add,
        y,
        as_int("seed", seed, minimum=0, maximum=2**64 - 1),
        as_int("place", place, minimum=0, maximum=2**31 - 1),
        as_int("first", first, minimum=0, maximum=2**63 - 1),
        representable("path", path, dtype, below_one=True),
        representable("rate", rate, dtype, below_one=True),
    )
    return y
