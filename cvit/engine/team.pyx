"""The selected kernel table, the number of threads, and the one parallel region: the only door to csrc and to OpenMP.

A pass over the model is one parallel region. Inside it each thread runs the same function (`Work`): it takes tasks of
the current stage with `take`, and meets the others with `sync` between stages. A thread has a run of the tasks of its
own and then helps the others, so that one kept off its core costs little; what a task computes, and in which order it
sums, never depends on it.
"""

import os
import time

import numpy as np

from cython.parallel cimport parallel, threadid
from .kernels cimport Kernels, Table, cvit_tables

cdef extern from "team.h" nogil:
    void cvit_team_init(Team* team, int size)
    void cvit_team_join(Team* team)
    int cvit_omp_max_threads()
    int cvit_has_openmp()

ELEMENT_NAMES = ("f32", "f64", "bf16")  # in the order of Element

cdef enum:
    MOST_ISAS = 8

cdef const Kernels* tables[MOST_ISAS][ELEMENTS]
cdef int chosen = 0
_names, _supported = [], []  # of the instruction sets, from the plainest to the best


cdef _find_tables():
    cdef int count, i
    cdef const Table* found = cvit_tables(&count)
    for i in range(count):
        name = found[i].kernels.isa.decode()
        if name not in _names:
            _names.append(name)
            _supported.append(bool(found[i].supported))
        tables[_names.index(name)][<int> ELEMENT_NAMES.index(found[i].kernels.element.decode())] = found[i].kernels


cdef _fill_in():
    """An instruction set that lacks an element type, as AMX all but bfloat16, has the next plainer supported one's
    table."""
    cdef int isa, element, plainer
    for isa in range(1, len(_names)):
        for element in range(<int> ELEMENTS):
            plainer = isa
            while plainer and (tables[plainer][element] == NULL or not (_supported[plainer] or plainer == isa)):
                plainer -= 1
            tables[isa][element] = tables[plainer][element]


_find_tables()
_fill_in()

cdef int cpu_limit = 1        # CPUs this process may use: affinity and cgroup
cdef int requested = 0        # set_num_threads; 0 means nobody asked
cdef int openmp_default = cvit_omp_max_threads()
cdef int after_fork = 0


def isa_names(bint supported_only=True):
    """Instruction sets of this build, from the plainest to the best; with `supported_only`, those this machine runs."""
    return [name for name, supported in zip(_names, _supported) if supported or not supported_only]


def get_isa():
    return _names[chosen]


def set_isa(name):
    global chosen
    if name not in isa_names():
        raise ValueError(f"isa must be one of {isa_names()} on this machine, got {name!r}")
    chosen = _names.index(name)


cdef const Kernels* selected(int element) noexcept nogil:
    """The selected instruction set's table for an element type."""
    return tables[chosen][element]


cdef int element_of(precision) except -1:
    """The element type of a precision's name."""
    return ELEMENT_NAMES.index(precision)


def table_address(dtype=np.float32, precision=None):
    """Where the selected table of float32 or float64, or of a precision, stands in memory, a `cvit_kernels` of
    csrc/cvit.h: for tests of single kernels."""
    if precision is None:
        precision = "f64" if np.dtype(dtype) == np.float64 else "f32"
    return <size_t> selected(element_of(precision))


def tile_sizes(dtype=np.float32):
    """(MR, NR, KC) of the selected table, see csrc/kernels/gemm.inc."""
    cdef const Kernels* K = selected(F64 if np.dtype(dtype) == np.float64 else F32)
    return K.mr, K.nr, K.kc


def has_openmp():
    return bool(cvit_has_openmp())


def set_cpu_limit(int limit):
    global cpu_limit
    cpu_limit = limit


def set_num_threads(int count):
    global requested
    requested = count


cpdef int num_threads() noexcept nogil:
    """Threads the next call will use; the rules stand in engine/runtime.py."""
    cdef int openmp_now = cvit_omp_max_threads()
    if after_fork or not cvit_has_openmp():
        return 1
    if requested == 0:
        return min(openmp_now, cpu_limit)
    if openmp_now < openmp_default:  # somebody lowered it since, as threadpoolctl does: a limit for everyone
        return min(openmp_now, requested)
    return requested


def _in_forked_child():
    """libgomp's threads do not survive a fork, and waiting for them would hang: the child goes on with one thread."""
    global after_fork
    after_fork = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


cdef int team_size(Py_ssize_t tasks) noexcept nogil:
    """Threads for a job whose widest stage has `tasks` tasks."""
    return <int> max(1, min(<Py_ssize_t> num_threads(), tasks))


cdef inline void work_in_mode(Work work, void* job, Team* team, int thread) noexcept nogil:
    """In this thread, with the floating-point mode of a pass."""
    cdef FloatMode before = float_enter()
    work(job, team, thread)
    float_leave(before)


cdef void run_team(int size, Work work, void* job) noexcept nogil:
    """Run `work` on `size` threads; returns when all are done."""
    cdef Team team
    cvit_team_init(&team, size)
    if size == 1:
        work_in_mode(work, job, &team, 0)
        return
    with parallel(num_threads=size):
        cvit_team_join(&team)
        work_in_mode(work, job, &team, threadid())
        sync(&team)  # meet here, where waiting is cheap, and not in OpenMP's own barrier


# ------------------------------------------------------------------------------------ what the machine can do at most
cdef struct Probe:
    const Kernels* K
    Py_ssize_t rounds, n
    char* x
    char* y


cdef void flops_work(void* job, Team* team, int thread) noexcept nogil:
    cdef Probe* p = <Probe*> job
    p.K.probe_flops(p.rounds)


cdef void stream_work(void* job, Team* team, int thread) noexcept nogil:
    cdef Probe* p = <Probe*> job
    cdef Py_ssize_t share = p.n // size_of(team), first = share * thread * p.K.size
    p.K.probe_stream(share, 1e-3, p.x + first, p.y + first)


def measure_peak(dtype=np.float32, int threads=0, double seconds=0.2):
    """Multiply-adds in registers on `threads` threads (0: as many as a pass would use), in floating-point operations a
    second.

    The best of several runs that together take about `seconds`.
    """
    cdef Probe probe
    cdef int size = threads or num_threads()
    probe.K = selected(F64 if np.dtype(dtype) == np.float64 else F32)
    probe.x = probe.y = NULL
    probe.n = 0
    probe.rounds = 200_000
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        with nogil:
            run_team(size, flops_work, &probe)
        took = time.perf_counter() - start
        best = max(best, 24.0 * probe.K.vl * probe.rounds * size / took)
    return best


def measure_bandwidth(int threads=0, double seconds=0.5):
    """y += f x over 256 MiB on `threads` threads: bytes read and written a second, the best of several runs."""
    cdef Probe probe
    cdef int size = threads or num_threads()
    cdef Py_ssize_t n = 32 << 20
    cdef float[::1] x = np.ones(n, np.float32), y = np.ones(n, np.float32)
    probe.K = selected(F32)
    probe.x, probe.y, probe.n = <char*> &x[0], <char*> &y[0], n
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        with nogil:
            run_team(size, stream_work, &probe)
        best = max(best, 12.0 * n / (time.perf_counter() - start))
    return best


def in_own_mode(function, argument):
    """Call a function of NumPy's arithmetic in cvit's floating-point mode, not the caller's."""
    cdef FloatMode before = float_enter()
    try:
        return function(argument)
    finally:
        float_leave(before)
