from ..kernels cimport Kernels, Matrix, PackedRows, Panels
from ..task cimport Linear, Pass, Step, Task

cdef void linear(const Task* t, const Step* step) noexcept nogil
cdef void linear_backward(const Task* t, const Step* step) noexcept nogil
cdef const void* bias_of(const Pass* p, const Linear* linear, int i, Py_ssize_t column) noexcept nogil
cdef Panels panels_of(const Pass* p, const Linear* linear, int i, Py_ssize_t column, Py_ssize_t row,
                      Py_ssize_t depth) noexcept nogil
cdef PackedRows pack(const Task* t, const Step* step, Matrix x, Py_ssize_t k, const Linear* linear,
                     int i) noexcept nogil
