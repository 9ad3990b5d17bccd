"""Each kernel alone over whole arrays, for cvit/ops.py: a parallel loop over rows, images or heads around one call.

A model's pass does not come this way: there the same kernels are fused into stages (_block.pyx). Arguments were checked by ops.py:
C-contiguous, one dtype, outputs allocated; rows are the last axis of a two-dimensional view. Loops are cut by shapes alone.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from ..engine.kernels cimport (
    GELU_ERF, GELU_TANH, Activation, ActivationBackward, Attention, AttentionBackward, ColumnSums, CrossEntropy, Gemm, GemmColumns, Kernels,
    Norm, NormBackward, PackColumns, PackPanels, PackRows, activating, activating_backward, ceil_div, column_room, columns_product, matrix,
    normalisation, normalisation_backward, packed_rows, packed_rows_size, packing_columns, packing_panels, packing_rows, panel_size, panels,
    product, summing,
)
from ..engine.patches cimport cut_patches, join_patches
from ..engine.task cimport part_start
from ..engine.team cimport kernels_of, team_size
from ..engine.plan import allocate

ctypedef fused real:
    float
    double

cdef enum:
    ROWS = 56      # rows of a task; a layer norm's partial sums are cut by it, too
    STRIP = 128    # columns of a task
    RUN = 1 << 14  # values of a task, where there are no rows


cdef real[::1] room(real* kind, Py_ssize_t count):
    """An aligned vector of the element type."""
    return allocate(count, np.float32 if real is float else np.float64)


# --------------------------------------------------------------------------------------------------------------- patches
def patches(const real[:, :, :, ::1] x, Py_ssize_t patch, real[:, :, ::1] out):
    cdef Py_ssize_t n, count = x.shape[0]
    for n in prange(count, nogil=True, num_threads=team_size(count), schedule="dynamic"):
        cut_patches(<char*> &x[n, 0, 0, 0], x.shape[1], x.shape[2], x.shape[3], patch, sizeof(real), 0, x.shape[2] // patch,
                    <char*> &out[n, 0, 0])


def patches_backward(const real[:, :, ::1] dout, Py_ssize_t patch, real[:, :, :, ::1] dx):
    cdef Py_ssize_t n, count = dx.shape[0]
    for n in prange(count, nogil=True, num_threads=team_size(count), schedule="dynamic"):
        join_patches(<char*> &dout[n, 0, 0], dx.shape[1], dx.shape[2], dx.shape[3], patch, sizeof(real), <char*> &dx[n, 0, 0, 0])


# ---------------------------------------------------------------------------------------------------------------- linear
def linear(const real[:, ::1] x, const real[:, ::1] w, const real[::1] bias, real[:, ::1] y):
    """y = x @ w + bias; bias may be None."""
    multiply(x, w, False, bias, y)


cdef multiply(const real[:, ::1] x, const real[:, ::1] w, bint transposed, const real[::1] bias, real[:, ::1] y):
    """y (M, N) = x (M, K) @ w + bias, with w (K, N), or (N, K) if transposed."""
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t M = x.shape[0], N = y.shape[1], depth = x.shape[1], ld = w.shape[1], i, j, column, stride
    cdef Py_ssize_t strips = ceil_div(N, STRIP), tasks = ceil_div(M, ROWS)
    cdef real[::1] packed = room(<real*> NULL, panel_size(depth, N))
    cdef int size = team_size(max(strips, tasks))
    stride = packed_rows_size(K, ROWS, depth)
    cdef real[::1] scratch = room(<real*> NULL, size * stride)
    cdef const real* b = &bias[0] if bias is not None else NULL
    for j in prange(strips, nogil=True, num_threads=size, schedule="dynamic"):
        column = j * STRIP
        pack_strip(K, depth, min(<Py_ssize_t> STRIP, N - column), <char*> &w[column if transposed else 0, 0 if transposed else column], ld,
                   transposed, <char*> &packed[column * depth])
    for i in prange(tasks, nogil=True, num_threads=size, schedule="dynamic"):
        multiply_rows(K, part_start(M, tasks, i), part_start(M, tasks, i + 1), N, depth, <char*> &x[0, 0], <char*> &packed[0], <char*> b,
                      <char*> &y[0, 0], <char*> &scratch[threadid() * stride])


cdef void pack_strip(const Kernels* K, Py_ssize_t k, Py_ssize_t n, char* w, Py_ssize_t ld, bint transposed, char* b) noexcept nogil:
    cdef PackPanels call = packing_panels(k, n, matrix(w, ld), panels(b, k))
    if transposed:
        K.pack_panels_transposed(&call)
    else:
        K.pack_panels(&call)


cdef void multiply_rows(const Kernels* K, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n, Py_ssize_t k, char* x, char* b, char* bias,
                        char* y, char* scratch) noexcept nogil:
    cdef PackRows packing = packing_rows(last - first, k, matrix(x + first * k * K.size, k), scratch)
    cdef Gemm g = product(last - first, n, k, packing.a, panels(b, k), matrix(y + first * n * K.size, n))
    g.bias = bias
    K.pack_rows(&packing)
    K.gemm(&g)


def linear_backward(const real[:, ::1] dy, const real[:, ::1] x, const real[:, ::1] w, real[:, ::1] dx, real[:, ::1] dw,
                    real[::1] db):
    """dx = dy @ wᵀ, dw = xᵀ @ dy, db = column sums of dy."""
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t M = x.shape[0], m = x.shape[1], n = dy.shape[1], high = ceil_div(m, STRIP), wide = ceil_div(n, STRIP), t
    cdef Py_ssize_t room_a = K.kc * column_room(K, STRIP), stride = room_a + K.kc * STRIP
    cdef int size = team_size(high * wide)
    cdef real[::1] scratch = room(<real*> NULL, size * stride)
    cdef const real[::1] none = None
    multiply(dy, w, True, none, dx)
    db[:] = 0
    for t in prange(high * wide, nogil=True, num_threads=size, schedule="dynamic"):
        gradient_tile(K, M, m, n, <char*> &x[0, 0], <char*> &dy[0, 0], part_start(m, high, t // wide), part_start(m, high, t // wide + 1),
                      part_start(n, wide, t % wide), part_start(n, wide, t % wide + 1), <char*> &dw[0, 0], <char*> &db[0],
                      <char*> &scratch[threadid() * stride], <char*> &scratch[threadid() * stride + room_a])


cdef void gradient_tile(const Kernels* K, Py_ssize_t M, Py_ssize_t m, Py_ssize_t n, char* x, char* dy, Py_ssize_t m0, Py_ssize_t m1,
                        Py_ssize_t n0, Py_ssize_t n1, char* dw, char* db, char* a, char* b) noexcept nogil:
    """Rows m0 to m1 and columns n0 to n1 of dw, a block of rows of x and dy at a time."""
    cdef Py_ssize_t row, rows
    cdef PackColumns columns
    cdef PackPanels packing
    cdef GemmColumns g
    for row from 0 <= row < M by K.kc:
        rows = min(K.kc, M - row)
        columns = packing_columns(rows, m1 - m0, matrix(x + (row * m + m0) * K.size, m), a)
        K.pack_columns(&columns)
        packing = packing_panels(rows, n1 - n0, matrix(dy + (row * n + n0) * K.size, n), panels(b, rows))
        K.pack_panels(&packing)
        g = columns_product(m1 - m0, n1 - n0, rows, a, packing.b, matrix(dw + (m0 * n + n0) * K.size, n))
        g.accumulate = row > 0
        if m0 == 0:
            g.column_sums = db + n0 * K.size
        K.gemm_columns(&g)


# ------------------------------------------------------------------------------------------------------------ layer norm
def layernorm(const real[:, ::1] x, const real[::1] scale, const real[::1] shift, double eps, real[:, ::1] y, real[::1] mean,
              real[::1] rstd):
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t M = x.shape[0], d = x.shape[1], tasks = ceil_div(M, ROWS), i
    cdef const real* s = &scale[0] if scale is not None else NULL
    cdef const real* b = &shift[0] if shift is not None else NULL
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        norm_rows(K, min(<Py_ssize_t> ROWS, M - i * ROWS), d, eps, <char*> &x[i * ROWS, 0], <char*> s, <char*> b, <char*> &y[i * ROWS, 0],
                  <char*> &mean[i * ROWS], <char*> &rstd[i * ROWS])


cdef void norm_rows(const Kernels* K, Py_ssize_t rows, Py_ssize_t d, double eps, char* x, char* scale, char* shift, char* y, char* mean,
                    char* rstd) noexcept nogil:
    cdef Norm call = normalisation(rows, d, matrix(x, d), eps)
    call.scale, call.shift, call.y, call.mean, call.rstd = scale, shift, matrix(y, d), mean, rstd
    K.norm(&call)


def layernorm_backward(const real[:, ::1] dy, const real[:, ::1] x, const real[::1] mean, const real[::1] rstd,
                       const real[::1] scale, real[:, ::1] dx, real[::1] dscale, real[::1] dshift):
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t M = x.shape[0], d = x.shape[1], tasks = ceil_div(M, ROWS), i
    cdef const real* s = &scale[0] if scale is not None else NULL
    cdef real[:, :, ::1] partial = np.zeros((tasks, 2, d), np.float32 if real is float else np.float64)
    cdef ColumnSums sums
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        norm_rows_backward(K, min(<Py_ssize_t> ROWS, M - i * ROWS), d, <char*> &dy[i * ROWS, 0], <char*> &x[i * ROWS, 0],
                           <char*> &mean[i * ROWS], <char*> &rstd[i * ROWS], <char*> s, <char*> &dx[i * ROWS, 0], <char*> &partial[i, 0, 0])
    if dscale is not None:
        sums = summing(tasks, d, matrix(&partial[0, 0, 0], 2 * d), &dscale[0])
        K.column_sums(&sums)
        sums = summing(tasks, d, matrix(&partial[0, 1, 0], 2 * d), &dshift[0])
        K.column_sums(&sums)


cdef void norm_rows_backward(const Kernels* K, Py_ssize_t rows, Py_ssize_t d, char* dy, char* x, char* mean, char* rstd, char* scale,
                             char* dx, char* sums) noexcept nogil:
    cdef NormBackward call = normalisation_backward(rows, d, matrix(dy, d), matrix(x, d), matrix(dx, d))
    call.mean, call.rstd, call.scale, call.dscale, call.dshift = mean, rstd, scale, sums, sums + d * K.size
    K.norm_backward(&call)


# ------------------------------------------------------------------------------------------------------------------ GELU
def gelu(bint exact, const real[::1] x, real[::1] y):
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i
    cdef int kind = GELU_ERF if exact else GELU_TANH
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        activate_run(K, kind, min(<Py_ssize_t> RUN, n - i * RUN), <char*> &x[i * RUN], <char*> &y[i * RUN])


cdef void activate_run(const Kernels* K, int kind, Py_ssize_t n, char* x, char* y) noexcept nogil:
    cdef Activation call = activating(kind, 1, n, matrix(x, n))
    call.y = matrix(y, n)
    K.activation(&call)


def gelu_backward(bint exact, real[::1] x, real[::1] dy):
    """In place: x becomes gelu(x), dy becomes dx."""
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i
    cdef int kind = GELU_ERF if exact else GELU_TANH
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        activate_run_backward(K, kind, min(<Py_ssize_t> RUN, n - i * RUN), <char*> &x[i * RUN], <char*> &dy[i * RUN])


cdef void activate_run_backward(const Kernels* K, int kind, Py_ssize_t n, char* x, char* dy) noexcept nogil:
    cdef ActivationBackward call = activating_backward(kind, 1, n, matrix(x, n), matrix(dy, n))
    K.activation_backward(&call)


# ------------------------------------------------------------------------------------------------------------- attention
def attention(const real[:, :, ::1] q, const real[:, :, ::1] k, const real[:, :, ::1] v, real[:, :, ::1] o, real[:, ::1] lse):
    """Heads (N·H, T, dh)."""
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t heads = q.shape[0], T = q.shape[1], dh = q.shape[2], i
    cdef Py_ssize_t stride = ceil_div(K.attention_scratch(T, dh, 0), 64) * 64
    cdef int size = team_size(heads)
    cdef real[::1] scratch = room(<real*> NULL, size * stride)
    for i in prange(heads, nogil=True, num_threads=size, schedule="dynamic"):
        attend(K, T, dh, <char*> &q[i, 0, 0], <char*> &k[i, 0, 0], <char*> &v[i, 0, 0], <char*> &o[i, 0, 0], <char*> &lse[i, 0],
               <char*> &scratch[threadid() * stride])


cdef void attend(const Kernels* K, Py_ssize_t T, Py_ssize_t dh, char* q, char* k, char* v, char* o, char* lse, char* scratch) noexcept nogil:
    cdef Attention call
    call.tokens, call.dh, call.first, call.count = T, dh, 0, T
    call.q, call.k, call.v, call.o = matrix(q, dh), matrix(k, dh), matrix(v, dh), matrix(o, dh)
    call.lse, call.scratch = lse, scratch
    K.attention(&call)


def attention_backward(const real[:, :, ::1] d_o, const real[:, :, ::1] q, const real[:, :, ::1] k, const real[:, :, ::1] v,
                       const real[:, :, ::1] o, const real[:, ::1] lse, real[:, :, ::1] dq, real[:, :, ::1] dk,
                       real[:, :, ::1] dv):
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t heads = q.shape[0], T = q.shape[1], dh = q.shape[2], i
    cdef Py_ssize_t stride = ceil_div(K.attention_scratch(T, dh, 1), 64) * 64
    cdef int size = team_size(heads)
    cdef real[::1] scratch = room(<real*> NULL, size * stride)
    cdef AttentionBackward* calls
    cdef AttentionBackward call
    memory = np.zeros(heads * sizeof(AttentionBackward), np.uint8)
    cdef unsigned char[::1] view = memory
    calls = <AttentionBackward*> &view[0]
    for i in range(heads):
        call.tokens, call.dh, call.first, call.count = T, dh, 0, T
        call.q, call.k, call.v = matrix(<void*> &q[i, 0, 0], dh), matrix(<void*> &k[i, 0, 0], dh), matrix(<void*> &v[i, 0, 0], dh)
        call.o, call.d_o, call.lse = matrix(<void*> &o[i, 0, 0], dh), matrix(<void*> &d_o[i, 0, 0], dh), &lse[i, 0]
        call.dq, call.dk, call.dv = matrix(&dq[i, 0, 0], dh), matrix(&dk[i, 0, 0], dh), matrix(&dv[i, 0, 0], dh)
        calls[i] = call
    for i in prange(heads, nogil=True, num_threads=size, schedule="dynamic"):
        attend_backward(K, &calls[i], <char*> &scratch[threadid() * stride])


cdef void attend_backward(const Kernels* K, AttentionBackward* call, char* scratch) noexcept nogil:
    call.scratch = scratch
    K.attention_backward(call)


# ------------------------------------------------------------------------------------------------------------------ loss
def cross_entropy(const real[:, ::1] logits, const long long[::1] labels, double smoothing, real[::1] losses,
                  real[:, ::1] dlogits):
    """Losses (N,), and the gradient of their mean unless dlogits is None."""
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t n, N = logits.shape[0], classes = logits.shape[1]
    cdef bint wanted = dlogits is not None
    for n in prange(N, nogil=True, num_threads=team_size(ceil_div(N, 8)), schedule="dynamic", chunksize=8):
        losses[n] = <real> row_loss(K, classes, <Py_ssize_t> labels[n], smoothing, 1.0 / N, <char*> &logits[n, 0],
                                    <char*> &dlogits[n, 0] if wanted else NULL)


cdef double row_loss(const Kernels* K, Py_ssize_t n, Py_ssize_t label, double smoothing, double weight, char* logits,
                     char* dlogits) noexcept nogil:
    cdef CrossEntropy call
    call.n, call.label, call.smoothing, call.weight, call.logits, call.dlogits = n, label, smoothing, weight, logits, dlogits
    return K.cross_entropy(&call)


def apply(int function, const real[::1] x, real[::1] y):
    cdef const Kernels* K = kernels_of(sizeof(real))
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        K.apply(function, min(<Py_ssize_t> RUN, n - i * RUN), &x[i * RUN], &y[i * RUN])
