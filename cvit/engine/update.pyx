"""Optimizer passes over the flat weight tensor, and the gradient's norm: one read and one write of each value.

The vector is divided into chunks of CHUNK values, by its length alone: a task is a chunk. `decay_runs` (R, 2) holds
[start, stop) of the parts that weight decay applies to, increasing and apart; a chunk is divided again where a run
begins or ends. The kernels are in csrc/kernels/update.inc; train/optim.py validates and owns the state.

_Buffers are anything with a buffer: float32 or float64, contiguous, all of one call alike in type and length
(TypeError, ValueError).
"""

import numpy as np

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from .kernels cimport Kernels, Update
from .team cimport (
    F32, F64, FloatMode, Team, Turn, float_enter, float_fence, float_leave, run_team, selected, take, team_size,
    turn_of,
)

cdef enum:
    CHUNK = 1 << 16

cdef struct Job:
    const Kernels* K
    Update whole                  # over the whole vector, but for `decay`
    double decay                  # of the runs
    Py_ssize_t runs
    const long long* decay_runs   # start, stop, start, stop, …
    double* sums                  # of each chunk


cdef class _Buffers:
    """The buffers of one call, held until it is done."""
    cdef Py_buffer[4] views
    cdef int count
    cdef Py_ssize_t n
    cdef int element

    cdef void* hold(self, name, vector, bint writable) except? NULL:
        """The first value's address; None stands for no vector, NULL."""
        cdef Py_buffer* view = &self.views[self.count]
        cdef int element
        if vector is None:
            return NULL
        PyObject_GetBuffer(vector, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
        self.count += 1
        if view.format not in (b"f", b"d"):
            raise TypeError(f"{name} must be float32 or float64, got format {view.format.decode()!r}")
        element = F32 if view.format == b"f" else F64
        if self.count == 1:
            self.n, self.element = view.len // view.itemsize, element
        elif element != self.element:
            raise TypeError(f"{name} must have the type of the other vectors, got format {view.format.decode()!r}")
        elif view.len != self.n * view.itemsize:
            raise ValueError(f"{name} must have {self.n} values as the other vectors, got {view.len // view.itemsize}")
        return view.buf

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])


cdef inline void* moved(const void* vector, Py_ssize_t bytes) noexcept nogil:
    return NULL if vector == NULL else <char*> vector + bytes


cdef void update_run(const Job* job, Py_ssize_t start, Py_ssize_t stop, double decay) noexcept nogil:
    cdef Update run = job.whole
    cdef Py_ssize_t bytes = start * job.K.size
    run.n, run.decay = stop - start, decay
    run.w, run.g, run.m, run.v = moved(run.w, bytes), moved(run.g, bytes), moved(run.m, bytes), moved(run.v, bytes)
    if run.v != NULL:
        job.K.adamw(&run)
    else:
        job.K.sgd(&run)


cdef void update_chunk(const Job* job, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """A chunk, divided where weight decay begins and ends."""
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
        update_run(job, start, end, decay)
        start = end


cdef inline Py_ssize_t chunks(Py_ssize_t n) noexcept nogil:
    return (n + CHUNK - 1) // CHUNK


cdef void update_work(void* argument, Team* team, int thread) noexcept nogil:
    cdef const Job* job = <const Job*> argument
    cdef Py_ssize_t tasks = chunks(job.whole.n), chunk
    cdef int kind
    cdef Turn turn = turn_of(team, thread, 1, &tasks)
    chunk = take(&turn, &kind)
    while chunk >= 0:
        update_chunk(job, chunk * CHUNK, min((chunk + 1) * CHUNK, job.whole.n))
        chunk = take(&turn, &kind)


cdef void sum_work(void* argument, Team* team, int thread) noexcept nogil:
    cdef const Job* job = <const Job*> argument
    cdef Py_ssize_t tasks = chunks(job.whole.n), chunk, start
    cdef int kind
    cdef Turn turn = turn_of(team, thread, 1, &tasks)
    chunk = take(&turn, &kind)
    while chunk >= 0:
        start = chunk * CHUNK
        job.sums[chunk] = job.K.sum_of_squares(min(<Py_ssize_t> CHUNK, job.whole.n - start),
                                               moved(job.whole.g, start * job.K.size))
        chunk = take(&turn, &kind)


cdef step_of(Job* job, _Buffers vectors, const long long[:, ::1] decay_runs):
    cdef int size
    job.K = selected(vectors.element)
    job.whole.n = vectors.n
    job.runs = decay_runs.shape[0]
    job.decay_runs = &decay_runs[0, 0] if job.runs else NULL
    job.sums = NULL
    size = team_size(chunks(job.whole.n))
    with nogil:
        run_team(size, update_work, job)


def sgd(w, g, velocity, double lr, double momentum, bint nesterov, double weight_decay,
        const long long[:, ::1] decay_runs,
        double grad_scale):
    """One step of SGD in place; velocity may be None."""
    cdef Job job
    cdef _Buffers vectors = _Buffers()
    job.whole.w, job.whole.g = vectors.hold("w", w, True), vectors.hold("g", g, False)
    job.whole.m, job.whole.v = vectors.hold("velocity", velocity, True), NULL
    job.whole.lr, job.whole.beta1, job.whole.nesterov, job.whole.scale = lr, momentum, nesterov, grad_scale
    job.whole.beta2 = job.whole.eps = job.whole.decay = job.whole.c1 = job.whole.c2 = 0
    job.decay = weight_decay
    step_of(&job, vectors, decay_runs)


def adamw(w, g, m, v, double lr, double beta1, double beta2, double eps, double weight_decay, Py_ssize_t step,
          const long long[:, ::1] decay_runs, double grad_scale):
    """One step of AdamW in place; `step` counts from 1."""
    cdef Job job
    cdef _Buffers vectors = _Buffers()
    if m is None or v is None:
        raise TypeError("m and v must be vectors, got None")
    job.whole.w, job.whole.g = vectors.hold("w", w, True), vectors.hold("g", g, False)
    job.whole.m, job.whole.v = vectors.hold("m", m, True), vectors.hold("v", v, True)
    job.whole.lr, job.whole.beta1, job.whole.beta2, job.whole.eps, job.whole.scale = lr, beta1, beta2, eps, grad_scale
    cdef FloatMode before = float_enter()
    job.whole.c1 = float_fence(1 - float_fence(beta1)**step)
    job.whole.c2 = float_fence(1 - float_fence(beta2)**step)
    float_leave(before)
    job.whole.decay, job.whole.nesterov, job.decay = 0, False, weight_decay
    step_of(&job, vectors, decay_runs)


def sum_of_squares(g):
    """Sum of squares of a vector, in double precision: the chunks' sums, added in order."""
    cdef Job job
    cdef _Buffers vectors = _Buffers()
    cdef void* first = vectors.hold("g", g, False)
    cdef Py_ssize_t count = chunks(vectors.n), i
    cdef double[::1] sums = np.empty(max(count, 1))
    cdef double total = 0
    cdef int size = team_size(count)
    cdef FloatMode before
    job.K, job.whole.n, job.whole.g, job.sums = selected(vectors.element), vectors.n, first, &sums[0]
    with nogil:
        run_team(size, sum_work, &job)
    before = float_enter()
    total = float_fence(total)
    for i in range(count):
        total += sums[i]
    total = float_fence(total)
    float_leave(before)
    return total
