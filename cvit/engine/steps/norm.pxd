from ..task cimport Pass, Step, Task, UnitSums

cdef void norm(const Task* t, const Step* step) noexcept nogil
cdef void norm_backward(const Task* t, const Step* step) noexcept nogil
cdef char* unit_sums_of(const Task* t, const Step* step, Py_ssize_t unit, Py_ssize_t count) noexcept nogil
cdef void unit_sums(const Pass* p, const UnitSums* sums) noexcept nogil
