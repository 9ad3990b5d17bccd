from .kernels cimport real
from .state cimport Pass

cdef void embed_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil
cdef void positions_backward_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil
cdef void cut_patches(real* image, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width, Py_ssize_t patch, Py_ssize_t first,
                      Py_ssize_t last, real* out) noexcept nogil
cdef void join_patches(real* patches, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width, Py_ssize_t patch,
                       real* image) noexcept nogil
