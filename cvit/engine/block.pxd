from .kernels cimport real
from .state cimport Pass

cdef Py_ssize_t block_scratch(real* kind, Pass* p) noexcept nogil
cdef void qkv_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
cdef void heads_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
cdef void mlp_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task, bint whole) noexcept nogil
cdef void mlp_backward_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
cdef void heads_backward_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
cdef void qkv_backward_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
cdef void block_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
cdef void block_backward_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil
