"""The selected kernel table, the number of threads, and the one parallel region: the only door to csrc and to OpenMP.

A pass over the model is one parallel region. Inside it each thread runs the same function (`Work`): it takes tasks of
the current stage with `take`, and meets the others with `sync` between stages. A thread has a run of the tasks of its
own and then helps the others, so that one kept off its core costs little; what a task computes, and in which order it
sums, never depends on it.

What is chosen for the process, the instruction set and the number of threads, may be changed while other threads call
cvit, also by a Python without the GIL: each is one number that is read and written as a whole, and all else is filled
when this module is imported. A call reads each of them once and goes on with what it has read.
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

ELEMENT_NAMES = ("f32", "f64", "bf16", "bf16-fast")  # in the order of Element

cdef enum:
    MOST_ISAS = 8

cdef const Kernels* tables[MOST_ISAS][ELEMENTS]
cdef bint runs[MOST_ISAS][ELEMENTS]  # whether this machine runs a table: AVX-512 may lack the bfloat16 of "bf16-fast"
cdef const Kernels* best[MOST_ISAS][ELEMENTS]  # the table in use under an instruction set: its own, or a plainer one's
cdef int chosen = 0  # the instruction set in use
_names, _supported = [], []  # of the instruction sets, from the plainest to the best


cdef _find_tables():
    cdef int count, i, isa, element
    cdef const Table* found = cvit_tables(&count)
    cdef const Kernels* plainer
    for i in range(count):
        name = found[i].kernels.isa.decode()
        if name not in _names:
            _names.append(name)
            _supported.append(bool(found[i].supported))
        isa, element = _names.index(name), ELEMENT_NAMES.index(found[i].kernels.element.decode())
        tables[isa][element], runs[isa][element] = found[i].kernels, found[i].supported
    for element in range(<int> ELEMENTS):
        plainer = NULL
        for isa in range(<int> len(_names)):
            if runs[isa][element]:
                plainer = tables[isa][element]
            best[isa][element] = plainer


_find_tables()

cdef int cpu_limit = 1        # CPUs this process may use: affinity and cgroup
cdef int requested = 0        # set_num_threads; 0 means nobody asked
cdef int openmp_default = cvit_omp_max_threads()
cdef int after_fork = 0


def isa_names(bint supported_only=True):
    """Instruction sets of this build, from the plainest to the best; with `supported_only`, those this machine runs."""
    return [name for name, supported in zip(_names, _supported) if supported or not supported_only]


def get_isa():
    return _names[published(&chosen)]


def set_isa(name):
    if name not in isa_names():
        raise ValueError(f"isa must be one of {isa_names()} on this machine, got {name!r}")
    publish(&chosen, _names.index(name))


cdef const Kernels* selected(int element) noexcept nogil:
    """The table in use for an element type; NULL for BF16_FAST where the instruction set has none."""
    return best[published(&chosen)][element]


cdef const Kernels* kernels_of(precision, isa=None) except NULL:
    """The table of a precision's name under an instruction set of this machine, None: the one in use."""
    cdef const Kernels* K
    if precision not in ELEMENT_NAMES:
        raise ValueError(f"precision must be one of {', '.join(map(repr, ELEMENT_NAMES))}, got {precision!r}")
    if isa is None:
        isa = get_isa()
    K = best[<int> _names.index(isa)][<int> ELEMENT_NAMES.index(precision)]
    if K == NULL:
        raise ValueError(f"precision {precision!r} needs a CPU with AVX512-BF16, and an instruction set that uses it: "
                         f"isa is {isa!r}, of {isa_names()} on this machine")
    return K


def has_precision(precision):
    """Whether the selected instruction set has kernels of this precision."""
    return precision in ELEMENT_NAMES and selected(ELEMENT_NAMES.index(precision)) != NULL


def isa_of(precision):
    """The instruction set whose table computes in a precision: a plainer one where the selected has none."""
    return kernels_of(precision).isa.decode()


def bf16_is_faster():
    """Whether bfloat16's kernels are faster than float32's: where they use a matrix unit. Everywhere else both run on
    float32's multiply-adds, and bfloat16 rounds besides."""
    return selected(BF16).isa == b"amx"


def table_address(dtype=np.float32, precision=None, isa=None):
    """Where the selected table of float32 or float64, or of a precision, stands in memory, a `cvit_kernels` of
    csrc/cvit.h: for tests of single kernels. With `isa` that instruction set's, which this machine may not run."""
    if precision is None:
        precision = "f64" if np.dtype(dtype) == np.float64 else "f32"
    if isa is not None:
        return <size_t> tables[<int> _names.index(isa)][<int> ELEMENT_NAMES.index(precision)]
    return <size_t> kernels_of(precision)


def tile_sizes(dtype=np.float32, precision=None):
    """(MR, NR, KC) of the selected table, see csrc/kernels/gemm.inc."""
    cdef const Kernels* K = kernels_of(precision or ("f64" if np.dtype(dtype) == np.float64 else "f32"))
    return K.mr, K.nr, K.kc


def has_openmp():
    return bool(cvit_has_openmp())


def set_cpu_limit(int limit):
    publish(&cpu_limit, limit)


def set_num_threads(int count):
    publish(&requested, count)


cpdef int num_threads() noexcept nogil:
    """Threads the next call will use; the rules stand in engine/runtime.py."""
    cdef int openmp_now = cvit_omp_max_threads(), asked = published(&requested)
    if after_fork or not cvit_has_openmp():
        return 1
    if asked == 0:
        return min(openmp_now, published(&cpu_limit))
    if openmp_now < openmp_default:  # somebody lowered it since, as threadpoolctl does: a limit for everyone
        return min(openmp_now, asked)
    return asked


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
    double done
    char* x
    char* y


cdef void flops_work(void* job, Team* team, int thread) noexcept nogil:
    cdef Probe* p = <Probe*> job
    cdef double done = p.K.probe_flops(p.rounds)
    if thread == 0:
        p.done = done


cdef void stream_work(void* job, Team* team, int thread) noexcept nogil:
    cdef Probe* p = <Probe*> job
    cdef Py_ssize_t share = p.n // size_of(team), first = share * thread * p.K.size
    p.K.probe_stream(share, 1e-3, p.x + first, p.y + first)


def peak_of(precision):
    """What a precision's products are made of, and `measure_peak` counts: "float32 FMA", "tdpbf16ps", …"""
    return kernels_of(precision).peak.decode()


def measure_peak(dtype=np.float32, int threads=0, double seconds=0.2, precision=None):
    """What the products of a dtype's or a precision's table are made of, on registers or the nearest cache alone, on
    `threads` threads (0: as many as a pass would use): floating-point operations a second.

    The best of several runs that together take about `seconds`.
    """
    cdef Probe probe
    cdef int size = threads or num_threads()
    if precision is None:
        precision = "f64" if np.dtype(dtype) == np.float64 else "f32"
    probe.K = kernels_of(precision)
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
        best = max(best, probe.done * size / took)
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
