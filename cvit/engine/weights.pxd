from .kernels cimport real
from .state cimport Pass

# Groups of weights that are packed, and whose gradients are computed, together: a block's first half, and what comes after attention.
cdef enum Group:
    PATCH
    QKV
    MLP
    HEAD

cdef Py_ssize_t pack_tasks(Pass* p, Group group) noexcept nogil
cdef void pack_task(real* s, Pass* p, Group group, bint transposed, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
cdef Py_ssize_t gradient_tasks(Pass* p, Group group) noexcept nogil
cdef void gradient_task(real* s, Pass* p, Group group, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
cdef Py_ssize_t gradient_scratch(real* kind, Pass* p) noexcept nogil
