from .batches cimport Batch, Run
from .task cimport Pass
from .team cimport Team

cdef enum:
    BATCHES = 8   # as many as a team's turn has room for: kinds of tasks in a stage, at most

ctypedef struct Stage:
    int count
    int finished          # blocks, from the last one, whose gradients are final behind this stage; 0: as before it
    Batch[BATCHES] batches

ctypedef struct Job:       # a list of stages for a team
    Pass* p
    const Stage* stages
    Py_ssize_t count

cdef void work(void* job, Team* team, int thread) noexcept nogil

cdef class Schedule:
    cdef Pass* p
    cdef object memory
    cdef Stage* stages
    cdef Py_ssize_t count, capacity
    cdef Batch of_heads(self, const char* name, int layer, Py_ssize_t count, Run run) noexcept
    cdef void stage(self, Batch tasks) except *
    cdef void beside(self, Batch tasks) except *
    cdef void finished(self, int first) noexcept
    cdef void embed(self) except *
    cdef void start(self) except *
    cdef void extra_packs(self, bint transposed) except *
    cdef void blocks(self, int first, int last) except *
    cdef void pool(self) except *
    cdef void forward(self) except *
    cdef void backward(self) except *
    cdef void embed_backward(self) except *
    cdef void block_again(self, int layer) except *
    cdef void freeze(self) except *
    cdef void pack_block(self, int layer) except *
