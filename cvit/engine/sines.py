"""Cosines and sines by additions and multiplications in float64 alone: the same bits with every library and machine,
which a bfloat16 model's rotary positions take. NumPy's own differ between processors in their last bits."""

from __future__ import annotations

import math

import numpy as np

# Half pi in three parts, of which the first two have 33 bits: their products with a count of quarter turns below 2^20
# are exact (Cody and Waite 1980, chapter 8).
_HALF_PI = (float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a6p-34"), float.fromhex("0x1.3198a2e037073p-69"))
# Of the Taylor series up to x^17, whose next terms are below 1e-17 within an eighth of a turn.
_SINE = [(-1) ** i / math.factorial(2 * i + 1) for i in range(9)]
_COSINE = [(-1) ** i / math.factorial(2 * i) for i in range(9)]


def cosines_sines(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of float64 angles, within 2^-52 up to 10^6; beyond that of their rest by a rounded whole turn.

    Those of NaN and infinities are NaN."""
    with np.errstate(invalid="ignore"):
        angles = np.where(np.abs(angles) <= 1e6, angles, np.fmod(angles, 2 * math.pi))
        turns = np.rint(angles * (2 / math.pi))
        x = ((angles - turns * _HALF_PI[0]) - turns * _HALF_PI[1]) - turns * _HALF_PI[2]
        sine, cosine = _polynomial(_SINE, x * x) * x, _polynomial(_COSINE, x * x)
        odd, far = np.mod(turns, 2) == 1, np.mod(turns, 4) >= 2
        cos, sin = np.where(odd, -sine, cosine), np.where(odd, cosine, sine)
        return np.where(far, -cos, cos), np.where(far, -sin, sin)


def _polynomial(coefficients: list[float], x: np.ndarray) -> np.ndarray:
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result
