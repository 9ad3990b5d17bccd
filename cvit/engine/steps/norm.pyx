"""Layer norm of token rows.

    forward     y = (x - mean) rstd scale + shift                     keeps mean and rstd of every row (training)
    backward    dx += norm'(dy);  dscale = sum of dy (x - mean) rstd,  dshift = sum of dy, over all rows

Where a product reads the norm, y goes straight into packed rows and is kept nowhere: the weight gradient makes it again
from x, mean and rstd. A row's dx is added to what flows past the norm in the residual stream. dscale and dshift are
sums over all rows of the batch: each unit of rows has a part of its own, whatever blocks the threads take, so that the
bits do not depend on their number; `norm_sums` adds them.
"""

from libc.string cimport memset
from ..kernels cimport Norm, NormBackward, matrix, normalisation, normalisation_backward, packed_rows, summing
from ..task cimport NormSum, Pass, Step, Task, offset_of, part_start, row_of, rows_of, unit_start


cdef void norm(const Task* t, const Step* step) noexcept nogil:
    cdef Norm call = normalisation(t.rows, step.width, rows_of(t, &step.source), step.eps)
    call.scale, call.shift = offset_of(t.p.weights, step.scale), offset_of(t.p.weights, step.shift)
    if step.source_is_packed:
        call.a = packed_rows(row_of(t, &step.packed, t.first), t.rows)
    else:
        call.y = rows_of(t, &step.target)
    if t.p.training:
        call.mean, call.rstd = row_of(t, &step.mean, t.first), row_of(t, &step.rstd, t.first)
    t.K.norm(&call)


cdef void norm_backward(const Task* t, const Step* step) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t unit, row
    cdef char* sums
    cdef NormBackward call
    for unit in range(part_start(p.units, p.row_blocks, t.block), part_start(p.units, p.row_blocks, t.block + 1)):
        row = unit_start(p, unit)
        sums = p.arena + p.partial + unit * p.partial_stride + step.partial
        memset(sums, 0, 2 * step.width * t.K.size)
        call = normalisation_backward(
            unit_start(p, unit + 1) - row, step.width, matrix(row_of(t, &step.d_target, row), step.d_target.ld),
            matrix(row_of(t, &step.source, row), step.source.ld), matrix(row_of(t, &step.d_source, row),
                    step.d_source.ld))
        call.mean, call.rstd = row_of(t, &step.mean, row), row_of(t, &step.rstd, row)
        call.residual = call.dx
        if step.scale >= 0:
            call.scale = p.weights + step.scale
            call.dscale, call.dshift = sums, sums + step.width * t.K.size
        t.K.norm_backward(&call)


cdef void norm_sums(const Pass* p, const NormSum* norm) noexcept nogil:
    """dscale and dshift of one norm: the units' parts, added in order."""
    cdef char* parts = p.arena + p.partial + norm.partial
    cdef Py_ssize_t ld = p.partial_stride // p.K.size
    call = summing(p.units, norm.width, matrix(parts, ld), p.grad + norm.scale)
    p.K.column_sums(&call)
    call = summing(p.units, norm.width, matrix(parts + norm.width * p.K.size, ld), p.grad + norm.shift)
    p.K.column_sums(&call)
