from .state cimport Pass
from .team cimport Team

cdef enum Task:
    EMBED, QKV_ROWS, HEADS, MLP_ROWS, MLP_AGAIN, BLOCK, POOL, LOGITS, LOSS
    LOGITS_BACKWARD, POOL_BACKWARD, MLP_BACKWARD, HEADS_BACKWARD, QKV_BACKWARD, BLOCK_BACKWARD, POSITIONS_BACKWARD
    GRADIENTS, PACK, PACK_TRANSPOSED


ctypedef struct Part:  # the tasks of one kind within a stage
    Task kind
    Py_ssize_t layer
    int group


cdef inline Part of(Task kind, Py_ssize_t layer=0, int group=0) noexcept nogil:
    return Part(kind, layer, group)


cdef Py_ssize_t tasks_of(Pass* p, Part part) noexcept nogil


# What a call runs: parts of the forward, or all of it with the backward.
cdef enum Program:
    RUN_EMBED, RUN_BLOCKS, RUN_FORWARD, RUN_TRAINING, RUN_FREEZE

cdef struct Job:
    Pass* p
    Program program
    int is_double


cdef void work(void* job, Team* team, int thread) noexcept nogil
