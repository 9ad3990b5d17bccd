"""The plan of a pass: what lies where in memory, how the work is cut into tasks; and the calls that run it.

`Engine` is one plan: a configuration, a batch size, a mode and an element type. It owns an arena for activations and gradients of
activations, packed weights and a piece of scratch for each thread, and allocates nothing after its first call with so many threads.
Weights and the flat gradient belong to the caller. The passes themselves are in _stages.pyx.
"""

import mmap

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from .block cimport block_scratch
from .head cimport head_scratch
from .kernels cimport GELU_ERF, GELU_TANH, attention_scratch, block_depth, packed_stride, real, tile_rows
from .state cimport (
    KEEP_LSE, KEEP_MID, KEEP_O, KEEP_QKV, KEEP_STATS, KEEP_U, KEEP_X, KEEPS, Pass, ceil_div, cut, panel_size,
)
from .team cimport run_team, selected, team_size
from .stages cimport (
    EMBED, GRADIENTS, HEADS, HEADS_BACKWARD, LOGITS, LOGITS_BACKWARD, MLP_ROWS, PACK, POOL, RUN_BLOCKS, RUN_EMBED, RUN_FORWARD,
    RUN_FREEZE, RUN_TRAINING, Job, Program, of, tasks_of, work,
)
from .weights cimport MLP, PATCH, QKV, gradient_scratch
from .team import get_isa


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

    Its pages are mapped at their first use. `MemoryError` where the system has no room for it.
    """
    dtype = np.dtype(dtype)
    size = max(count, 1) * dtype.itemsize
    if size < 1 << 20 or not hasattr(mmap, "MAP_PRIVATE"):
        raw = np.empty(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size].view(dtype)
    try:
        region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {count:,} values of {dtype}, {size / 1e9:,.3f} GB: {error}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            region.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages: small ones serve as well
    return np.frombuffer(region, dtype)


# Row blocks hold about so many bytes of scratch, so that it stays in a core's second-level cache beside the weights' panels.
BLOCK_BYTES = 512 << 10
# Every block streams all of a layer's weights, which one of fewer rows than 56 would wait for; many threads get smaller ones all the same.
MOST_ROWS, LEAST_ROWS, UNIT_ROWS = 168, 56, 28
TASKS_PER_THREAD, MANY_THREADS = 16, 17
SHORT = 80  # tokens of an image, of which a task takes a few through a whole block
ENOUGH_TASKS = 32
LEAST_QUERIES, PACK_HEAD = 64, 16  # of a head's forward: packing its keys and values takes some 16 / T of the time of its products
LEAST_KEYS, MOST_KEY_PARTS = 192, 8  # of a head's backward: each part packs all queries, and has a dq of its own
MOST_HEAD_TASKS = 128  # small heads share a task
BAND = 48  # patches, at least, that are embedded at a time

cdef class Engine:
    """One plan for (config, layout, batch, dtype, mode). See `cvit.model.ViT`, which makes and keeps these.

    mode: "train" for loss_and_grad, "infer" for the forward programs. With `checkpoint` training keeps only the blocks' inputs. With
    `frozen` the plan keeps all weights packed; `owner` may be another frozen engine of the same model, whose packed weights are shared.
    `dry` plans are not for running.
    """

    cdef Pass p
    cdef readonly object dtype, isa, mode, arena, packed, owner, places
    cdef object placed, scratch, between
    cdef readonly Py_ssize_t batch, lent
    cdef Py_ssize_t block_units
    cdef int is_double, packs_all, cut_threads  # the threads that tasks are cut for, 0 at first

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
        self.packs_all = frozen
        self._place_weights(layout)
        self._cut_tasks()
        self._place_buffers()
        self.scratch = self.between = self.packed = np.empty(0, self.dtype)
        if owner is not None:
            self.packed = owner.packed
        if not dry:
            self.arena = allocate(p.at.size, self.dtype)

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
        """How the work is cut: by shapes alone, all that results depend on."""
        cdef Pass* p = &self.p
        p.panel = tile_rows(&p.kernels, <double*> NULL) if self.is_double else tile_rows(&p.kernels, <float*> NULL)
        panels = ceil_div(p.R, p.panel)
        p.unit_images = ceil_div(UNIT_ROWS, p.T) if p.T <= SHORT else 0
        p.units = ceil_div(p.N, p.unit_images) if p.unit_images else min(panels, ceil_div(p.R, UNIT_ROWS))
        p.image_groups = min(p.N, 64)
        p.bands = max(1, min(p.height // p.patch, p.patches // BAND))
        p.key_parts = max(1, min(ceil_div(ENOUGH_TASKS, p.N * p.H), p.T // LEAST_KEYS, MOST_KEY_PARTS))
        p.head_backward_tasks = min(p.N * p.H * p.key_parts, MOST_HEAD_TASKS)
        # The more threads, the smaller the blocks, but for what it takes to share them out evenly.
        unit_rows = p.unit_images * p.T if p.unit_images else ceil_div(panels, p.units) * p.panel
        self.block_units = ceil_div(p.units, self._blocks(1, 1))
        p.block_rows = min(p.R, self.block_units * unit_rows)

    cdef Py_ssize_t _blocks(self, int threads, int share):
        """How many blocks of rows: enough of them, a multiple of `share`, of a size that stays near and is worth streaming weights for."""
        cdef Pass* p = &self.p
        kc = block_depth(&p.kernels, <float*> NULL)
        per_row = self.dtype.itemsize * (packed_stride(&p.kernels, <float*> NULL) * (ceil_div(p.D, kc) + 1) + p.D)
        most = min(MOST_ROWS, max(LEAST_ROWS, BLOCK_BYTES // per_row))
        least = LEAST_ROWS if threads < MANY_THREADS else UNIT_ROWS
        blocks = max(ceil_div(p.R, most), min(TASKS_PER_THREAD * threads, ceil_div(p.R, least)))
        return min(p.units, ceil_div(blocks, share) * share)

    cdef Py_ssize_t _most_query_parts(self):
        return max(1, self.p.T // LEAST_QUERIES)

    cdef _query_parts(self, int threads):
        """In how many parts the forward takes a head's queries: each packs all keys and values, few and large ones keep threads waiting."""
        heads, tokens = self.p.N * self.p.H, self.p.T

        def time(parts):
            return ceil_div(heads * parts, threads) * (1 / parts + PACK_HEAD / tokens) + 0.5 / parts

        return min(range(1, self._most_query_parts() + 1), key=time)

    cdef _cut_for(self, int threads):
        """The rest, for so many threads: blocks of token rows, with or without all of a block's stages, parts of heads, and tiles of weight
        gradients."""
        cdef Pass* p = &self.p
        if threads == self.cut_threads:
            return
        p.query_parts = self._query_parts(threads)
        p.head_tasks = min(p.N * p.H * p.query_parts, MOST_HEAD_TASKS)
        p.row_blocks = self._blocks(threads, max(4, threads))
        assert ceil_div(p.units, p.row_blocks) <= self.block_units  # what a thread's scratch has room for
        rounds = ceil_div(p.row_blocks, threads)
        p.together = p.unit_images > 0 and not p.checkpoint and 8 * rounds * threads <= 9 * p.row_blocks  # few threads wait at the end
        p.scratch_stride = p.own + (ceil_div(4 * p.block_rows * p.D, 64) * 64 if p.together else 0)
        p.at.pack_rooms = max(1, min(p.L, p.L if self.packs_all else 1 + p.together))
        p.tile_rows = min(LEAST_ROWS, 8 * LEAST_ROWS // threads)  # so often a panel of dy is used while it is near
        p.tile_area = (4 * p.D * p.D + 2 * p.D * p.F) // max(32, 2 * threads)
        self.cut_threads = threads

    def _place_kept(self, place):
        """Where every block keeps what its backward needs: the table that `kept` reads, in _pass.pxd.

        The gradient of a block's weights is written when all later blocks are done. Until then its room is lent to what those keep, as
        much as fits; the embedding's gradient, the last of all, to every block. With checkpointing, or without a backward, the blocks
        take turns in one place.
        """
        cdef Pass* p = &self.p
        R, D, L = p.R, p.D, p.L
        buffers = {KEEP_X: ("block inputs", R * D)}
        if p.training:
            buffers |= {
                KEEP_QKV: ("q, k, v", R * 3 * D), KEEP_O: ("attention outputs", R * D),
                KEEP_LSE: ("log-sum-exp", p.N * p.H * p.T), KEEP_MID: ("after attention", R * D), KEEP_U: ("hidden rows", R * p.F),
                KEEP_STATS: ("norm statistics", 4 * R),
            }  # fmt: skip
        self.places = np.zeros((L + 1, KEEPS), np.intp)
        lent = 16  # values of the gradient that are lent already; not 0, since their places are told by a minus sign
        for name, _ in buffers.values():
            place(name, 0)  # the plan shows them all, those that take no room of their own, too
        for layer in range(L + 1):
            for keep, (name, count) in buffers.items():
                if layer == L and keep != KEEP_X:
                    continue
                if layer and (not p.training or p.checkpoint and keep != KEEP_X):
                    self.places[layer, keep] = self.places[0, keep]
                elif p.training and lent + count + 16 <= p.w.blocks + layer * p.w.block_stride:
                    self.places[layer, keep] = -lent
                    lent += ceil_div(count, 16) * 16
                else:
                    self.places[layer, keep] = place(name, count)
        if not p.training:
            self.places[:, KEEP_MID] = self.places[:, KEEP_X]
        p.places = <const Py_ssize_t*> address(self.places)
        self.lent = (lent - 16) * self.dtype.itemsize

    cdef _place_buffers(self):
        """Offsets of all buffers in the arena, and their sizes by name for `plan`."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t R = p.R, D = p.D, F = p.F, L = p.L
        sizes = {}
        end = 0

        def place(name, count):
            nonlocal end
            offset, end = end, end + ceil_div(count, 16) * 16
            sizes[name] = sizes.get(name, 0) + end - offset
            return offset

        at = &p.at
        at.patches = place("patches", (p.N if p.training else p.image_groups) * p.patches * p.features)
        self._place_kept(place)
        if p.training:
            at.dx = place("gradient of the residual stream", R * D)
            at.dq_parts = place("gradient of q by part of the keys", (p.key_parts - 1) * R * D)
            at.dy_panels = place("packed gradient of a block's output", panel_size(R, D))
            at.dmid_panels = place("packed gradient after attention", panel_size(R, D))
            at.dqkv_panels = place("packed gradient of q, k, v", 3 * panel_size(R, D))
            at.du_panels = place("packed gradient of hidden rows", panel_size(R, F))
            at.dlogits = place("gradient of logits", p.N * p.classes)
            at.dpooled = place("gradient of pooled", p.N * D)
            at.partial = place("norm gradients by unit of rows", p.units * 4 * D)
            at.final_partial = place("final norm gradients by image group", p.image_groups * 2 * D)
        at.final_stats = place("final norm statistics", 2 * (p.N if p.class_token else R))
        at.pooled = place("pooled", p.N * D)
        at.logits = place("logits", p.N * p.classes)
        at.losses = place("losses", p.N)
        at.size = end

        qkv, mlp = 3 * panel_size(D, D), panel_size(D, D) + panel_size(D, F) + panel_size(F, D)
        at.pack_patch = 0
        at.pack_head = panel_size(p.features, D)
        at.pack_qkv = at.pack_head + max(panel_size(D, p.classes), panel_size(p.classes, D))
        at.pack_mlp = at.pack_qkv + qkv
        at.pack_stride = qkv + mlp
        p.own = scratch_size(<double*> NULL, p) if self.is_double else scratch_size(<float*> NULL, p)
        self.placed = sizes

    cdef Py_ssize_t _packed_size(self):
        return self.p.at.pack_qkv + (self.p.at.pack_rooms * self.p.at.pack_stride if self.p.L else 0)

    cdef Py_ssize_t _between_size(self):
        return 0 if self.p.together or not self.p.L else 4 * self.p.R * self.p.D

    @property
    def buffers(self):
        """The elements of every buffer, as a call with the threads there are now needs them."""
        self._cut_for(self.threads())
        return self.placed | {
            "between the stages of a block": self._between_size(), "packed weights": self._packed_size(),
            "scratch of a thread": self.p.scratch_stride,
        }  # fmt: skip

    # -------------------------------------------------------------------------------------------------------- calls
    cpdef int threads(self):
        """Threads that a call uses now: no more than its widest stage has tasks."""
        return team_size(max(self.p.units, self.p.N * self.p.H * self._most_query_parts(), self.p.image_groups, 4))

    cdef _run(self, Program program, weights):
        """Run a program on the team. Arrays were checked by the caller: C-contiguous, of self.dtype."""
        cdef Job job
        cdef const float[::1] w32
        cdef const double[::1] w64
        cdef int size = self.threads()
        self._cut_for(size)
        if self.scratch.size < size * self.p.scratch_stride:
            self.scratch = allocate(size * self.p.scratch_stride, self.dtype)
        if self.between.size < self._between_size():
            self.between = allocate(self._between_size(), self.dtype)
        if self.packed.size < self._packed_size():
            self.packed = allocate(self._packed_size(), self.dtype)
        self.p.weights = address(weights)
        self.p.arena = address(self.arena)
        self.p.between = address(self.between)
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
        """Tasks of each stage, by name, as they are cut for the threads that a call uses now."""
        cdef Pass* p = &self.p
        self._cut_for(self.threads())
        names = {
            "embed": of(EMBED), "rows": of(MLP_ROWS), "heads": of(HEADS), "pool": of(POOL), "logits": of(LOGITS),
            "logits backward": of(LOGITS_BACKWARD), "heads backward": of(HEADS_BACKWARD), "qkv gradients": of(GRADIENTS, 0, QKV),
            "mlp gradients": of(GRADIENTS, 0, MLP), "patch gradients": of(GRADIENTS, 0, PATCH), "pack qkv": of(PACK, 0, QKV),
            "pack mlp": of(PACK, 0, MLP),
        }  # fmt: skip
        return {name: tasks_of(p, part) for name, part in names.items()} | {"whole blocks": p.row_blocks if p.together else 0}

    def logits(self):
        return self._view(self.p.at.logits, self.p.N, self.p.classes)

    def embed(self, weights, images):
        """Run the embedding; returns a view of the tokens (N, T, D)."""
        self.p.images = address(images)
        self._run(RUN_EMBED, weights)
        return self._view(self.places[0, KEEP_X], self.p.N, self.p.T, self.p.D)

    def blocks(self, weights, tokens):
        """Run the blocks on tokens (N, T, D); returns a view of their output (N, T, D)."""
        view = self._view(self.places[0, KEEP_X], self.p.N, self.p.T, self.p.D)
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
        self.p.lent = <void*> (<size_t> self.p.grad + 63 & ~<size_t> 63)
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
