"""Passes over the flat weight tensor: the optimizers', the average of weights, the gradient's norm. Each value is read
and written once.

The vector is divided into chunks of CHUNK values, by its length alone: a task is a chunk. A pass goes over `runs`,
parts of the vector that are increasing and apart; a chunk is divided again where a run begins or ends, and what lies
outside of all runs is neither read nor written. `runs` is an array (R,) of RUN: start, stop, the factor of the learning
rate and whether weight decay applies. The kernels are in csrc/kernels/update.inc; train/ validates and owns the state.

_Buffers are anything with a buffer: float32 or float64, contiguous, all of one call alike in type and length
(TypeError, ValueError). `precision` None takes the kernels of the vectors' type; "bf16" those of a bfloat16 model,
whose weights are float32: they compute the same bits on every machine, and so a whole training does.
"""

import numpy as np

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from .kernels cimport Kernels, Update
from .team cimport (
    F32, F64, FloatMode, Team, Turn, float_enter, float_fence, float_leave, kernels_of, run_team, selected, take,
    team_size, turn_of,
)

cdef enum:
    CHUNK = 1 << 16

cdef packed struct Run:
    long long start
    long long stop
    double rate    # times the learning rate
    double decay   # 1 where weight decay applies, else 0

RUN = np.dtype([("start", np.int64), ("stop", np.int64), ("rate", np.float64), ("decay", np.float64)])

cdef enum Pass:
    SGD, ADAMW, AVERAGE, SQUARES

cdef struct Job:
    Pass kind
    const Kernels* K
    Update whole     # over the whole vector, but for what a run has of its own: `n`, `lr`, `decay`
    double decay     # where weight decay applies
    Py_ssize_t count
    const Run* runs
    double* sums     # of each chunk


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


cdef void pass_part(const Job* job, const Run* run, Py_ssize_t start, Py_ssize_t stop, double* total) noexcept nogil:
    """What a chunk and a run have in common. `total` is the chunk's sum."""
    cdef Update part = job.whole
    cdef Py_ssize_t bytes = start * job.K.size
    part.n = stop - start
    part.w, part.g = moved(part.w, bytes), moved(part.g, bytes)
    if job.kind == SQUARES:
        total[0] += job.K.sum_of_squares(part.n, part.g)
        return
    if job.kind == AVERAGE:
        job.K.average(part.n, part.lr, part.g, part.w)
        return
    part.lr, part.decay = part.lr * run.rate, job.decay * run.decay
    part.m, part.v = moved(part.m, bytes), moved(part.v, bytes)
    if job.kind == SGD:
        job.K.sgd(&part)
    else:
        job.K.adamw(&part)


cdef Py_ssize_t first_run(const Job* job, Py_ssize_t start) noexcept nogil:
    """The first run that ends behind `start`."""
    cdef Py_ssize_t low = 0, high = job.count, middle
    while low < high:
        middle = (low + high) // 2
        if job.runs[middle].stop > start:
            high = middle
        else:
            low = middle + 1
    return low


cdef inline Py_ssize_t chunks(Py_ssize_t n) noexcept nogil:
    return (n + CHUNK - 1) // CHUNK


cdef void work(void* argument, Team* team, int thread) noexcept nogil:
    cdef const Job* job = <const Job*> argument
    cdef Py_ssize_t tasks = chunks(job.whole.n), chunk, start, stop, run
    cdef int kind
    cdef double total
    cdef Turn turn = turn_of(team, thread, 1, &tasks)
    chunk = take(&turn, &kind)
    while chunk >= 0:
        start, stop, total = chunk * CHUNK, min((chunk + 1) * CHUNK, job.whole.n), 0
        run = first_run(job, start)
        while run < job.count and job.runs[run].start < stop:
            pass_part(job, &job.runs[run], max(start, <Py_ssize_t> job.runs[run].start),
                      min(stop, <Py_ssize_t> job.runs[run].stop), &total)
            run += 1
        if job.sums != NULL:
            job.sums[chunk] = total
        chunk = take(&turn, &kind)


cdef pass_over(Job* job, _Buffers vectors, const Run[::1] runs, precision):
    cdef int size = team_size(chunks(vectors.n))
    job.K = selected(vectors.element) if precision is None else kernels_of(precision)
    if job.K.size != (4 if vectors.element == F32 else 8):
        raise TypeError(f"vectors of precision {precision!r} must be float{8 * job.K.size}, got "
                        f"float{32 if vectors.element == F32 else 64}")
    job.whole.n = vectors.n
    job.count = runs.shape[0]
    job.runs = &runs[0] if job.count else NULL
    with nogil:
        run_team(size, work, job)


cdef double power(double base, Py_ssize_t exponent) noexcept nogil:
    """base to the power of a count, by multiplications alone: the same bits with every library of the system's."""
    cdef double result = 1
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


cdef Job job_of(Pass kind):
    """A job with every option zero."""
    cdef Job job
    job.kind, job.decay, job.sums = kind, 0, NULL
    job.whole.w = job.whole.m = job.whole.v = NULL
    job.whole.g = NULL
    job.whole.lr = job.whole.beta1 = job.whole.beta2 = job.whole.eps = job.whole.decay = 0
    job.whole.c1 = job.whole.c2 = 0
    job.whole.scale, job.whole.nesterov = 1, False
    return job


def sgd(w, g, velocity, double lr, double momentum, bint nesterov, double weight_decay, const Run[::1] runs,
        double grad_scale, precision=None):
    """One step of SGD in place; velocity may be None."""
    cdef Job job = job_of(SGD)
    cdef _Buffers vectors = _Buffers()
    job.whole.w, job.whole.g = vectors.hold("w", w, True), vectors.hold("g", g, False)
    job.whole.m = vectors.hold("velocity", velocity, True)
    job.whole.lr, job.whole.beta1, job.whole.nesterov, job.whole.scale = lr, momentum, nesterov, grad_scale
    job.decay = weight_decay
    pass_over(&job, vectors, runs, precision)


def adamw(w, g, m, v, double lr, double beta1, double beta2, double eps, double weight_decay, Py_ssize_t step,
          const Run[::1] runs, double grad_scale, precision=None):
    """One step of AdamW in place; `step` counts from 1."""
    cdef Job job = job_of(ADAMW)
    cdef _Buffers vectors = _Buffers()
    if m is None or v is None:
        raise TypeError("m and v must be vectors, got None")
    job.whole.w, job.whole.g = vectors.hold("w", w, True), vectors.hold("g", g, False)
    job.whole.m, job.whole.v = vectors.hold("m", m, True), vectors.hold("v", v, True)
    job.whole.lr, job.whole.beta1, job.whole.beta2, job.whole.eps, job.whole.scale = lr, beta1, beta2, eps, grad_scale
    cdef FloatMode before = float_enter()
    beta1, beta2 = float_fence(beta1), float_fence(beta2)
    job.whole.c1 = float_fence(1 - (beta1**step if precision is None else power(beta1, step)))
    job.whole.c2 = float_fence(1 - (beta2**step if precision is None else power(beta2, step)))
    float_leave(before)
    job.decay = weight_decay
    pass_over(&job, vectors, runs, precision)


def average(e, w, double rate, const Run[::1] runs, precision=None):
    """e += rate (w - e) in place, for the average of weights."""
    cdef Job job = job_of(AVERAGE)
    cdef _Buffers vectors = _Buffers()
    job.whole.w, job.whole.g = vectors.hold("e", e, True), vectors.hold("w", w, False)
    job.whole.lr = rate
    pass_over(&job, vectors, runs, precision)


def sum_of_squares(g, const Run[::1] runs, precision=None):
    """Sum of squares of the runs, in double precision: the chunks' sums, added in order."""
    cdef Job job = job_of(SQUARES)
    cdef _Buffers vectors = _Buffers()
    job.whole.g = vectors.hold("g", g, False)
    cdef Py_ssize_t count = chunks(vectors.n), i
    cdef double[::1] sums = np.empty(max(count, 1))
    cdef double total = 0
    cdef FloatMode before
    job.sums = &sums[0]
    pass_over(&job, vectors, runs, precision)
    before = float_enter()
    total = float_fence(total)
    for i in range(count):
        total += sums[i]
    total = float_fence(total)
    float_leave(before)
    return total


def run_of(Py_ssize_t start, Py_ssize_t stop, double rate=1.0, bint decay=False):
    """`runs` of a single one, [start, stop)."""
    return np.array([(start, stop, rate, decay)], RUN)
