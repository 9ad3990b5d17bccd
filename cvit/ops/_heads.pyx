"""Attention of one query and rotary positions over whole arrays, a head at a time; the rest as in _kernels.pyx."""

import numpy as np

from cython.parallel cimport prange, threadid
from ..engine.kernels cimport Attend, AttendBackward, Kernels, Rotate, RotateFrequencies, ceil_div, matrix
from ..engine.team cimport FloatMode, float_enter, float_leave, team_size
from ._table cimport real, table_of
from ..engine.memory import allocate


# ------------------------------------------------------------------------------------- attention of one query
def attend(const real[:, ::1] q, const real[:, :, ::1] k, const real[:, :, ::1] v, real[:, ::1] o):
    """Heads: q and o (N·H, dh), k and v (N·H, T, dh)."""
    cdef const Kernels* K = table_of(&o[0, 0])
    cdef Py_ssize_t heads = k.shape[0], T = k.shape[1], dh = k.shape[2], i
    cdef Py_ssize_t stride = ceil_div(K.attend_scratch(T), 64) * 64
    cdef int size = team_size(heads)
    cdef real[::1] scratch = allocate(size * stride, np.float32 if real is float else np.float64)
    for i in prange(heads, nogil=True, num_threads=size, schedule="dynamic"):
        head_attend(K, T, dh, <real*> &q[i, 0], <real*> &k[i, 0, 0], <real*> &v[i, 0, 0], &o[i, 0],
                    &scratch[threadid() * stride])


cdef void head_attend(const Kernels* K, Py_ssize_t T, Py_ssize_t dh, real* q, real* k, real* v, real* o,
                      real* scratch) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef Attend call
    call.tokens, call.dh, call.q, call.o, call.scratch = T, dh, q, o, scratch
    call.k, call.v = matrix(k, dh), matrix(v, dh)
    K.attend(&call)
    float_leave(before)


def attend_backward(const real[:, ::1] d_o, const real[:, ::1] q, const real[:, :, ::1] k, const real[:, :, ::1] v,
                    real[:, ::1] dq, real[:, :, ::1] dk, real[:, :, ::1] dv):
    cdef const Kernels* K = table_of(&dq[0, 0])
    cdef Py_ssize_t heads = k.shape[0], T = k.shape[1], dh = k.shape[2], i
    cdef Py_ssize_t stride = ceil_div(K.attend_scratch(T), 64) * 64
    cdef int size = team_size(heads)
    cdef real[::1] scratch = allocate(size * stride, np.float32 if real is float else np.float64)
    for i in prange(heads, nogil=True, num_threads=size, schedule="dynamic"):
        head_attend_backward(K, T, dh, <real*> &d_o[i, 0], <real*> &q[i, 0], <real*> &k[i, 0, 0], <real*> &v[i, 0, 0],
                             &dq[i, 0], &dk[i, 0, 0], &dv[i, 0, 0], &scratch[threadid() * stride])


cdef void head_attend_backward(const Kernels* K, Py_ssize_t T, Py_ssize_t dh, real* d_o, real* q, real* k, real* v,
                               real* dq, real* dk, real* dv, real* scratch) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef AttendBackward call
    call.tokens, call.dh, call.q, call.d_o, call.dq, call.scratch = T, dh, q, d_o, dq, scratch
    call.k, call.v, call.dk, call.dv = matrix(k, dh), matrix(v, dh), matrix(dk, dh), matrix(dv, dh)
    K.attend_backward(&call)
    float_leave(before)


# ------------------------------------------------------------------------------------------- rotary positions
def cosines_sines(angles, dtype):
    """Of float64 angles, rounded to dtype; NumPy's, too, follow the floating-point mode."""
    cdef FloatMode before = float_enter()
    try:
        return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    finally:
        float_leave(before)


def rotate(real[:, :, ::1] x, const real[:, :, ::1] cosines, const real[:, :, ::1] sines, bint back):
    """Heads x (N·H, T, dh) in place; head i has the angles i % H of cosines and sines (H, T, dh/2)."""
    cdef const Kernels* K = table_of(&x[0, 0, 0])
    cdef Py_ssize_t heads = x.shape[0], T = x.shape[1], half = x.shape[2] // 2, each = cosines.shape[0], i
    for i in prange(heads, nogil=True, num_threads=team_size(heads), schedule="dynamic"):
        head_rotate(K, T, half, &x[i, 0, 0], <real*> &cosines[i % each, 0, 0], <real*> &sines[i % each, 0, 0], back)


cdef void head_rotate(const Kernels* K, Py_ssize_t T, Py_ssize_t half, real* x, real* cosines, real* sines,
                      bint back) noexcept nogil:
    cdef FloatMode before = float_enter()
    cdef Rotate call
    call.rows, call.heads, call.half, call.each_head, call.back = T, 1, half, 0, back
    call.x, call.cosines, call.sines = matrix(x, 2 * half), matrix(cosines, half), matrix(sines, half)
    K.rotate(&call)
    float_leave(before)


def rotate_frequencies(const real[:, :, :, ::1] dy, const real[:, :, :, ::1] y, const real[:, ::1] coordinates,
                       real[:, :, ::1] sums):
    """sums (H, 2, dh/2) from heads (N, H, T, dh); each head's images one after the other."""
    cdef const Kernels* K = table_of(&sums[0, 0, 0])
    cdef Py_ssize_t N = y.shape[0], H = y.shape[1], T = y.shape[2], half = y.shape[3] // 2, h
    sums[...] = 0
    for h in prange(H, nogil=True, num_threads=team_size(H), schedule="dynamic"):
        head_frequencies(K, N, H * T * 2 * half, T, half, <real*> &dy[0, h, 0, 0], <real*> &y[0, h, 0, 0],
                         <real*> &coordinates[0, 0], &sums[h, 0, 0])


cdef void head_frequencies(const Kernels* K, Py_ssize_t N, Py_ssize_t image, Py_ssize_t T, Py_ssize_t half, real* dy,
                           real* y, real* coordinates, real* sums) noexcept nogil:
    """Of one head of N images, `image` values apart."""
    cdef FloatMode before = float_enter()
    cdef RotateFrequencies call
    cdef Py_ssize_t n
    call.rows, call.heads, call.half, call.coordinates, call.sums = T, 1, half, coordinates, sums
    for n in range(N):
        call.y, call.dy = matrix(y + n * image, 2 * half), matrix(dy + n * image, 2 * half)
        K.rotate_frequencies(&call)
    float_leave(before)
