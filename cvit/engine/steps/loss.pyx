"""The head and the loss.

    logits = pooled @ W + b,   loss = mean over rows of the softmax cross-entropy
    dlogits = (softmax - target) / rows,   dpooled = dlogits @ Wᵀ

Rows are the pooled ones: an image each, or a token each where nothing is pooled. Forward keeps pooled and logits.
Tasks: groups of images; for the two products with W a block of rows by a strip of columns. dW is in weights.pyx.
"""

from ..kernels cimport (
    CrossEntropy, Gemm, PackRows, ceil_div, matrix, packed_rows, packed_rows_size, packing_rows, product,
)
from ..task cimport Pass, Task, part_start
from .linear cimport bias_of, panels_of

cdef enum:
    IMAGES = 56   # rows of a task of the head's products
    STRIP = 128   # columns of such a task


cdef Py_ssize_t head_scratch(const Pass* p) noexcept nogil:
    """Bytes."""
    return packed_rows_size(p.K, IMAGES, max(p.D, p.classes)) * p.K.packed_size


cdef Py_ssize_t head_tasks(const Pass* p, Py_ssize_t columns) noexcept nogil:
    """Tasks of a product of all pooled rows with a matrix of so many columns."""
    return ceil_div(p.pooled_rows, IMAGES) * ceil_div(columns, STRIP)


cdef void head_product(const Task* t, Py_ssize_t task, char* x, Py_ssize_t k, Py_ssize_t n, const void* bias,
                       char* y) noexcept nogil:
    """One block of y (rows, n) = x (rows, k) @ W + bias, W the head's packed matrix or its transpose."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t strips = ceil_div(n, STRIP), blocks = ceil_div(p.pooled_rows, IMAGES), size = t.K.size
    cdef Py_ssize_t first = part_start(p.pooled_rows, blocks, task // strips), column = task % strips * STRIP
    cdef Py_ssize_t m = part_start(p.pooled_rows, blocks, task // strips + 1) - first
    cdef PackRows packing = packing_rows(m, k, matrix(x + first * k * size, k), t.scratch)
    cdef Gemm g
    t.K.pack_rows(&packing)
    g = product(m, min(<Py_ssize_t> STRIP, n - column), k, packed_rows(t.scratch, m),
                panels_of(p, &p.head, 0, column, 0, k),
                matrix(y + (first * n + column) * size, n))
    if bias != NULL:
        g.bias = <const char*> bias + column * size
    g.hint.c_is_cached = not p.hints
    t.K.gemm(&g)


cdef void logits_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    head_product(t, task, p.arena + p.pooled, p.D, p.classes, bias_of(p, &p.head, 0, 0), p.arena + p.logits)


cdef void logits_backward_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    head_product(t, task, p.arena + p.dlogits, p.classes, p.D, NULL, p.arena + p.dpooled)


cdef void loss_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t row, per_image = p.pooled_rows // p.N
    cdef double* losses = <double*> (p.arena + p.losses)
    cdef CrossEntropy call
    call.n, call.smoothing, call.weight = p.classes, p.smoothing, 1.0 / p.pooled_rows
    for row in range(part_start(p.N, p.image_groups, task) * per_image, part_start(p.N, p.image_groups, task + 1)
                     * per_image):
        call.label = <Py_ssize_t> p.labels[row]
        call.logits = p.arena + p.logits + row * p.classes * t.K.size
        call.dlogits = p.arena + p.dlogits + row * p.classes * t.K.size
        losses[row] = t.K.cross_entropy(&call)
