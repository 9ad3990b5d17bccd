"""The tasks of each kind, and batches of them: what a stage is made of.

A `run_…` function does one task of its batch; the constructors below say how many tasks a batch has.
"""

from .steps.attention cimport heads_backward_task, heads_of_rows, heads_of_rows_backward, heads_task
from .steps.embed cimport embed_task, group_sums, patch_norm_backward_task, tokens_backward_task
from .steps.loss cimport logits_backward_task, logits_task, loss_task
from .steps.norm cimport unit_sums
from .steps.pool cimport final_norm_sums, pool_backward_task, pool_task, query_sums
from .steps.weights cimport gradient_count, gradient_task, pack_count, pack_task, scale_sums
from .task cimport Cut, Linear, Pass, Section, Task, block_start


# ---------------------------------------------------------------------------------------- tasks over blocks of rows
cdef inline Task rows_task(const Task* t, const Cut* cut, Py_ssize_t block) noexcept nogil:
    cdef Task rows = t[0]
    rows.cut, rows.block, rows.first = cut, block, block_start(cut, t.p.panel, block)
    rows.rows = block_start(cut, t.p.panel, block + 1) - rows.first
    return rows


cdef inline void steps_forward(const Task* t, const Section* section) noexcept nogil:
    cdef int i
    for i in range(section.count):
        if section.steps[i].forward != NULL:
            section.steps[i].forward(t, &section.steps[i])


cdef inline void steps_backward(const Task* t, const Section* section) noexcept nogil:
    cdef int i
    for i in range(section.count - 1, -1, -1):
        if section.steps[i].backward != NULL:
            section.steps[i].backward(t, &section.steps[i])


cdef void run_rows(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    cdef Task rows = rows_task(t, batch.section.cut, task)
    steps_forward(&rows, batch.section)


cdef void run_rows_again(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    """What a checkpointed block did not keep of its rows."""
    cdef Task rows = rows_task(t, batch.section.cut, task)
    cdef int i
    for i in range(batch.section.count):
        if batch.section.steps[i].recompute != NULL:
            batch.section.steps[i].recompute(&rows, &batch.section.steps[i])


cdef void run_rows_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    cdef Task rows = rows_task(t, batch.section.cut, task)
    steps_backward(&rows, batch.section)


cdef void run_block(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    """Short images: all of a block for the images of these rows."""
    cdef Task rows = rows_task(t, &t.p.token_rows, task)
    steps_forward(&rows, &batch.block.before)
    heads_of_rows(&rows, batch.block)
    steps_forward(&rows, &batch.block.after)


cdef void run_block_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    cdef Task rows = rows_task(t, &t.p.token_rows, task)
    steps_backward(&rows, &batch.block.after)
    heads_of_rows_backward(&rows, batch.block)
    steps_backward(&rows, &batch.block.before)


# ------------------------------------------------------------------------------------------------------- other tasks
cdef void run_embed(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    embed_task(t, task)


cdef void run_heads(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    heads_task(t, batch.block, task)


cdef void run_heads_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    heads_backward_task(t, batch.block, task)


cdef void run_pool(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    pool_task(t, task)


cdef void run_pool_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    pool_backward_task(t, task)


cdef void run_logits(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    logits_task(t, task)


cdef void run_logits_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    logits_backward_task(t, task)


cdef void run_loss(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    loss_task(t, task)


cdef void run_tokens_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    if task < t.p.T:
        tokens_backward_task(t, task)
    else:
        final_norm_sums(t)


cdef void run_final_norm_sums(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    final_norm_sums(t)


cdef void run_patch_norm_backward(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    patch_norm_backward_task(t, task)


cdef void run_patch_norm_sums(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    group_sums(t, t.p.patch_norm.partial, t.p.patch_norm.scale, t.p.patch_norm.shift)


cdef void run_query_sums(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    query_sums(t)


cdef void run_pack(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    pack_task(t, batch.linears, batch.linear_count, batch.transposed, task)


cdef void run_gradients(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t tiles = batch.count - (batch.section.sum_count if batch.section != NULL else 0)
    if task < tiles:
        gradient_task(t, batch.linears, batch.linear_count, task)
    else:
        unit_sums(t.p, &batch.section.sums[task - tiles])


cdef void run_scale_sums(const Task* t, const Batch* batch, Py_ssize_t task) noexcept nogil:
    scale_sums(t, batch.linears, batch.linear_count, task)


# ---------------------------------------------------------------------------------------------------- batches of tasks
cdef Batch batch(const char* name, Py_ssize_t count, Run run) noexcept:
    cdef Batch b
    b.name, b.count, b.run = name, count, run
    b.layer, b.block, b.section, b.linears, b.linear_count, b.transposed = -1, NULL, NULL, NULL, 0, 0
    return b


cdef Batch of_rows(Pass* p, const char* name, int layer, const Section* section, Run run) noexcept:
    """The rows of a section; without one those of a whole block. Nothing for a section without steps."""
    cdef const Cut* cut = &p.token_rows
    if section != NULL:
        cut = section.cut
    cdef Batch b = batch(name, 0 if section != NULL and section.count == 0 else cut.blocks, run)
    b.layer, b.section = layer, section
    if layer >= 0:
        b.block = &p.blocks[layer]
    return b


cdef Batch pack(Pass* p, int layer, const Linear* linears, int count, bint transposed) noexcept:
    cdef Batch b = batch("pack transposed" if transposed else "pack", pack_count(p, linears, count), run_pack)
    b.layer, b.linears, b.linear_count, b.transposed = layer, linears, count, transposed
    return b


cdef Batch pack_section(Pass* p, int layer, bint after, bint transposed) noexcept:
    """The matrices of one half of a block; nothing for a block that is not there."""
    cdef const Section* section
    if not 0 <= layer < p.L:
        return pack(p, layer, NULL, 0, transposed)
    section = &p.blocks[layer].after if after else &p.blocks[layer].before
    return pack(p, layer, section.linears, section.linear_count, transposed)


cdef Batch gradients(Pass* p, int layer, const Section* section) noexcept:
    """Tiles of a section's weight gradients, and a task for each gradient that units of rows have parts of."""
    cdef Batch b = batch("weight gradients", gradient_count(p, section.linears, section.linear_count)
                         + section.sum_count, run_gradients)
    b.layer, b.section = layer, section
    b.linears, b.linear_count = section.linears, section.linear_count
    return b


cdef Batch layer_scales(Pass* p, int layer) noexcept:
    """A task for each layer scale of a block, in the stage behind the tiles of its weight gradients."""
    cdef const Section* section
    cdef Py_ssize_t count = 0
    cdef Batch b
    cdef int i
    if layer >= p.L:
        return batch("layer scales", 0, run_scale_sums)
    section = &p.blocks[layer].after
    for i in range(section.linear_count):
        count += section.linears[i].layer_scale >= 0 and not section.linears[i].shares_scale
    b = batch("layer scales", count, run_scale_sums)
    b.layer, b.linears, b.linear_count = layer, section.linears, section.linear_count
    return b


cdef Batch gradients_of(Pass* p, const Linear* linear) noexcept:
    cdef Batch b = batch("weight gradients", gradient_count(p, linear, 1), run_gradients)
    b.linears, b.linear_count = linear, 1
    return b
