"""Where everything of a pass lies in memory.

All memory follows from the program. The slots of a block are what its steps name: a slot that the backward reads is
kept for each block, one between the rows stages and the heads lies with the stages, all others in the scratch. Every
product has room for its packed matrix and, for its weight gradient, for the packed dy.

Steps that run one after the other on the same rows are a group: "blocks", "before" and "after" them, the "query" of
attention pooling, and the "end". Slots outside the blocks lie in the arena.

A gradient's room follows from the slots that must share one: what a step adds to its result has the result's gradient,
and an activation's backward works in place. The residual stream's gradient is one such room for all blocks.
"""

from .cutting cimport Cutting
from .kernels cimport hidden_bytes, panels_bytes, rows_bytes
from .steps.embed cimport embed_scratch
from .steps.loss cimport head_scratch
from .steps.pool cimport pool_scratch
from .steps.weights cimport gradient_scratch
from .task cimport ARENA, GRADIENT, LENT, SCRATCH, STAGE, WEIGHTS, Linear as LinearStep, Pass, Section, Slot
from .program import PACKED, Hidden, Linear, Norm

# What the buffers that a block keeps are called in a memory report.
TITLES = {
    "x": "block inputs", "qkv": "q, k, v", "qkv0": "q, k, v before their norm", "o": "attention outputs",
    "lse": "log-sum-exp", "mid": "after attention", "u": "hidden rows", "stats": "norm statistics",
}  # fmt: skip

# A block of hidden columns in the scratch: packed behind the activation, and before it, where that is not kept.
HIDDEN, BEFORE = "hidden", "hidden before the activation"

LINE = 64  # bytes: every buffer begins with a cache line


cdef lines(size):
    """Whole cache lines of at least `size` bytes."""
    return -(-size // LINE) * LINE


cdef Slot slot_of(tuple place, Py_ssize_t offset=0) noexcept:
    cdef Slot slot
    slot.place, slot.at, slot.own, slot.ld, slot.half = place
    slot.at += offset
    slot.own += offset
    return slot


cdef class Places(Cutting):
    """The memory of a plan."""

    # ------------------------------------------------------------------------------------------------ groups and slots
    def _group(self, group, layer=0):
        """The steps of a group (of one block)."""
        return self.outline.blocks[layer] if group == "blocks" else self.outline.outside[group]

    def _rows(self, group):
        return {"end": self.p.pool.rows, "query": 1}.get(group, self.p.R)

    cdef int _half(self, group, name) except -1:
        """The shift of a slot's elements, see half_slots. Gradients and what lies outside the blocks are reals."""
        return self.p.K.half and group == "blocks" and name in self.outline.half

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
        those keep, as much as fits; the embedding's gradient, the last of all, to every block. What lies before the
        weights that are trained is never lent. With checkpointing, or without a backward, the blocks take turns in one
        place.
        """
        cdef Pass* p = &self.p
        size, R = p.K.size, p.R
        self.placed = {"end": 0}
        self.stage_slots, self.stage_bytes, self.stage_own = {}, 0, 0
        lent = 0
        starts = [offset * size for offset in (*self.outline.first_weights, self.program.behind)]
        p.trained = starts[0] if p.given else 0
        self.kept = []
        for layer in range(p.L + 1):
            slots = {}
            buffers = {"x": (1, p.D)}
            if p.training and layer < p.L:
                buffers |= self.outline.blocks[layer].kept | self.outline.blocks[layer].stats
            for name, (times, width) in buffers.items():
                half = self._half("blocks", name)
                count = times * R * width * (size >> half)
                shared = layer == p.L and self._shares_last()  # with the gradient of the residual stream
                title = TITLES.get(name, TITLES["stats"] if name.startswith("stats") else name)
                if layer and (not p.training or p.checkpoint and name != "x"):
                    slots[name] = self.kept[0][name]
                elif p.training and not shared and p.trained + lent + count + 2 * LINE <= starts[layer]:
                    slots[name] = (LENT, lent, 0, width, half)
                    lent += lines(count)
                    self.placed.setdefault(title, 0)
                else:
                    slots[name] = (ARENA, self._place(title, count), 0, width, half)
            self.kept.append(slots)
        self.lent = lent
        for layer in range(p.L):
            slots = self.kept[layer]
            slots["y"] = self.kept[layer + 1]["x"]
            block = self.outline.blocks[layer]
            for source, target in block.dropped:  # in place
                slots[source] = slots[target]
            for name, width in block.between[p.training]:
                self._stage_slot(name, width, 0 if p.training else self._half("blocks", name))
                if not p.training:
                    slots[name] = self.stage_slots[name]
            if not p.training:  # the residual stream has one place
                for target in block.streams:
                    slots[target] = slots["x"]

    def _stage_slot(self, name, width, half):
        """Rows between the stages: values in a forward without gradients, their gradients in a backward."""
        cdef Py_ssize_t row = width * (self.p.K.size >> half)
        if name not in self.stage_slots:
            self.stage_slots[name] = (STAGE, self.stage_bytes, self.stage_own, width, half)
            self.stage_bytes += lines(self.p.R * row)
            self.stage_own += lines(self.p.block_rows * row)

    def _place_outside(self):
        """The slots outside the blocks: all in the arena, but the residual stream and the learned query, a weight."""
        cdef Pass* p = &self.p
        size, program = p.K.size, self.program
        x0, x = self.kept[0]["x"], self.kept[p.L]["x"]
        slots = {"before": {"x": x0, "x0": x0}, "after": {"x": x}, "query": {}, "end": {}}
        if program.before:
            if p.training and any(isinstance(part, Norm) for part in program.before):
                slots["before"]["x0"] = (ARENA, self._place("tokens before their norm", p.R * p.D * size), 0, p.D, 0)
            slots["before"] |= self._stats("before")
        if p.training and p.patch_norm.given:
            p.patch_rows = slot_of((ARENA, self._place("patches before their norm", p.N * p.patches * p.D * size), 0,
                                    p.D, 0))
            room = lines(p.N * p.patches * size)
            p.patch_norm.mean = self._place("patch norm statistics", 2 * room)
            p.patch_norm.rstd = p.patch_norm.mean + room
            p.patch_norm.partial = self._place("patch norm gradients by image group",
                                               p.image_groups * 2 * p.D * size)
        p.pooled = self._place("pooled", p.pool.rows * p.pool.width * size)
        slots["end"]["pooled"] = (ARENA, p.pooled, 0, p.pool.width, 0)
        if p.pool.attention:
            slots["query"]["latent"] = (WEIGHTS, program.latent * size, 0, p.D, 0)
        if self.mode != "tokens":
            for group in ("after", "query", "end"):
                slots[group] |= self._stats(group)
                for name, width in self._group(group).widths[p.training].items():
                    if not (group == "after" and name == "z"):
                        title = {"kv": "keys and values of the pooling"}.get(name, "rows outside the blocks")
                        room = self._place(title, self._rows(group) * width * size)
                        slots[group][name] = (ARENA, room, 0, width, 0)
        self.in_scratch = {}
        self.outside_slots = slots

    def _stats(self, group):
        """Room for the norms' statistics of a group."""
        cdef Py_ssize_t size = self.p.K.size
        if not self.p.training:
            return {}
        return {
            name: (ARENA, self._place(TITLES["stats"], times * self._rows(group) * width * size), 0, width, 0)
            for name, (times, width) in self._group(group).stats.items()
        }

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
        own = max(self._scratch_of(group) for group in self._groups())
        own = max(own, head_scratch(p) if p.heads else 0, pool_scratch(p) * size)
        dh = self.outline.head_width
        own = max(own, p.K.attention_scratch(p.T, dh, 0) * size)
        own = max(own, embed_scratch(p))
        if p.training:
            own = max(own, p.K.attention_scratch(p.T, dh, 1) * size, gradient_scratch(p))
        self.own = lines(own) + LINE

    def _scratch_of(self, group):
        """Place the scratch slots of a group; returns the bytes that it takes."""
        cdef Pass* p = &self.p
        rows, size = {"end": p.panel, "query": 1}.get(group, p.block_rows), p.K.size
        sizes, widths, halves = {}, {}, {}

        def need(name, count, width=0, half=0):
            sizes[name] = max(sizes.get(name, 0), count)
            widths[name] = max(width, widths.get(name, 0))
            halves[name] = half

        for layer in self.outline.kinds if group == "blocks" else range(1):
            steps = self._group(group, layer)
            values = self.kept[layer] if group == "blocks" else self.outside_slots[group]
            for name, width in steps.widths[p.training].items():
                if name not in values:
                    half = self._half(group, name)
                    need(name, rows * width * (size >> half), width, half)
            if p.training:
                fixed = self.gradients[group][layer]
                for name, width in (steps.widths[True] | {PACKED: steps.widest_norm}).items():
                    root = steps.classes.get(name, name)
                    # The gradient of hidden rows has a block of columns at a time.
                    if name not in steps.inside and root not in fixed:
                        need(f"d {root}", rows * width * size, width)
            for part in steps.parts:
                if isinstance(part, Hidden):
                    columns = 1 + part.activation.gated
                    need(HIDDEN, hidden_bytes(p.K, rows) * columns, p.K.lda)
                    if p.K.half and part.first.target not in values:  # else kept, or where its packed rows go
                        half = self._half(group, part.first.target)
                        need(BEFORE, rows * p.K.lda * (size >> half) * columns, p.K.lda, half)
                    deepest = max(part.first.k, part.second.n)
                elif isinstance(part, Linear):
                    deepest = max(part.k, part.n)
                else:
                    deepest = part.width if isinstance(part, Norm) else 1
                need(PACKED, rows_bytes(p.K, rows, deepest))
        offset = 0
        slots = {}
        for name, count in sizes.items():
            slots[name] = (SCRATCH, offset, 0, widths[name], halves[name])
            offset += lines(count)
        self.in_scratch[group] = slots
        return offset

    def _place_gradients(self):
        """The gradients of slots that more than one task reads or writes: for each block the places of its classes."""
        cdef Pass* p = &self.p
        size, program = p.K.size, self.program
        self.gradients = {}
        if not p.training:
            return
        p.dx = self._place_residual()
        residual = (ARENA, p.dx, 0, p.D, 0)
        end = {"pooled": self._gradient_slot("pooled", p.pool.rows, p.pool.width)}
        p.dpooled = end["pooled"][1]
        if program.features != "pooled":
            end[program.features] = self._gradient_slot("features", p.pool.rows, program.feature_width)
        after, query = {}, {}
        if p.pool.attention:
            after = {"x": residual, "kv": self._gradient_slot("keys and values of the pooling", p.R, 2 * p.D)}
            query = {"latent": (GRADIENT, program.latent * size, 0, p.D, 0)}
            if "query" in self.outside_slots["query"]:
                query["query"] = self._gradient_slot("query", 1, p.D)
            p.pool.dq_parts = self._place("gradient of the query by image", p.N * p.D * size)
        fixed = {
            "blocks": self.stage_slots | {"x": residual, "y": residual}, "before": {"x": residual, "x0": residual},
            "after": after, "query": query, "end": end,
        }  # fmt: skip
        for group, layers in self._groups().items():
            self.gradients[group] = [
                {self._group(group, layer).classes.get(name, name): place for name, place in fixed[group].items()}
                for layer in layers
            ]

    def _place_residual(self):
        """The gradient of the residual stream: in the place of the last block's output, which the backward of the
        pooling reads row by row as it writes; but attention pooling's weight gradients read it later."""
        cdef Pass* p = &self.p
        if self._shares_last():
            return self.kept[p.L]["x"][1]
        return self._place("gradient of the residual stream", 0 if p.head_alone else p.R * p.D * p.K.size)

    def _shares_last(self):
        return self.p.L and not self.p.pool.attention

    def _gradient_slot(self, title, rows, width):
        return (ARENA, self._place(f"gradient of {title}", rows * width * self.p.K.size), 0, width, 0)

    cdef Slot _slot(self, group, layer, name, Py_ssize_t column=0):
        """Where a slot's rows lie, from a column on."""
        values = self.kept[layer] if group == "blocks" else self.outside_slots[group]
        place = values.get(name) or self.in_scratch[group].get(name)
        if place is None:
            raise KeyError(f"no step writes the slot {name!r}")
        return slot_of(place, column * (self.p.K.size >> place[4]))

    cdef Slot _gradient(self, group, name, Py_ssize_t column=0, Py_ssize_t layer=0):
        """Where the gradient of a slot's rows lies."""
        cdef Py_ssize_t size = self.p.K.size
        if not self.p.training:
            return slot_of((SCRATCH, 0, 0, 0, 0))
        root = self._group(group, layer).classes.get(name, name)
        place = self.gradients[group][layer].get(root) or self.in_scratch[group][f"d {root}"]
        return slot_of(place, column * size)

    # ------------------------------------------------------------------------------------------------ packed weights
    def _place_packed(self):
        """Where the packed matrices outside the blocks and of a block lie; a room takes W or its transpose."""
        cdef Pass* p = &self.p
        cdef int i
        end = 0

        def room(k, n):
            nonlocal end
            at, end = end, end + lines(max(panels_bytes(p.K, k, n), panels_bytes(p.K, n, k)))
            return at

        self.relative, self.fixed = [], {}
        p.embed.packed[0] = 0
        end = lines(panels_bytes(p.K, p.patch_values, p.D))
        for i, head in enumerate(self.program.heads):
            p.head[i].packed[0] = room(head.k, head.n)
        for group in ("before", "query", "after", "end"):
            for part in self.outline.outside[group].products[0]:
                self.fixed[part.name] = [room(part.k, part.n) for _ in part.matrices]
        self.pack_blocks = end
        self.pack_stride = 0
        for layer, block in enumerate(self.outline.blocks):
            if layer not in self.outline.kinds:
                self.relative.append(self.relative[layer - 1])
                continue
            inside = {}
            end = 0
            for part in (part for products in block.products for part in products):
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
