from .task cimport Pass

cdef class Cutting:
    cdef Pass p
    cdef readonly object program, dtype, isa, mode
    cdef readonly Py_ssize_t batch
    cdef object outline              # of the program: slots.py
    cdef Py_ssize_t heads            # of a block; those of the widest where blocks differ
    cdef Py_ssize_t block_units
    cdef Py_ssize_t pool_stats       # norm statistics of the pooling
    cdef double flops

    cdef _cut_tasks(self)
    cdef Py_ssize_t _blocks(self, int threads, int share)
    cdef Py_ssize_t _most_query_parts(self)
    cdef _query_parts(self, int threads)
