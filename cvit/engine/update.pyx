"""Optimizer passes over the flat weight tensor, and the gradient's norm: one read and one write of each value.

The vector is cut in chunks of CHUNK values, by its length alone: a task is a chunk. `decay_runs` (R, 2) holds [start, stop) of the
parts that weight decay applies to, increasing and apart; a chunk is cut again where a run begins or ends. The kernels are in
csrc/update.inc; optim.py validates and owns the state.
"""

import numpy as np

from .kernels cimport Kernels, adamw as adamw_kernel, real, sgd as sgd_kernel, sum_of_squares as sum_kernel
from .team cimport Team, Turn, run_team, selected, take, team_size, turn_of

cdef enum:
    CHUNK = 1 << 16

ctypedef struct Update:
    Kernels kernels
    Py_ssize_t n, runs
    const long long* decay_runs   # start, stop, start, stop, …
    void* w
    void* g
    void* u          # velocity, or Adam's m; NULL without
    void* v
    double* sums     # of each chunk
    double lr, momentum, beta2, eps, decay, c1, c2, scale
    int nesterov, is_double


cdef inline void sgd_run(real* kind, Update* job, Py_ssize_t start, Py_ssize_t stop, double decay) noexcept nogil:
    sgd_kernel(&job.kernels, stop - start, <real*> job.w + start, <real*> job.g + start,
               <real*> job.u + start if job.u != NULL else <real*> NULL, <real> job.lr, <real> job.momentum, job.nesterov,
               <real> decay, <real> job.scale)


cdef inline void adamw_run(real* kind, Update* job, Py_ssize_t start, Py_ssize_t stop, double decay) noexcept nogil:
    adamw_kernel(&job.kernels, stop - start, <real*> job.w + start, <real*> job.g + start, <real*> job.u + start,
                 <real*> job.v + start, <real> job.lr, <real> job.momentum, <real> (1 - job.momentum), <real> job.beta2,
                 <real> (1 - job.beta2), <real> job.eps, <real> decay, <real> job.c1, <real> job.c2, <real> job.scale)


cdef void update_chunk(real* kind, Update* job, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """A chunk, cut where weight decay begins and ends."""
    cdef Py_ssize_t run = 0, end
    cdef double decay
    while start < stop:
        while run < job.runs and job.decay_runs[2 * run + 1] <= start:
            run += 1
        end, decay = stop, 0
        if run < job.runs:
            if job.decay_runs[2 * run] <= start:
                end, decay = min(stop, <Py_ssize_t> job.decay_runs[2 * run + 1]), job.decay
            else:
                end = min(stop, <Py_ssize_t> job.decay_runs[2 * run])
        if job.v != NULL:
            adamw_run(kind, job, start, end, decay)
        else:
            sgd_run(kind, job, start, end, decay)
        start = end


cdef inline Py_ssize_t chunks(Py_ssize_t n) noexcept nogil:
    return (n + CHUNK - 1) // CHUNK


cdef void update_work(void* argument, Team* team, int thread) noexcept nogil:
    cdef Update* job = <Update*> argument
    cdef Py_ssize_t tasks = chunks(job.n), chunk, start
    cdef int kind
    cdef Turn turn = turn_of(team, thread, 1, &tasks)
    chunk = take(&turn, &kind)
    while chunk >= 0:
        start = chunk * CHUNK
        if job.is_double:
            update_chunk(<double*> NULL, job, start, min(start + CHUNK, job.n))
        else:
            update_chunk(<float*> NULL, job, start, min(start + CHUNK, job.n))
        chunk = take(&turn, &kind)


cdef void sum_work(void* argument, Team* team, int thread) noexcept nogil:
    cdef Update* job = <Update*> argument
    cdef Py_ssize_t tasks = chunks(job.n), chunk, start
    cdef int kind
    cdef Turn turn = turn_of(team, thread, 1, &tasks)
    chunk = take(&turn, &kind)
    while chunk >= 0:
        start = chunk * CHUNK
        if job.is_double:
            job.sums[chunk] = sum_kernel(&job.kernels, min(<Py_ssize_t> CHUNK, job.n - start), <double*> job.g + start)
        else:
            job.sums[chunk] = sum_kernel(&job.kernels, min(<Py_ssize_t> CHUNK, job.n - start), <float*> job.g + start)
        chunk = take(&turn, &kind)


cdef void prepare(Update* job, real[::1] w, const real[::1] g, real[::1] u, real[::1] v, const long long[:, ::1] decay_runs):
    job.kernels = selected()
    job.n = w.shape[0]
    job.w, job.g = &w[0], <void*> &g[0]
    job.u = &u[0] if u is not None else NULL
    job.v = &v[0] if v is not None else NULL
    job.runs = decay_runs.shape[0]
    job.decay_runs = &decay_runs[0, 0] if job.runs else NULL
    job.is_double = real is double


def sgd(real[::1] w, const real[::1] g, real[::1] velocity, double lr, double momentum, bint nesterov, double weight_decay,
        const long long[:, ::1] decay_runs, double grad_scale):
    """One step of SGD in place; velocity may be None. All vectors have one length."""
    cdef Update job
    cdef real[::1] none = None
    prepare(&job, w, g, velocity, none, decay_runs)
    job.lr, job.momentum, job.nesterov, job.decay, job.scale = lr, momentum, nesterov, weight_decay, grad_scale
    cdef int size = team_size(chunks(job.n))
    with nogil:
        run_team(size, update_work, &job)


def adamw(real[::1] w, const real[::1] g, real[::1] m, real[::1] v, double lr, double beta1, double beta2, double eps,
          double weight_decay, Py_ssize_t step, const long long[:, ::1] decay_runs, double grad_scale):
    """One step of AdamW in place; `step` counts from 1. All vectors have one length."""
    cdef Update job
    prepare(&job, w, g, m, v, decay_runs)
    job.lr, job.momentum, job.beta2, job.eps, job.decay, job.scale = lr, beta1, beta2, eps, weight_decay, grad_scale
    job.c1, job.c2 = 1 - beta1**step, 1 - beta2**step
    cdef int size = team_size(chunks(job.n))
    with nogil:
        run_team(size, update_work, &job)


def sum_of_squares(const real[::1] g):
    """Sum of squares of a vector, in double precision: the chunks' sums, added in order."""
    cdef Update job
    cdef Py_ssize_t count = chunks(g.shape[0]), i
    cdef double[::1] sums = np.empty(count)
    cdef double total = 0
    job.kernels = selected()
    job.n, job.g, job.sums, job.is_double = g.shape[0], <void*> &g[0], &sums[0], real is double
    cdef int size = team_size(count)
    with nogil:
        run_team(size, sum_work, &job)
    for i in range(count):
        total += sums[i]
    return total
