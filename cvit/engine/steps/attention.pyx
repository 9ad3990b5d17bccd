"""Softmax attention, head by head.

    forward     o = softmax(q kᵀ / sqrt(dh)) v                        keeps o and each query's log-sum-exp (training)
    backward    dq, dk, dv from do, q, k, v, o, lse

A task is one head of one image, or a part of its queries (forward) or keys (backward), or a few small heads. Each part
of the keys makes a dq of its own; the rows stage behind adds them up, in order.
"""

from ..kernels cimport AddRows, Attention, AttentionBackward, Matrix, adding, matrix
from ..task cimport Block, Heads, Pass, Slot, Step, Task, columns, part_start, row_of, rows_from, rows_of


cdef inline Py_ssize_t divide(Py_ssize_t a, Py_ssize_t b, Py_ssize_t* rest) noexcept nogil:
    """a // b and what is left over, of numbers below 2^32: a division of 64 bits takes as long as a small task's
    products."""
    cdef unsigned int quotient = <unsigned int> a // <unsigned int> b
    rest[0] = <unsigned int> a - quotient * <unsigned int> b
    return quotient


cdef inline Matrix head_of(const Task* t, const Slot* slot, Py_ssize_t row, Py_ssize_t column) noexcept nogil:
    return columns(t.K, rows_from(t, slot, row), column)


cdef void head(const Task* t, const Heads* heads, Py_ssize_t piece) noexcept nogil:
    """A part of the queries of one head of one image."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t D = heads.heads * heads.dh, T = p.T, parts = p.query_parts, part = 0, h
    cdef Py_ssize_t n = divide(piece if parts == 1 else divide(piece, parts, &part), heads.heads, &h)
    cdef Py_ssize_t first = part_start(T, parts, part)
    cdef Attention call
    call.tokens, call.dh, call.first, call.count = T, heads.dh, first, part_start(T, parts, part + 1) - first
    call.q = head_of(t, &heads.qkv, n * T, h * heads.dh)
    call.k, call.v = columns(t.K, call.q, D), columns(t.K, call.q, 2 * D)
    call.o = head_of(t, &heads.o, n * T + first, h * heads.dh)
    call.lse = row_of(t, &heads.lse, (n * heads.heads + h) * T + first) if p.training else NULL
    call.scratch = t.scratch
    t.K.attention(&call)


cdef void head_backward(const Task* t, const Heads* heads, Py_ssize_t piece) noexcept nogil:
    """A part of the keys of one head of one image."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t D = heads.heads * heads.dh, T = p.T, parts = p.key_parts, part = 0, h
    cdef Py_ssize_t n = divide(piece if parts == 1 else divide(piece, parts, &part), heads.heads, &h)
    cdef Py_ssize_t first = part_start(T, parts, part)
    cdef AttentionBackward call
    call.tokens, call.dh, call.first, call.count = T, heads.dh, first, part_start(T, parts, part + 1) - first
    call.q = head_of(t, &heads.qkv, n * T, h * heads.dh)
    call.k, call.v = columns(t.K, call.q, D), columns(t.K, call.q, 2 * D)
    call.o = head_of(t, &heads.o, n * T, h * heads.dh)
    call.d_o = head_of(t, &heads.d_o, n * T, h * heads.dh)
    call.lse = row_of(t, &heads.lse, (n * heads.heads + h) * T)
    call.dq = head_of(t, &heads.d_qkv, n * T, h * heads.dh)
    call.dk, call.dv = columns(t.K, call.dq, D), columns(t.K, call.dq, 2 * D)
    if part:
        call.dq = matrix(p.arena + heads.dq_parts + (((part - 1) * p.R + n * T) * D + h * heads.dh) * t.K.size, D)
    call.scratch = t.scratch
    t.K.attention_backward(&call)


cdef void heads_task(const Task* t, const Block* block, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t pieces = t.p.N * block.heads.heads * t.p.query_parts, piece
    for piece in range(part_start(pieces, t.p.head_tasks, task), part_start(pieces, t.p.head_tasks, task + 1)):
        head(t, &block.heads, piece)


cdef void heads_backward_task(const Task* t, const Block* block, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t pieces = t.p.N * block.heads.heads * t.p.key_parts, tasks = t.p.head_backward_tasks, piece
    for piece in range(part_start(pieces, tasks, task), part_start(pieces, tasks, task + 1)):
        head_backward(t, &block.heads, piece)


cdef void heads_of_rows(const Task* t, const Block* block) noexcept nogil:
    """All heads of the images that a whole block's task holds."""
    cdef Py_ssize_t piece, H = block.heads.heads
    for piece in range(t.first // t.p.T * H, (t.first + t.rows) // t.p.T * H):
        head(t, &block.heads, piece)


cdef void heads_of_rows_backward(const Task* t, const Block* block) noexcept nogil:
    cdef Py_ssize_t piece, H = block.heads.heads
    for piece in range(t.first // t.p.T * H, (t.first + t.rows) // t.p.T * H):
        head_backward(t, &block.heads, piece)


cdef void add_query_parts(const Task* t, const Step* step) noexcept nogil:
    """The backward's first step behind the heads: dq (width) += what the other parts of the keys add to it."""
    cdef const Pass* p = t.p
    cdef AddRows call = adding(t.rows, step.width, matrix(NULL, step.width), rows_of(t, &step.d_source))
    cdef Py_ssize_t part
    call.add = call.y
    for part in range(p.key_parts - 1):
        call.x.at = p.arena + step.partial + (part * p.R + t.first) * step.width * t.K.size
        t.K.add_rows(&call)
