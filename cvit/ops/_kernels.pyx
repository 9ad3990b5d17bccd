"""Each kernel alone over whole arrays, for cvit/ops.py: a parallel loop over rows, images or heads around one call.

A model's pass does not come this way: there the same kernels are fused into stages (_block.pyx). Arguments were checked by ops.py:
C-contiguous, one dtype, outputs allocated; rows are the last axis of a two-dimensional view. Loops are cut by shapes alone.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from ..engine.embed cimport cut_patches, join_patches
from ..engine.kernels cimport (
    GELU_ERF, GELU_TANH, Kernels, apply as apply_kernel, attention_backward as attention_backward_kernel,
    attention_forward, attention_scratch, block_depth, column_room, column_sums, cross_entropy as cross_entropy_kernel,
    gelu as gelu_kernel, gelu_backward as gelu_backward_kernel, gemm, gemm_columns, layernorm as layernorm_kernel,
    layernorm_backward as layernorm_backward_kernel, pack_columns, pack_panels, pack_panels_transposed, pack_rows,
    packed_stride, real,
)
from ..engine.state cimport ceil_div, cut, panel_size
from ..engine.team cimport selected, team_size
from ..engine.plan import allocate

cdef enum:
    ROWS = 56      # rows of a task; a layer norm's partial sums are cut by it, too
    STRIP = 128    # columns of a task
    RUN = 1 << 14  # values of a task, where there are no rows


cdef real[::1] room(real* kind, Py_ssize_t count):
    """An aligned vector of the element type."""
    return allocate(count, np.float32 if real is float else np.float64)


def patches(const real[:, :, :, ::1] x, Py_ssize_t patch, real[:, :, ::1] out):
    cdef Py_ssize_t n, count = x.shape[0]
    for n in prange(count, nogil=True, num_threads=team_size(count), schedule="dynamic"):
        cut_patches(<real*> &x[n, 0, 0, 0], x.shape[1], x.shape[2], x.shape[3], patch, 0, x.shape[2] // patch, &out[n, 0, 0])


def patches_backward(const real[:, :, ::1] dout, Py_ssize_t patch, real[:, :, :, ::1] dx):
    cdef Py_ssize_t n, count = dx.shape[0]
    for n in prange(count, nogil=True, num_threads=team_size(count), schedule="dynamic"):
        join_patches(<real*> &dout[n, 0, 0], dx.shape[1], dx.shape[2], dx.shape[3], patch, &dx[n, 0, 0, 0])


def linear(const real[:, ::1] x, const real[:, ::1] w, const real[::1] bias, real[:, ::1] y):
    """y = x @ w + bias; bias may be None."""
    multiply(x, w, False, bias, y)


cdef multiply(const real[:, ::1] x, const real[:, ::1] w, bint transposed, const real[::1] bias, real[:, ::1] y):
    """y (M, N) = x (M, K) @ w + bias, with w (K, N), or (N, K) if transposed."""
    cdef Kernels K = selected()
    cdef Py_ssize_t M = x.shape[0], N = y.shape[1], depth = x.shape[1], i, j, first, m, column, stride
    cdef Py_ssize_t strips = ceil_div(N, STRIP), tasks = ceil_div(M, ROWS), ld = w.shape[1]
    cdef real[::1] packed = room(<real*> NULL, panel_size(depth, N))
    cdef int size = team_size(max(strips, tasks))
    cdef real* b = NULL
    if bias is not None:
        b = <real*> &bias[0]
    stride = ROWS * packed_stride(&K, b) * ceil_div(depth, block_depth(&K, b))
    cdef real[::1] scratch = room(<real*> NULL, size * stride)
    for j in prange(strips, nogil=True, num_threads=size, schedule="dynamic"):
        column = j * STRIP
        if transposed:
            pack_panels_transposed(&K, depth, min(<Py_ssize_t> STRIP, N - column), <real*> &w[column, 0], ld,
                                   &packed[column * depth], depth, 0)
        else:
            pack_panels(&K, depth, min(<Py_ssize_t> STRIP, N - column), <real*> &w[0, column], ld, &packed[column * depth],
                        depth, 0)
    for i in prange(tasks, nogil=True, num_threads=size, schedule="dynamic"):
        first = cut(M, tasks, i)
        m = cut(M, tasks, i + 1) - first
        pack_rows(&K, m, depth, <real*> &x[first, 0], depth, <real> 1, &scratch[threadid() * stride])
        gemm(&K, m, N, depth, &scratch[threadid() * stride], &packed[0], depth, 0, &y[first, 0], N, b, <real*> NULL, 0, False,
             <real*> NULL, 0)


def linear_backward(const real[:, ::1] dy, const real[:, ::1] x, const real[:, ::1] w, real[:, ::1] dx, real[:, ::1] dw,
                    real[::1] db):
    """dx = dy @ wᵀ, dw = xᵀ @ dy, db = column sums of dy."""
    cdef Kernels K = selected()
    cdef Py_ssize_t M = x.shape[0], m = x.shape[1], n = dy.shape[1], high = ceil_div(m, STRIP), wide = ceil_div(n, STRIP), t
    cdef Py_ssize_t kc = block_depth(&K, &dw[0, 0]), room_a = kc * column_room(&K, &dw[0, 0], STRIP), stride = room_a + kc * STRIP
    cdef int size = team_size(high * wide)
    cdef real[::1] scratch = room(<real*> NULL, size * stride)
    cdef const real[::1] none = None
    multiply(dy, w, True, none, dx)
    db[:] = 0
    for t in prange(high * wide, nogil=True, num_threads=size, schedule="dynamic"):
        gradient_tile(&K, M, m, n, <real*> &x[0, 0], <real*> &dy[0, 0], cut(m, high, t // wide), cut(m, high, t // wide + 1),
                      cut(n, wide, t % wide), cut(n, wide, t % wide + 1), &dw[0, 0], &db[0],
                      &scratch[threadid() * stride], &scratch[threadid() * stride + room_a])


cdef void gradient_tile(Kernels* K, Py_ssize_t M, Py_ssize_t m, Py_ssize_t n, real* x, real* dy, Py_ssize_t m0, Py_ssize_t m1,
                        Py_ssize_t n0, Py_ssize_t n1, real* dw, real* db, real* a, real* b) noexcept nogil:
    cdef Py_ssize_t row, rows, kc = block_depth(K, a)
    for row from 0 <= row < M by kc:
        rows = min(kc, M - row)
        pack_columns(K, rows, m1 - m0, x + row * m + m0, m, <real*> NULL, <real*> NULL, <real*> NULL, <real*> NULL, a)
        pack_panels(K, rows, n1 - n0, dy + row * n + n0, n, b, rows, 0)
        gemm_columns(K, m1 - m0, n1 - n0, rows, a, b, rows, 0, dw + m0 * n + n0, n, row > 0, db + n0 if m0 == 0 else <real*> NULL,
                     <real*> NULL, 0)


def layernorm(const real[:, ::1] x, const real[::1] scale, const real[::1] shift, double eps, real[:, ::1] y, real[::1] mean,
              real[::1] rstd):
    cdef Kernels K = selected()
    cdef Py_ssize_t M = x.shape[0], d = x.shape[1], tasks = ceil_div(M, ROWS), i, first
    cdef Py_ssize_t kc = block_depth(&K, &mean[0])
    cdef real* s = <real*> &scale[0] if scale is not None else NULL
    cdef real* b = <real*> &shift[0] if shift is not None else NULL
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        first = i * ROWS
        layernorm_kernel(&K, min(<Py_ssize_t> ROWS, M - first), d, <real*> &x[first, 0], d, s, b, <real> eps, &y[first, 0], d, kc,
                         &mean[first], &rstd[first])


def layernorm_backward(const real[:, ::1] dy, const real[:, ::1] x, const real[::1] mean, const real[::1] rstd,
                       const real[::1] scale, real[:, ::1] dx, real[::1] dscale, real[::1] dshift):
    cdef Kernels K = selected()
    cdef Py_ssize_t M = x.shape[0], d = x.shape[1], tasks = ceil_div(M, ROWS), i, first
    cdef real* s = <real*> &scale[0] if scale is not None else NULL
    cdef real[:, :, ::1] partial = np.zeros((tasks, 2, d), np.float32 if real is float else np.float64)
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        first = i * ROWS
        layernorm_backward_kernel(&K, min(<Py_ssize_t> ROWS, M - first), d, <real*> &dy[first, 0], d, <real*> &x[first, 0], d,
                                  <real*> &mean[first], <real*> &rstd[first], s, <real*> NULL, 0, &dx[first, 0], d,
                                  &partial[i, 0, 0], &partial[i, 1, 0])
    if dscale is not None:
        column_sums(&K, tasks, d, &partial[0, 0, 0], 2 * d, 0, <real> 1, &dscale[0])
        column_sums(&K, tasks, d, &partial[0, 1, 0], 2 * d, 0, <real> 1, &dshift[0])


def gelu(bint exact, const real[::1] x, real[::1] y):
    cdef Kernels K = selected()
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i, first
    cdef int kind = GELU_ERF if exact else GELU_TANH
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        first = i * RUN
        gelu_kernel(&K, kind, 1, min(<Py_ssize_t> RUN, n - first), <real*> &x[first], 0, &y[first], 0)


def gelu_backward(bint exact, real[::1] x, real[::1] dy):
    """In place: x becomes gelu(x), dy becomes dx."""
    cdef Kernels K = selected()
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i, first
    cdef int kind = GELU_ERF if exact else GELU_TANH
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        first = i * RUN
        gelu_backward_kernel(&K, kind, 1, min(<Py_ssize_t> RUN, n - first), &x[first], 0, &dy[first], 0, <real*> NULL, 0, 0)


def attention(const real[:, :, ::1] q, const real[:, :, ::1] k, const real[:, :, ::1] v, real[:, :, ::1] o, real[:, ::1] lse):
    """Heads (N·H, T, dh)."""
    cdef Kernels K = selected()
    cdef Py_ssize_t heads = q.shape[0], T = q.shape[1], dh = q.shape[2], i
    cdef Py_ssize_t stride = ceil_div(attention_scratch(&K, T, dh, 0, &lse[0, 0]), 64) * 64
    cdef int size = team_size(heads)
    cdef real[::1] scratch = room(<real*> NULL, size * stride)
    for i in prange(heads, nogil=True, num_threads=size, schedule="dynamic"):
        attention_forward(&K, T, dh, 0, T, <real*> &q[i, 0, 0], <real*> &k[i, 0, 0], <real*> &v[i, 0, 0], dh, &o[i, 0, 0], dh,
                          &lse[i, 0], &scratch[threadid() * stride])


def attention_backward(const real[:, :, ::1] d_o, const real[:, :, ::1] q, const real[:, :, ::1] k, const real[:, :, ::1] v,
                       const real[:, :, ::1] o, const real[:, ::1] lse, real[:, :, ::1] dq, real[:, :, ::1] dk,
                       real[:, :, ::1] dv):
    cdef Kernels K = selected()
    cdef Py_ssize_t heads = q.shape[0], T = q.shape[1], dh = q.shape[2], i
    cdef Py_ssize_t stride = ceil_div(attention_scratch(&K, T, dh, 1, &dq[0, 0, 0]), 64) * 64
    cdef int size = team_size(heads)
    cdef real[::1] scratch = room(<real*> NULL, size * stride)
    for i in prange(heads, nogil=True, num_threads=size, schedule="dynamic"):
        attention_backward_kernel(&K, T, dh, 0, T, <real*> &q[i, 0, 0], <real*> &k[i, 0, 0], <real*> &v[i, 0, 0], dh, <real*> &o[i, 0, 0],
                                  <real*> &d_o[i, 0, 0], dh, <real*> &lse[i, 0], &dq[i, 0, 0], dh, &dk[i, 0, 0], &dv[i, 0, 0],
                                  &scratch[threadid() * stride])


def cross_entropy(const real[:, ::1] logits, const long long[::1] labels, double smoothing, real[::1] losses,
                  real[:, ::1] dlogits):
    """Losses (N,), and the gradient of their mean unless dlogits is None."""
    cdef Kernels K = selected()
    cdef Py_ssize_t n, N = logits.shape[0], classes = logits.shape[1]
    cdef bint wanted = dlogits is not None
    for n in prange(N, nogil=True, num_threads=team_size(ceil_div(N, 8)), schedule="dynamic", chunksize=8):
        losses[n] = cross_entropy_kernel(&K, classes, <real*> &logits[n, 0], <Py_ssize_t> labels[n], <real> smoothing,
                                         <real> (1.0 / N), &dlogits[n, 0] if wanted else <real*> NULL)


def apply(int function, const real[::1] x, real[::1] y):
    cdef Kernels K = selected()
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i, first
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        first = i * RUN
        apply_kernel(&K, function, min(<Py_ssize_t> RUN, n - first), <real*> &x[first], &y[first])
