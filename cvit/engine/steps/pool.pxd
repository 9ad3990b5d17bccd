from ..task cimport Task

cdef void pool_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void pool_backward_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void final_norm_sums(const Task* t) noexcept nogil
cdef Py_ssize_t pool_scratch(Py_ssize_t D) noexcept nogil
