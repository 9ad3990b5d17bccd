"""Numbers in: a whole number or a finite one, or an error that names the argument."""

from __future__ import annotations

import math
import operator

from .errors import check


def as_int(name: str, value, *, minimum: int = 1) -> int:
    """`value` as an int: ints and whole floats (2.0) pass, anything else raises an error that names `name`."""
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        try:
            number = int(value)
            whole = number == value
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
        check(whole, f"{name} must be a whole number, got {value!r}")
    check(number >= minimum, f"{name} must be at least {minimum}, got {number}")
    return number


def finite(name: str, value, *, minimum: float = 0.0) -> float:
    """`value` as a finite float of at least `minimum`."""
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    except OverflowError:  # an int beyond the largest float
        number = math.inf
    if not (math.isfinite(number) and number >= minimum):
        raise ValueError(f"{name} must be finite and at least {minimum:g}, got {value!r}")
    return number
