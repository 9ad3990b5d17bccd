"""The last block's tokens to what the head sees: final norm and pooling, and back.

    z = norm(x) at the tokens of a range of each image; pooled = mean of z over them, or z itself where each has its own
    dz = dpooled / count at each of them, dx = norm'(dz), and zero at all other tokens

Means of several ranges stand side by side. Only tokens that reach the logits are normalised: of a class token model one
an image. Forward keeps the norm's mean and rstd. A task is a group of images, with its own part of the norm's scale and
shift gradients.

Attention pooling (Lee et al. 2019, arXiv:1810.00825) is one query's attention over keys and values of all tokens; a
task is a group of images, and each image has its own part of the query's gradient.
"""

from libc.string cimport memcpy, memset
from ..kernels cimport (
    AddRows, Attend, AttendBackward, ColumnSums, Matrix, Norm, NormBackward, adding, matrix, normalisation,
    normalisation_backward, summing,
)
from ..task cimport Pass, Task, columns, offset_of, part_start, row_of, rows_from
from .embed cimport group_sums

cdef enum:
    ROWS = 32     # token rows that mean pooling normalises at a time


cdef Py_ssize_t pool_scratch(const Pass* p) noexcept nogil:
    """Elements."""
    if p.pool.attention:
        return p.K.attend_scratch(p.T)
    return ROWS * p.D


cdef inline Norm final_norm(const Task* t, Py_ssize_t rows, char* x, Py_ssize_t ld, Py_ssize_t stat, char* y,
                            Py_ssize_t ldy) noexcept nogil:
    """The norm of some rows to y; `stat` is the number of the first one among all that are normalised."""
    cdef const Pass* p = t.p
    cdef Norm call = normalisation(rows, p.D, matrix(x, ld), p.pool.eps)
    call.rms = p.pool.rms
    call.scale, call.shift = offset_of(p.weights, p.pool.scale), offset_of(p.weights, p.pool.shift)
    call.y = matrix(y, ldy)
    call.mean, call.rstd = p.arena + p.pool.mean + stat * t.K.size, p.arena + p.pool.rstd + stat * t.K.size
    return call


cdef void pool_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef int i
    if t.p.pool.attention:
        attention_pool(t, task)
        return
    for i in range(t.p.pool.ranges):
        pool_range(t, task, i)


cdef void pool_range(const Task* t, Py_ssize_t task, int i) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t first = part_start(p.N, p.image_groups, task), last = part_start(p.N, p.image_groups, task + 1)
    cdef Py_ssize_t D = p.D, size = t.K.size, ld = p.pool.width, n, row, rows, count = p.pool.count[i]
    cdef Py_ssize_t begin = p.pool.first[i], stats = p.pool.stats[i]
    cdef char* pooled = p.arena + p.pooled + i * D * size
    cdef char* to
    cdef char* x
    cdef Norm call
    cdef ColumnSums sums
    if count == 1 and p.pool.norm:  # one row an image: all images of the group in one call
        call = final_norm(t, last - first, row_of(t, &p.last_x, first * p.T + begin), p.T * D, stats + first,
                          pooled + first * ld * size, ld)
        t.K.norm(&call)
        return
    for n in range(first, last):
        x = row_of(t, &p.last_x, n * p.T + begin)
        to = pooled + n * (count if p.pool.each else 1) * ld * size
        if p.pool.each or count == 1:
            if p.pool.norm:
                call = final_norm(t, count, x, D, stats + n * count, to, ld)
                t.K.norm(&call)
            else:
                memcpy(to, x, count * D * size)
            continue
        for row from 0 <= row < count by ROWS:
            rows = min(<Py_ssize_t> ROWS, count - row)
            sums = summing(rows, D, matrix(x + row * D * size, D), to)
            if p.pool.norm:
                call = final_norm(t, rows, x + row * D * size, D, stats + n * count + row, t.scratch, D)
                t.K.norm(&call)
                sums.x = matrix(t.scratch, D)
            sums.accumulate = row > 0
            if row + rows == count:
                sums.scale = 1.0 / count
            t.K.column_sums(&sums)


cdef void pool_backward_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t D = p.D, size = t.K.size, n, row
    cdef char* dx
    cdef int i
    if p.pool.attention:
        attention_pool_backward(t, task)
        return
    memset(p.arena + p.pool.partial + task * 2 * D * size, 0, 2 * D * size)
    for n in range(part_start(p.N, p.image_groups, task), part_start(p.N, p.image_groups, task + 1)):
        dx, row = p.arena + p.dx + n * p.T * D * size, 0
        for i in range(p.pool.ranges):  # they are in order and apart
            memset(dx + row * D * size, 0, (p.pool.first[i] - row) * D * size)
            range_backward(t, task, n, i)
            row = p.pool.first[i] + p.pool.count[i]
        memset(dx + row * D * size, 0, (p.T - row) * D * size)


cdef void range_backward(const Task* t, Py_ssize_t task, Py_ssize_t n, int i) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t D = p.D, size = t.K.size, count = p.pool.count[i], first = n * p.T + p.pool.first[i]
    cdef Py_ssize_t stat = p.pool.stats[i] + n * count
    cdef char* sums = p.arena + p.pool.partial + task * 2 * D * size
    cdef char* x = row_of(t, &p.last_x, first)
    cdef char* dx = p.arena + p.dx + first * D * size
    cdef char* dpooled = p.arena + p.dpooled + (n * (count if p.pool.each else 1) * p.pool.width + i * D) * size
    cdef NormBackward call
    cdef AddRows share = adding(1, D, matrix(dpooled, D), matrix(t.scratch, D))  # every row of a mean has the same dz
    if not p.pool.each:
        share.factor = 1.0 / count
        t.K.add_rows(&share)
        dpooled = t.scratch
    if p.pool.norm:
        call = normalisation_backward(count, D, matrix(dpooled, D if p.pool.each else 0), matrix(x, D), matrix(dx, D))
        call.rms = p.pool.rms
        call.mean, call.rstd = p.arena + p.pool.mean + stat * size, p.arena + p.pool.rstd + stat * size
        if p.pool.scale >= 0:
            call.scale, call.dscale = p.weights + p.pool.scale, sums
        if p.pool.shift >= 0:
            call.dshift = sums + D * size
        t.K.norm_backward(&call)
    else:
        share = adding(count, D, matrix(dpooled, D if p.pool.each else 0), matrix(dx, D))
        t.K.add_rows(&share)


cdef void final_norm_sums(const Task* t) noexcept nogil:
    """The image groups' parts, added in order."""
    if t.p.pool.norm:
        group_sums(t, t.p.pool.partial, t.p.pool.scale, t.p.pool.shift)


# -------------------------------------------------------------------------------------------------- attention pooling
cdef inline Matrix head_rows(const Task* t, Matrix rows, Py_ssize_t head) noexcept nogil:
    return columns(t.K, rows, head * t.p.pool.dh)


cdef void attention_pool(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t n, h
    cdef Matrix k, q = rows_from(t, &p.pool.query, 0)
    cdef Attend call
    call.tokens, call.dh, call.scratch = p.T - p.pool.first[0], p.pool.dh, t.scratch
    for n in range(part_start(p.N, p.image_groups, task), part_start(p.N, p.image_groups, task + 1)):
        k = rows_from(t, &p.pool.kv, n * p.T + p.pool.first[0])
        for h in range(p.pool.heads):
            call.k, call.v = head_rows(t, k, h), head_rows(t, columns(t.K, k, p.D), h)
            call.q = head_rows(t, q, h).at
            call.o = head_rows(t, matrix(p.arena + p.pooled + n * p.D * t.K.size, p.D), h).at
            t.K.attend(&call)


cdef void attention_pool_backward(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t n, h, row = p.D * t.K.size
    cdef Matrix k, dk, q = rows_from(t, &p.pool.query, 0)
    cdef AttendBackward call
    call.tokens, call.dh, call.scratch = p.T - p.pool.first[0], p.pool.dh, t.scratch
    for n in range(part_start(p.N, p.image_groups, task), part_start(p.N, p.image_groups, task + 1)):
        k = rows_from(t, &p.pool.kv, n * p.T + p.pool.first[0])
        memset(row_of(t, &p.pool.d_kv, n * p.T), 0, p.pool.first[0] * p.pool.d_kv.ld * t.K.size)  # of tokens not seen
        dk = rows_from(t, &p.pool.d_kv, n * p.T + p.pool.first[0])
        for h in range(p.pool.heads):
            call.q = head_rows(t, q, h).at
            call.d_o = head_rows(t, matrix(p.arena + p.dpooled + n * row, p.D), h).at
            call.k, call.v = head_rows(t, k, h), head_rows(t, columns(t.K, k, p.D), h)
            call.dk, call.dv = head_rows(t, dk, h), head_rows(t, columns(t.K, dk, p.D), h)
            call.dq = head_rows(t, matrix(p.arena + p.pool.dq_parts + n * row, p.D), h).at
            t.K.attend_backward(&call)


cdef void query_sums(const Task* t) noexcept nogil:
    """The query's gradient from the images' parts, added in order."""
    cdef const Pass* p = t.p
    cdef ColumnSums call = summing(p.N, p.D, matrix(p.arena + p.pool.dq_parts, p.D), row_of(t, &p.pool.d_query, 0))
    t.K.column_sums(&call)
