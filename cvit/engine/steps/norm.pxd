from ..task cimport Pass, NormSum, Step, Task

cdef void norm(const Task* t, const Step* step) noexcept nogil
cdef void norm_backward(const Task* t, const Step* step) noexcept nogil
cdef void norm_sums(const Pass* p, const NormSum* sum) noexcept nogil
