"""From the last block's tokens to the loss and back: final norm, pooling, head, softmax cross-entropy.

    z = norm(x),   pooled = z[:, 0] (class token) or mean over tokens of z,   logits = pooled @ W + b
    dlogits = (softmax - target) / N,   dpooled = dlogits @ Wᵀ,
    dz = dpooled at token 0, or dpooled / T at every token,   dx = norm'(dz)

With a class token only token 0 is normalised: no other reaches the logits. Forward keeps pooled, logits and the norm's mean and rstd.
Tasks: groups of images; for the two products with W a block of images by a strip of columns. dW is in _weights.pyx.
"""

from libc.string cimport memcpy, memset
from .kernels cimport (
    block_depth, column_sums, cross_entropy, gemm, layernorm, layernorm_backward, pack_rows, packed_stride, real,
)
from .state cimport KEEP_X, Pass, ceil_div, cut, kept, part

cdef enum:
    IMAGES = 56   # images of a task of the head's products
    STRIP = 128   # columns of such a task
    ROWS = 32     # token rows that mean pooling normalises at a time


cdef Py_ssize_t head_scratch(real* kind, Pass* p) noexcept nogil:
    cdef Py_ssize_t depth = max(p.D, p.classes)
    return max(IMAGES * packed_stride(&p.kernels, kind) * ceil_div(depth, block_depth(&p.kernels, kind)), ROWS * p.D)


cdef Py_ssize_t head_tasks(Pass* p, Py_ssize_t columns) noexcept nogil:
    """Tasks of a product of all images with a matrix of so many columns."""
    return ceil_div(p.N, IMAGES) * ceil_div(columns, STRIP)


# ------------------------------------------------------------------------------------------------- final norm, pooling
cdef void pool_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t first = cut(p.N, p.image_groups, task), last = cut(p.N, p.image_groups, task + 1)
    cdef Py_ssize_t D = p.D, T = p.T, n, row, rows, kc = block_depth(&p.kernels, s)
    cdef real* x = kept(s, p, KEEP_X, p.L)
    cdef real* pooled = part(s, p.arena, p.at.pooled)
    cdef real* mean = part(s, p.arena, p.at.final_stats)
    cdef real* rstd = mean + (p.N if p.class_token else p.R)
    cdef real* scale = part(s, p.weights, p.w.norm_w)
    cdef real* shift = part(s, p.weights, p.w.norm_b)
    if p.class_token and p.final_norm:
        layernorm(&p.kernels, last - first, D, x + first * T * D, T * D, scale, shift, <real> p.eps, pooled + first * D, D, kc,
                  mean + first, rstd + first)
    elif p.class_token:
        for n in range(first, last):
            memcpy(pooled + n * D, x + n * T * D, D * sizeof(real))
    else:
        for n in range(first, last):
            for row from n * T <= row < n * T + T by ROWS:
                rows = min(<Py_ssize_t> ROWS, n * T + T - row)
                if p.final_norm:
                    layernorm(&p.kernels, rows, D, x + row * D, D, scale, shift, <real> p.eps, s, D, kc, mean + row, rstd + row)
                column_sums(&p.kernels, rows, D, s if p.final_norm else x + row * D, D, row > n * T,
                            <real> (1.0 / T) if row + rows == n * T + T else <real> 1, pooled + n * D)


cdef void pool_backward_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t first = cut(p.N, p.image_groups, task), last = cut(p.N, p.image_groups, task + 1)
    cdef Py_ssize_t D = p.D, T = p.T, n, i, row
    cdef real* x = kept(s, p, KEEP_X, p.L)
    cdef real* dx = part(s, p.arena, p.at.dx)
    cdef real* dpooled = part(s, p.arena, p.at.dpooled)
    cdef real* mean = part(s, p.arena, p.at.final_stats)
    cdef real* rstd = mean + (p.N if p.class_token else p.R)
    cdef real* scale = part(s, p.weights, p.w.norm_w)
    cdef real* sums = part(s, p.arena, p.at.final_partial) + task * 2 * D
    cdef real share = <real> 1 if p.class_token else <real> (1.0 / T)
    cdef Py_ssize_t rows = 1 if p.class_token else T
    memset(sums, 0, 2 * D * sizeof(real))
    for n in range(first, last):
        for i in range(D):
            s[i] = dpooled[n * D + i] * share
        if p.final_norm:  # every row has the same dz: a row stride of 0
            row = n if p.class_token else n * T
            layernorm_backward(&p.kernels, rows, D, s, 0, x + n * T * D, D, mean + row, rstd + row, scale, <real*> NULL, 0,
                               dx + n * T * D, D, sums if scale != NULL else <real*> NULL, sums + D)
        else:
            for i in range(rows):
                memcpy(dx + (n * T + i) * D, s, D * sizeof(real))
        memset(dx + (n * T + rows) * D, 0, (T - rows) * D * sizeof(real))


cdef void final_norm_gradients(real* s, Pass* p) noexcept nogil:
    """The image groups' parts, added in order."""
    cdef real* sums = part(s, p.arena, p.at.final_partial)
    if p.w.norm_w >= 0:
        column_sums(&p.kernels, p.image_groups, p.D, sums, 2 * p.D, 0, <real> 1, part(s, p.grad, p.w.norm_w))
        column_sums(&p.kernels, p.image_groups, p.D, sums + p.D, 2 * p.D, 0, <real> 1, part(s, p.grad, p.w.norm_b))


# ---------------------------------------------------------------------------------------------------------------- head
cdef void head_product(real* s, Pass* p, Py_ssize_t task, real* x, Py_ssize_t k, real* packed, Py_ssize_t n, real* bias,
                       real* y) noexcept nogil:
    """One block of y (N, n) = x (N, k) @ W + bias."""
    cdef Py_ssize_t strips = ceil_div(n, STRIP), blocks = ceil_div(p.N, IMAGES)
    cdef Py_ssize_t first = cut(p.N, blocks, task // strips), m = cut(p.N, blocks, task // strips + 1) - first
    cdef Py_ssize_t column = task % strips * STRIP
    pack_rows(&p.kernels, m, k, x + first * k, k, <real> 1, s)
    gemm(&p.kernels, m, min(<Py_ssize_t> STRIP, n - column), k, s, packed + column * k, k, 0, y + first * n + column, n,
         bias + column if bias != NULL else <real*> NULL, <real*> NULL, 0, False, <real*> NULL, 0)


cdef void logits_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil:
    head_product(s, p, task, part(s, p.arena, p.at.pooled), p.D, part(s, p.packed, p.at.pack_head), p.classes,
                 part(s, p.weights, p.w.head_b), part(s, p.arena, p.at.logits))


cdef void logits_backward_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil:
    head_product(s, p, task, part(s, p.arena, p.at.dlogits), p.classes, part(s, p.packed, p.at.pack_head), p.D,
                 <real*> NULL, part(s, p.arena, p.at.dpooled))


cdef void loss_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t n, row
    for n in range(cut(p.N, p.image_groups, task), cut(p.N, p.image_groups, task + 1)):
        row = n * p.classes
        part(s, p.arena, p.at.losses)[n] = cross_entropy(
            &p.kernels, p.classes, part(s, p.arena, p.at.logits) + row, <Py_ssize_t> p.labels[n], <real> p.smoothing,
            <real> (1.0 / p.N), part(s, p.arena, p.at.dlogits) + row)
