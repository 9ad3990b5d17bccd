from ..task cimport Pass, Task

cdef Py_ssize_t embed_scratch(const Pass* p) noexcept nogil
cdef void embed_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void tokens_backward_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void patch_norm_backward_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void group_sums(const Task* t, Py_ssize_t partial, Py_ssize_t scale, Py_ssize_t shift) noexcept nogil
