"""The last block's tokens to what the head sees: final norm and pooling, and back.

    z = norm(x) at tokens [first, first + count) of each image; pooled = mean of z over them, or z itself where each has
    its own dz = dpooled / count at each of them, dx = norm'(dz), and zero at all other tokens

Only tokens that reach the logits are normalised: of a class token model one an image. Forward keeps the norm's mean and
rstd. A task is a group of images, with its own part of the norm's scale and shift gradients; `final_norm_sums` adds
them in order.
"""

from libc.string cimport memcpy, memset
from ..kernels cimport (
    AddRows, ColumnSums, Norm, NormBackward, adding, matrix, normalisation, normalisation_backward, summing,
)
from ..task cimport Pass, Task, offset_of, part_start, row_of

cdef enum:
    ROWS = 32     # token rows that mean pooling normalises at a time


cdef Py_ssize_t pool_scratch(Py_ssize_t D) noexcept nogil:
    """Elements."""
    return ROWS * D


cdef inline Norm final_norm(const Task* t, Py_ssize_t rows, char* x, Py_ssize_t ld, Py_ssize_t stat,
                            char* y) noexcept nogil:
    """The norm of some rows to y; `stat` is the number of the first one among all that are normalised."""
    cdef const Pass* p = t.p
    cdef Norm call = normalisation(rows, p.D, matrix(x, ld), p.final_eps)
    call.scale, call.shift = offset_of(p.weights, p.final_scale), offset_of(p.weights, p.final_shift)
    call.y = matrix(y, p.D)
    call.mean, call.rstd = p.arena + p.final_mean + stat * t.K.size, p.arena + p.final_rstd + stat * t.K.size
    return call


cdef void pool_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t first = part_start(p.N, p.image_groups, task), last = part_start(p.N, p.image_groups, task + 1)
    cdef Py_ssize_t D = p.D, size = t.K.size, n, row, rows, count = p.pool_count
    cdef char* pooled = p.arena + p.pooled
    cdef char* x
    cdef Norm call
    cdef ColumnSums sums
    if count == 1 and p.final_norm:  # one row an image: all images of the group in one call
        call = final_norm(t, last - first, row_of(t, &p.last_x, first * p.T + p.pool_first), p.T * D, first, pooled
                          + first * D * size)
        t.K.norm(&call)
        return
    for n in range(first, last):
        x = row_of(t, &p.last_x, n * p.T + p.pool_first)
        if p.pool_each or count == 1:
            if p.final_norm:
                call = final_norm(t, count, x, D, n * count, pooled + n * count * D * size)
                t.K.norm(&call)
            else:
                memcpy(pooled + n * count * D * size, x, count * D * size)
            continue
        for row from 0 <= row < count by ROWS:
            rows = min(<Py_ssize_t> ROWS, count - row)
            sums = summing(rows, D, matrix(x + row * D * size, D), pooled + n * D * size)
            if p.final_norm:
                call = final_norm(t, rows, x + row * D * size, D, n * count + row, t.scratch)
                t.K.norm(&call)
                sums.x = matrix(t.scratch, D)
            sums.accumulate = row > 0
            if row + rows == count:
                sums.scale = 1.0 / count
            t.K.column_sums(&sums)


cdef void pool_backward_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t D = p.D, size = t.K.size, n, count = p.pool_count, behind = p.pool_first + count
    cdef char* sums = p.arena + p.final_partial + task * 2 * D * size
    cdef char* x
    cdef char* dx
    cdef char* dpooled
    cdef NormBackward call
    cdef AddRows share
    memset(sums, 0, 2 * D * size)
    for n in range(part_start(p.N, p.image_groups, task), part_start(p.N, p.image_groups, task + 1)):
        x, dx = row_of(t, &p.last_x, n * p.T + p.pool_first), p.arena + p.dx + n * p.T * D * size
        dpooled = p.arena + p.dpooled + n * (count if p.pool_each else 1) * D * size
        share = adding(1, D, matrix(dpooled, D), matrix(t.scratch, D))  # every row of a mean has the same dz
        if not p.pool_each:
            share.factor = 1.0 / count
            t.K.add_rows(&share)
            dpooled = t.scratch
        memset(dx, 0, p.pool_first * D * size)
        memset(dx + behind * D * size, 0, (p.T - behind) * D * size)
        dx += p.pool_first * D * size
        if p.final_norm:
            call = normalisation_backward(count, D, matrix(dpooled, D if p.pool_each else 0), matrix(x, D),
                                          matrix(dx, D))
            call.mean = p.arena + p.final_mean + n * count * size
            call.rstd = p.arena + p.final_rstd + n * count * size
            if p.final_scale >= 0:
                call.scale, call.dscale, call.dshift = p.weights + p.final_scale, sums, sums + D * size
            t.K.norm_backward(&call)
        else:
            share = adding(count, D, matrix(dpooled, D if p.pool_each else 0), matrix(dx, D))
            t.K.add_rows(&share)


cdef void final_norm_sums(const Task* t) noexcept nogil:
    """The image groups' parts, added in order."""
    cdef const Pass* p = t.p
    cdef char* parts = p.arena + p.final_partial
    cdef ColumnSums call
    if p.final_scale >= 0:
        call = summing(p.image_groups, p.D, matrix(parts, 2 * p.D), p.grad + p.final_scale)
        t.K.column_sums(&call)
        call = summing(p.image_groups, p.D, matrix(parts + p.D * t.K.size, 2 * p.D), p.grad + p.final_shift)
        t.K.column_sums(&call)
