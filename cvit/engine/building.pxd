from .places cimport Places
from .task cimport Linear as LinearStep, Section, Step

cdef class Building(Places):
    cdef void* _structs(self, Py_ssize_t size)
    cdef _set_matrix(self, LinearStep* linear, int i, matrix)
    cdef _build_section(self, Section* section, group, Py_ssize_t layer, int number, dict shared)
    cdef _build_query_parts(self, Section* section, Py_ssize_t layer, heads, dict shared)
    cdef _build_sums(self, Section* section, part, Py_ssize_t partial)
    cdef _build_norm(self, Step* step, group, Py_ssize_t layer, part)
    cdef _build_head_norm(self, Step* step, group, Py_ssize_t layer, part)
    cdef _build_rotate(self, Step* step, Py_ssize_t layer, part)
    cdef _build_statistics(self, Step* step, group, Py_ssize_t layer, part, Py_ssize_t width)
    cdef LinearStep* _build_linear(self, Section* section, group, Py_ssize_t layer, before, part,
                                   dict shared) except NULL

cdef void* address(array) except NULL
