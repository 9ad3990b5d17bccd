from .task cimport Block, Linear, Pass, Section, Task

ctypedef struct Batch:     # the tasks of one kind within a stage
    void (*run)(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
    Py_ssize_t count
    const char* name
    int layer              # -1 outside the blocks
    const Block* block
    const Section* section
    const Linear* linears  # of what is packed, or whose gradients are computed
    int linear_count
    int transposed

ctypedef void (*Run)(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil

cdef void run_rows(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_rows_again(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_rows_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_block(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_block_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_embed(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_heads(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_heads_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_pool(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_pool_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_logits(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_logits_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_loss(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_tokens_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_final_norm_sums(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_patch_norm_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_patch_norm_sums(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_query_sums(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_pack(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_gradients(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil
cdef void run_scale_sums(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil

cdef Batch batch(const char* name, Py_ssize_t count, Run run) noexcept
cdef Batch of_rows(Pass* p, const char* name, int layer, const Section* section, Run run) noexcept
cdef Batch pack(Pass* p, int layer, const Linear* linears, int count, bint transposed) noexcept
cdef Batch pack_section(Pass* p, int layer, bint after, bint transposed) noexcept
cdef Batch gradients(Pass* p, int layer, const Section* section) noexcept
cdef Batch layer_scales(Pass* p, int layer) noexcept
cdef Batch gradients_of(Pass* p, const Linear* linear) noexcept
