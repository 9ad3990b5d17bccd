from ..task cimport Step, Task

cdef void activation(const Task* t, const Step* step) noexcept nogil
cdef void activation_backward(const Task* t, const Step* step) noexcept nogil
cdef void hidden(const Task* t, const Step* step) noexcept nogil
cdef void hidden_again(const Task* t, const Step* step) noexcept nogil
cdef void hidden_backward(const Task* t, const Step* step) noexcept nogil
