"""Optimizer passes over the flat weight tensor, and the gradient's norm: one read and one write of each value.

The vector is cut in chunks of CHUNK values, by its length alone: a task is a chunk. `decay_runs` (R, 2) holds [start, stop) of the
parts that weight decay applies to, increasing and apart; a chunk is cut again where a run begins or ends. The kernels are in
csrc/update.inc; optim.py validates and owns the state.
"""

import numpy as np

ctypedef fused real:
    float
    double

from .kernels cimport Kernels, Update as Run
from .team cimport Team, Turn, kernels_of, run_team, take, team_size, turn_of

cdef enum:
    CHUNK = 1 << 16

ctypedef struct Update:
    const Kernels* K
    Py_ssize_t n, runs
    const long long* decay_runs   # start, stop, start, stop, …
    void* w
    void* g
    void* u          # velocity, or Adam's m; NULL without
    void* v
    double* sums     # of each chunk
    double lr, momentum, beta2, eps, decay, c1, c2, scale
    int nesterov


cdef inline void run_of(Update* job, Py_ssize_t start, Py_ssize_t stop, double decay) noexcept nogil:
    cdef Run r
    cdef Py_ssize_t size = job.K.size
    r.n, r.w, r.g = stop - start, <char*> job.w + start * size, <char*> job.g + start * size
    r.m = <char*> job.u + start * size if job.u != NULL else NULL
    r.v = <char*> job.v + start * size if job.v != NULL else NULL
    r.lr, r.beta1, r.beta2, r.eps, r.decay, r.scale = job.lr, job.momentum, job.beta2, job.eps, decay, job.scale
    r.c1, r.c2, r.nesterov = job.c1, job.c2, job.nesterov
    if job.v != NULL:
        job.K.adamw(&r)
    else:
        job.K.sgd(&r)


cdef void update_chunk(Update* job, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
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
        run_of(job, start, end, decay)
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
        update_chunk(job, start, min(start + CHUNK, job.n))
        chunk = take(&turn, &kind)


cdef void sum_work(void* argument, Team* team, int thread) noexcept nogil:
    cdef Update* job = <Update*> argument
    cdef Py_ssize_t tasks = chunks(job.n), chunk, start
    cdef int kind
    cdef Turn turn = turn_of(team, thread, 1, &tasks)
    chunk = take(&turn, &kind)
    while chunk >= 0:
        start = chunk * CHUNK
        job.sums[chunk] = job.K.sum_of_squares(min(<Py_ssize_t> CHUNK, job.n - start), <char*> job.g + start * job.K.size)
        chunk = take(&turn, &kind)


cdef void prepare(Update* job, real[::1] w, const real[::1] g, real[::1] u, real[::1] v, const long long[:, ::1] decay_runs):
    job.K = kernels_of(sizeof(real))
    job.n = w.shape[0]
    job.w, job.g = &w[0], <void*> &g[0]
    job.u = &u[0] if u is not None else NULL
    job.v = &v[0] if v is not None else NULL
    job.runs = decay_runs.shape[0]
    job.decay_runs = &decay_runs[0, 0] if job.runs else NULL


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
    job.K = kernels_of(sizeof(real))
    job.n, job.g, job.sums = g.shape[0], <void*> &g[0], &sums[0]
    cdef int size = team_size(count)
    with nogil:
        run_team(size, sum_work, &job)
    for i in range(count):
        total += sums[i]
    return total
