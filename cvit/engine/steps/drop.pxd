from ..task cimport Slot, Step, Task

cdef void drop(const Task* t, const Step* step) noexcept nogil
cdef void drop_backward(const Task* t, const Step* step) noexcept nogil
cdef void drop_again(const Task* t, const Step* step, const Slot* rows) noexcept nogil
