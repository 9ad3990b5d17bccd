"""A pass over the model as a list of stages: forward, and forward with backward, each on one screen.

A stage is some kinds of tasks, which the threads of the team share out, and a barrier. What the tasks do is in _embed.pyx, _block.pyx,
_head.pyx and _weights.pyx; what is where in memory, and how the work is cut, in _engine.pyx.
"""

from .block cimport (
    block_backward_task, block_task, heads_backward_task, heads_task, mlp_backward_task, mlp_task, qkv_backward_task, qkv_task,
)
from .embed cimport embed_task, positions_backward_task
from .head cimport (
    final_norm_gradients, head_tasks, logits_backward_task, logits_task, loss_task, pool_backward_task, pool_task,
)
from .kernels cimport real
from .state cimport Pass
from .team cimport Team, Turn, sync, take, turn_of
from .weights cimport HEAD, MLP, PATCH, QKV, Group, gradient_task, gradient_tasks, pack_task, pack_tasks


cdef Py_ssize_t tasks_of(Pass* p, Part part) noexcept nogil:
    """How many; none for a block before the first or after the last."""
    if part.kind in (QKV_ROWS, MLP_ROWS, MLP_AGAIN, BLOCK, MLP_BACKWARD, QKV_BACKWARD, BLOCK_BACKWARD):
        return p.row_blocks
    if part.kind == EMBED:
        return p.image_groups * p.bands
    if part.kind == HEADS:
        return p.head_tasks
    if part.kind == HEADS_BACKWARD:
        return p.head_backward_tasks
    if part.kind == LOGITS:
        return head_tasks(p, p.classes)
    if part.kind == LOGITS_BACKWARD:
        return head_tasks(p, p.D)
    if part.kind == POSITIONS_BACKWARD:
        return p.T + 1  # and the final norm's parameters
    if part.kind in (GRADIENTS, PACK, PACK_TRANSPOSED):
        if part.group in (QKV, MLP) and not 0 <= part.layer < p.L:
            return 0
        return gradient_tasks(p, <Group> part.group) if part.kind == GRADIENTS else pack_tasks(p, <Group> part.group)
    return p.image_groups


cdef void perform(real* s, Pass* p, Part part, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t layer = part.layer
    if p.idle:
        return
    if part.kind == EMBED:
        embed_task(s, p, task)
    elif part.kind == QKV_ROWS:
        qkv_task(s, p, layer, task)
    elif part.kind == HEADS:
        heads_task(s, p, layer, task)
    elif part.kind in (MLP_ROWS, MLP_AGAIN):
        mlp_task(s, p, layer, task, part.kind == MLP_ROWS)
    elif part.kind == BLOCK:
        block_task(s, p, layer, task)
    elif part.kind == POOL:
        pool_task(s, p, task)
    elif part.kind == LOGITS:
        logits_task(s, p, task)
    elif part.kind == LOSS:
        loss_task(s, p, task)
    elif part.kind == LOGITS_BACKWARD:
        logits_backward_task(s, p, task)
    elif part.kind == POOL_BACKWARD:
        pool_backward_task(s, p, task)
    elif part.kind == MLP_BACKWARD:
        mlp_backward_task(s, p, layer, task)
    elif part.kind == HEADS_BACKWARD:
        heads_backward_task(s, p, layer, task)
    elif part.kind == QKV_BACKWARD:
        qkv_backward_task(s, p, layer, task)
    elif part.kind == BLOCK_BACKWARD:
        block_backward_task(s, p, layer, task)
    elif part.kind == POSITIONS_BACKWARD:
        if task < p.T:
            positions_backward_task(s, p, task)
        else:
            final_norm_gradients(s, p)
    elif part.kind == GRADIENTS:
        gradient_task(s, p, <Group> part.group, layer, task)
    else:
        pack_task(s, p, <Group> part.group, part.kind == PACK_TRANSPOSED, layer, task)


ctypedef struct Run:  # one thread's part in a pass
    Pass* p
    int is_double
    Team* team
    int thread
    void* scratch


cdef void stage(Run* r, int kinds, const Part* parts) noexcept nogil:
    """The tasks of these parts, shared out over the team, and a barrier."""
    cdef Py_ssize_t[3] tasks
    cdef Py_ssize_t task
    cdef int kind
    cdef Turn turn
    for kind in range(kinds):
        tasks[kind] = tasks_of(r.p, parts[kind])
    turn = turn_of(r.team, r.thread, kinds, tasks)
    task = take(&turn, &kind)
    while task >= 0:
        if r.is_double:
            perform(<double*> r.scratch, r.p, parts[kind], task)
        else:
            perform(<float*> r.scratch, r.p, parts[kind], task)
        task = take(&turn, &kind)
    sync(r.team)


cdef void forward(Run* r) noexcept nogil:
    embed(r)
    blocks(r)
    stage(r, 1, [of(POOL)])
    stage(r, 1, [of(LOGITS)])


cdef void embed(Run* r) noexcept nogil:
    stage(r, 2, [of(PACK, 0, PATCH), of(PACK, 0, QKV if r.p.L else HEAD)])
    stage(r, 2 if r.p.together else 1, [of(EMBED), of(PACK, 0, MLP)])


cdef void blocks(Run* r) noexcept nogil:
    """Each stage also packs the weights that the next one needs."""
    cdef Py_ssize_t i
    for i in range(r.p.L):
        if r.p.together:
            stage(r, 3, [of(BLOCK, i), of(PACK, i + 1, QKV) if i + 1 < r.p.L else of(PACK, 0, HEAD), of(PACK, i + 1, MLP)])
            continue
        stage(r, 1, [of(QKV_ROWS, i)])
        stage(r, 2, [of(HEADS, i), of(PACK, i, MLP)])
        stage(r, 2, [of(MLP_ROWS, i), of(PACK, i + 1, QKV) if i + 1 < r.p.L else of(PACK, 0, HEAD)])


cdef void block_again(Run* r, Py_ssize_t i) noexcept nogil:
    """What a checkpointed block did not keep, from its input, bit for bit (Chen et al. 2016, arXiv:1604.06174)."""
    stage(r, 1, [of(QKV_ROWS, i)])
    stage(r, 2, [of(HEADS, i), of(PACK, i, MLP)])
    stage(r, 1, [of(MLP_AGAIN, i)])
    stage(r, 1, [of(PACK_TRANSPOSED, i, MLP)])


cdef void backward(Run* r) noexcept nogil:
    """The gradients of weights come as soon as the rows have made what they need: that is still near then."""
    cdef Py_ssize_t i
    stage(r, 2, [of(LOSS), of(PACK_TRANSPOSED, 0, HEAD)])
    stage(r, 2, [of(LOGITS_BACKWARD), of(GRADIENTS, 0, HEAD)])
    stage(r, 3 if r.p.together else 2, [of(POOL_BACKWARD), of(PACK_TRANSPOSED, r.p.L - 1, MLP), of(PACK_TRANSPOSED, r.p.L - 1, QKV)])
    for i in range(r.p.L - 1, -1, -1):
        if r.p.together:
            stage(r, 3, [of(BLOCK_BACKWARD, i), of(PACK_TRANSPOSED, i - 1, MLP), of(PACK_TRANSPOSED, i - 1, QKV)])
            stage(r, 2, [of(GRADIENTS, i, MLP), of(GRADIENTS, i, QKV)])
            continue
        if r.p.checkpoint and i + 1 < r.p.L:
            block_again(r, i)
        stage(r, 1, [of(MLP_BACKWARD, i)])
        stage(r, 3, [of(GRADIENTS, i, MLP), of(HEADS_BACKWARD, i), of(PACK_TRANSPOSED, i, QKV)])
        stage(r, 1, [of(QKV_BACKWARD, i)])
        stage(r, 2, [of(GRADIENTS, i, QKV), of(PACK, i - 1, QKV) if r.p.checkpoint else of(PACK_TRANSPOSED, i - 1, MLP)])
    stage(r, 2, [of(GRADIENTS, 0, PATCH), of(POSITIONS_BACKWARD)])


cdef void freeze(Run* r) noexcept nogil:
    """Pack all weights, each block's in a place of its own."""
    cdef Py_ssize_t i
    stage(r, 2, [of(PACK, 0, PATCH), of(PACK, 0, HEAD)])
    for i in range(r.p.L):
        stage(r, 2, [of(PACK, i, QKV), of(PACK, i, MLP)])


cdef void work(void* argument, Team* team, int thread) noexcept nogil:
    cdef Job* job = <Job*> argument
    cdef Run run
    cdef Run* r = &run
    r.p, r.is_double, r.team, r.thread = job.p, job.is_double, team, thread
    r.scratch = <char*> r.p.scratch + thread * r.p.scratch_stride * (sizeof(double) if r.is_double else sizeof(float))
    if job.program == RUN_EMBED:
        embed(r)
    elif job.program == RUN_BLOCKS:
        if not r.p.frozen:
            stage(r, 2, [of(PACK, 0, QKV), of(PACK, 0, MLP)])
        blocks(r)
    elif job.program == RUN_FREEZE:
        freeze(r)
    else:
        forward(r)
        if job.program == RUN_TRAINING:
            backward(r)
