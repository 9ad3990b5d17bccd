from ..task cimport Pass, Task

cdef Py_ssize_t head_tasks(const Pass* p, Py_ssize_t n) noexcept nogil
cdef Py_ssize_t head_scratch(const Pass* p) noexcept nogil
cdef void logits_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void logits_backward_task(const Task* t, Py_ssize_t task) noexcept nogil
cdef void loss_task(const Task* t, Py_ssize_t task) noexcept nogil
