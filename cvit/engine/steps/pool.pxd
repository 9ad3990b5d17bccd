from ..task cimport Pass, Task

cdef void pool_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void pool_backward_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void final_norm_sums(const Task* t) noexcept nogil
cdef void query_sums(const Task* t) noexcept nogil
cdef Py_ssize_t pool_scratch(const Pass* p) noexcept nogil
