"""Norms of rows: layer norm, and RMSNorm, which has no mean and no shift.

    forward     y = (x - mean) rstd scale + shift (+ a residual)      keeps mean and rstd of every row (training)
    backward    dx += norm'(dy);  dscale = sum of dy (x - mean) rstd,  dshift = sum of dy, over all rows

Where a product reads the norm, y goes straight into packed rows and is kept nowhere: the weight gradient makes it again
from x, mean and rstd. A row's dx is added to what flows past the norm in the residual stream. dscale and dshift are
sums over all rows of the batch: each unit of rows has a part of its own, whatever blocks the threads take, so that the
bits do not depend on their number; `unit_sums` adds them.
"""

from libc.string cimport memset
from ..kernels cimport (
    AddRows, Norm, NormBackward, adding, matrix, normalisation, normalisation_backward, packed_rows, summing,
)
from ..task cimport Pass, Step, Task, UnitSums, offset_of, part_start, row_of, rows_from, rows_of, unit_start


cdef void norm(const Task* t, const Step* step) noexcept nogil:
    cdef Norm call = normalisation(t.rows, step.width, rows_of(t, &step.source), step.eps)
    cdef AddRows residual
    call.rms = step.rms
    call.scale, call.shift = offset_of(t.p.weights, step.scale), offset_of(t.p.weights, step.shift)
    if step.source_is_packed:
        call.a = packed_rows(row_of(t, &step.packed, t.first), t.rows)
    else:
        call.y = rows_of(t, &step.target)
    if step.mean.ld:
        call.mean, call.rstd = row_of(t, &step.mean, t.first), row_of(t, &step.rstd, t.first)
    if not step.add.ld:
        t.K.norm(&call)
        return
    if call.y.at == row_of(t, &step.add, t.first):  # a forward's residual stream, which has one place
        call.y = call.x
    t.K.norm(&call)
    residual = adding(t.rows, step.width, call.y, rows_of(t, &step.target))
    residual.add = rows_of(t, &step.add)
    t.K.add_rows(&residual)


cdef void norm_backward(const Task* t, const Step* step) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t unit, row, first = part_start(t.cut.units, t.cut.blocks, t.block)
    cdef char* sums
    cdef NormBackward call
    for unit in range(first, part_start(t.cut.units, t.cut.blocks, t.block + 1)):
        row = unit_start(t.cut, p.panel, unit)
        sums = unit_sums_of(t, step, unit, 2 * step.width)
        call = normalisation_backward(
            unit_start(t.cut, p.panel, unit + 1) - row, step.width,
            rows_from(t, &step.d_target, row), rows_from(t, &step.source, row), rows_from(t, &step.d_source, row))
        call.rms = step.rms
        call.mean, call.rstd = row_of(t, &step.mean, row), row_of(t, &step.rstd, row)
        if step.accumulate:
            call.residual = call.dx
        if step.scale >= 0:
            call.scale, call.dscale = p.weights + step.scale, sums
        if step.shift >= 0:
            call.dshift = sums + step.width * t.K.size
        t.K.norm_backward(&call)


cdef char* unit_sums_of(const Task* t, const Step* step, Py_ssize_t unit, Py_ssize_t count) noexcept nogil:
    """A unit's room for `count` sums of a step, set to zero."""
    cdef char* sums = t.p.arena + t.p.partial + unit * t.p.partial_stride + step.partial
    memset(sums, 0, count * t.K.size)
    return sums


cdef void unit_sums(const Pass* p, const UnitSums* sums) noexcept nogil:
    """A gradient from the units' parts, added in order."""
    call = summing(sums.units, sums.n, matrix(p.arena + p.partial + sums.partial, p.partial_stride // p.K.size),
                   p.grad + sums.target)
    p.K.column_sums(&call)
