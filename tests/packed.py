"""Operands of the bfloat16 tables' products in the form that each table packs them: room for them, and them packed.

Room is full of NaN. Packed rows and panels are read back as products with the identity, since each table packs in its
own way.
"""

import numpy as np
from kernel_calls import aligned, at, call, matrix, panels, rows
from reference_bf16 import half_of


def round_up(n, to):
    return -(-n // to) * to


def row_room(K, m, k):
    return aligned(round_up(m, K.rows_unit) * K.lda * -(-k // K.kc) * K.rows_size, np.uint8, 0xFF)


def panel_room(K, k, n):
    return aligned(round_up(k, K.depth_unit) * round_up(n, 32) * K.panels_bytes, np.uint8, 0xFF)


def column_room(K, k, m):
    return aligned(round_up(k, K.depth_unit) * round_up(m, K.mr) * K.rows_size, np.uint8, 0xFF)


def packed_rows(K, x, scale=1.0):
    a = row_room(K, *x.shape)
    K.pack_rows(call("pack_rows", rows=len(x), k=x.shape[1], x=matrix(x), scale=scale, a=rows(a, len(x))))
    return a


def packed_panels(K, x, row=0, depth=None, factor=None, transposed=False):
    """x, or its transpose, at some row of panels that may be deeper."""
    k, n = x.shape[::-1] if transposed else x.shape
    depth = depth or row + k
    b = panel_room(K, depth, n)
    kernel = K.pack_panels_transposed if transposed else K.pack_panels
    kernel(call("pack_panels", k=k, n=n, x=matrix(x), factor=at(factor), b=panels(b, depth, row)))
    return b


def packed_columns(K, x, **norm):
    """x (k, m) as gemm_columns' left operand, normalised by the vectors of `norm`."""
    k, m = x.shape
    a = column_room(K, k, m)
    K.pack_columns(call("pack_columns", k=k, m=m, x=matrix(x), a=at(a), **{name: at(v) for name, v in norm.items()}))
    return a


def unpacked_rows(K, a, m, k):
    """Packed rows times the identity."""
    c = np.zeros((m, k), np.float32)
    b = packed_panels(K, np.eye(k, dtype=np.float32))
    K.gemm(call("gemm", m=m, n=k, k=k, a=rows(a, m), b=panels(b, k), c=matrix(c)))
    return c


def unpacked_panels(K, b, depth, n):
    """The identity times panels."""
    c = np.zeros((depth, n), np.float32)
    a = packed_rows(K, np.eye(depth, dtype=np.float32))
    K.gemm(call("gemm", m=depth, n=n, k=depth, a=rows(a, depth), b=panels(b, depth), c=matrix(c)))
    return c


def sums(K, x, w, bias, add, half, scale=1.0):
    """(c (m, n), bias or None, addend or None) of x @ w without and with a bias, and, unless c is half, with an
    addend and both. What lies behind c's rows is left alone."""
    (m, k), n = x.shape, w.shape[1]
    a, b = packed_rows(K, half_of(x) if half else x, scale), packed_panels(K, w)
    for given in [(None, None), (bias, None)] + ([] if half else [(None, add), (bias, add)]):
        c = np.full((m, n + 3), 7, np.uint16 if half else np.float32)
        g = call("gemm", m=m, n=n, k=k, a=rows(a, m), b=panels(b, k), c=matrix(c), bias=at(given[0]))
        g.add = matrix(given[1])
        K.gemm(g)
        assert (c[:, n:] == 7).all()
        yield c[:, :n].copy(), *given
