from ..task cimport Pass, Task

cdef void embed_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void tokens_backward_task(const Task* t, Py_ssize_t task) noexcept nogil
