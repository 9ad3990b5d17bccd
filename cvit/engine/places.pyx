"""Where everything of a pass lies in memory, and how its work is cut into tasks.

All memory follows from the program. The slots of a block are what its steps name: a slot that the backward reads is
kept for each block, one between the rows stages and the heads lies with the stages, all others in the scratch. Every
product has room for its packed matrix and, for its weight gradient, for the packed dy.

Steps that run one after the other on the same rows are a group: "blocks", "before" and "after" them, the "query" of
attention pooling, and the "end". Slots outside the blocks lie in the arena.

A gradient's room follows from the slots that must share one: what a step adds to its result has the result's gradient,
and an activation's backward works in place. The residual stream's gradient is one such room for all blocks.
"""

import numpy as np

from .kernels cimport Kernels, ceil_div, packed_rows_size, panel_size
from .steps.loss cimport head_scratch
from .steps.pool cimport pool_scratch
from .steps.weights cimport gradient_scratch
from .task cimport ARENA, GRADIENT, LENT, SCRATCH, STAGE, WEIGHTS, Linear as LinearStep, Pass, Section, Slot
from .team cimport F32, F64, selected
from .program import (
    PACKED, Activation, AttentionPool, HeadNorm, Heads, Hidden, Linear, Norm, Rotate, added_by, fuse, source_of,
    target_of,
)  # fmt: skip
from .team import get_isa

# What the buffers that a block keeps are called in a memory report.
TITLES = {
    "x": "block inputs", "qkv": "q, k, v", "qkv0": "q, k, v before their norm", "o": "attention outputs",
    "lse": "log-sum-exp", "mid": "after attention", "u": "hidden rows", "stats": "norm statistics",
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
LEAST_QUERIES = 64  # of a part of a head's forward
LEAST_KEYS, MOST_KEY_PARTS = 192, 8  # of a head's backward: each part packs all queries, and has a dq of its own
MOST_HEAD_TASKS = 128  # small heads share a task
BAND = 48  # patches, at least, that are embedded at a time


cdef lines(size):
    """Whole cache lines of at least `size` bytes."""
    return -(-size // LINE) * LINE


cdef Slot slot_of(tuple place, Py_ssize_t offset=0) noexcept:
    cdef Slot slot
    slot.place, slot.at, slot.own, slot.ld = place
    slot.at += offset
    slot.own += offset
    return slot


cdef class Places:
    """The dimensions, the cutting and the memory of a plan."""

    # ---------------------------------------------------------------------------------------------------- dimensions
    def _read_program(self):
        """The program's numbers, as a pass reads them."""
        cdef Pass* p = &self.p
        cdef int i
        program, embed, pool = self.program, self.program.embed, self.program.pool
        size = p.K.size
        p.N, p.T, p.D, p.L = self.batch, program.tokens, program.width, len(program.blocks)
        p.R, p.classes, p.heads = p.N * p.T, program.classes, len(program.heads)
        p.channels, (p.height, p.width) = embed.channels, embed.image_size
        p.patch_height, p.patch_width = embed.patch_size
        p.patches = (p.height // p.patch_height) * (p.width // p.patch_width)
        p.patch_values = p.channels * p.patch_height * p.patch_width
        p.prefix, p.positions_of_prefix = len(embed.prefix), embed.positions_of_prefix
        p.prefix_tokens = embed.prefix[0] * size if embed.prefix else -1
        p.positions = embed.positions * size if embed.positions >= 0 else -1
        p.patch_norm.given, p.patch_norm.scale, p.patch_norm.shift = embed.norm is not None, -1, -1
        if embed.norm is not None:
            p.patch_norm.rms, p.patch_norm.eps = embed.norm.rms, embed.norm.eps
            p.patch_norm.scale = bytes_of(embed.norm.scale, size)
            p.patch_norm.shift = bytes_of(embed.norm.shift, size)
        p.pool.attention = isinstance(pool, AttentionPool) and self.mode != "tokens"
        p.pool.each, ranges = False, ()
        if p.pool.attention:
            p.pool.heads, p.pool.dh, p.pool.first[0] = pool.heads, pool.width // pool.heads, pool.first
        elif self.mode == "tokens":
            p.pool.each, ranges = True, ((0, p.T),)
        else:
            p.pool.each, ranges = pool.each, pool.ranges
        p.pool.ranges = len(ranges)
        stats = 0
        for i, (first, count) in enumerate(ranges):
            p.pool.first[i], p.pool.count[i], p.pool.stats[i] = first, count, stats
            stats += p.N * count
        p.pool.rows = p.N * (ranges[0][1] if p.pool.each else 1)
        p.pool.width = p.D * max(1, len(ranges))
        p.pool.norm = program.norm is not None and not p.pool.attention
        p.pool.scale = p.pool.shift = -1
        if p.pool.norm:
            p.pool.rms, p.pool.eps = program.norm.rms, program.norm.eps
            p.pool.scale, p.pool.shift = bytes_of(program.norm.scale, size), bytes_of(program.norm.shift, size)
        self.pool_stats = stats
        rows = sum(
            part.flops
            for block in program.blocks
            for part in (*block.before, *block.after)
            if isinstance(part, Linear)
        )
        rows += sum(part.flops for part in (*program.before, *program.after) if isinstance(part, Linear))
        ends = 2.0 * p.D * (p.patch_values + p.classes)
        self.flops = float(p.R) * (rows + ends + 4.0 * p.T * p.D * p.L)

    # --------------------------------------------------------------------------------------------- how work is cut
    cdef _cut_tasks(self):
        """How the work is cut: by shapes alone, all that results depend on."""
        cdef Pass* p = &self.p
        heads = self._heads()
        p.panel = p.K.mr
        panels = ceil_div(p.R, p.panel)
        unit_images = ceil_div(UNIT_ROWS, p.T) if p.T <= SHORT else 0
        p.token_rows.rows, p.token_rows.unit_rows = p.R, unit_images * p.T
        p.token_rows.units = ceil_div(p.N, unit_images) if unit_images else min(panels, ceil_div(p.R, UNIT_ROWS))
        p.image_rows.rows, p.image_rows.unit_rows = p.N, 0
        p.image_rows.units = p.image_rows.blocks = ceil_div(p.N, p.panel)
        p.one_row.rows = p.one_row.units = p.one_row.blocks = 1
        p.one_row.unit_rows = 0
        p.image_groups = min(p.N, 64)
        p.bands = max(1, min(p.height // p.patch_height, p.patches // BAND))
        p.key_parts = max(1, min(ceil_div(ENOUGH_TASKS, p.N * heads), p.T // LEAST_KEYS, MOST_KEY_PARTS))
        p.head_backward_tasks = min(p.N * heads * p.key_parts, MOST_HEAD_TASKS)
        # The more threads, the smaller the blocks, but for what it takes to share them out evenly.
        unit_rows = p.token_rows.unit_rows or ceil_div(panels, p.token_rows.units) * p.panel
        self.block_units = ceil_div(p.token_rows.units, self._blocks(1, 1))
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
        return min(p.token_rows.units, ceil_div(blocks, share) * share)

    cdef Py_ssize_t _most_query_parts(self):
        return max(1, self.p.T // LEAST_QUERIES)

    # -------------------------------------------------------------------------------------- groups of rows and their slots
    def _sections(self, group, layer=0):
        """The steps of a group (of one block) in order, section by section, as a pass runs them."""
        if group == "blocks":
            before, heads, after = self.fused[layer]
            return before, (heads,), after
        return (self.outside[group],)

    def _rows(self, group):
        return {"end": self.p.pool.rows, "query": 1}.get(group, self.p.R)

    def _widths(self, sections):
        """name -> width of every slot that these steps write."""
        widths = {}

        def wide(name, width):
            widths[name] = max(widths.get(name, 0), width)

        for part in [part for section in sections for part in section]:
            if isinstance(part, Hidden):
                for matrix in part.first.matrices if self.p.training else ():  # kept whole for the backward alone
                    wide(part.first.target, matrix.column + part.first.n)
                wide(part.second.target, part.second.n)
            elif isinstance(part, Linear):
                for matrix in part.matrices:
                    wide(part.target, matrix.column + part.n)
            elif isinstance(part, HeadNorm):
                wide(part.target, 3 * part.heads * part.width)
            elif isinstance(part, Activation):
                wide(part.target, part.n)
            elif isinstance(part, (Norm, Heads)) and part.target != PACKED:
                wide(part.target, part.width)
        return widths

    def _buffers(self, sections, rows):
        """What these steps keep for their backward: name -> (rows, width)."""
        parts = [part for section in sections for part in section]
        widths = self._widths(sections)
        normalised = {part.source for part in parts if isinstance(part, Norm)}
        buffers, stats = {}, {}
        for part in parts:
            if isinstance(part, Hidden):
                buffers[part.first.target] = (rows, widths[part.first.target])
                if part.second.target != "y":
                    buffers[part.second.target] = (rows, part.second.n)
                continue
            keeps = not isinstance(part, (Norm, Activation)) or added_by(part) or part.target in normalised
            if keeps and part.target != "y":
                buffers[part.target] = (rows, widths.get(part.target, 0))
            if isinstance(part, Norm):
                stats[f"stats {part.name}"] = (2 * rows, 1)
            elif isinstance(part, HeadNorm):
                stats[f"stats {part.name}"] = (2 * rows, 2 * part.heads)
            elif isinstance(part, Heads):
                buffers["lse"] = (self.p.N * part.heads * self.p.T, 1)
        return buffers | stats

    # -------------------------------------------------------------------------------------------------------- memory
    def _place(self, title, size):
        """Room in the arena for `size` bytes; a title may come more than once."""
        offset = self.placed["end"]
        self.placed["end"] = offset + lines(size)
        self.placed[title] = self.placed.get(title, 0) + lines(size)
        return offset

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
        p.patches_at = self._place(
            "patches", (p.N if p.training else p.image_groups) * p.patches * p.patch_values * size
        )
        lent = 0
        starts = [first_weight(block) * size for block in self.program.blocks] + [self.program.behind * size]
        self.kept = []
        for layer in range(p.L + 1):
            slots = {}
            buffers = {"x": (R, p.D)}
            if p.training and layer < p.L:
                buffers |= self._buffers(self._sections("blocks", layer), R)
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
            slots = self.kept[layer]
            slots["y"] = self.kept[layer + 1]["x"]
            for name, width in self._between(layer):
                self._stage_slot(name, width)
                if not p.training:
                    slots[name] = self.stage_slots[name]
            if not p.training:  # the residual stream has one place
                for section in self._sections("blocks", layer):
                    for part in section:
                        if added_by(part):
                            slots[target_of(part)] = slots["x"]

    def _between(self, layer):
        """(name, width) of the slots that one section of a block writes and a later one reads."""
        before, heads, after = self.fused[layer]
        widths = self._widths((before, (heads,)))
        read = {source_of(part) for part in after} | {heads.source}
        return [(name, width) for name, width in widths.items() if name in read]

    def _stage_slot(self, name, width):
        """Rows between the stages: values in a forward without gradients, their gradients in a backward."""
        cdef Py_ssize_t size = self.p.K.size
        if name not in self.stage_slots:
            at, own = self.stage_width * self.p.R * size, self.stage_width * self.p.block_rows * size
            self.stage_slots[name] = (STAGE, at, own, width)
            self.stage_width += width

    def _place_outside(self):
        """The slots outside the blocks: all in the arena, but the residual stream and the learned query, a weight."""
        cdef Pass* p = &self.p
        size, program = p.K.size, self.program
        x0, x = self.kept[0]["x"], self.kept[p.L]["x"]
        slots = {"before": {"x": x0, "x0": x0}, "after": {"x": x}, "query": {}, "end": {}}
        if program.before:
            if p.training:
                slots["before"]["x0"] = (ARENA, self._place("tokens before their norm", p.R * p.D * size), 0, p.D)
            slots["before"] |= self._stats("before")
        if p.training and p.patch_norm.given:
            p.patch_rows = slot_of((ARENA, self._place("patches before their norm", p.N * p.patches * p.D * size), 0,
                                    p.D))
            room = lines(p.N * p.patches * size)
            p.patch_norm.mean = self._place("patch norm statistics", 2 * room)
            p.patch_norm.rstd = p.patch_norm.mean + room
            p.patch_norm.partial = self._place("patch norm gradients by image group",
                                               p.image_groups * 2 * p.D * size)
        p.pooled = self._place("pooled", p.pool.rows * p.pool.width * size)
        slots["end"]["pooled"] = (ARENA, p.pooled, 0, p.pool.width)
        if p.pool.attention:
            slots["query"]["latent"] = (WEIGHTS, program.latent * size, 0, p.D)
        if self.mode != "tokens":
            for group in ("after", "query", "end"):
                rows = self._rows(group)
                kept = {name: (rows, width) for name, width in self._widths(self._sections(group)).items()}
                slots[group] |= self._stats(group)
                for name, (count, width) in kept.items():
                    if not (group == "after" and name == "z"):
                        title = {"kv": "keys and values of the pooling"}.get(name, "rows outside the blocks")
                        slots[group][name] = (ARENA, self._place(title, count * width * size), 0, width)
        self.in_scratch = {}
        self.outside_slots = slots

    def _stats(self, group):
        """Room for the norms' statistics of a group."""
        cdef Py_ssize_t size = self.p.K.size
        stats = {}
        if self.p.training:
            for name, (rows, width) in self._buffers(self._sections(group), self._rows(group)).items():
                if name.startswith("stats"):
                    stats[name] = (ARENA, self._place(TITLES["stats"], rows * width * size), 0, width)
        return stats

    # ------------------------------------------------------------------------------------------------------- scratch
    def _groups(self):
        """The groups that this plan runs, each with the numbers of its blocks."""
        groups = {"blocks": range(self.p.L), "before": range(1)}
        if self.mode != "tokens":
            groups |= {"after": range(1), "query": range(1), "end": range(1)}
        return groups

    def _place_scratch(self):
        """A thread's scratch: packed rows, blocks of hidden rows, and the slots that no other task reads."""
        cdef Pass* p = &self.p
        size = p.K.size
        own = max(self._scratch_of(group, layers) for group, layers in self._groups().items())
        own = max(own, head_scratch(p) if p.heads else 0, pool_scratch(p) * size)
        dh = max([block.heads.width // block.heads.heads for block in self.program.blocks], default=1)
        own = max(own, p.K.attention_scratch(p.T, dh, 0) * size)
        band = ceil_div(p.height // p.patch_height, p.bands) * (p.width // p.patch_width)
        own = max(own, packed_rows_size(p.K, band, p.patch_values) * p.K.packed_size)
        if p.training:
            own = max(own, p.K.attention_scratch(p.T, dh, 1) * size, gradient_scratch(p))
        self.own = lines(own) + LINE

    def _scratch_of(self, group, layers):
        """Place the scratch slots of a group; returns the bytes that it takes."""
        cdef Pass* p = &self.p
        rows, size = {"end": p.panel, "query": 1}.get(group, p.block_rows), p.K.size
        sizes, widths = {}, {}

        def need(name, count, width=0):
            sizes[name] = max(sizes.get(name, 0), count)
            widths[name] = max(width, widths.get(name, 0))

        for layer in layers:
            sections = self._sections(group, layer)
            values = self.kept[layer] if group == "blocks" else self.outside_slots[group]
            slots = self._widths(sections)
            for name, width in slots.items():
                if name not in values:
                    need(name, rows * width * size, width)
            if p.training:
                slots[PACKED] = max([part.width for part in parts_of(sections) if isinstance(part, Norm)], default=0)
                roots = classes_of(sections)
                for name, width in slots.items():
                    root = roots.get(name, name)
                    if self._fixed_gradient(group, sections, root) is None:
                        need(f"d {root}", rows * width * size, width)
            for part in parts_of(sections):
                if isinstance(part, Hidden):
                    need("hidden", rows * p.K.lda * size * (1 + part.activation.gated), p.K.lda)
                    deepest = max(part.first.k, part.second.n)
                elif isinstance(part, Linear):
                    deepest = max(part.k, part.n)
                else:
                    deepest = part.width if isinstance(part, Norm) else 1
                need(PACKED, packed_rows_size(p.K, rows, deepest) * p.K.packed_size)
        offset = 0
        slots = {}
        for name, count in sizes.items():
            slots[name] = (SCRATCH, offset, 0, widths[name])
            offset += lines(count)
        self.in_scratch[group] = slots
        return offset

    def _fixed_gradient(self, group, sections, root):
        """Where the gradient of a class of slots lies if that is not the scratch, else None."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t size = p.K.size
        roots = classes_of(sections)
        fixed = self.gradients[group]
        for name in {*roots, *fixed, root}:
            if roots.get(name, name) == root:
                if name in fixed:
                    return fixed[name]
                if group == "blocks" and name in self.stage_slots:
                    return self.stage_slots[name]
        return None

    def _place_gradients(self):
        """The gradients of slots that more than one task reads or writes."""
        cdef Pass* p = &self.p
        size, program = p.K.size, self.program
        self.gradients = {group: {} for group in ("blocks", "before", "after", "query", "end")}
        if not p.training:
            return
        p.dx = self._place("gradient of the residual stream", p.R * p.D * size)
        residual = (ARENA, p.dx, 0, p.D)
        self.gradients["blocks"] = {"x": residual, "y": residual}
        self.gradients["before"] = {"x": residual, "x0": residual}
        end = {"pooled": self._gradient_slot("pooled", p.pool.rows, p.pool.width)}
        p.dpooled = end["pooled"][1]
        if program.features != "pooled":
            end[program.features] = self._gradient_slot("features", p.pool.rows, program.feature_width)
        self.gradients["end"] = end
        if p.pool.attention:
            self.gradients["after"] = {
                "x": residual, "kv": self._gradient_slot("keys and values of the pooling", p.R, 2 * p.D),
            }  # fmt: skip
            self.gradients["query"] = {"latent": (GRADIENT, program.latent * size, 0, p.D)}
            if "query" in self.outside_slots["query"]:
                self.gradients["query"]["query"] = self._gradient_slot("query", 1, p.D)
            p.pool.dq_parts = self._place("gradient of the query by image", p.N * p.D * size)

    def _gradient_slot(self, title, rows, width):
        return (ARENA, self._place(f"gradient of {title}", rows * width * self.p.K.size), 0, width)

    cdef Slot _slot(self, group, layer, name, Py_ssize_t column=0):
        """Where a slot's rows lie, from a column on."""
        values = self.kept[layer] if group == "blocks" else self.outside_slots[group]
        place = values.get(name) or self.in_scratch[group].get(name)
        if place is None:
            raise KeyError(f"no step writes the slot {name!r}")
        return slot_of(place, column * self.p.K.size)

    cdef Slot _gradient(self, group, name, Py_ssize_t column=0):
        """Where the gradient of a slot's rows lies; a group's classes are those of any of its blocks."""
        cdef Py_ssize_t size = self.p.K.size
        if not self.p.training:
            return slot_of((SCRATCH, 0, 0, 0))
        sections = self._sections(group)
        root = classes_of(sections).get(name, name)
        place = self._fixed_gradient(group, sections, root) or self.in_scratch[group][f"d {root}"]
        return slot_of(place, column * size)

    # ------------------------------------------------------------------------------------------------ packed weights
    def _place_packed(self):
        """Where the packed matrices outside the blocks and of a block lie; a room takes W or its transpose."""
        cdef Pass* p = &self.p
        cdef int i
        element = p.K.packed_size
        end = 0

        def room(k, n):
            nonlocal end
            at, end = end, end + lines(max(panel_size(k, n), panel_size(n, k)) * element)
            return at

        self.relative, self.fixed = [], {}
        p.embed.packed[0] = 0
        end = lines(panel_size(p.patch_values, p.D) * element)
        for i, head in enumerate(self.program.heads):
            p.head[i].packed[0] = room(head.k, head.n)
        for group in ("before", "query", "after", "end"):
            for part in linears_of(self.outside[group]):
                self.fixed[part.name] = [room(part.k, part.n) for _ in part.matrices]
        self.pack_blocks = end
        self.pack_stride = 0
        for before, _, after in self.fused:
            inside = {}
            end = 0
            for part in linears_of(before) + linears_of(after):
                inside[part.name] = [room(part.k, part.n) for _ in part.matrices]
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


# ------------------------------------------------------------------------------------------------ reading the program
def bytes_of(offset, size):
    """An offset in bytes; -1 stays, a weight that the model lacks."""
    return offset * size if offset >= 0 else -1


def parts_of(sections):
    return [part for section in sections for part in section]


def linears_of(parts):
    """The products of a section, in order."""
    products = []
    for part in parts:
        if isinstance(part, Hidden):
            products += [part.first, part.second]
        elif isinstance(part, Linear):
            products.append(part)
    return products


def first_weight(block):
    """The offset of a block's first weight."""
    steps = (*block.before, *block.after)
    offsets = [part.scale for part in steps if isinstance(part, Norm)]
    offsets += [matrix.weight for part in steps if isinstance(part, Linear) for matrix in part.matrices]
    return min(offset for offset in offsets if offset >= 0)


def classes_of(sections):
    """Slots whose gradient is one: name -> the name that stands for its class."""
    roots = {}

    def root(name):
        while roots.setdefault(name, name) != name:
            name = roots[name]
        return name

    for part in parts_of(sections):
        if isinstance(part, Heads):
            roots[root(part.source)], roots[root(part.target)] = root(part.source), root(part.target)
            continue
        if added_by(part):
            roots[root(target_of(part))] = root(added_by(part))
        elif isinstance(part, Activation):
            roots[root(part.target)] = root(part.source)
    if "x" in roots and "y" in roots:
        roots[root("y")] = root("x")
    return {name: root(name) for name in roots}
