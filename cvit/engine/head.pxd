from .kernels cimport real
from .state cimport Pass

cdef Py_ssize_t head_scratch(real* kind, Pass* p) noexcept nogil
cdef Py_ssize_t head_tasks(Pass* p, Py_ssize_t columns) noexcept nogil
cdef void pool_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil
cdef void logits_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil
cdef void loss_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil
cdef void logits_backward_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil
cdef void pool_backward_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil
cdef void final_norm_gradients(real* s, Pass* p) noexcept nogil
