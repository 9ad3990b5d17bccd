"""bfloat16's rounding and products as docs/bfloat16.md defines them to the bit, in NumPy.

A bfloat16 number is held as a float32 whose lower half is zero, or as the upper half's bits (uint16). Subnormal numbers
are zero, as inputs and as results. Nothing is promised of a NaN's bits.
"""

import numpy as np

SMALLEST = np.float32(2.0**-126)  # of the normal numbers


def flushed(x):
    """Subnormal float32 numbers become zero and keep their sign."""
    x = np.asarray(x, np.float32)
    return np.where(np.abs(x) < SMALLEST, np.copysign(np.float32(0), x), x)


def half_of(x):
    """float32 rounded to bfloat16 (uint16), to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(flushed(x)).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, nearest).astype(np.uint16)


def float_of(half):
    """bfloat16 (uint16) as float32."""
    return (half.astype(np.uint32) << 16).view(np.float32)


def rounded(x):
    return float_of(half_of(x))


def fma(a, b, c):
    """a * b + c of float32 numbers, rounded once, for a and b in bfloat16 (or any whose product has 53 bits or fewer).

    The product is exact in float64, whose exponents reach further than twice float32's. The sum is rounded to odd
    there: Knuth's two-sum tells what rounding it to nearest lost, and where that is not zero the neighbour with an odd
    last bit is taken. Rounded once more, to float32, that is the exact sum rounded once, since 53 bits are more than
    24 + 2 (Boldo & Melquiond 2008, IEEE Transactions on Computers 57(4)).
    """
    a, b, c = (flushed(x).astype(np.float64) for x in (a, b, c))
    with np.errstate(all="ignore"):
        product = a * b
        total = product + c
        back = total - product
        lost = (product - (total - back)) + (c - back)
        bits = total.view(np.int64)
        inexact = np.isfinite(lost) & (lost != 0) & (bits & 1 == 0)
        odd = np.where(inexact, np.where((lost > 0) == (total > 0), bits + 1, bits - 1), bits).view(np.float64)
        return flushed(odd.astype(np.float32))


def nearest(x):
    """float64 rounded to the nearest bfloat16 by exact arithmetic, subnormal numbers kept: to 8 leading bits, of two
    the even one, or to multiples of 2^-133."""
    x = np.asarray(x, np.float64)
    unit = np.maximum(np.frexp(x)[1] - 8, -133)
    return np.ldexp(np.rint(np.ldexp(x, -unit)), unit)


def add(a, b):
    """a + b in float32."""
    with np.errstate(all="ignore"):
        return flushed(flushed(a) + flushed(b))


def product(a, b, bias=None, start=None):
    """bias + start + a (m, k) @ b (k, n): the operands are rounded, the sums taken 32 of the depth at a time."""
    a, b = rounded(a), rounded(b)
    zero = np.zeros((a.shape[0], b.shape[1]), np.float32)
    total = add(zero if bias is None else zero + bias, zero if start is None else start)
    for first in range(0, a.shape[1], 32):
        chains = [zero, zero]
        for p in range(first, min(first + 32, a.shape[1])):
            chains[p % 2] = fma(a[:, p : p + 1], b[p], chains[p % 2])
        total = add(total, add(*chains))
    return total


def column_sums(x, start=None):
    """start + the column sums of x (k, n) rounded: even rows and odd rows by themselves, then the two."""
    sums = [np.zeros(x.shape[1], np.float32) if start is None else start, np.zeros(x.shape[1], np.float32)]
    for p, row in enumerate(rounded(x)):
        sums[p % 2] = add(sums[p % 2], row)
    return add(*sums)
