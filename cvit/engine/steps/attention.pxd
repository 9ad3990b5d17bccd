from ..task cimport Block, Pass, Step, Task

cdef void heads_of_rows(const Task* t, const Block* block) noexcept nogil
cdef void heads_of_rows_backward(const Task* t, const Block* block) noexcept nogil
cdef void heads_task(const Task* t, const Block* block, Py_ssize_t task) noexcept nogil
cdef void heads_backward_task(const Task* t, const Block* block, Py_ssize_t task) noexcept nogil
cdef void add_query_parts(const Task* t, const Step* step) noexcept nogil
