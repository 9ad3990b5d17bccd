"""Products of token rows with weight matrices, up to three that share their source.

    forward     y_i = x W_i + b_i (+ a residual, added in registers)
    backward    dx = sum over i of dy_i W_iᵀ; dy_i is also left packed, as the weight gradient reads it (weights.pyx)

A residual's own gradient is dy as it stands: the residual stream's gradient has one buffer, in which dy becomes dx.
With a layer scale g (Touvron et al. 2021, arXiv:2103.17239) y = (x W + b) g is a product with the packed matrix W' = W
g and the bias b g: nothing changes here, and weights.pyx derives dg.
"""

from ..kernels cimport Gemm, Matrix, PackedRows, Panels, packed_rows, packing_rows, panels, panels_bytes, product
from ..task cimport Linear, Pass, Step, Task, columns, hinted, row_of, rows_of


cdef const void* bias_of(const Pass* p, const Linear* linear, int i, Py_ssize_t column) noexcept nogil:
    """The bias of matrix i from a column on, as the product adds it; NULL without one."""
    if linear.bias[i] < 0:
        return NULL
    if linear.layer_scale >= 0:
        return p.packed + linear.scaled_bias + column * p.K.size
    return p.weights + linear.bias[i] + column * p.K.size


cdef Panels panels_of(const Pass* p, const Linear* linear, int i, Py_ssize_t column, Py_ssize_t row,
                      Py_ssize_t depth) noexcept nogil:
    """Matrix i as a right operand of `depth` rows, from a column (a multiple of the panels' width) and a row on."""
    return panels(p.packed + linear.packed[i] + panels_bytes(p.K, depth, column), depth, row)


cdef PackedRows pack(const Task* t, const Step* step, Matrix x, Py_ssize_t k, const Linear* linear,
                     int i) noexcept nogil:
    """The task's rows x (rows, k) as packed rows in the scratch; with `linear` also as rows of its packed dy_i."""
    cdef char* a = row_of(t, &step.packed, t.first)
    call = packing_rows(t.rows, k, x, a)
    if linear == NULL:
        t.K.pack_rows(&call)
    else:
        call.b = panels(t.p.arena + linear.panels[i], linear.rows, t.first)
        t.K.pack_both(&call)
    return packed_rows(a, t.rows)


cdef void linear(const Task* t, const Step* step) noexcept nogil:
    cdef const Linear* w = step.linear
    cdef PackedRows a
    cdef Gemm g
    cdef int i
    if step.source_is_packed:
        a = packed_rows(row_of(t, &step.packed, t.first), t.rows)
    else:
        a = pack(t, step, rows_of(t, &step.source), w.k, NULL, 0)
    for i in range(w.count):
        g = product(t.rows, w.n, w.k, a, panels_of(t.p, w, i, 0, 0, w.k),
                    columns(t.K, rows_of(t, &step.target), w.column[i]))
        g.bias = bias_of(t.p, w, i, 0)
        if step.add.ld:
            g.add = rows_of(t, &step.add)
        g.hint.c_is_cached = step.target_is_cached
        g.hint.next = hinted(t, &step.forward_hints[i])
        t.K.gemm(&g)


cdef void linear_backward(const Task* t, const Step* step) noexcept nogil:
    cdef const Linear* w = step.linear
    cdef Matrix dx = rows_of(t, &step.d_source)
    cdef PackedRows a
    cdef Gemm g
    cdef int i
    for i in range(w.count):
        a = pack(t, step, columns(t.K, rows_of(t, &step.d_target), w.column[i]), w.n, w, i)
        g = product(t.rows, w.k, w.n, a, panels_of(t.p, w, i, 0, 0, w.n), dx)
        if i or step.accumulate:
            g.add = dx
        g.hint.c_is_cached = step.d_source_is_cached
        g.hint.next = hinted(t, &step.backward_hints[i])
        t.K.gemm(&g)
