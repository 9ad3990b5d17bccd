"""Attention as docs/bfloat16.md defines it to the bit, in NumPy: float32 arithmetic, with the multiply-adds, roundings
and products of tests/reference_bf16.py.

Arrays are one head's: q, k, v, o, do, dq, dk, dv (tokens, dh), lse (tokens). Nothing is promised of subnormal numbers,
nor of the bits of a NaN.
"""

import numpy as np
from reference_bf16 import fma, product, rounded

KEYS = 384  # of a block of the online softmax
EXP2 = (1, 0.693146856, 0.24022238, 0.0555089295, 0.00967169794, 0.00132186725)
LOG2_E, LN2 = np.float32(1.44269504088896340736), np.float32(0.69314718055994530942)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LOG_TERMS, SQRT_HALF = 4, np.float32(0.70710678118654752440)


def lanes(x):
    """Sums over the last axis: 16 lanes, then the upper half of them onto the lower."""
    sums = np.zeros((*x.shape[:-1], 16), np.float32)
    for first in range(0, x.shape[-1], 16):
        part = x[..., first : first + 16]
        sums[..., : part.shape[-1]] += part
    return tree(sums)


def tree(sums):
    while sums.shape[-1] > 1:
        middle = sums.shape[-1] // 2
        sums = sums[..., :middle] + sums[..., middle:]
    return sums[..., 0]


def exp2(x):
    x = np.where(np.isnan(x), x, np.maximum(np.float32(-126), x))
    whole = np.rint(x.astype(np.float64) + 127).astype(np.float32) - 127  # the next odd one is as near as the even one
    rest, y = x - whole, np.float32(EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        y = fma(y, rest, np.float32(coefficient))
    return np.ldexp(np.float32(1), np.where(np.isnan(x), 0, whole).astype(np.int32)) * y


def log(x):
    """Of positive normal numbers, or NaN."""
    bits = np.asarray(x, np.float32).view(np.int32)
    n = (bits - SQRT_HALF.view(np.int32)) >> 23
    m = (bits - (n << 23)).view(np.float32)
    s = (m - 1) / (m + 1)
    square, tail = s * s, np.float32(1 / (2 * LOG_TERMS + 1))
    for i in range(LOG_TERMS - 1, 0, -1):
        tail = fma(tail, square, np.float32(1 / np.float32(2 * i + 1)))
    whole = n.astype(np.float32)
    return fma(whole, LN2_HIGH, 2 * s + fma(whole, LN2_LOW, 2 * s * square * tail)) + (x - x)


def attention(q, k, v):
    """Returns o, unrounded, and lse."""
    c = LOG2_E / np.sqrt(np.float32(q.shape[1]))
    top = total = o = None
    with np.errstate(all="ignore"):
        for first in range(0, len(k), KEYS):
            s, before = product(q, k[first : first + KEYS].T), top
            top = np.fmax.reduce(s, axis=1) * c
            if first:
                top = np.fmax(top, before)
                shrink = exp2(before - top)
                total, o = total * shrink, o * shrink[:, None]
            p = exp2(fma(s, c, -top[:, None]))
            total = total + lanes(p) if first else lanes(p)
            o = product(p, v[first : first + KEYS], start=o)
        return o * (1 / total)[:, None], fma(top, LN2, log(total))


def backward(q, k, v, o, d_o, lse, first=0, count=None):
    """dq, dk, dv of keys [first, first + count)."""
    dh, keys = np.float32(q.shape[1]), slice(first, None if count is None else first + count)
    c, scale, norm = LOG2_E / np.sqrt(dh), 1 / np.sqrt(dh), lse * LOG2_E
    with np.errstate(all="ignore"):
        sums = np.zeros((len(q), 16), np.float32)
        for column in range(0, q.shape[1], 16):
            a, b = rounded(d_o[:, column : column + 16]), o[:, column : column + 16]
            sums[:, : a.shape[1]] = fma(a, b, sums[:, : a.shape[1]])
        delta = tree(sums)
        k, v = k[keys], v[keys]
        p = exp2(fma(product(q, k.T), c, -norm[:, None]))
        ds = p * scale * (product(d_o, v.T) - delta[:, None])
        return product(ds, k), product(ds.T, q), product(p.T, d_o)
