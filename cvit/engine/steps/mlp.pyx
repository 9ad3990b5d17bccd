"""The MLP's middle: an activation alone, and the hidden block that fuses it with the products on both sides.

    forward     u = x W_1 + b_1, g = f(u), y = g W_2 + b_2 + a residual        keeps u (training)
    backward    dg = dy W_2ᵀ, du = dg f'(u), dx = du W_1ᵀ; u becomes g, which the gradient of W_2 reads

A gated MLP (Dauphin et al. 2017, arXiv:1612.08083; Shazeer 2020, arXiv:2002.05202) has two matrices in W_1: g = f(u) *
v with [u v] = x [W_gate W_value] + b, so du = dg v f'(u), dv = dg f(u).

The hidden block goes over the hidden rows a block of columns at a time: they are made, activated and multiplied while
they are in the cache.
"""

from ..kernels cimport (
    Activation, ActivationBackward, Gemm, Hidden, HiddenBackward, Matrix, PackedRows, activating, activating_backward,
    hidden_bytes, matrix, packed_rows, panels, panels_bytes, product,
)
from ..task cimport Linear, SCRATCH, Step, Task, columns, hinted, row_of, rows_of
from .drop cimport drop_again
from .linear cimport bias_of, pack, panels_of


cdef void activation(const Task* t, const Step* step) noexcept nogil:
    cdef Matrix u = rows_of(t, &step.source)
    cdef Activation call = activating(step.kind, t.rows, step.width, u)
    if step.gated:
        call.value = columns(t.K, u, step.width)
    call.y = rows_of(t, &step.target)
    t.K.activation(&call)


cdef void activation_backward(const Task* t, const Step* step) noexcept nogil:
    """dg, in d_target, becomes du in d_source."""
    cdef Matrix u = rows_of(t, &step.source), du = rows_of(t, &step.d_source)
    cdef ActivationBackward call = activating_backward(step.kind, t.rows, step.width, u, du)
    if step.gated:
        call.value = columns(t.K, u, step.width)
        call.dvalue = columns(t.K, du, step.width)
    t.K.activation_backward(&call)
    if step.dropped != NULL:  # u became g, of which the gradient of W_2 reads what was not dropped
        drop_again(t, step.dropped, &step.source)


cdef inline Gemm up(const Task* t, const Step* step, int part, PackedRows a, Py_ssize_t f, Py_ssize_t width,
                    Matrix c) noexcept nogil:
    """Hidden columns [f, f + width) before the activation: u or, of a gated MLP's second matrix, v."""
    cdef const Linear* w = step.linear
    cdef Gemm g = product(t.rows, width, w.k, a, panels_of(t.p, w, part, f, 0, w.k), c)
    g.bias = bias_of(t.p, w, part, f)
    g.hint.c_is_cached = step.hidden.place == SCRATCH or not t.p.hints
    return g


cdef inline PackedRows hidden_input(const Task* t, const Step* step) noexcept nogil:
    if step.source_is_packed:
        return packed_rows(row_of(t, &step.packed, t.first), t.rows)
    return pack(t, step, rows_of(t, &step.source), step.linear.k, NULL, 0)


cdef void hidden(const Task* t, const Step* step) noexcept nogil:
    cdef const Linear* w = step.second
    cdef Py_ssize_t F = w.k, depth = t.p.depth, f, width
    cdef Matrix u = rows_of(t, &step.hidden), v, y = rows_of(t, &step.target)
    cdef PackedRows a = hidden_input(t, step), packed = packed_rows(row_of(t, &step.d_hidden, t.first), t.rows)
    cdef int kept = step.hidden.place != SCRATCH
    cdef Hidden made
    cdef Gemm g
    made.keep = kept
    v = columns(t.K, u, F if kept else t.rows * u.ld)  # in the scratch behind u, whose rows hold one block
    for f from 0 <= f < F by depth:
        width = min(depth, F - f)
        if kept and f:
            u, v = columns(t.K, u, depth), columns(t.K, v, depth)
        g = up(t, step, 0, a, f, width, u)
        made.activation = activating(step.kind, t.rows, width, u)
        if step.gated:
            t.K.gemm(&g)
            g = up(t, step, 1, a, f, width, v)
            made.activation.value = v
        made.product, made.activation.a = g, packed
        t.K.hidden(&made)
        g = product(t.rows, w.n, width, packed, panels_of(t.p, w, 0, 0, f, F), y)
        if f:
            g.add = y
        else:
            g.bias = bias_of(t.p, w, 0, 0)
            if step.add.ld:
                g.add = rows_of(t, &step.add)
        g.hint.c_is_cached = step.target_is_cached
        if f + depth >= F:
            g.hint.next = hinted(t, &step.forward_hints[0])
        t.K.gemm(&g)


cdef void hidden_again(const Task* t, const Step* step) noexcept nogil:
    """Only u, which is all that the backward needs."""
    cdef Py_ssize_t F = step.second.k, depth = t.p.depth, f
    cdef Matrix u = rows_of(t, &step.hidden)
    cdef PackedRows a = hidden_input(t, step)
    cdef Gemm g
    cdef int i
    for f from 0 <= f < F by depth:
        for i in range(step.linear.count):
            g = up(t, step, i, a, f, min(depth, F - f), columns(t.K, u, i * F + f))
            t.K.gemm(&g)


cdef void hidden_backward(const Task* t, const Step* step) noexcept nogil:
    cdef const Linear* first = step.linear
    cdef const Linear* second = step.second
    cdef Py_ssize_t F = second.k, depth = t.p.depth, f, width
    cdef Matrix u = rows_of(t, &step.hidden), dg = rows_of(t, &step.d_hidden), dx = rows_of(t, &step.d_source)
    cdef Matrix dv = matrix(<char*> dg.at + hidden_bytes(t.K, t.rows), dg.ld)
    cdef PackedRows dy = pack(t, step, rows_of(t, &step.d_target), second.n, second, 0)
    cdef HiddenBackward made
    cdef ActivationBackward* call = &made.activation
    cdef Gemm g
    cdef int i
    for f from 0 <= f < F by depth:
        width = min(depth, F - f)
        g = product(t.rows, width, second.n, dy, panels_of(t.p, second, 0, f, 0, second.n), dg)
        g.hint.c_is_cached = 1
        if t.p.hints:
            g.hint.next = columns(t.K, u, f)
        made.product = g
        call[0] = activating_backward(step.kind, t.rows, width, columns(t.K, u, f), dg)
        call.a = packed_rows(dg.at, t.rows)
        call.b = panels(t.p.arena + first.panels[0] + panels_bytes(t.K, first.rows, f), first.rows, t.first)
        if step.gated:
            call.value = columns(t.K, u, F + f)
            call.a_value = packed_rows(dv.at, t.rows)
            call.b_value = panels(t.p.arena + first.panels[1] + panels_bytes(t.K, first.rows, f), first.rows, t.first)
        t.K.hidden_backward(&made)
        for i in range(first.count):
            g = product(t.rows, first.k, width, packed_rows(dv.at if i else dg.at, t.rows),
                        panels_of(t.p, first, i, 0, f, F), dx)
            if f or i or step.accumulate:
                g.add = dx
            g.hint.c_is_cached = step.d_source_is_cached
            if f + depth >= F and i == first.count - 1:
                g.hint.next = hinted(t, &step.backward_hints[0])
            t.K.gemm(&g)
