"""A pass over the model: forward, and forward with backward, each on one screen; and the plan of the memory they use.

`Engine` is one plan: a configuration, a batch size, a mode and an element type. It owns one arena for activations and gradients of
activations, one for packed weights and one piece of scratch for each thread, and allocates nothing after it is made. Weights and the
flat gradient belong to the caller.
"""

import mmap

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from ._block cimport (
    block_scratch, heads_backward_task, heads_task, mlp_backward_task, mlp_task, qkv_backward_task, qkv_task,
)
from ._embed cimport embed_task, positions_backward_task
from ._head cimport (
    final_norm_gradients, head_scratch, head_tasks, logits_backward_task, logits_task, loss_task, pool_backward_task, pool_task,
)
from ._kernels cimport GELU_ERF, GELU_TANH, Kernels, attention_scratch, block_depth, packed_stride, real, tile_rows
from ._pass cimport Pass, ceil_div, cut, panel_size, part
from ._runtime cimport Team, Turn, run_team, selected, sync, take, team_size, turn_of
from ._weights cimport BLOCK, HEAD, MLP, PATCH, QKV, Group, gradient_scratch, gradient_task, gradient_tasks, pack_task, pack_tasks
from ._runtime import get_isa

# --------------------------------------------------------------------------------------------------------- the two passes
cdef enum Stage:
    EMBED, QKV_ROWS, HEADS, MLP_ROWS, MLP_AGAIN, POOL, LOGITS, LOSS
    LOGITS_BACKWARD, POOL_BACKWARD, MLP_BACKWARD, HEADS_BACKWARD, QKV_BACKWARD, POSITIONS_BACKWARD
    GRADIENTS, PACK, PACK_TRANSPOSED


cdef Py_ssize_t tasks_of(Pass* p, Stage stage, int group) noexcept nogil:
    if stage in (QKV_ROWS, MLP_ROWS, MLP_AGAIN, MLP_BACKWARD, QKV_BACKWARD):
        return p.row_blocks
    if stage == EMBED:
        return p.image_groups * p.bands
    if stage == HEADS:
        return p.N * p.H * p.query_parts
    if stage == HEADS_BACKWARD:
        return p.N * p.H * p.key_parts
    if stage == LOGITS:
        return head_tasks(p, p.classes)
    if stage == LOGITS_BACKWARD:
        return head_tasks(p, p.D)
    if stage == POSITIONS_BACKWARD:
        return p.T + 1  # and the final norm's parameters
    if stage == GRADIENTS:
        return gradient_tasks(p, <Group> group)
    if stage in (PACK, PACK_TRANSPOSED):
        return pack_tasks(p, <Group> group)
    return p.image_groups


cdef void perform(real* s, Pass* p, Stage stage, int group, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    if p.idle:
        return
    if stage == EMBED:
        embed_task(s, p, task)
    elif stage == QKV_ROWS:
        qkv_task(s, p, layer, task)
    elif stage == HEADS:
        heads_task(s, p, layer, task)
    elif stage in (MLP_ROWS, MLP_AGAIN):
        mlp_task(s, p, layer, task, stage == MLP_ROWS)
    elif stage == POOL:
        pool_task(s, p, task)
    elif stage == LOGITS:
        logits_task(s, p, task)
    elif stage == LOSS:
        loss_task(s, p, task)
    elif stage == LOGITS_BACKWARD:
        logits_backward_task(s, p, task)
    elif stage == POOL_BACKWARD:
        pool_backward_task(s, p, task)
    elif stage == MLP_BACKWARD:
        mlp_backward_task(s, p, layer, task)
    elif stage == HEADS_BACKWARD:
        heads_backward_task(s, p, layer, task)
    elif stage == QKV_BACKWARD:
        qkv_backward_task(s, p, layer, task)
    elif stage == POSITIONS_BACKWARD:
        if task < p.T:
            positions_backward_task(s, p, task)
        else:
            final_norm_gradients(s, p)
    elif stage == GRADIENTS:
        gradient_task(s, p, <Group> group, layer, task)
    else:
        pack_task(s, p, <Group> group, stage == PACK_TRANSPOSED, layer, task)


ctypedef struct Part:  # the tasks of one kind within a stage
    Stage stage
    int group
    Py_ssize_t layer


cdef inline Part of(Stage stage, Py_ssize_t layer=0, int group=0) noexcept nogil:
    return Part(stage, group, layer)


cdef void together(real* s, Pass* p, Team* team, int thread, Part first, Part second) noexcept nogil:
    """One stage: the tasks of two parts, shared out over the team, and a barrier."""
    cdef Py_ssize_t firsts = tasks_of(p, first.stage, first.group), seconds = tasks_of(p, second.stage, second.group)
    cdef Turn turn = turn_of(team, thread, firsts, firsts + seconds)
    cdef Py_ssize_t task = take(&turn)
    while task >= 0:
        if task < firsts:
            perform(s, p, first.stage, first.group, first.layer, task)
        else:
            perform(s, p, second.stage, second.group, second.layer, task - firsts)
        task = take(&turn)
    sync(team)


cdef void alone(real* s, Pass* p, Team* team, int thread, Part only) noexcept nogil:
    cdef Turn turn = turn_of(team, thread, 0, tasks_of(p, only.stage, only.group))
    cdef Py_ssize_t task = take(&turn)
    while task >= 0:
        perform(s, p, only.stage, only.group, only.layer, task)
        task = take(&turn)
    sync(team)


cdef void embed(real* s, Pass* p, Team* team, int thread) noexcept nogil:
    if not p.frozen:
        together(s, p, team, thread, of(PACK, 0, PATCH), of(PACK, 0, QKV if p.L else HEAD))
    alone(s, p, team, thread, of(EMBED))


cdef void blocks(real* s, Pass* p, Team* team, int thread) noexcept nogil:
    """Each stage also packs the weights that the next one needs."""
    cdef Py_ssize_t i
    for i in range(p.L):
        alone(s, p, team, thread, of(QKV_ROWS, i))
        together(s, p, team, thread, of(HEADS, i), of(PACK, i, MLP))
        if i + 1 < p.L:
            together(s, p, team, thread, of(MLP_ROWS, i), of(PACK, i + 1, QKV))
        else:
            together(s, p, team, thread, of(MLP_ROWS, i), of(PACK, 0, HEAD))


cdef void forward(real* s, Pass* p, Team* team, int thread) noexcept nogil:
    embed(s, p, team, thread)
    blocks(s, p, team, thread)
    alone(s, p, team, thread, of(POOL))
    alone(s, p, team, thread, of(LOGITS))


cdef void block_again(real* s, Pass* p, Team* team, int thread, Py_ssize_t i) noexcept nogil:
    """What a checkpointed block did not keep, from its input, bit for bit (Chen et al. 2016, arXiv:1604.06174)."""
    alone(s, p, team, thread, of(QKV_ROWS, i))
    together(s, p, team, thread, of(HEADS, i), of(PACK, i, MLP))
    alone(s, p, team, thread, of(MLP_AGAIN, i))
    alone(s, p, team, thread, of(PACK_TRANSPOSED, i, MLP))


cdef void backward(real* s, Pass* p, Team* team, int thread) noexcept nogil:
    cdef Py_ssize_t i
    together(s, p, team, thread, of(LOSS), of(PACK_TRANSPOSED, 0, HEAD))
    together(s, p, team, thread, of(LOGITS_BACKWARD), of(GRADIENTS, 0, HEAD))
    if p.L:
        together(s, p, team, thread, of(POOL_BACKWARD), of(PACK_TRANSPOSED, p.L - 1, MLP))
    else:
        alone(s, p, team, thread, of(POOL_BACKWARD))
    for i in range(p.L - 1, -1, -1):
        if p.checkpoint and i + 1 < p.L:
            block_again(s, p, team, thread, i)
        alone(s, p, team, thread, of(MLP_BACKWARD, i))
        together(s, p, team, thread, of(HEADS_BACKWARD, i), of(PACK_TRANSPOSED, i, QKV))
        alone(s, p, team, thread, of(QKV_BACKWARD, i))
        if i:
            together(s, p, team, thread, of(GRADIENTS, i, BLOCK), of(PACK, i - 1, QKV) if p.checkpoint else of(PACK_TRANSPOSED, i - 1, MLP))
        else:
            alone(s, p, team, thread, of(GRADIENTS, i, BLOCK))
    together(s, p, team, thread, of(GRADIENTS, 0, PATCH), of(POSITIONS_BACKWARD))


cdef void freeze(real* s, Pass* p, Team* team, int thread) noexcept nogil:
    """Pack all weights, each block's in a place of its own."""
    cdef Py_ssize_t i
    together(s, p, team, thread, of(PACK, 0, PATCH), of(PACK, 0, HEAD))
    for i in range(p.L):
        together(s, p, team, thread, of(PACK, i, QKV), of(PACK, i, MLP))


# What a call runs: parts of the forward, or all of it with the backward.
cpdef enum Program:
    RUN_EMBED, RUN_BLOCKS, RUN_FORWARD, RUN_TRAINING, RUN_FREEZE

cdef struct Job:
    Pass* p
    Program program
    int is_double


cdef void run_program(real* s, Pass* p, Team* team, int thread, Program program) noexcept nogil:
    if program == RUN_EMBED:
        embed(s, p, team, thread)
    elif program == RUN_BLOCKS:
        if not p.frozen:
            alone(s, p, team, thread, of(PACK, 0, QKV))
        blocks(s, p, team, thread)
    elif program == RUN_FREEZE:
        freeze(s, p, team, thread)
    else:
        forward(s, p, team, thread)
        if program == RUN_TRAINING:
            backward(s, p, team, thread)


cdef void work(void* argument, Team* team, int thread) noexcept nogil:
    cdef Job* job = <Job*> argument
    cdef Pass* p = job.p
    if job.is_double:
        run_program(<double*> p.scratch + thread * p.scratch_stride, p, team, thread, job.program)
    else:
        run_program(<float*> p.scratch + thread * p.scratch_stride, p, team, thread, job.program)


# ------------------------------------------------------------------------------------------------------------- the plan
cdef Py_ssize_t scratch_size(real* kind, Pass* p) noexcept nogil:
    """Elements of scratch that a thread needs for the greediest task."""
    cdef Py_ssize_t dh = p.dh, size
    size = max(block_scratch(kind, p), head_scratch(kind, p))
    size = max(size, attention_scratch(&p.kernels, p.T, dh, 0, kind))
    size = max(size, ceil_div(p.height // p.patch, p.bands) * (p.width // p.patch) * packed_stride(&p.kernels, kind)
               * ceil_div(p.features, block_depth(&p.kernels, kind)))
    if p.training:
        size = max(size, attention_scratch(&p.kernels, p.T, dh, 1, kind))
        size = max(size, gradient_scratch(kind, p))
    return ceil_div(size, 64) * 64 + 64


def allocate(Py_ssize_t count, dtype):
    """A vector of `count` elements, aligned to 64 bytes; large ones on huge pages where the system has them.

    Its pages are mapped at their first use.
    """
    dtype = np.dtype(dtype)
    size = max(count, 1) * dtype.itemsize
    if size < 1 << 20 or not hasattr(mmap, "MAP_PRIVATE"):
        raw = np.empty(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size].view(dtype)
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            region.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages: small ones serve as well
    return np.frombuffer(region, dtype)


# Row blocks hold about so many bytes of scratch, so that it stays in a core's second-level cache beside the weights' panels.
BLOCK_BYTES = 512 << 10
MOST_ROWS, LEAST_ROWS = 168, 56  # every block streams all weights: fewer rows than 56 would wait for them
ENOUGH_TASKS = 32
LEAST_KEYS, MOST_KEY_PARTS = 192, 8  # of a head's backward: each part packs all queries, and has a dq of its own
BAND = 48  # patches, at least, that are embedded at a time

cdef class Engine:
    """One plan for (config, layout, batch, dtype, mode). See `cvit.model.ViT`, which makes and keeps these.

    mode: "train" for loss_and_grad, "infer" for the forward programs. With `checkpoint` training keeps only the blocks' inputs. With `frozen` the plan keeps all weights packed;
    `packed` may be another frozen engine of the same model, whose packed weights are shared.
    """

    cdef Pass p
    cdef readonly object dtype, isa, mode, arena, packed, buffers, owner
    cdef object scratch
    cdef readonly Py_ssize_t batch
    cdef int is_double

    def __init__(self, config, layout, Py_ssize_t batch, dtype, mode, bint frozen=False, owner=None, bint checkpoint=False,
                 bint dry=False):
        cdef Pass* p = &self.p
        self.dtype = np.dtype(dtype)
        self.is_double = self.dtype == np.float64
        self.batch = batch
        self.mode = mode
        self.owner = owner
        self.isa = get_isa()
        p.kernels = selected()
        p.N, p.T, p.D, p.H, p.F, p.L = batch, config.tokens, config.width, config.heads, config.hidden, config.depth
        p.R, p.dh = p.N * p.T, p.D // p.H
        p.classes, p.patches, p.features = config.classes, config.patches, config.patch_features
        p.channels, p.patch = config.channels, config.patch_size
        p.height, p.width = config.image_size
        p.class_token, p.final_norm = config.pool == "cls", config.final_norm
        p.gelu = GELU_TANH if config.gelu == "tanh" else GELU_ERF
        p.eps = config.eps
        p.training, p.frozen, p.checkpoint = mode == "train", frozen, checkpoint
        self._place_weights(layout)
        self._cut_tasks()
        self._place_buffers()
        self.scratch = np.empty(0, self.dtype)
        if not dry:
            self.arena = allocate(p.at.size, self.dtype)
            self.packed = owner.packed if owner is not None else allocate(p.at.packed_size, self.dtype)

    cdef _place_weights(self, layout):
        cdef Pass* p = &self.p
        at = layout.offset
        p.w.patch_w, p.w.patch_b = at("patch_embed.weight"), at("patch_embed.bias")
        p.w.cls, p.w.pos = at("cls_token"), at("pos_embed")
        p.w.norm_w, p.w.norm_b = at("norm.weight"), at("norm.bias")
        p.w.head_w, p.w.head_b = at("head.weight"), at("head.bias")
        p.w.size = layout.size
        p.w.blocks = p.w.block_stride = 0
        if p.L:
            names = [name for name in layout.entries if name.startswith("blocks.0.")]
            start = layout.offset(names[0])
            p.w.blocks = start
            p.w.block_stride = sum(layout.entries[name].size for name in names)

            def inside(name):
                offset = layout.offset("blocks.0." + name)
                return offset - start if offset >= 0 else -1

            b = &p.w.block
            b.norm1_w, b.norm1_b = inside("norm1.weight"), inside("norm1.bias")
            b.q_w, b.q_b = inside("attn.q.weight"), inside("attn.q.bias")
            b.k_w, b.k_b = inside("attn.k.weight"), inside("attn.k.bias")
            b.v_w, b.v_b = inside("attn.v.weight"), inside("attn.v.bias")
            b.o_w, b.o_b = inside("attn.proj.weight"), inside("attn.proj.bias")
            b.norm2_w, b.norm2_b = inside("norm2.weight"), inside("norm2.bias")
            b.fc1_w, b.fc1_b = inside("mlp.fc1.weight"), inside("mlp.fc1.bias")
            b.fc2_w, b.fc2_b = inside("mlp.fc2.weight"), inside("mlp.fc2.bias")

    cdef _cut_tasks(self):
        """How the work is cut, by shapes alone: enough tasks for many cores, each large enough to pay for its packing."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t per_row, rows
        kc = block_depth(&p.kernels, <float*> NULL)
        per_row = self.dtype.itemsize * (packed_stride(&p.kernels, <float*> NULL) * (ceil_div(p.D, kc) + 1) + p.D)
        rows = min(MOST_ROWS, max(LEAST_ROWS, BLOCK_BYTES // per_row))
        p.panel = tile_rows(&p.kernels, <double*> NULL) if self.is_double else tile_rows(&p.kernels, <float*> NULL)
        p.row_blocks = max(ceil_div(p.R, rows), min(ENOUGH_TASKS, ceil_div(p.R, LEAST_ROWS)))
        p.row_blocks = min(ceil_div(p.row_blocks, 4) * 4, ceil_div(p.R, p.panel))  # 4: an even share for 2 or 4 threads
        p.image_groups = min(p.N, 64)
        p.bands = max(1, min(p.height // p.patch, p.patches // BAND))
        p.query_parts = max(1, min(ceil_div(2 * ENOUGH_TASKS, p.N * p.H), p.T // 64))
        p.key_parts = max(1, min(ceil_div(ENOUGH_TASKS, p.N * p.H), p.T // LEAST_KEYS, MOST_KEY_PARTS))
        p.tile_area = (4 * p.D * p.D + 2 * p.D * p.F) // ENOUGH_TASKS

    cdef _place_buffers(self):
        """Offsets of all buffers in the arena, and their sizes by name for `plan`."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t R = p.R, D = p.D, F = p.F, L = p.L
        kept = 1 if p.checkpoint else max(1, L)  # blocks whose activations are kept
        sizes = {}
        end = 0

        def place(name, count, copies=1):
            nonlocal end
            stride = (count + 15) // 16 * 16 if copies > 1 else count
            offset, end = end, end + (stride * copies + 15) // 16 * 16
            sizes[name] = end - offset
            return offset, stride if copies > 1 else 0

        at = &p.at
        if p.training:
            at.patches, _ = place("patches", p.N * p.patches * p.features)
            at.x, at.x_stride = place("block inputs", R * D, L + 1)
            at.qkv, at.qkv_stride = place("q, k, v", R * 3 * D, kept)
            at.o, at.o_stride = place("attention outputs", R * D, kept)
            at.lse, at.lse_stride = place("log-sum-exp", p.N * p.H * p.T, kept)
            at.mid, at.mid_stride = place("after attention", R * D, kept)
            at.u, at.u_stride = place("hidden rows", R * F, kept)
            at.stats, at.stats_stride = place("norm statistics", 4 * R, kept)
            at.dx, _ = place("gradient of the residual stream", R * D)
            at.d_o, _ = place("gradient of attention outputs", R * D)
            at.dqkv, _ = place("gradient of q, k, v", R * 3 * D)
            at.dq_parts, _ = place("gradient of q by part of the keys", (p.key_parts - 1) * R * D)
            at.dy_panels, _ = place("packed gradient of a block's output", panel_size(R, D))
            at.dmid_panels, _ = place("packed gradient after attention", panel_size(R, D))
            at.dqkv_panels, _ = place("packed gradient of q, k, v", 3 * panel_size(R, D))
            at.du_panels, _ = place("packed gradient of hidden rows", panel_size(R, F))
            at.dlogits, _ = place("gradient of logits", p.N * p.classes)
            at.dpooled, _ = place("gradient of pooled", p.N * D)
            at.partial, _ = place("norm gradients by row block", p.row_blocks * 4 * D)
            at.final_partial, _ = place("final norm gradients by image group", p.image_groups * 2 * D)
        else:
            at.patches, _ = place("patches", p.image_groups * p.patches * p.features)
            at.x, _ = place("tokens", R * D)
            at.qkv, _ = place("q, k, v", R * 3 * D)
            at.o, _ = place("attention outputs", R * D)
            at.mid = at.x
            at.x_stride = at.qkv_stride = at.o_stride = at.lse_stride = at.mid_stride = at.u_stride = at.stats_stride = 0
        at.final_stats, _ = place("final norm statistics", 2 * (p.N if p.class_token else R))
        at.pooled, _ = place("pooled", p.N * D)
        at.logits, _ = place("logits", p.N * p.classes)
        at.losses, _ = place("losses", p.N)
        at.size = end

        qkv, mlp = 3 * panel_size(D, D), panel_size(D, D) + panel_size(D, F) + panel_size(F, D)
        copies = L if p.frozen else min(L, 1)
        at.pack_patch = 0
        at.pack_head = panel_size(p.features, D)
        at.pack_qkv = at.pack_head + max(panel_size(D, p.classes), panel_size(p.classes, D))
        at.pack_mlp = at.pack_qkv + qkv
        at.pack_stride = qkv + mlp if p.frozen else 0
        at.packed_size = at.pack_qkv + (qkv + mlp) * copies
        sizes["packed weights"] = at.packed_size
        p.scratch_stride = scratch_size(<double*> NULL, p) if self.is_double else scratch_size(<float*> NULL, p)
        sizes["scratch of a thread"] = p.scratch_stride
        self.buffers = sizes

    # -------------------------------------------------------------------------------------------------------- calls
    cpdef int threads(self):
        """Threads that a call uses now: no more than its widest stage has tasks."""
        return team_size(max(self.p.row_blocks, self.p.N * self.p.H * self.p.query_parts, self.p.image_groups, 4))

    cdef _run(self, Program program, weights):
        """Run a program on the team. Arrays were checked by the caller: C-contiguous, of self.dtype."""
        cdef Job job
        cdef const float[::1] w32
        cdef const double[::1] w64
        cdef int size = self.threads()
        if self.scratch.size < size * self.p.scratch_stride:
            self.scratch = allocate(size * self.p.scratch_stride, self.dtype)
        self.p.weights = address(weights)
        self.p.arena = address(self.arena)
        self.p.packed = address(self.packed)
        self.p.scratch = address(self.scratch)
        job.p = &self.p
        job.program = program
        job.is_double = self.is_double
        if program == RUN_FREEZE:
            self.p.frozen = 0  # count the packing tasks
        with nogil:
            run_team(size, work, &job)
        if program == RUN_FREEZE:
            self.p.frozen = 1

    def _view(self, Py_ssize_t offset, *shape):
        count = 1
        for length in shape:
            count *= length
        return self.arena[offset : offset + count].reshape(shape)

    def freeze(self, weights):
        """Pack all weights into this engine's own room."""
        self._run(RUN_FREEZE, weights)

    def forward(self, weights, images):
        """Run the forward; returns views of the logits (N, classes) and the pooled features (N, D)."""
        self.p.images = address(images)
        self._run(RUN_FORWARD, weights)
        return self.logits(), self._view(self.p.at.pooled, self.p.N, self.p.D)

    @property
    def idle(self):
        """Whether passes only go through their stages, take every task and do none. `cvit bench --overhead` times that."""
        return bool(self.p.idle)

    @idle.setter
    def idle(self, bint value):
        self.p.idle = value

    @property
    def tasks(self):
        """Tasks of each stage: how many threads it can feed, by name."""
        cdef Pass* p = &self.p
        names = {
            "embed": of(EMBED), "qkv rows": of(QKV_ROWS), "heads": of(HEADS), "mlp rows": of(MLP_ROWS), "pool": of(POOL),
            "logits": of(LOGITS), "logits backward": of(LOGITS_BACKWARD), "mlp rows backward": of(MLP_BACKWARD),
            "heads backward": of(HEADS_BACKWARD), "qkv rows backward": of(QKV_BACKWARD),
            "block gradients": of(GRADIENTS, 0, BLOCK), "patch gradients": of(GRADIENTS, 0, PATCH), "pack qkv": of(PACK, 0, QKV),
            "pack mlp": of(PACK, 0, MLP),
        }  # fmt: skip
        return {name: tasks_of(p, part["stage"], part["group"]) for name, part in names.items()}

    def logits(self):
        return self._view(self.p.at.logits, self.p.N, self.p.classes)

    def embed(self, weights, images):
        """Run the embedding; returns a view of the tokens (N, T, D)."""
        self.p.images = address(images)
        self._run(RUN_EMBED, weights)
        return self._view(self.p.at.x, self.p.N, self.p.T, self.p.D)

    def blocks(self, weights, tokens):
        """Run the blocks on tokens (N, T, D); returns a view of their output (N, T, D)."""
        view = self._view(self.p.at.x, self.p.N, self.p.T, self.p.D)
        view[...] = tokens
        self._run(RUN_BLOCKS, weights)
        return view

    def loss_and_grad(self, weights, images, const long long[::1] labels, double smoothing, grad):
        """Forward and backward; fills grad and returns the mean loss."""
        cdef Py_ssize_t n
        cdef double loss = 0
        self.p.images = address(images)
        self.p.labels = &labels[0]
        self.p.smoothing = smoothing
        self.p.grad = address(grad)
        self._run(RUN_TRAINING, weights)
        for n in range(self.p.N):
            loss += (<double*> self.p.arena + self.p.at.losses)[n] if self.is_double else (<float*> self.p.arena + self.p.at.losses)[n]
        return loss / self.p.N


cdef void* address(array) except NULL:
    """Where a C-contiguous array's data lie, without asking whether they may be written."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void* start = view.buf
    PyBuffer_Release(&view)
    return start
