from ..task cimport Step, Task

cdef void head_norm(const Task* t, const Step* step) noexcept nogil
cdef void head_norm_backward(const Task* t, const Step* step) noexcept nogil
cdef void rotate(const Task* t, const Step* step) noexcept nogil
cdef void rotate_backward(const Task* t, const Step* step) noexcept nogil
