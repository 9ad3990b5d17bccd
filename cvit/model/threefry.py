"""JAX's random numbers in NumPy: the Threefry-2x32 generator and the draws that `jax.random` makes from it.

Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") scrambles a 64-bit counter under a
64-bit key in 20 rounds of add, rotate and xor. It has no state: number i of an array is a function of the key and of i
alone. How JAX makes keys from seeds, keys from keys and floats from bits is in jax/_src/prng.py and jax/_src/random.py
(since JAX 0.10 in jax/_src/random/); here it is done as with `jax_enable_x64` off, JAX's default, and in the
partitionable form, its default since 0.5.

Bits, keys and uniform numbers equal JAX's exactly. Normal numbers are within 3e-7 relative, most of them equal: XLA's
float32 log1p errs by up to two units in the last place, and in another place than the one used here.
"""

from __future__ import annotations

import math

import numpy as np

from ..base.errors import check
from ..base.numbers import as_int

_PARITY = 0x1BD11BDA  # xored with both halves of the key it makes a third key word (Salmon et al., section 3.3)
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_BLOCK = 1 << 15  # numbers drawn at a time, so that the many passes over them stay in the cache
_UINT32_MAX = 0xFFFFFFFF

# Coefficients, highest power first, of Giles 2012, "Approximating the erfinv function": erfinv(x) = x p(w) with
# w = -log(1 - x²); `_CENTRE` is a polynomial in w - 2.5 for w < 5, `_TAIL` one in sqrt(w) - 3 for the rest.
_CENTRE = np.array([
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
], np.float32)  # fmt: skip
_TAIL = np.array([
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
], np.float32)  # fmt: skip
_SQRT2 = np.float32(math.sqrt(2))


def threefry2x32(key: np.ndarray, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scramble the counters with halves `high`, `low`, uint32 (n,), under `key`, uint32 (2,): two uint32 (n,)."""
    first, second = (int(word) for word in key)
    words = (first, second, first ^ second ^ _PARITY)
    x, y = high + np.uint32(first), low + np.uint32(second)
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x += y
            y = (y << np.uint32(distance)) | (y >> np.uint32(32 - distance))
            y ^= x
        x += np.uint32(words[(group + 1) % 3])
        y += np.uint32((words[(group + 2) % 3] + group + 1) & _UINT32_MAX)
    return x, y


def key(seed: int) -> np.ndarray:
    """The key, uint32 (2,), of `jax.random.key(seed)`: the seed's low 32 bits, so that 2**32 + 5 is the same as 5, and
    -1 as 2**32 - 1. A seed that does not fit 64 signed bits is a `ValueError` (in JAX an `OverflowError`)."""
    seed = as_int("seed", seed, minimum=-(2**63))
    check(seed < 2**63, f"seed must be less than 2**63, got {seed}")
    return np.array([0, seed & _UINT32_MAX], np.uint32)


def fold_in(key: np.ndarray, data: int) -> np.ndarray:
    """A new key from `key` and a number of 32 bits, as `jax.random.fold_in`."""
    check(0 <= data <= _UINT32_MAX, f"data must lie between 0 and 2**32 - 1, got {data}")
    return np.concatenate(threefry2x32(key, np.zeros(1, np.uint32), np.array([data], np.uint32)))


def split(key: np.ndarray, num: int = 2) -> np.ndarray:
    """`num` new keys, uint32 (num, 2), as `jax.random.split`: the scrambled counters 0 … num - 1."""
    return np.stack(threefry2x32(key, np.zeros(num, np.uint32), np.arange(num, dtype=np.uint32)), axis=1)


def random_bits(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint32 of the given shape, as `jax.random.bits`: both halves of the scrambled index, xored."""
    return _draw(key, shape, np.uint32, lambda bits: bits)


def uniform(key: np.ndarray, shape: tuple[int, ...], minval: float = 0.0, maxval: float = 1.0) -> np.ndarray:
    """float32 uniform in [minval, maxval), as `jax.random.uniform`."""
    return _draw(key, shape, np.float32, lambda bits: _uniform(bits, minval, maxval))


def normal(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 standard normal, as `jax.random.normal`."""
    above_minus_one = np.nextafter(np.float32(-1), np.float32(0))
    return _draw(key, shape, np.float32, lambda bits: _SQRT2 * erf_inv(_uniform(bits, above_minus_one, 1)))


def truncated_normal(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 standard normal confined to (-2, 2), as `jax.random.truncated_normal(key, -2, 2, shape)`."""
    bound = math.erf(2 / math.sqrt(2))
    inside = np.nextafter(np.float32(2), np.float32(0))
    return _draw(
        key, shape, np.float32, lambda bits: np.clip(_SQRT2 * erf_inv(_uniform(bits, -bound, bound)), -inside, inside)
    )


def _draw(key, shape, dtype, from_bits):
    """An array whose element i is `from_bits` of the 32 random bits with index i."""
    flat = np.empty(math.prod(shape), dtype)
    for start in range(0, flat.size, _BLOCK):
        index = np.arange(start, min(start + _BLOCK, flat.size), dtype=np.uint64)
        high, low = threefry2x32(key, (index >> np.uint64(32)).astype(np.uint32), index.astype(np.uint32))
        flat[start : start + _BLOCK] = from_bits(high ^ low)
    return flat.reshape(shape)


def _uniform(bits, minval, maxval):
    """float32 in [minval, maxval): the upper 23 bits are the mantissa of a number in [1, 2), then moved and scaled."""
    minval, maxval = np.float32(minval), np.float32(maxval)
    one = np.float32(1)
    unit = ((bits >> np.uint32(9)) | one.view(np.uint32)).view(np.float32) - one
    return np.maximum(minval, _fused_multiply_add(unit, maxval - minval, minval))


def erf_inv(x: np.ndarray) -> np.ndarray:
    """The inverse error function of float32 x, |x| < 1, by Giles' single-precision polynomials, as XLA computes it."""
    w = -np.log1p(-(x * x).astype(np.float64)).astype(np.float32)
    factor = _polynomial(_CENTRE, w - np.float32(2.5))
    tail = w >= 5
    factor[tail] = _polynomial(_TAIL, np.sqrt(w[tail]) - np.float32(3))
    return factor * x


def _polynomial(coefficients, x):
    """Horner's rule in float32, highest power first."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fused_multiply_add(value, x, coefficient)
    return value


def _fused_multiply_add(a, b, c):
    """a b + c in float32, rounded once, as XLA compiles it on every CPU that can.

    Rounding the product first would spoil the draws near zero, where b and c cancel. In float64 the product is exact.
    """
    return (np.float64(a) * b + c).astype(np.float32)
