"""bfloat16 as files have it: the upper halves of float32's bits, rounded to nearest, ties to even."""

from __future__ import annotations

import numpy as np

BITS = np.dtype("<u2")


def bits_of(values: np.ndarray) -> np.ndarray:
    """The bits, BITS of the same shape, of float32 or float64 values; what is too large is infinite, a NaN stays one.

    Nothing is flushed to zero: a subnormal number is rounded like any other.
    """
    single = _to_odd(values) if values.dtype.itemsize == 8 else np.ascontiguousarray(values, np.float32)
    bits = single.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))  # wraps around for a NaN alone
    rounded >>= 16
    nan = np.isnan(single)
    if nan.any():
        rounded[nan] = bits[nan] >> 16 | 0x40  # which its lower bits alone may have made one
    return rounded.astype(BITS)


def _to_odd(values: np.ndarray) -> np.ndarray:
    """float64 as float32, of the two neighbours the one whose last bit is 1: rounded again it gives what rounding once
    would (Boldo & Melquiond 2008, "Emulation of a FMA and correctly rounded sums")."""
    values = np.ascontiguousarray(values, np.float64)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        single = values.astype(np.float32)
        inexact = (single != values) & ~np.isnan(values)
        outward = inexact & (np.abs(single) > np.abs(values))
        single[outward] = np.nextafter(single[outward], np.float32(0))
    single.view(np.uint32)[inexact] |= 1
    return single
