"""A pass over the model as a list of stages: forward, and forward with backward, each on one screen.

A stage is some kinds of tasks, which the threads of the team share out, and a barrier. `Schedule` makes the list once
for a plan and a number of threads; `work` is what each thread of the team does with it. What a task does is in
batches.pyx and steps/, how the work is cut in cutting.pyx, what is where in memory in places.pyx.
"""

import numpy as np

from .batches cimport (
    Batch, Run, batch, gradients, gradients_of, layer_scales, of_rows, pack, pack_section, run_block,
    run_block_backward, run_embed, run_final_norm_sums, run_heads, run_heads_backward, run_logits,
    run_logits_backward, run_loss,
    run_patch_norm_backward, run_patch_norm_sums, run_pool, run_pool_backward, run_query_sums, run_rows,
    run_rows_again, run_rows_backward, run_tokens_backward,
)
from .steps.loss cimport head_tasks
from .task cimport Block, Pass, Task
from .team cimport KINDS, Team, Turn, publish, sync, take, turn_of


cdef class Schedule:
    """The stages of one kind of pass."""

    def __cinit__(self):
        assert BATCHES <= KINDS
        self.count = self.capacity = 0

    cdef void stage(self, Batch tasks) except *:
        """Begin a stage with these tasks."""
        if self.count == self.capacity:
            self.capacity = 2 * self.capacity + 16
            grown = np.zeros(self.capacity * sizeof(Stage), np.uint8)
            if self.count:
                grown[: self.memory.size] = self.memory
            self.memory = grown
            self.stages = <Stage*> <size_t> grown.ctypes.data
        self.stages[self.count].count = self.stages[self.count].finished = 0
        self.count += 1
        self.beside(tasks)

    cdef void beside(self, Batch tasks) except *:
        """More tasks for the stage begun last."""
        cdef Stage* stage = &self.stages[self.count - 1]
        if tasks.count > 0:
            assert stage.count < BATCHES
            stage.batches[stage.count] = tasks
            stage.count += 1

    cdef void finished(self, int first) noexcept:
        """With the stage begun last the gradients of blocks `first` and on are final: nobody writes there again."""
        self.stages[self.count - 1].finished = <int> self.p.L - first

    cdef void extra_packs(self, bint transposed) except *:
        """Also pack the matrices of the rows outside the blocks."""
        cdef Pass* p = self.p
        self.beside(pack(p, -1, p.query.linears, p.query.linear_count, transposed))
        self.beside(pack(p, -1, p.after.linears, p.after.linear_count, transposed))
        self.beside(pack(p, -1, p.end.linears, p.end.linear_count, transposed))

    # ------------------------------------------------------------------------------------------------------- forward
    cdef void forward(self) except *:
        cdef Pass* p = self.p
        if p.given:
            self.start()
        else:
            self.embed()
        self.extra_packs(False)
        self.blocks(0, <int> p.L)
        if p.after.count:
            self.stage(of_rows(p, "rows before the pooling", -1, &p.after, run_rows))
            self.beside(of_rows(p, "query", -1, &p.query, run_rows))
        self.pool()
        if p.end.count:
            self.stage(of_rows(p, "pooled rows", -1, &p.end, run_rows))
        if p.heads:
            self.stage(batch("logits", head_tasks(p, p.classes), run_logits))

    cdef void embed(self) except *:
        cdef Pass* p = self.p
        self.stage(pack(p, -1, &p.embed, 1, False))
        self.beside(pack_section(p, 0, False, False) if p.L else pack(p, -1, p.head, p.heads, False))
        self.stage(batch("embed", p.image_groups * p.bands, run_embed))
        if p.whole_blocks:
            self.beside(pack_section(p, 0, True, False))
        if p.before.count:
            self.stage(of_rows(p, "rows before the blocks", -1, &p.before, run_rows))

    cdef void start(self) except *:
        """What the stage behind given tokens needs of packed weights."""
        cdef Pass* p = self.p
        self.stage(pack_section(p, 0, False, False) if p.L else pack(p, -1, p.head, p.heads, False))
        if p.whole_blocks:
            self.beside(pack_section(p, 0, True, False))

    cdef void blocks(self, int first, int last) except *:
        """Blocks [first, last). Each stage also packs the weights that the next one needs."""
        cdef Pass* p = self.p
        cdef Block* block
        cdef Batch ahead
        cdef int i
        for i in range(first, last):
            block = &p.blocks[i]
            ahead = pack_section(p, i + 1, False, False) if i + 1 < p.L else pack(p, -1, p.head, p.heads, False)
            if p.whole_blocks:
                self.stage(of_rows(p, "block", i, NULL, run_block))
                self.beside(ahead)
                self.beside(pack_section(p, i + 1, True, False))
                continue
            self.stage(of_rows(p, "rows before attention", i, &block.before, run_rows))
            self.stage(self.of_heads("heads", i, p.head_tasks, run_heads))
            self.beside(pack_section(p, i, True, False))
            self.stage(of_rows(p, "rows after attention", i, &block.after, run_rows))
            self.beside(ahead)

    cdef Batch of_heads(self, const char* name, int layer, Py_ssize_t count, Run run) noexcept:
        cdef Batch b = batch(name, count, run)
        b.layer, b.block = layer, &self.p.blocks[layer]
        return b

    cdef void pool(self) except *:
        self.stage(batch("pool", self.p.image_groups, run_pool))

    # ------------------------------------------------------------------------------------------------------ backward
    cdef void backward(self) except *:
        """Weight gradients run right after the rows stage that wrote their packed dy, while those are in the cache."""
        cdef Pass* p = self.p
        cdef Block* block
        cdef int i, last = <int> p.L - 1
        self.stage(batch("loss", p.image_groups, run_loss))
        if not p.head_alone:
            self.beside(pack(p, -1, p.head, p.heads, True))
            self.extra_packs(True)
        self.stage(batch("logits backward", 0 if p.head_alone else p.heads * head_tasks(p, p.head[0].k),
                         run_logits_backward))
        for i in range(p.heads):
            self.beside(gradients_of(p, &p.head[i]))
        if p.head_alone:
            return
        if p.end.count:
            self.stage(of_rows(p, "pooled rows, backward", -1, &p.end, run_rows_backward))
        self.stage(batch("pool backward", p.image_groups, run_pool_backward))
        if p.end.count:
            self.beside(gradients(p, -1, &p.end))
        self.beside(pack_section(p, last, True, True))
        if p.whole_blocks:
            self.beside(pack_section(p, last, False, True))
        if p.after.count:
            self.stage(of_rows(p, "rows before the pooling, backward", -1, &p.after, run_rows_backward))
            self.beside(batch("query sums", 1, run_query_sums))
            self.stage(gradients(p, -1, &p.after))
            self.beside(of_rows(p, "query, backward", -1, &p.query, run_rows_backward))
            self.stage(gradients(p, -1, &p.query))
        for i in range(last, -1, -1):
            block = &p.blocks[i]
            if p.whole_blocks:
                self.stage(of_rows(p, "block backward", i, NULL, run_block_backward))
                self.beside(pack_section(p, i - 1, True, True))
                self.beside(pack_section(p, i - 1, False, True))
                self.beside(layer_scales(p, i + 1))
                self.finished(i + 1)
                self.stage(gradients(p, i, &block.after))
                self.beside(gradients(p, i, &block.before))
                if not layer_scales(p, i).count:
                    self.finished(i)
                continue
            if p.checkpoint and i < last:
                self.block_again(i)
            self.stage(of_rows(p, "rows after attention, backward", i, &block.after, run_rows_backward))
            self.stage(gradients(p, i, &block.after))
            self.beside(self.of_heads("heads backward", i, p.head_backward_tasks, run_heads_backward))
            self.beside(pack_section(p, i, False, True))
            self.stage(of_rows(p, "rows before attention, backward", i, &block.before, run_rows_backward))
            self.beside(layer_scales(p, i))
            self.stage(gradients(p, i, &block.before))
            self.beside(pack_section(p, i - 1, False, False) if p.checkpoint else pack_section(p, i - 1, True, True))
            self.finished(i)
        if p.before.count:
            self.stage(of_rows(p, "rows before the blocks, backward", -1, &p.before, run_rows_backward))
        if not p.given:
            self.embed_backward()
            return
        self.stage(batch("final norm sums", 1, run_final_norm_sums))
        if p.whole_blocks:
            self.beside(layer_scales(p, 0))
        self.finished(0)

    cdef void embed_backward(self) except *:
        cdef Pass* p = self.p
        if p.patch_norm.given:  # after the positions' gradient, which is dx before it
            self.stage(batch("tokens backward", p.T + 1, run_tokens_backward))
            self.stage(batch("patch norm, backward", p.image_groups, run_patch_norm_backward))
            self.stage(gradients_of(p, &p.embed))
            self.beside(batch("patch norm sums", 1, run_patch_norm_sums))
        else:
            self.stage(gradients_of(p, &p.embed))
            self.beside(batch("tokens backward", p.T + 1, run_tokens_backward))
        if p.before.count:
            self.beside(gradients(p, -1, &p.before))
        if p.whole_blocks:
            self.beside(layer_scales(p, 0))
        self.finished(0)

    cdef void block_again(self, int layer) except *:
        """What a checkpointed block did not keep, from its input, bit for bit (Chen et al. 2016, arXiv:1604.06174)."""
        cdef Pass* p = self.p
        cdef Block* block = &p.blocks[layer]
        self.stage(of_rows(p, "rows before attention, again", layer, &block.before, run_rows_again))
        self.stage(self.of_heads("heads, again", layer, p.head_tasks, run_heads))
        self.beside(pack_section(p, layer, True, False))
        self.stage(of_rows(p, "rows after attention, again", layer, &block.after, run_rows_again))
        self.stage(pack_section(p, layer, True, True))

    # ----------------------------------------------------------------------------------------------- parts of a pass
    cdef void pack_block(self, int layer) except *:
        self.stage(pack_section(self.p, layer, False, False))
        self.beside(pack_section(self.p, layer, True, False))

    cdef void freeze(self) except *:
        """Pack all weights, each block's in a place of its own."""
        cdef Pass* p = self.p
        cdef int i
        self.stage(pack(p, -1, &p.embed, 1, False))
        self.beside(pack(p, -1, p.head, p.heads, False))
        self.extra_packs(False)
        for i in range(<int> p.L):
            self.pack_block(i)

    def listing(self):
        """The stages as a list of lists of (name, block or -1, tasks)."""
        cdef Stage* stage
        cdef Py_ssize_t i
        cdef int k
        stages = []
        for i in range(self.count):
            stage = &self.stages[i]
            stages.append([(stage.batches[k].name.decode(), stage.batches[k].layer,
                            stage.batches[k].count) for k in range(stage.count)])
        return stages


# ---------------------------------------------------------------------------------------------------- running a pass
cdef void work(void* argument, Team* team, int thread) noexcept nogil:
    """One thread's part in a pass."""
    cdef Job* job = <Job*> argument
    cdef const Stage* stage
    cdef Py_ssize_t[BATCHES] tasks
    cdef Py_ssize_t i, number
    cdef int kind
    cdef Turn turn
    cdef Task t
    t.p, t.K, t.cut = job.p, job.p.K, NULL
    t.scratch = job.p.scratch + thread * job.p.scratch_stride
    t.first = t.rows = t.block = 0
    t.K.enter()
    for i in range(job.count):
        stage = &job.stages[i]
        if stage.count == 0:  # a frozen model packs nothing
            continue
        for kind in range(stage.count):
            tasks[kind] = stage.batches[kind].count
        turn = turn_of(team, thread, stage.count, tasks)
        number = take(&turn, &kind)
        while number >= 0:
            if not job.p.idle:
                stage.batches[kind].run(&t, &stage.batches[kind], number)
            number = take(&turn, &kind)
        sync(team)
        if thread == 0 and stage.finished and job.p.finished != NULL:
            publish(job.p.finished, stage.finished)
    t.K.leave()
