"""Numbers in: a whole number or a finite one, or an error that names the argument."""

from __future__ import annotations

import math
import operator

import numpy as np

from .errors import short

SHOWN = 100  # characters of a wrong value that an error repeats


def shown(value) -> str:
    """`repr(value)` for an error's text: cut to `SHOWN` characters, and never an exception of its own."""
    try:
        text = repr(value)
    except Exception:  # an int of more than 4300 digits, say
        text = f"a value of type {type(value).__name__}"
    return short(text, SHOWN)


def as_int(name: str, value, *, minimum: int = 1, maximum: int | None = None) -> int:
    """`value` as an int: ints and whole floats (2.0) pass, anything else raises an error that names `name`."""
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    try:
        number = operator.index(value)
    except TypeError:
        try:
            number = int(value)
            whole = number == value
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"{name} must be an integer, got {shown(value)}") from None
        if not whole:
            raise ValueError(f"{name} must be a whole number, got {shown(value)}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {shown(number)}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {shown(number)}")
    return number


def finite(name: str, value, *, minimum: float = 0.0) -> float:
    """`value` as a finite float of at least `minimum`."""
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {shown(value)}") from None
    except OverflowError:  # an int beyond the largest float
        number = math.inf
    if not (math.isfinite(number) and number >= minimum):
        raise ValueError(f"{name} must be finite and at least {minimum:g}, got {shown(value)}")
    return number


# Of each element type, by its size: the largest number, the smallest one of full precision, and the first one that
# rounds to 1.
_LIMITS = {
    np.dtype(kind).itemsize: (float(np.finfo(kind).max), float(np.finfo(kind).tiny), 1 - float(np.finfo(kind).eps) / 4)
    for kind in (np.float32, np.float64)
}


def representable(name: str, value, dtype: np.dtype, *, positive: bool = False, below_one: bool = False) -> float:
    """`value` as a finite float of at least 0 that means the same in `dtype`, in which kernels compute with it.

    `dtype` is float32 or float64. The number must not overflow there; where it must be `positive`, not round to 0 or to
    a subnormal number, which kernels flush to 0; and where it must lie `below_one`, not round to 1. Other numbers may
    become 0, as a learning rate that a schedule has let fade.
    """
    if type(value) is float and (1e-30 < value < 0.99 or (value == 0 and not positive)):
        return value  # nearly all calls: every step makes some
    number = finite(name, value)
    largest, normal, one = _LIMITS[dtype.itemsize]
    if number > largest:
        raise ValueError(f"{name} must be at most {largest:.4g}, the largest {dtype}, got {shown(value)}")
    if positive and number < normal:
        if number == 0:
            raise ValueError(f"{name} must be greater than 0, got {shown(value)}")
        raise ValueError(f"{name} must be at least {normal:.4g}, the smallest normal {dtype}, got {shown(value)}")
    if below_one and number >= one:
        rounded = f" (it rounds to 1 in {dtype})" if number < 1 else ""
        raise ValueError(f"{name} must be below 1, got {shown(value)}{rounded}")
    return number
