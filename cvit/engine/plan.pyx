"""The plan of a pass: what lies where in memory, how the work is cut into tasks; and the calls that run it.

`Plan` is one plan: a program, a batch size, a mode and an element type. It owns an arena for activations and gradients
of activations, packed weights and a piece of scratch for each thread, and allocates nothing after its first call with
so many threads. Weights and the flat gradient belong to the caller. The passes themselves are in stages.pyx.

All memory follows from the program. The slots of a block are what its steps name: a slot that the backward reads is
kept for each block, one between the rows stages and the heads lies with the stages, all others in the scratch. Every
product has room for its packed matrix and, for its weight gradient, for the packed dy.
"""

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from .hints cimport derive_hints
from .kernels cimport (
    GELU_ERF, GELU_TANH, QUICK_GELU, RELU, SILU, Kernels, ceil_div, packed_rows_size, panel_size,
)
from .stages cimport Job, Schedule, work
from .steps.attention cimport add_query_parts
from .steps.linear cimport linear as run_linear, linear_backward
from .steps.loss cimport head_scratch
from .steps.mlp cimport activation, activation_backward, hidden, hidden_again, hidden_backward
from .steps.norm cimport norm as run_norm, norm_backward
from .steps.pool cimport pool_scratch
from .steps.weights cimport gradient_scratch
from .task cimport (
    ACTIVATION, ARENA, HIDDEN, LENT, LINEAR, NORM, QUERY_PARTS, SCRATCH, STAGE, Block, Linear as LinearStep,
    NormSum, Pass,
    Section, Slot, Step,
)
from .team cimport F32, F64, run_team, selected, team_size
from .memory import allocate
from .program import PACKED, Activation, Heads, Hidden, Linear, Norm, fuse, source_of
from .team import get_isa

ACTIVATIONS = {
    "gelu_tanh": GELU_TANH, "gelu_erf": GELU_ERF, "quick_gelu": QUICK_GELU, "silu": SILU, "relu": RELU,
}  # fmt: skip

# What the buffers that a block keeps are called in a memory report.
TITLES = {
    "x": "block inputs", "qkv": "q, k, v", "o": "attention outputs", "lse": "log-sum-exp", "mid": "after attention",
    "u": "hidden rows",
    "stats": "norm statistics",
}  # fmt: skip

LINE = 64  # bytes: every buffer begins with a cache line

# Row blocks hold about so many bytes of scratch, so that it stays in a core's second-level cache beside the weights'
# panels.
BLOCK_BYTES = 512 << 10
# Every block streams all of a layer's weights, which one of fewer rows than 56 would wait for; with many threads
# smaller ones are better.
MOST_ROWS, LEAST_ROWS, UNIT_ROWS = 168, 56, 28
TASKS_PER_THREAD, MANY_THREADS = 16, 17
SHORT = 80  # tokens of an image, of which a task takes a few through a whole block
ENOUGH_TASKS = 32
# Of a head's forward: packing its keys and values takes some 16 / T of the time of its products.
LEAST_QUERIES, PACK_HEAD = 64, 16
LEAST_KEYS, MOST_KEY_PARTS = 192, 8  # of a head's backward: each part packs all queries, and has a dq of its own
MOST_HEAD_TASKS = 128  # small heads share a task
BAND = 48  # patches, at least, that are embedded at a time
# Of a pass for each of its threads: with less to do, waiting for each other takes longer than it saves.
THREAD_FLOPS = 1.2e7


cdef lines(size):
    """Whole cache lines of at least `size` bytes."""
    return -(-size // LINE) * LINE


cdef Slot slot_of(tuple place) noexcept:
    cdef Slot slot
    slot.place, slot.at, slot.own, slot.ld = place
    return slot


NOWHERE = (SCRATCH, 0, 0, 0)


cdef class Plan:
    """One plan for (program, batch, dtype, mode). See `cvit.model.ViT`, which makes and keeps these.

    mode: "train" for run_training, "infer" for the forward programs. With `checkpoint` training keeps only the blocks'
    inputs. With `frozen` the plan keeps all weights packed; `owner` may be another frozen plan of the same model, whose
    packed weights are shared. `dry` plans are not for running. `fused=False` runs the blocks' steps as the program has
    them, `hints=False` without prefetching: to the same bits, both. `kernels` is the address of a cvit_kernels to use
    in place of the selected table.
    """

    cdef Pass p
    cdef readonly object program, dtype, isa, mode, arena, packed, owner
    cdef object placed, scratch, stage_rows, memory, fused, schedules
    cdef readonly Py_ssize_t batch, lent
    cdef Py_ssize_t block_units, own, stage_width, pack_blocks, pack_stride, pack_rooms
    cdef dict scratch_slots, stage_slots
    cdef object kept                 # for each block: name -> (place, at, own, ld)
    cdef object relative             # of every Linear in blocks
    cdef int packs_all, cut_threads  # the threads that tasks are cut for, 0 at first
    cdef double flops

    def __init__(self, program, Py_ssize_t batch, dtype, mode, bint frozen=False, owner=None, bint checkpoint=False,
                 bint dry=False,
                 bint fused=True, bint hints=True, size_t kernels=0):
        cdef Pass* p = &self.p
        self.program, self.batch, self.mode, self.owner = program, batch, mode, owner
        self.dtype = np.dtype(dtype)
        self.isa = get_isa()
        p.K = <const Kernels*> kernels if kernels else selected(F32 if self.dtype == np.float32 else F64)
        assert p.K.size == self.dtype.itemsize
        self.fused = [
            (fuse(block.before), block.heads, fuse(block.after)) if fused else (block.before, block.heads, block.after)
            for block in program.blocks
        ]
        self.memory, self.schedules = [], {}
        embed, pool = program.embed, program.pool
        p.N, p.T, p.D, p.L = batch, program.tokens, program.width, len(program.blocks)
        p.R, p.classes = p.N * p.T, program.classes
        p.training, p.frozen, p.checkpoint, p.hints = mode == "train", frozen, checkpoint, hints
        self.packs_all = frozen
        p.channels, p.patch = embed.channels, embed.patch_size
        p.height, p.width = embed.image_size
        p.patches = (p.height // p.patch) * (p.width // p.patch)
        p.features = p.channels * p.patch * p.patch
        p.prefix, p.positions_of_prefix = len(embed.prefix), embed.positions_of_prefix
        p.prefix_tokens = embed.prefix[0] * p.K.size if embed.prefix else -1
        p.positions = embed.positions * p.K.size
        p.pool_first, p.pool_count, p.pool_each = pool.first, pool.count, pool.each
        p.pooled_rows = p.N * (pool.count if pool.each else 1)
        p.final_norm, p.final_scale, p.final_shift = pool.norm is not None, -1, -1
        if pool.norm is not None:
            p.final_eps = pool.norm.eps
            if pool.norm.scale >= 0:
                p.final_scale, p.final_shift = pool.norm.scale * p.K.size, pool.norm.shift * p.K.size
        self.flops = self._flops()
        self._cut_tasks()
        self._place_kept()
        self._place_scratch()
        self._place_packed()
        self._build_blocks()
        self._place_rest()
        self.scratch = self.stage_rows = self.packed = np.empty(0, np.uint8)
        if owner is not None:
            self.packed = owner.packed
        if not dry:
            self.arena = allocate(self.placed["end"], np.uint8)

    # -------------------------------------------------------------------------------------------------- how work is cut
    def _flops(self):
        """Of the forward pass, roughly."""
        rows = sum(
            part.flops for block in self.program.blocks for part in (*block.before, *block.after) if isinstance(part,
                    Linear)
        )  # fmt: skip
        ends = 2.0 * self.p.D * (self.p.features + self.p.classes)
        return float(self.p.R) * (rows + ends + 4.0 * self.p.T * self.p.D * self.p.L)

    cdef _cut_tasks(self):
        """How the work is cut: by shapes alone, all that results depend on."""
        cdef Pass* p = &self.p
        heads = self._heads()
        p.panel = p.K.mr
        panels = ceil_div(p.R, p.panel)
        p.unit_images = ceil_div(UNIT_ROWS, p.T) if p.T <= SHORT else 0
        p.units = ceil_div(p.N, p.unit_images) if p.unit_images else min(panels, ceil_div(p.R, UNIT_ROWS))
        p.image_groups = min(p.N, 64)
        p.bands = max(1, min(p.height // p.patch, p.patches // BAND))
        p.key_parts = max(1, min(ceil_div(ENOUGH_TASKS, p.N * heads), p.T // LEAST_KEYS, MOST_KEY_PARTS))
        p.head_backward_tasks = min(p.N * heads * p.key_parts, MOST_HEAD_TASKS)
        # The more threads, the smaller the blocks, but for what it takes to share them out evenly.
        unit_rows = p.unit_images * p.T if p.unit_images else ceil_div(panels, p.units) * p.panel
        self.block_units = ceil_div(p.units, self._blocks(1, 1))
        p.block_rows = min(p.R, self.block_units * unit_rows)

    cdef Py_ssize_t _heads(self):
        """The heads of a block; those of the widest where blocks differ."""
        return max([block.heads.heads for block in self.program.blocks], default=1)

    cdef Py_ssize_t _blocks(self, int threads, int share):
        """How many blocks of rows: enough, a multiple of `share`, of a size that stays in the cache and is worth
        streaming weights for."""
        cdef Pass* p = &self.p
        per_row = p.K.size * (p.K.lda * (ceil_div(p.D, p.K.kc) + 1) + p.D)
        most = min(MOST_ROWS, max(LEAST_ROWS, BLOCK_BYTES // per_row))
        least = LEAST_ROWS if threads < MANY_THREADS else UNIT_ROWS
        blocks = max(ceil_div(p.R, most), min(TASKS_PER_THREAD * threads, ceil_div(p.R, least)))
        return min(p.units, ceil_div(blocks, share) * share)

    cdef Py_ssize_t _most_query_parts(self):
        return max(1, self.p.T // LEAST_QUERIES)

    cdef _query_parts(self, int threads):
        """In how many parts the forward takes a head's queries: each packs all keys and values, few and large ones keep
        threads waiting."""
        heads, tokens = self.p.N * self._heads(), self.p.T

        def time(parts):
            return ceil_div(heads * parts, threads) * (1 / parts + PACK_HEAD / tokens) + 0.5 / parts

        return min(range(1, self._most_query_parts() + 1), key=time)

    cdef _cut_for(self, int threads):
        """The rest, for so many threads: blocks of token rows, with or without all of a block's stages, parts of heads,
        and tiles of weight gradients; then the schedules of stages."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t i
        if threads == self.cut_threads:
            return
        p.query_parts = self._query_parts(threads)
        p.head_tasks = min(p.N * self._heads() * p.query_parts, MOST_HEAD_TASKS)
        p.row_blocks = self._blocks(threads, max(4, threads))
        assert ceil_div(p.units, p.row_blocks) <= self.block_units  # what a thread's scratch has room for
        rounds = ceil_div(p.row_blocks, threads)
        # Whole blocks where few threads wait at the end.
        p.whole_blocks = p.unit_images > 0 and not p.checkpoint and 8 * rounds * threads <= 9 * p.row_blocks
        p.private_at = self.own
        p.scratch_stride = self.own + (lines(self.stage_width * p.block_rows * p.K.size) if p.whole_blocks else 0)
        self.pack_rooms = max(1, min(p.L, p.L if self.packs_all else 1 + p.whole_blocks))
        # So often a panel of dy is used while it is in the first-level cache.
        p.tile_rows = min(LEAST_ROWS, 8 * LEAST_ROWS // threads)
        areas = [
            sum(part.k * part.n
                * len(part.matrices) for part in (*block.before, *block.after) if isinstance(part, Linear))
            for block in self.program.blocks[:1]
        ]  # fmt: skip
        p.tile_area = max(areas, default=0) // max(32, 2 * threads)
        for i in range(p.L):
            self._place_panels(&p.blocks[i].before, i)
            self._place_panels(&p.blocks[i].after, i)
            derive_hints(p, &p.blocks[i], p.hints)
        self.schedules.clear()
        self.cut_threads = threads

    # -------------------------------------------------------------------------------------------------------------
    # memory
    def _place_kept(self):
        """Where every block keeps what its backward needs: for each block a dict of slots.

        The gradient of a block's weights is written when all later blocks are done. Until then its room is lent to what
        those keep, as much as fits; the embedding's gradient, the last of all, to every block. With checkpointing, or
        without a backward, the blocks take turns in one place.
        """
        cdef Pass* p = &self.p
        size, R = p.K.size, p.R
        self.placed = {"end": 0}
        self.stage_slots, self.stage_width = {}, 0
        self._place("patches", (p.N if p.training else p.image_groups) * p.patches * p.features * size)
        lent = 0
        starts = [self._first_weight(block) * size for block in self.program.blocks] + [self._first_weight(None) * size]
        self.kept = []
        for layer in range(p.L + 1):
            slots = {}
            buffers = {"x": (R, p.D)}
            if p.training and layer < p.L:
                buffers |= self._buffers(self.fused[layer])
            for name, (rows, width) in buffers.items():
                count = rows * width * size
                title = TITLES.get(name, TITLES["stats"] if name.startswith("stats") else name)
                if layer and (not p.training or p.checkpoint and name != "x"):
                    slots[name] = self.kept[0][name]
                elif p.training and lent + count + 2 * LINE <= starts[layer]:
                    slots[name] = (LENT, lent, 0, width)
                    lent += lines(count)
                    self.placed.setdefault(title, 0)
                else:
                    slots[name] = (ARENA, self._place(title, count), 0, width)
            self.kept.append(slots)
        self.lent = lent
        for layer in range(p.L):
            before, heads, after = self.fused[layer]
            slots = self.kept[layer]
            slots["y"] = self.kept[layer + 1]["x"]
            for name, width in ((heads.source, 3 * heads.width), (heads.target, heads.width)):
                self._stage_slot(name, width)
                if not p.training:
                    slots[name] = self.stage_slots[name]
            if not p.training:
                for part in (*before, *after):
                    if getattr(part, "add", ""):
                        slots[part.target] = slots["x"]

    def _first_weight(self, block):
        """The offset of a block's first weight, or, without a block, of the first one behind all blocks."""
        program = self.program
        if block is None:
            norm = program.pool.norm
            return norm.scale if norm is not None and norm.scale >= 0 else program.head.weight
        offsets = [part.scale for part in (*block.before, *block.after) if isinstance(part, Norm)]
        offsets += [m.weight for part in (*block.before, *block.after) if isinstance(part,
                Linear) for m in part.matrices]
        return min(offset for offset in offsets if offset >= 0)

    def _buffers(self, fused):
        """What a block keeps beside its input: name -> (rows, width)."""
        before, heads, after = fused
        R = self.p.R
        buffers, stats = {}, {}
        for part in (*before, heads, *after):
            if isinstance(part, Hidden):
                part = part.first
            if isinstance(part, Norm):
                stats[f"stats {part.name}"] = (2 * R, 1)
            elif isinstance(part, Heads):
                buffers[part.target] = (R, part.width)
                buffers["lse"] = (self.p.N * part.heads * self.p.T, 1)
            elif isinstance(part, Linear) and part.target != "y":
                buffers[part.target] = (R, part.n * len(part.matrices))
        return buffers | stats

    def _stage_slot(self, name, width):
        """Rows between the stages: values in a forward without gradients, their gradients in a backward."""
        cdef Py_ssize_t size = self.p.K.size
        if name not in self.stage_slots:
            at, own = self.stage_width * self.p.R * size, self.stage_width * self.p.block_rows * size
            self.stage_slots[name] = (STAGE, at, own, width)
            self.stage_width += width

    def _place(self, title, size):
        """Room in the arena for `size` bytes; a title may come more than once."""
        offset = self.placed["end"]
        self.placed["end"] = offset + lines(size)
        self.placed[title] = self.placed.get(title, 0) + lines(size)
        return offset

    def _place_scratch(self):
        """A thread's scratch: packed rows, blocks of hidden rows, and the slots that no other task reads."""
        cdef Pass* p = &self.p
        rows, size = p.block_rows, p.K.size
        sizes, widths, shared = {}, {}, {}

        def need(name, count, width=0):
            sizes[name] = max(sizes.get(name, 0), count)
            widths[name] = width or widths.get(name, 0)

        for layer, (before, heads, after) in enumerate(self.fused):
            for part in (*before, *after):
                if isinstance(part, Norm):
                    need(f"d {part.target}", rows * part.width * size, part.width)
                    if part.target != PACKED:
                        need(part.target, rows * part.width * size, part.width)
                elif isinstance(part, Activation):
                    width = part.n * (1 + part.gated)
                    need(part.target, rows * part.n * size, part.n)
                    need(f"d {part.source}", rows * width * size, width)
                    shared[f"d {part.target}"] = f"d {part.source}"  # where the activation's backward works in place
                    if part.source not in self.kept[layer]:
                        need(part.source, rows * width * size, width)
                if isinstance(part, Hidden):
                    need("hidden", rows * p.K.lda * size * (1 + part.activation.gated), p.K.lda)
                    deepest = max(part.first.k, part.second.n)
                elif isinstance(part, Linear):
                    deepest = max(part.k, part.n)
                else:
                    deepest = part.width if isinstance(part, Norm) else 1
                need(PACKED, packed_rows_size(p.K, rows, deepest) * p.K.packed_size)
        offset = 0
        self.scratch_slots = {}
        for name, count in sizes.items():
            self.scratch_slots[name] = (SCRATCH, offset, 0, widths[name])
            offset += lines(count)
        for name, place in shared.items():
            self.scratch_slots[name] = self.scratch_slots[place]
        own = max(offset, head_scratch(p), pool_scratch(p.D) * size)
        dh = max([block.heads.width // block.heads.heads for block in self.program.blocks], default=1)
        own = max(own, p.K.attention_scratch(p.T, dh, 0) * size)
        band = ceil_div(p.height // p.patch, p.bands) * (p.width // p.patch)
        own = max(own, packed_rows_size(p.K, band, p.features) * p.K.packed_size)
        if p.training:
            own = max(own, p.K.attention_scratch(p.T, dh, 1) * size, gradient_scratch(p))
        self.own = lines(own) + LINE

    def _place_packed(self):
        """Where the packed matrices of the embedding, the head and a block lie; a room takes W or its transpose."""
        cdef Pass* p = &self.p
        element = p.K.packed_size
        self.relative = []
        end = lines(panel_size(p.features, p.D) * element)
        p.embed.packed[0] = 0
        p.head.packed[0] = end
        end += lines(max(panel_size(p.D, p.classes), panel_size(p.classes, p.D)) * element)
        self.pack_blocks = end
        self.pack_stride = 0
        for before, _, after in self.fused:
            inside = {}
            end = 0
            for part in linears_of(before) + linears_of(after):
                inside[part.name] = []
                for _ in part.matrices:
                    inside[part.name].append(end)
                    end += lines(max(panel_size(part.k, part.n), panel_size(part.n, part.k)) * element)
                if part.layer_scale >= 0:  # and its bias, times the layer scale
                    inside[part.name].append(end)
                    end += lines(part.n * p.K.size)
            self.relative.append(inside)
            self.pack_stride = max(self.pack_stride, end)

    cdef void _place_panels(self, Section* section, Py_ssize_t layer) noexcept:
        """The packed matrices of a block in the room that it has now."""
        cdef Py_ssize_t room = self.pack_blocks + layer % self.pack_rooms * self.pack_stride
        cdef LinearStep* w
        cdef int i, j
        for i in range(section.linear_count):
            w = &section.linears[i]
            for j in range(w.count):
                w.packed[j] = room + w.packed_in_block[j]
            w.scaled_bias = room + w.scaled_bias_in_block

    def _place_rest(self):
        """The buffers of the arena that do not belong to one block, and the products outside the blocks."""
        cdef Pass* p = &self.p
        size = p.K.size
        place = self._place
        p.patches_at = 0
        if p.training:
            p.dlogits = place("gradient of logits", p.pooled_rows * p.classes * size)
            p.dpooled = place("gradient of pooled", p.pooled_rows * p.D * size)
            p.final_partial = place("final norm gradients by image group", p.image_groups * 2 * p.D * size)
        stats = lines(p.N * p.pool_count * size)
        p.final_mean = place("final norm statistics", 2 * stats)
        p.final_rstd = p.final_mean + stats
        p.pooled = place("pooled", p.pooled_rows * p.D * size)
        p.logits = place("logits", p.pooled_rows * p.classes * size)
        p.losses = place("losses", p.pooled_rows * sizeof(double))
        p.first_x, p.last_x = slot_of(self.kept[0]["x"]), slot_of(self.kept[p.L]["x"])

        p.embed.k, p.embed.n, p.embed.count = p.features, p.D, 1
        self._set_matrix(&p.embed, 0, self.program.embed.matrix)
        p.embed.input = slot_of((ARENA, p.patches_at, 0, p.features))
        p.embed.rows, p.embed.segments, p.embed.input_segment = p.patches, p.N, p.patches * p.features * size
        p.embed.dy, p.embed.dy_ld, p.embed.dy_segment = p.dx + p.prefix * p.D * size, p.D, p.T * p.D * size

        p.head.k, p.head.n, p.head.count = p.D, p.classes, 1
        self._set_matrix(&p.head, 0, self.program.head)
        p.head.input = slot_of((ARENA, p.pooled, 0, p.D))
        p.head.rows, p.head.segments = p.pooled_rows, 1
        p.head.dy, p.head.dy_ld = p.dlogits, p.classes

    cdef _set_matrix(self, LinearStep* linear, int i, matrix):
        """Where one matrix and its bias lie in the flat weights."""
        linear.weight[i] = matrix.weight * self.p.K.size
        linear.bias[i] = matrix.bias * self.p.K.size if matrix.bias >= 0 else -1
        linear.layer_scale = -1

    # --------------------------------------------------------------------------------------------------------------
    # steps
    cdef void* _structs(self, Py_ssize_t count, Py_ssize_t size):
        """Zeroed memory for `count` structs that lives as long as the plan."""
        memory = np.zeros(max(count, 1) * size, np.uint8)
        self.memory.append(memory)
        return address(memory)

    def _build_blocks(self):
        """The steps of every block, from the program's parts; and the buffers that a backward shares among the
        blocks."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t layer, size = p.K.size
        cdef Block* block
        p.blocks = <Block*> self._structs(p.L, sizeof(Block))
        shared = {}
        if p.training:
            p.dx = self._place("gradient of the residual stream", p.R * p.D * size)
            shared["dq parts"] = self._place("gradient of q by part of the keys", (p.key_parts - 1) * p.R * p.D * size)
            norms = [[part for part in (*before, *after) if isinstance(part, Norm)] for before, _, after in self.fused]
            p.partial_stride = max((sum(2 * norm.width for norm in block) for block in norms), default=0) * size
            p.partial = self._place("norm gradients by unit of rows", p.units * p.partial_stride)
        for layer in range(p.L):
            block = &p.blocks[layer]
            before, heads, after = self.fused[layer]
            if p.training and p.key_parts > 1:
                self._build_section(&block.before, layer, (*before, heads), shared, 0)
            else:
                self._build_section(&block.before, layer, before, shared, 0)
            block.heads.heads, block.heads.dh = heads.heads, heads.width // heads.heads
            block.heads.qkv, block.heads.o = self._slot(layer, heads.source), self._slot(layer, heads.target)
            block.heads.d_qkv, block.heads.d_o = self._gradient(layer, heads.source), self._gradient(layer,
                    heads.target)
            if p.training:
                block.heads.lse = slot_of(self.kept[layer]["lse"])
                block.heads.dq_parts = shared["dq parts"]
            norms_before = sum(2 * part.width for part in before if isinstance(part, Norm)) * size
            self._build_section(&block.after, layer, after, shared, norms_before)

    cdef Slot _slot(self, Py_ssize_t layer, name):
        """Where a slot's rows lie."""
        place = self.kept[layer].get(name) or self.scratch_slots.get(name)
        if place is None:
            raise KeyError(f"no step of block {layer} writes the slot {name!r}")
        return slot_of(place)

    cdef Slot _gradient(self, Py_ssize_t layer, name):
        """Where the gradient of a slot's rows lies: the residual stream's in one buffer for all its slots."""
        if not self.p.training:
            return slot_of(NOWHERE)
        if name in self.stage_slots:
            return slot_of(self.stage_slots[name])
        if f"d {name}" in self.scratch_slots:
            return slot_of(self.scratch_slots[f"d {name}"])
        return slot_of((ARENA, self.p.dx, 0, self.p.D))

    def _kept_source(self, layer, parts, name):
        """The slot from which the backward gets the rows `name` again, and the norm to apply to them or None."""
        for part in parts:
            if isinstance(part, Norm) and part.target == name:
                return part.source, part
            if isinstance(part, Activation) and part.target == name:
                return part.source, None  # whose backward leaves the activated rows in their place
        return name, None

    cdef _build_section(self, Section* section, Py_ssize_t layer, parts, shared, Py_ssize_t partial):
        cdef Pass* p = &self.p
        cdef Step* step
        cdef Py_ssize_t size = p.K.size
        products = linears_of(parts)
        norms = [part for part in parts if isinstance(part, Norm)]
        section.steps = <Step*> self._structs(len(parts), sizeof(Step))
        section.linears = <LinearStep*> self._structs(len(products), sizeof(LinearStep))
        section.norms = <NormSum*> self._structs(len(norms), sizeof(NormSum))
        section.count, section.linear_count, section.norm_count = len(parts), 0, 0
        for i, part in enumerate(parts):
            step = &section.steps[i]
            if isinstance(part, Heads):  # dq's parts, in the backward alone
                step.role, step.backward, step.width = QUERY_PARTS, add_query_parts, part.width
                step.d_source, step.partial = self._gradient(layer, part.source), shared["dq parts"]
                continue
            step.source, step.d_source = self._slot(layer, source_of(part)), self._gradient(layer, source_of(part))
            target = part.second.target if isinstance(part, Hidden) else part.target
            step.target, step.d_target = self._slot(layer, target), self._gradient(layer, target)
            step.packed = slot_of(self.scratch_slots[PACKED])
            step.source_is_packed = (target if isinstance(part, Norm) else source_of(part)) == PACKED
            # The residual stream's gradient flows past every step that adds to it.
            step.accumulate = step.d_source.place == ARENA and step.d_source.at == p.dx
            if isinstance(part, Norm):
                self._build_norm(step, layer, part, partial)
                if part.scale >= 0:
                    section.norms[section.norm_count] = NormSum(partial, part.scale * size, part.shift * size,
                                                                part.width)
                    section.norm_count += 1
                partial += 2 * part.width * size
            elif isinstance(part, Linear):
                step.role, step.forward, step.backward = LINEAR, run_linear, linear_backward
                if part.target != "y":  # the block's output: the next block has it
                    step.recompute = run_linear
                step.linear = self._build_linear(section, layer, parts, part, shared)
                if part.add:
                    step.add = self._slot(layer, part.add)
            elif isinstance(part, Activation):
                step.role, step.forward, step.backward = ACTIVATION, activation, activation_backward
                step.kind, step.gated, step.width = ACTIVATIONS[part.kind], part.gated, part.n
                step.d_target = step.d_source
            else:
                step.role, step.forward, step.recompute, step.backward = HIDDEN, hidden, hidden_again, hidden_backward
                step.kind, step.gated = ACTIVATIONS[part.activation.kind], part.activation.gated
                step.linear = self._build_linear(section, layer, parts, part.first, shared)
                step.second = self._build_linear(section, layer, (part.activation, *parts), part.second, shared)
                step.d_hidden = slot_of(self.scratch_slots["hidden"])
                step.hidden = slot_of(self.kept[layer].get(part.first.target, self.scratch_slots["hidden"]))
                if part.second.add:
                    step.add = self._slot(layer, part.second.add)

    cdef _build_norm(self, Step* step, Py_ssize_t layer, part, Py_ssize_t partial):
        cdef Py_ssize_t size = self.p.K.size
        step.role, step.forward, step.recompute, step.backward = NORM, run_norm, run_norm, norm_backward
        step.width, step.eps, step.partial = part.width, part.eps, partial
        step.scale = part.scale * size if part.scale >= 0 else -1
        step.shift = part.shift * size if part.shift >= 0 else -1
        if self.p.training:
            step.mean = slot_of(self.kept[layer][f"stats {part.name}"])
            step.rstd = step.mean
            step.rstd.at += self.p.R * size

    cdef LinearStep* _build_linear(self, Section* section, Py_ssize_t layer, parts, part, shared) except NULL:
        cdef Pass* p = &self.p
        cdef LinearStep* linear = &section.linears[section.linear_count]
        cdef Py_ssize_t size = p.K.size
        cdef int i
        section.linear_count += 1
        linear.k, linear.n, linear.count = part.k, part.n, len(part.matrices)
        inside = self.relative[layer][part.name]
        for i in range(linear.count):
            self._set_matrix(linear, i, part.matrices[i])
            linear.packed_in_block[i] = inside[i]
        if part.layer_scale >= 0:
            linear.layer_scale, linear.scaled_bias_in_block = part.layer_scale * size, inside[linear.count]
        linear.dy, linear.rows, linear.segments = -1, p.R, 1
        if not p.training:
            return linear
        source, norm = self._kept_source(layer, parts, part.source)
        if part.source == PACKED:
            source, norm = self._kept_source(layer, parts, PACKED)
        linear.input = self._slot(layer, source)
        if norm is not None:
            linear.norm.given = 1
            linear.norm.mean = slot_of(self.kept[layer][f"stats {norm.name}"])
            linear.norm.rstd = linear.norm.mean
            linear.norm.rstd.at += p.R * size
            linear.norm.scale = norm.scale * size if norm.scale >= 0 else -1
            linear.norm.shift = norm.shift * size if norm.shift >= 0 else -1
        key = f"panels {part.name}"
        if key not in shared:  # one block's at a time
            title = f"packed gradient of {part.name}"
            room = lines(panel_size(p.R, part.n) * p.K.packed_size)
            shared[key] = [self._place(title, room) for _ in part.matrices]
            if part.layer_scale >= 0:
                parts_of_sum = ceil_div(part.k, p.panel)
                title = f"layer scale gradient of {part.name} by panel of rows"
                shared[f"scale {part.name}"] = self._place(title, parts_of_sum * part.n * size)
        for i in range(linear.count):
            linear.panels[i] = shared[key][i]
        if part.layer_scale >= 0:
            linear.scale_sums = shared[f"scale {part.name}"]
        return linear

    # --------------------------------------------------------------------------------------------------------------
    # calls
    def _packed_size(self):
        return self.pack_blocks + (self.pack_rooms * self.pack_stride if self.p.L else 0)

    def _stage_size(self):
        return 0 if self.p.whole_blocks or not self.p.L else self.stage_width * self.p.R * self.p.K.size

    @property
    def buffers(self):
        """The bytes of every buffer, as a call with the threads there are now needs them."""
        self._cut_for(self.threads())
        arena = {title: size for title, size in self.placed.items() if title != "end"}
        return arena | {
            "between the stages of a block": self._stage_size(), "packed weights": self._packed_size(),
            "scratch of a thread": self.p.scratch_stride,
        }  # fmt: skip

    cpdef int threads(self):
        """Threads that a call uses now: no more than its widest stage has tasks, and no more than its work is worth."""
        cdef Pass* p = &self.p
        cdef double flops = 3 * self.flops if p.training else self.flops
        cdef Py_ssize_t worth = 1 + int(flops / THREAD_FLOPS)
        return team_size(min(worth, max(p.units, p.N * self._heads() * self._most_query_parts(), p.image_groups, 4)))

    cdef Schedule _schedule(self, kind):
        """The stages of one kind of pass, made at its first call with so many threads."""
        cdef Schedule schedule = self.schedules.get(kind)
        if schedule is None:
            schedule = Schedule()
            schedule.p = &self.p
            if kind == "embed":
                schedule.embed()
            elif kind == "freeze":
                schedule.freeze()
            elif kind == "blocks":
                if not self.p.frozen:
                    schedule.pack_first_block()
                schedule.blocks()
            else:
                schedule.forward()
                if kind == "training":
                    schedule.backward()
            self.schedules[kind] = schedule
        return schedule

    def _run(self, kind, weights):
        """Run a kind of pass on the team. Arrays were checked by the caller: C-contiguous, of self.dtype."""
        cdef Job job
        cdef int size = self.threads()
        cdef Schedule schedule
        self._cut_for(size)
        if self.scratch.size < size * self.p.scratch_stride:
            self.scratch = allocate(size * self.p.scratch_stride, np.uint8)
        if self.stage_rows.size < self._stage_size():
            self.stage_rows = allocate(self._stage_size(), np.uint8)
        if self.packed.size < self._packed_size():
            self.packed = allocate(self._packed_size(), np.uint8)
        self.p.weights = <char*> address(weights)
        self.p.arena = <char*> address(self.arena)
        self.p.stage_rows = <char*> address(self.stage_rows)
        self.p.packed = <char*> address(self.packed)
        self.p.scratch = <char*> address(self.scratch)
        schedule = self._schedule(kind)
        job.p, job.stages, job.count = &self.p, schedule.stages, schedule.count
        with nogil:
            run_team(size, work, &job)

    def _view(self, Py_ssize_t offset, *shape):
        count = self.dtype.itemsize
        for length in shape:
            count *= length
        return self.arena[offset : offset + count].view(self.dtype).reshape(shape)

    def freeze(self, weights):
        """Pack all weights into this plan's own room."""
        self.p.frozen = 0  # count the packing tasks
        try:
            self._run("freeze", weights)
        finally:
            self.p.frozen = 1
            self.schedules.clear()

    def forward(self, weights, images):
        """Run the forward; returns views of the logits and of the pooled features, see `logits` and `pooled`."""
        self.p.images = <char*> address(images)
        self._run("forward", weights)
        return self.logits(), self.pooled()

    def logits(self):
        """A view of the logits of the last pass: (N, classes), or (N, T, classes) where every token has its own."""
        return self._view(self.p.logits, *self._rows(), self.p.classes)

    def pooled(self):
        """A view of what the head saw: (N, D), or (N, T, D)."""
        return self._view(self.p.pooled, *self._rows(), self.p.D)

    def _rows(self):
        if self.p.pool_each:
            return (self.p.N, self.p.pool_count)
        return (self.p.N,)

    def embed(self, weights, images):
        """Run the embedding; returns a view of the tokens (N, T, D)."""
        self.p.images = <char*> address(images)
        self._run("embed", weights)
        return self._view(self.p.first_x.at, self.p.N, self.p.T, self.p.D)

    def blocks(self, weights, tokens):
        """Run the blocks on tokens (N, T, D); returns a view of their output (N, T, D)."""
        view = self._view(self.p.first_x.at, self.p.N, self.p.T, self.p.D)
        view[...] = tokens
        self._run("blocks", weights)
        return view

    def run_training(self, weights, images, const long long[::1] labels, double smoothing, grad):
        """Forward and backward; fills grad and returns the mean loss."""
        cdef Py_ssize_t row
        cdef double loss = 0
        cdef double* losses
        self.p.images = <char*> address(images)
        self.p.labels = &labels[0]
        self.p.smoothing = smoothing
        self.p.grad = <char*> address(grad)
        self.p.lent = <char*> (<size_t> self.p.grad + LINE_MASK & ~<size_t> LINE_MASK)
        self._run("training", weights)
        losses = <double*> (self.p.arena + self.p.losses)
        for row in range(self.p.pooled_rows):
            loss += losses[row]
        return loss / self.p.pooled_rows

    # --------------------------------------------------------------------------------------------------- what others
    # look at
    @property
    def idle(self):
        """Whether passes only go through their stages, take every task and do none.

        `cvit bench --overhead` times that.
        """
        return bool(self.p.idle)

    @idle.setter
    def idle(self, bint value):
        self.p.idle = value

    @property
    def whole_blocks(self):
        """Whether a task takes a few short images through a whole block, as tasks are cut for the threads that a call
        uses now."""
        self._cut_for(self.threads())
        return bool(self.p.whole_blocks)

    def stages(self, kind=None):
        """The stages of a pass ("forward", "training", …): of each the kinds of its tasks, as (name, block or -1,
        tasks)."""
        self._cut_for(self.threads())
        return self._schedule(kind or ("training" if self.p.training else "forward")).listing()


cdef enum:
    LINE_MASK = 63


cdef list linears_of(parts):
    """The products of a section, in order."""
    products = []
    for part in parts:
        if isinstance(part, Hidden):
            products += [part.first, part.second]
        elif isinstance(part, Linear):
            products.append(part)
    return products


cdef void* address(array) except NULL:
    """Where a C-contiguous array's data lie, without asking whether they may be written."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void* start = view.buf
    PyBuffer_Release(&view)
    return start
