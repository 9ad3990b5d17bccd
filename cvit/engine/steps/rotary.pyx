"""What queries and keys go through before the attention: a norm of each head, and rotary positions.

    head norm   q = norm(q0), k = norm(k0) head by head, v = v0       (Dehghani et al. 2023, arXiv:2302.05442)
    rotate      q, k = R q, R k with the rotation R of the row's patch, in place        (csrc/kernels/rotate.inc)
    backward    dq = Rᵀ dq, in place; dq0 = norm'(dq); learned frequencies from what the forward left and dq

Tokens before the patches are not turned.
"""

from libc.string cimport memcpy
from ..kernels cimport (
    Matrix, Norm, NormBackward, Rotate, RotateFrequencies, matrix, normalisation, normalisation_backward,
)
from ..task cimport Pass, Slot, Step, Task, columns, offset_of, part_start, row_of, rows_from, unit_start
from .norm cimport unit_sums_of


cdef inline Matrix heads_of(const Task* t, const Slot* slot, Py_ssize_t row, const Step* step, int of_k) noexcept nogil:
    """A row's heads of q, or of k, as the rows of a matrix."""
    cdef Py_ssize_t first = of_k * step.heads * step.width
    return matrix(<char*> row_of(t, slot, row) + first * t.K.size, step.width)


cdef inline char* statistic(const Task* t, const Slot* slot, Py_ssize_t row, const Step* step, int of_k) noexcept nogil:
    return <char*> row_of(t, slot, row) + of_k * step.heads * t.K.size


cdef void copy_values(const Task* t, const Slot* source, const Slot* target, const Step* step) noexcept nogil:
    cdef Py_ssize_t row, width = step.heads * step.width * t.K.size
    for row in range(t.first, t.first + t.rows):
        memcpy(<char*> row_of(t, target, row) + 2 * width, <char*> row_of(t, source, row) + 2 * width, width)


cdef void head_norm(const Task* t, const Step* step) noexcept nogil:
    cdef Py_ssize_t row
    cdef int of_k
    cdef Norm call
    copy_values(t, &step.source, &step.target, step)
    for row in range(t.first, t.first + t.rows):
        for of_k in range(2):
            call = normalisation(step.heads, step.width, heads_of(t, &step.source, row, step, of_k), step.eps)
            call.rms, call.y = step.rms, heads_of(t, &step.target, row, step, of_k)
            call.scale = offset_of(t.p.weights, step.k_scale if of_k else step.scale)
            call.shift = offset_of(t.p.weights, step.k_shift if of_k else step.shift)
            if step.mean.ld:
                call.mean = statistic(t, &step.mean, row, step, of_k)
                call.rstd = statistic(t, &step.rstd, row, step, of_k)
            t.K.norm(&call)


cdef void head_norm_backward(const Task* t, const Step* step) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t unit, row, first = part_start(t.cut.units, t.cut.blocks, t.block), size = t.K.size
    cdef char* sums
    cdef int of_k
    cdef NormBackward call
    copy_values(t, &step.d_target, &step.d_source, step)
    for unit in range(first, part_start(t.cut.units, t.cut.blocks, t.block + 1)):
        sums = unit_sums_of(t, step, unit, 4 * step.width)
        for row in range(unit_start(t.cut, p.panel, unit), unit_start(t.cut, p.panel, unit + 1)):
            for of_k in range(2):
                call = normalisation_backward(step.heads, step.width, heads_of(t, &step.d_target, row, step, of_k),
                                              heads_of(t, &step.source, row, step, of_k),
                                              heads_of(t, &step.d_source, row, step, of_k))
                call.rms = step.rms
                call.mean = statistic(t, &step.mean, row, step, of_k)
                call.rstd = statistic(t, &step.rstd, row, step, of_k)
                if step.scale >= 0:
                    call.scale = p.weights + (step.k_scale if of_k else step.scale)
                    call.dscale = sums + of_k * step.width * size
                if step.shift >= 0:
                    call.dshift = sums + (2 + of_k) * step.width * size
                t.K.norm_backward(&call)


cdef void turn(const Task* t, const Step* step, const Slot* slot, int back) noexcept nogil:
    """Turn q and k of the patches among the task's rows: image by image, since the angles are those of a patch."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t row = t.first, end = t.first + t.rows, image, patch, last, ld, half = step.width // 2
    cdef Rotate call
    ld = half * (step.heads if step.each_head else 1)
    call.half, call.each_head, call.back, call.heads = half, step.each_head, back, step.heads
    while row < end:
        image = row // p.T
        last = min(end, (image + 1) * p.T)
        row = max(row, image * p.T + p.prefix)
        if row < last:
            patch = row - image * p.T - p.prefix
            call.rows = last - row
            call.cosines = matrix(p.tables + step.cosines + patch * ld * t.K.size, ld)
            call.sines = matrix(p.tables + step.sines + patch * ld * t.K.size, ld)
            call.x = rows_from(t, slot, row)
            if not step.each_head:  # q's and k's heads stand side by side, all with one row of angles
                call.heads = 2 * step.heads
                t.K.rotate(&call)
            else:
                t.K.rotate(&call)
                call.x = columns(t.K, call.x, step.heads * step.width)
                t.K.rotate(&call)
        row = last


cdef void rotate(const Task* t, const Step* step) noexcept nogil:
    turn(t, step, &step.target, 0)


cdef void rotate_backward(const Task* t, const Step* step) noexcept nogil:
    if step.learned:
        frequencies(t, step)
    turn(t, step, &step.d_target, 1)


cdef void frequencies(const Task* t, const Step* step) noexcept nogil:
    """Each unit's sums for the gradient of learned frequencies."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t unit, row, last, token, first = part_start(t.cut.units, t.cut.blocks, t.block)
    cdef Py_ssize_t width = step.heads * step.width
    cdef RotateFrequencies call
    call.heads, call.half = step.heads, step.width // 2
    for unit in range(first, part_start(t.cut.units, t.cut.blocks, t.block + 1)):
        call.sums = unit_sums_of(t, step, unit, width)
        row, last = unit_start(t.cut, p.panel, unit), unit_start(t.cut, p.panel, unit + 1)
        while row < last:
            token = row % p.T
            if token < p.prefix:
                row += p.prefix - token
                continue
            call.rows = min(last - row, p.T - token)
            call.coordinates = p.tables + p.coordinates + 2 * (token - p.prefix) * t.K.size
            call.y, call.dy = rows_from(t, &step.target, row), rows_from(t, &step.d_target, row)
            t.K.rotate_frequencies(&call)
            call.y, call.dy = columns(t.K, call.y, width), columns(t.K, call.dy, width)
            t.K.rotate_frequencies(&call)
            row += call.rows
