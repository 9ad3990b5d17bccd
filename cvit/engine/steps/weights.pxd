from ..task cimport Linear, Pass, Section, Task

cdef Py_ssize_t pack_count(const Pass* p, const Linear* linears, int count) noexcept nogil
cdef void pack_task(const Task* t, const Linear* linears, int count, bint transposed, Py_ssize_t task) noexcept nogil
cdef Py_ssize_t gradient_count(const Pass* p, const Linear* linears, int count) noexcept nogil
cdef void gradient_task(const Task* t, const Linear* linears, int count, Py_ssize_t task) noexcept nogil
cdef void scale_sums(const Task* t, const Linear* linears, int count, Py_ssize_t task) noexcept nogil
cdef Py_ssize_t gradient_scratch(const Pass* p) noexcept nogil
