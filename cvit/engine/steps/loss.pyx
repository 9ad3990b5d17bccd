"""The head and the loss.

    logits = features @ W + b,   loss = sum over rows of weight · softmax cross-entropy
    dlogits = weight (softmax · sum(target) - target),   dfeatures = dlogits @ Wᵀ

Two heads, each with its own columns of the features, make logits that are the mean of theirs: then dlogits are those of
one of them. Rows are the pooled ones: an image each, or a token each where nothing is pooled. A row's target is a label
or a row of the classes' shares; its weight is 1 / rows, or an even share of its image's own. Forward keeps features and
logits. Tasks: groups of images; for the products with W a block of rows by a strip of columns. dW is in weights.pyx.
"""

from ..kernels cimport (
    AddRows, CrossEntropy, Gemm, Matrix, PackRows, adding, ceil_div, crossing, matrix, packed_rows,
    packing_rows, product, rows_bytes,
)
from ..task cimport Linear, Pass, Task, columns, part_start, rows_from
from .linear cimport bias_of, panels_of

cdef enum:
    IMAGES = 56   # rows of a task of the head's products
    STRIP = 128   # columns of such a task


cdef Py_ssize_t head_scratch(const Pass* p) noexcept nogil:
    """Bytes."""
    return rows_bytes(p.K, IMAGES, max(p.head[0].k, p.classes))


cdef Py_ssize_t head_tasks(const Pass* p, Py_ssize_t n) noexcept nogil:
    """Tasks of a product of all pooled rows with a matrix of n columns."""
    return ceil_div(p.pool.rows, IMAGES) * ceil_div(n, STRIP)


cdef Gemm head_product(const Task* t, Py_ssize_t task, const Linear* head, Matrix x, Py_ssize_t k, Py_ssize_t n,
                       Matrix y) noexcept nogil:
    """One block of y (rows, n) = x (rows, k) @ W, W the head's packed matrix or its transpose; x is packed."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t strips = ceil_div(n, STRIP), blocks = ceil_div(p.pool.rows, IMAGES), size = t.K.size
    cdef Py_ssize_t first = part_start(p.pool.rows, blocks, task // strips), column = task % strips * STRIP
    cdef Py_ssize_t m = part_start(p.pool.rows, blocks, task // strips + 1) - first
    cdef PackRows packing = packing_rows(m, k, matrix(<char*> x.at + first * x.ld * size, x.ld), t.scratch)
    cdef Gemm g
    t.K.pack_rows(&packing)
    g = product(m, min(<Py_ssize_t> STRIP, n - column), k, packed_rows(t.scratch, m),
                panels_of(p, head, 0, column, 0, k), matrix(<char*> y.at + (first * y.ld + column) * size, y.ld))
    g.hint.c_is_cached = not p.hints
    return g


cdef void logits_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t column = task % ceil_div(p.classes, STRIP) * STRIP
    cdef Matrix logits = matrix(p.arena + p.logits, p.classes)
    cdef AddRows mean
    cdef Gemm g
    cdef int i
    for i in range(p.heads):
        g = head_product(t, task, &p.head[i], rows_from(t, &p.head[i].input, 0), p.head[i].k,
                         p.classes, logits)
        g.bias = bias_of(p, &p.head[i], 0, column)
        if i:
            g.add = g.c
        t.K.gemm(&g)
    if p.heads > 1:
        mean = adding(g.m, g.n, g.c, g.c)
        mean.factor = 1.0 / p.heads
        t.K.add_rows(&mean)


cdef void logits_backward_task(const Task* t, Py_ssize_t task) noexcept nogil:
    """Of each head its own columns of dfeatures."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t tasks = head_tasks(p, p.head[0].k), head = task // tasks
    cdef const Linear* w = &p.head[head]
    cdef Matrix d_features = columns(t.K, rows_from(t, &p.d_features, 0), head * w.k)
    cdef Gemm g = head_product(t, task % tasks, w, matrix(p.arena + p.dlogits, p.classes), p.classes, w.k, d_features)
    t.K.gemm(&g)


cdef void loss_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t row, per_image = p.pool.rows // p.N
    cdef double* losses = <double*> (p.arena + p.losses)
    cdef CrossEntropy call = crossing(p.classes, p.smoothing, 1.0 / (p.pool.rows * p.heads))
    cdef Py_ssize_t first = part_start(p.N, p.image_groups, task), last = part_start(p.N, p.image_groups, task + 1)
    for row in range(first * per_image, last * per_image):
        if p.sample_weight != NULL:
            call.weight = p.sample_weight[row // per_image] / (per_image * p.heads)
        if p.targets != NULL:
            call.target = p.targets + row * p.classes * t.K.size
        else:
            call.label = <Py_ssize_t> p.labels[row]
        call.logits = p.arena + p.logits + row * p.classes * t.K.size
        call.dlogits = p.arena + p.dlogits + row * p.classes * t.K.size
        losses[row] = t.K.cross_entropy(&call)
