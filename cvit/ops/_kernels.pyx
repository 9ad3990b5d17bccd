"""Each kernel alone over whole arrays, for cvit/ops: a parallel loop over rows, images or heads around one call.

A model's pass does not come this way: there the same kernels are fused into steps (cvit/engine). Arguments were checked
by ops: C-contiguous, one dtype, outputs allocated; rows are the last axis of a two-dimensional view. Loops are divided
by shapes alone, and every turn runs with a pass's floating-point mode (engine/team.h).
"""

import numpy as np

from libc.stdint cimport uint64_t
from cython.parallel cimport prange, threadid
from ..engine.kernels cimport (
    Activation, ActivationBackward, Attention, AttentionBackward, ColumnSums, CrossEntropy, Drop, Gemm, GemmColumns,
    Kernels, Norm,
    NormBackward, PackColumns, PackPanels, PackRows, activating, activating_backward, ceil_div, columns_bytes,
    columns_product, crossing, dropping, matrix,
    normalisation, normalisation_backward, packing_columns, packing_panels,
    packing_rows, panels_bytes, rows_bytes,
    panels, product, summing,
)
from ..engine.patches cimport cut_patches, join_patches
from ..engine.team cimport FloatMode, float_enter, float_fence, float_leave, team_size
from ._table cimport real, table_of
from ..engine.memory import allocate

cdef enum:
    ROWS = 56      # rows of a task; a layer norm's partial sums are divided by it, too
    STRIP = 128    # columns of a task
    RUN = 1 << 14  # values of a task, where there are no rows


cdef real[::1] room(real* x, Py_ssize_t count):
    """An aligned vector of x's type."""
    return allocate(count, np.float32 if real is float else np.float64)


cdef inline Py_ssize_t part_start(Py_ssize_t count, Py_ssize_t parts, Py_ssize_t i) noexcept nogil:
    """Where part i of `parts` equal parts of `count` begins."""
    return count * i // parts


def patches(const real[:, :, :, ::1] x, Py_ssize_t patch, real[:, :, ::1] out):
    cdef Py_ssize_t n, count = x.shape[0]
    for n in prange(count, nogil=True, num_threads=team_size(count), schedule="dynamic"):
        cut_patches(<char*> &x[n, 0, 0, 0], x.shape[1], x.shape[2], x.shape[3], patch, patch, 0, x.shape[2] // patch,
                    sizeof(real),
                    <char*> &out[n, 0, 0])


def patches_backward(const real[:, :, ::1] dout, Py_ssize_t patch, real[:, :, :, ::1] dx):
    cdef Py_ssize_t n, count = dx.shape[0]
    for n in prange(count, nogil=True, num_threads=team_size(count), schedule="dynamic"):
        join_patches(<char*> &dout[n, 0, 0], dx.shape[1], dx.shape[2], dx.shape[3], patch, sizeof(real),
                     <char*> &dx[n, 0, 0, 0])


# ------------------------------------------------------------------------------------------------------------------
# linear
def linear(const real[:, ::1] x, const real[:, ::1] w, const real[::1] bias, real[:, ::1] y):
    """y = x @ w + bias; bias may be None."""
    multiply(table_of(&y[0, 0]), x, w, False, bias, y)


cdef multiply(const Kernels* K, const real[:, ::1] x, const real[:, ::1] w, bint transposed, const real[::1] bias,
              real[:, ::1] y):
    """y (M, N) = x (M, depth) @ w + bias, with w (depth, N), or (N, depth) if transposed."""
    cdef Py_ssize_t M = x.shape[0], N = y.shape[1], depth = x.shape[1], i, j
    cdef Py_ssize_t strips = ceil_div(N, STRIP), tasks = ceil_div(M, ROWS)
    cdef Py_ssize_t stride = rows_bytes(K, ROWS, depth) // K.size
    cdef int size = team_size(max(strips, tasks))
    cdef real[::1] packed = room(&y[0, 0], panels_bytes(K, depth, N) // K.size), scratch = room(&y[0, 0], size * stride)
    cdef const real* b = &bias[0] if bias is not None else NULL
    for j in prange(strips, nogil=True, num_threads=size, schedule="dynamic"):
        pack_strip(K, depth, N, j, <real*> &w[0, 0], transposed, &packed[0])
    for i in prange(tasks, nogil=True, num_threads=size, schedule="dynamic"):
        multiply_rows(K, part_start(M, tasks, i), part_start(M, tasks, i + 1), N, depth, <real*> &x[0, 0], &packed[0],
                      <real*> b,
                      &y[0, 0], &scratch[threadid() * stride])


cdef void pack_strip(const Kernels* K, Py_ssize_t depth, Py_ssize_t N, Py_ssize_t strip, real* w, bint transposed,
                     real* packed) noexcept nogil:
    cdef Py_ssize_t column = strip * STRIP, columns = min(<Py_ssize_t> STRIP, N - column)
    cdef FloatMode before = float_enter()
    cdef PackPanels pack = packing_panels(depth, columns, matrix(w + column, N), panels(packed + column * depth, depth))
    if transposed:
        pack.x = matrix(w + column * depth, depth)
        K.pack_panels_transposed(&pack)
    else:
        K.pack_panels(&pack)
    float_leave(before)


cdef void multiply_rows(const Kernels* K, Py_ssize_t first, Py_ssize_t last, Py_ssize_t N, Py_ssize_t depth, real* x,
                        real* packed,
                        real* bias, real* y, real* scratch) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef Py_ssize_t m = last - first
    cdef PackRows pack = packing_rows(m, depth, matrix(x + first * depth, depth), scratch)
    cdef Gemm g = product(m, N, depth, pack.a, panels(packed, depth), matrix(y + first * N, N))
    g.bias = bias
    K.pack_rows(&pack)
    K.gemm(&g)
    float_leave(before)


def linear_backward(const real[:, ::1] dy, const real[:, ::1] x, const real[:, ::1] w, real[:, ::1] dx, real[:, ::1] dw,
                    real[::1] db):
    """dx = dy @ wᵀ, dw = xᵀ @ dy, db = column sums of dy."""
    cdef const Kernels* K = table_of(&dw[0, 0])
    cdef Py_ssize_t M = x.shape[0], m = x.shape[1], n = dy.shape[1], high = ceil_div(m, STRIP), wide = ceil_div(n,
            STRIP), t
    cdef Py_ssize_t room_a = columns_bytes(K, K.kc, STRIP) // K.size, stride = room_a + K.kc * STRIP
    cdef int size = team_size(high * wide)
    cdef real[::1] scratch = room(&dw[0, 0], size * stride)
    cdef const real[::1] none = None
    multiply(K, dy, w, True, none, dx)
    db[:] = 0
    for t in prange(high * wide, nogil=True, num_threads=size, schedule="dynamic"):
        gradient_tile(K, M, m, n, <real*> &x[0, 0], <real*> &dy[0, 0], part_start(m, high, t // wide),
                      part_start(m, high, t // wide + 1), part_start(n, wide, t % wide), part_start(n, wide, t % wide
                              + 1), &dw[0, 0],
                      &db[0], &scratch[threadid() * stride], &scratch[threadid() * stride + room_a])


cdef void gradient_tile(const Kernels* K, Py_ssize_t M, Py_ssize_t m, Py_ssize_t n, real* x, real* dy, Py_ssize_t m0,
                        Py_ssize_t m1,
                        Py_ssize_t n0, Py_ssize_t n1, real* dw, real* db, real* a, real* b) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef Py_ssize_t row, rows
    cdef PackColumns columns
    cdef PackPanels rows_of_dy
    cdef GemmColumns g
    for row from 0 <= row < M by K.kc:
        rows = min(K.kc, M - row)
        columns = packing_columns(rows, m1 - m0, matrix(x + row * m + m0, m), a)
        rows_of_dy = packing_panels(rows, n1 - n0, matrix(dy + row * n + n0, n), panels(b, rows))
        g = columns_product(m1 - m0, n1 - n0, rows, a, rows_of_dy.b, matrix(dw + m0 * n + n0, n))
        g.accumulate = row > 0
        g.column_sums = db + n0 if m0 == 0 else NULL
        K.pack_columns(&columns)
        K.pack_panels(&rows_of_dy)
        K.gemm_columns(&g)
    float_leave(before)


# -------------------------------------------------------------------------------------------------------------- layer
# norm
def layernorm(const real[:, ::1] x, const real[::1] scale, const real[::1] shift, double eps, real[:, ::1] y,
              real[::1] mean,
              real[::1] rstd, bint rms=False):
    """With `rms` RMSNorm, which has no shift and whose means are 0."""
    cdef const Kernels* K = table_of(&mean[0])
    cdef Py_ssize_t M = x.shape[0], d = x.shape[1], tasks = ceil_div(M, ROWS), i
    cdef Norm whole = normalisation(M, d, matrix(<void*> &x[0, 0], d), eps)
    whole.y = matrix(&y[0, 0], d)
    whole.mean, whole.rstd, whole.rms = &mean[0], &rstd[0], rms
    whole.scale = &scale[0] if scale is not None else NULL
    whole.shift = &shift[0] if shift is not None else NULL
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        norm_rows(K, whole, i * ROWS)


cdef void norm_rows(const Kernels* K, Norm call, Py_ssize_t first) noexcept nogil:
    """Rows [first, first + ROWS) of a call over all rows."""
    cdef FloatMode before = float_enter()
    cdef Py_ssize_t skip = first * call.d * K.size
    call.rows = min(<Py_ssize_t> ROWS, call.rows - first)
    call.x.at, call.y.at = <char*> call.x.at + skip, <char*> call.y.at + skip
    call.mean, call.rstd = <char*> call.mean + first * K.size, <char*> call.rstd + first * K.size
    K.norm(&call)
    float_leave(before)


def layernorm_backward(const real[:, ::1] dy, const real[:, ::1] x, const real[::1] mean, const real[::1] rstd,
                       const real[::1] scale, real[:, ::1] dx, real[::1] dscale, real[::1] dshift, bint rms=False):
    """dscale and dshift may be None each."""
    cdef const Kernels* K = table_of(&dx[0, 0])
    cdef Py_ssize_t M = x.shape[0], d = x.shape[1], tasks = ceil_div(M, ROWS), i
    cdef real[:, :, ::1] partial = np.zeros((tasks, 2, d), np.float32 if real is float else np.float64)
    cdef NormBackward whole = normalisation_backward(
        M, d, matrix(<void*> &dy[0, 0], d), matrix(<void*> &x[0, 0], d), matrix(&dx[0, 0], d))
    whole.mean, whole.rstd, whole.scale = &mean[0], &rstd[0], &scale[0] if scale is not None else NULL
    whole.rms = rms
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        norm_rows_backward(K, whole, i * ROWS, &partial[i, 0, 0], &partial[i, 1, 0])
    if dscale is not None:
        add_up(K, tasks, d, &partial[0, 0, 0], &dscale[0])
    if dshift is not None:
        add_up(K, tasks, d, &partial[0, 1, 0], &dshift[0])


cdef void norm_rows_backward(const Kernels* K, NormBackward call, Py_ssize_t first, real* dscale,
                             real* dshift) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef Py_ssize_t skip = first * call.d * K.size
    call.rows = min(<Py_ssize_t> ROWS, call.rows - first)
    call.x.at, call.dy.at, call.dx.at = <char*> call.x.at + skip, <char*> call.dy.at + skip, <char*> call.dx.at + skip
    call.mean, call.rstd = <char*> call.mean + first * K.size, <char*> call.rstd + first * K.size
    call.dscale, call.dshift = dscale, dshift
    K.norm_backward(&call)
    float_leave(before)


cdef void add_up(const Kernels* K, Py_ssize_t tasks, Py_ssize_t d, real* partial, real* sums) noexcept nogil:
    """The sums of every second row."""
    cdef FloatMode before = float_enter()
    cdef ColumnSums call = summing(tasks, d, matrix(partial, 2 * d), sums)
    K.column_sums(&call)
    float_leave(before)


# --------------------------------------------------------------------------------------------------------------
# activations
def activation(int kind, const real[::1] x, const real[::1] value, real[::1] y):
    """y = f(x), or f(x) * value unless that is None."""
    cdef const Kernels* K = table_of(&y[0])
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i
    cdef real* v = <real*> &value[0] if value is not None else NULL
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        activate_run(K, kind, min(<Py_ssize_t> RUN, n - i * RUN), <real*> &x[i * RUN], v + i
                     * RUN if v != NULL else NULL,
                     &y[i * RUN])


cdef void activate_run(const Kernels* K, int kind, Py_ssize_t n, real* x, real* value, real* y) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef Activation call = activating(kind, 1, n, matrix(x, 0))
    call.value, call.y = matrix(value, 0), matrix(y, 0)
    K.activation(&call)
    float_leave(before)


def activation_backward(int kind, real[::1] x, const real[::1] value, real[::1] dy, real[::1] dvalue):
    """In place: x becomes f(x) [* value], dy becomes dx; dvalue is set unless value is None."""
    cdef const Kernels* K = table_of(&x[0])
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i
    cdef real* v = <real*> &value[0] if value is not None else NULL
    cdef real* dv = &dvalue[0] if value is not None else NULL
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        activate_run_backward(K, kind, min(<Py_ssize_t> RUN, n - i * RUN), &x[i * RUN], v + i
                              * RUN if v != NULL else NULL,
                              &dy[i * RUN], dv + i * RUN if v != NULL else NULL)


cdef void activate_run_backward(const Kernels* K, int kind, Py_ssize_t n, real* x, real* value, real* dy,
                                real* dvalue) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef ActivationBackward call = activating_backward(kind, 1, n, matrix(x, 0), matrix(dy, 0))
    call.value, call.dvalue = matrix(value, 0), matrix(dvalue, 0)
    K.activation_backward(&call)
    float_leave(before)


# ----------------------------------------------------------------------------------------------------------------
# attention
def attention(const real[:, :, ::1] q, const real[:, :, ::1] k, const real[:, :, ::1] v, real[:, :, ::1] o,
              real[:, ::1] lse):
    """Heads (N·H, T, dh)."""
    cdef const Kernels* K = table_of(&lse[0, 0])
    cdef Py_ssize_t heads = q.shape[0], T = q.shape[1], dh = q.shape[2], i
    cdef Py_ssize_t stride = ceil_div(K.attention_scratch(T, dh, 0), 64) * 64
    cdef int size = team_size(heads)
    cdef real[::1] scratch = room(&lse[0, 0], size * stride)
    for i in prange(heads, nogil=True, num_threads=size, schedule="dynamic"):
        head_attention(K, T, dh, <real*> &q[i, 0, 0], <real*> &k[i, 0, 0], <real*> &v[i, 0, 0], &o[i, 0, 0], &lse[i, 0],
                       &scratch[threadid() * stride])


cdef void head_attention(const Kernels* K, Py_ssize_t T, Py_ssize_t dh, real* q, real* k, real* v, real* o, real* lse,
                         real* scratch) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef Attention call
    call.tokens, call.dh, call.first, call.count = T, dh, 0, T
    call.q, call.k, call.v, call.o = matrix(q, dh), matrix(k, dh), matrix(v, dh), matrix(o, dh)
    call.lse, call.scratch = lse, scratch
    K.attention(&call)
    float_leave(before)


def attention_backward(const real[:, :, ::1] d_o, const real[:, :, ::1] q, const real[:, :, ::1] k,
                       const real[:, :, ::1] v,
                       const real[:, :, ::1] o, const real[:, ::1] lse, real[:, :, ::1] dq, real[:, :, ::1] dk,
                       real[:, :, ::1] dv):
    cdef const Kernels* K = table_of(&dq[0, 0, 0])
    cdef Py_ssize_t heads = q.shape[0], T = q.shape[1], dh = q.shape[2], i
    cdef Py_ssize_t stride = ceil_div(K.attention_scratch(T, dh, 1), 64) * 64
    cdef int size = team_size(heads)
    cdef real[::1] scratch = room(&dq[0, 0, 0], size * stride)
    cdef AttentionBackward whole
    whole.tokens, whole.dh, whole.first, whole.count = T, dh, 0, T
    whole.q, whole.k, whole.v = matrix(<void*> &q[0, 0, 0], dh), matrix(<void*> &k[0, 0, 0],
            dh), matrix(<void*> &v[0, 0, 0], dh)
    whole.o, whole.d_o, whole.lse = matrix(<void*> &o[0, 0, 0], dh), matrix(<void*> &d_o[0, 0, 0], dh), &lse[0, 0]
    whole.dq, whole.dk, whole.dv = matrix(&dq[0, 0, 0], dh), matrix(&dk[0, 0, 0], dh), matrix(&dv[0, 0, 0], dh)
    for i in prange(heads, nogil=True, num_threads=size, schedule="dynamic"):
        head_attention_backward(K, whole, i, &scratch[threadid() * stride])


cdef void head_attention_backward(const Kernels* K, AttentionBackward call, Py_ssize_t head,
                                  void* scratch) noexcept nogil:
    """One head, of a call that stands at the first."""
    cdef FloatMode before = float_enter()
    cdef Py_ssize_t skip = head * call.tokens * call.dh * K.size
    call.q.at, call.k.at, call.v.at = <char*> call.q.at + skip, <char*> call.k.at + skip, <char*> call.v.at + skip
    call.o.at, call.d_o.at = <char*> call.o.at + skip, <char*> call.d_o.at + skip
    call.dq.at, call.dk.at, call.dv.at = <char*> call.dq.at + skip, <char*> call.dk.at + skip, <char*> call.dv.at + skip
    call.lse, call.scratch = <char*> call.lse + head * call.tokens * K.size, scratch
    K.attention_backward(&call)
    float_leave(before)


# ------------------------------------------------------------------------------------------------------------- dropout
def drop(const real[:, :, ::1] x, const real[:, :, ::1] add, real[:, :, ::1] y, uint64_t seed, int place,
         uint64_t first, double path, double rate):
    """y = x * mask + add over samples (N, T, D); add may be None."""
    cdef const Kernels* K = table_of(&y[0, 0, 0])
    cdef Py_ssize_t N = x.shape[0], D = x.shape[2], n
    cdef Drop call = dropping(D, seed, place)
    cdef bint added = add is not None
    call.rows, call.path, call.rate = x.shape[1], path, rate
    for n in prange(N, nogil=True, num_threads=team_size(N), schedule="dynamic"):
        sample_drop(K, call, first + n, <real*> &x[n, 0, 0], <real*> &add[n, 0, 0] if added else NULL, &y[n, 0, 0])


cdef void sample_drop(const Kernels* K, Drop call, uint64_t sample, real* x, real* add, real* y) noexcept nogil:
    """One sample, of a call that lacks it."""
    cdef FloatMode before = float_enter()
    call.sample = sample
    call.x, call.add, call.y = matrix(x, call.n), matrix(add, call.n), matrix(y, call.n)
    K.drop(&call)
    float_leave(before)


# --------------------------------------------------------------------------------------------------- loss, elementary
# functions
def cross_entropy(const real[:, ::1] logits, const long long[::1] labels, const real[:, ::1] targets, double smoothing,
                  real[::1] losses, real[:, ::1] dlogits):
    """Losses (N,), and the gradient of their mean unless dlogits is None; labels or targets are None."""
    cdef const Kernels* K = table_of(&losses[0])
    cdef Py_ssize_t n, N = logits.shape[0], classes = logits.shape[1]
    cdef bint wanted = dlogits is not None, labelled = labels is not None
    for n in prange(N, nogil=True, num_threads=team_size(ceil_div(N, 8)), schedule="dynamic", chunksize=8):
        row_loss(K, classes, <real*> &logits[n, 0], <Py_ssize_t> labels[n] if labelled else 0,
                 NULL if labelled else <real*> &targets[n, 0], smoothing, N, &losses[n],
                 &dlogits[n, 0] if wanted else NULL)


cdef void row_loss(const Kernels* K, Py_ssize_t classes, real* logits, Py_ssize_t label, real* target, double smoothing,
                   Py_ssize_t N, real* loss, real* dlogits) noexcept nogil:
    """Of one of N rows."""
    cdef FloatMode before = float_enter()
    cdef CrossEntropy call = crossing(classes, smoothing, float_fence(1 / float_fence(N)))
    call.label, call.target, call.logits, call.dlogits = label, target, logits, dlogits
    loss[0] = <real> K.cross_entropy(&call)
    float_fence(loss[0])
    float_leave(before)


def apply(int function, const real[::1] x, real[::1] y):
    cdef const Kernels* K = table_of(&y[0])
    cdef Py_ssize_t n = x.shape[0], tasks = ceil_div(n, RUN), i
    for i in prange(tasks, nogil=True, num_threads=team_size(tasks), schedule="dynamic"):
        apply_run(K, function, min(<Py_ssize_t> RUN, n - i * RUN), <real*> &x[i * RUN], &y[i * RUN])


cdef void apply_run(const Kernels* K, int function, Py_ssize_t n, real* x, real* y) noexcept nogil:
    cdef FloatMode before = float_enter()
    K.apply(function, n, x, y)
    float_leave(before)
