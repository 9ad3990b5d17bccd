"""The selected kernel table, the number of threads, and the one parallel region: the only door to csrc and to OpenMP.

A pass over the model is one parallel region. Inside it each thread runs the same function (`Work`): it takes tasks of the current
stage with `take`, and meets the others with `sync` between stages. A thread has a run of the tasks of its own and then helps the
others, so that one kept off its core costs little; what a task computes, and in which order it sums, never depends on it.
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

cdef const Table* tables
cdef int table_count
cdef int chosen = 0
tables = cvit_tables(&table_count)

cdef int cpu_limit = 1        # CPUs this process may use: affinity and cgroup
cdef int requested = 0        # set_num_threads; 0 means nobody asked
cdef int openmp_default = cvit_omp_max_threads()
cdef int after_fork = 0


def isa_names(bint supported_only=True):
    """Instruction sets of this build, from the plainest to the best; with `supported_only`, those this machine runs."""
    return [tables[i].kernels.isa.decode() for i in range(0, table_count, 2) if tables[i].supported or not supported_only]


def get_isa():
    return tables[chosen].kernels.isa.decode()


def set_isa(name):
    global chosen
    for i in range(0, table_count, 2):
        if tables[i].kernels.isa.decode() == name and tables[i].supported:
            chosen = i
            return
    raise ValueError(f"isa must be one of {isa_names()} on this machine, got {name!r}")


def tile_sizes():
    """(MR, NR, KC) of the selected float32 table, see csrc/gemm.inc."""
    return tables[chosen].kernels.mr, tables[chosen].kernels.nr, tables[chosen].kernels.kc


cdef const Kernels* kernels_of(Py_ssize_t size) except NULL:
    cdef int i
    for i in range(chosen, table_count):
        if tables[i].kernels.size == size:
            return tables[i].kernels
    raise ValueError


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


cdef void run_team(int size, Work work, void* job) noexcept nogil:
    """Run `work` on `size` threads; returns when all are done."""
    cdef Team team
    cvit_team_init(&team, size)
    if size == 1:
        work(job, &team, 0)
        return
    with parallel(num_threads=size):
        cvit_team_join(&team)
        work(job, &team, threadid())
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
    cdef Py_ssize_t count = p.n // size_of(team), first = count * thread * p.K.size
    p.K.probe_stream(count, 1e-3, p.x + first, p.y + first)


def measure_peak(dtype=np.float32, int threads=0, double seconds=0.2):
    """Multiply-adds in registers on `threads` threads (0: as many as a pass would use), in floating-point operations a second.

    The best of several runs that together take about `seconds`.
    """
    cdef Probe probe
    cdef int size = threads or num_threads()
    probe.K = kernels_of(np.dtype(dtype).itemsize)
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
    probe.K = kernels_of(sizeof(float))
    probe.x, probe.y, probe.n = <char*> &x[0], <char*> &y[0], n
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        with nogil:
            run_team(size, stream_work, &probe)
        best = max(best, 12.0 * n / (time.perf_counter() - start))
    return best
