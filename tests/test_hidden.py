"""The kernels `hidden` and `hidden_backward` against the two that each stands for, a product and an activation of the
same table: the same bits, in rows, packed rows and panels."""

import numpy as np
import pytest
from checks import normal, same_bits
from kernel_calls import Table, aligned, at, bf16_table, call, matrix, panels, rows
from packed import packed_panels, packed_rows, panel_room, row_room, unpacked_rows
from reference_bf16 import half_of

from cvit import ops

# (rows, hidden columns, depth): edges of pieces and tiles, and a product that tables cut in depth.
SIZES = [(1, 1, 1), (7, 17, 33), (16, 32, 64), (33, 70, 400), (35, 130, 1100)]


def check(K, rng, size, gated, half):
    """Every activation, forward, kept or not, and backward; rows before it in half the size, with a table of bf16."""
    for kind in range(len(ops.ACTIVATIONS)):
        _check_forward(K, rng, size, kind, gated, half)
        _check_backward(K, rng, size, kind, gated, half)


def _operands(K, rng, size):
    m, n, k = size
    x, w, bias = (normal(rng, *shape, dtype=K.dtype) for shape in ((m, k), (k, n), (n,)))
    return x, w * K.dtype.type(2 / np.sqrt(k)), bias


def _check_forward(K, rng, size, kind, gated, half):
    (m, n, k), (x, w, bias) = size, _operands(K, rng, size)
    before = normal(rng, m, n + 5, dtype=K.dtype)  # u of a gated MLP, whose second product is called
    before = (half_of(before) if half else before)[:, :n]
    product = dict(m=m, n=n, k=k, a=rows(packed_rows(K, x), m), b=panels(packed_panels(K, w), k), bias=at(bias))
    found = {}
    for way in ("two calls", "kept", "passing"):
        c, a = np.full((m, n + 3), 7, np.uint16 if half else K.dtype), row_room(K, m, n)
        gemm = call("gemm", **product, c=matrix(c[:, :n]))
        x_and_value = dict(x=matrix(before), value=matrix(c[:, :n])) if gated else dict(x=matrix(c[:, :n]))
        activation = call("activation", kind=kind, rows=m, n=n, a=rows(a, m), **x_and_value)
        if way == "two calls":
            K.gemm(gemm)
            K.activation(activation)
        else:
            K.hidden(call("hidden", product=gemm, activation=activation, keep=way == "kept"))
        assert (c[:, n:] == 7).all()
        found[way] = a, c
    assert same_bits(found["kept"], found["two calls"])
    assert same_bits(found["passing"][0], found["two calls"][0])


def _numbers(K, a, m, n):
    """What packed rows hold: in place, what was there before is still seen between them."""
    return unpacked_rows(K, a, m, n) if K.half else a.view(K.dtype)[: m * K.lda].reshape(m, K.lda)[:, :n].copy()


def _check_backward(K, rng, size, kind, gated, half):
    (m, n, k), (x, w, _) = size, _operands(K, rng, size)
    u, value = (normal(rng, m, n + 5, dtype=K.dtype) for _ in range(2))
    u, value = (half_of(v) if half else v for v in (u, value))
    depth, row = m + 9, 4  # the panels' other rows are other calls'
    packed = packed_rows(K, x), packed_panels(K, w)
    found = {}
    for way in ("two calls", "one", "one in place"):
        bytes_of_rows = max(m * K.lda * K.dtype.itemsize, row_room(K, m, n).size)
        dy = aligned(bytes_of_rows, np.uint8, 0xFF)  # as the engine has it: packed rows take the place of c
        c = dy[: m * K.lda * K.dtype.itemsize].view(K.dtype).reshape(m, K.lda)
        a = dy[: row_room(K, m, n).size] if way == "one in place" else row_room(K, m, n)
        a_value, b, b_value = row_room(K, m, n), panel_room(K, depth, n), panel_room(K, depth, n)
        here = u.copy()
        gemm = call("gemm", m=m, n=n, k=k, a=rows(packed[0], m), b=panels(packed[1], k), c=matrix(c))
        members = dict(kind=kind, rows=m, n=n, x=matrix(here[:, :n]), dy=matrix(c), a=rows(a, m))
        if gated:
            members |= dict(value=matrix(value[:, :n]), a_value=rows(a_value, m), b_value=panels(b_value, depth, row))
        backward = call("activation_backward", **members, b=panels(b, depth, row))
        if way == "two calls":
            K.gemm(gemm)
            K.activation_backward(backward)
        else:
            K.hidden_backward(call("hidden_backward", product=gemm, activation=backward))
        found[way] = here, b, a_value, b_value, a
    for way in ("one", "one in place"):
        assert same_bits(found[way][:4], found["two calls"][:4])
        assert same_bits(_numbers(K, found[way][4], m, n), _numbers(K, found["two calls"][4], m, n))
    assert same_bits(found["one"][4], found["two calls"][4])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_of_floats(isa, dtype, rng, size, gated):
    check(Table(dtype), rng, size, gated, half=False)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_of_bfloat16(bf16_isa, rng, size, gated, half):
    K = bf16_table()
    K.enter()
    check(K, rng, size, gated, half)
    K.leave()
