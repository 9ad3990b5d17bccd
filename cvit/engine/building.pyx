"""From a program's parts to steps that run: a struct for each part, with the places of what it reads and writes.

One method builds a section; what a kind of part needs beyond slots is in the method of its name.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from .kernels cimport GELU_ERF, GELU_TANH, QUICK_GELU, RELU, SILU, TANH, bytes_of, ceil_div, panels_bytes
from .places cimport Places, lines, slot_of
from .steps.attention cimport add_query_parts
from .steps.drop cimport drop as run_drop, drop_backward
from .steps.linear cimport linear as run_linear, linear_backward
from .steps.mlp cimport activation, activation_backward, hidden, hidden_again, hidden_backward
from .steps.norm cimport norm as run_norm, norm_backward
from .steps.rotary cimport head_norm, head_norm_backward, rotate, rotate_backward
from .task cimport (
    ACTIVATION, DROP, HEAD_NORM, HIDDEN, LINEAR, NORM, QUERY_PARTS, ROTATE, Block, Linear as LinearStep, Pass,
    Section, Step, UnitSums,
)
from .program import PACKED, Activation, Drop, HeadNorm, Linear, Norm, Rotate, source_of, target_of
from .places import BEFORE, HIDDEN as HIDDEN_ROWS
from .slots import kept_source, sum_targets, sums_of

ACTIVATIONS = {
    "gelu_tanh": GELU_TANH, "gelu_erf": GELU_ERF, "quick_gelu": QUICK_GELU, "silu": SILU, "relu": RELU, "tanh": TANH,
}  # fmt: skip


def _again(target, behind, kept, ends):
    """Whether a checkpointed block's backward makes the slot `target` again: where it is kept, or where a step behind
    reads it whose result is made again."""
    read = any(source_of(part) == target and target_of(part) not in {*ends, target} for part in behind)
    return target not in ends and (target in kept or read)


cdef class Building(Places):
    """A plan's steps."""

    cdef void* _structs(self, Py_ssize_t size):
        """Zeroed memory for structs that lives as long as the plan."""
        memory = bytearray(max(size, 1))
        self.memory.append(memory)
        return address(memory)

    # ------------------------------------------------------------------------------------------------------ sections
    def _build(self):
        """The steps of every section, and the buffers that a backward shares among them."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t layer, size = p.K.size
        cdef Block* block
        p.blocks = <Block*> self._structs(p.L * sizeof(Block))
        shared = {}
        if p.training:
            room = (p.key_parts - 1) * p.R * self.outline.heads_width * size
            shared["dq parts"] = self._place("gradient of q by part of the keys", room)
            sums = [
                sum(sum(section) for section in self._group(group, layer).sums)
                for group, layers in self._groups().items() for layer in layers
            ]  # fmt: skip
            p.partial_stride = max(sums, default=0) * size
            p.partial = self._place("gradient sums by unit of rows",
                                    max(p.token_rows.units, p.image_rows.units) * p.partial_stride)
        for layer in range(p.L):
            block = &p.blocks[layer]
            heads = self.program.blocks[layer].heads
            self._build_section(&block.before, "blocks", layer, 0, shared)
            if p.training and p.key_parts > 1:
                self._build_query_parts(&block.before, layer, heads, shared)
            block.heads.heads, block.heads.dh = heads.heads, heads.width // heads.heads
            block.heads.qkv = self._slot("blocks", layer, heads.source)
            block.heads.o = self._slot("blocks", layer, heads.target)
            block.heads.d_qkv = self._gradient("blocks", heads.source, 0, layer)
            block.heads.d_o = self._gradient("blocks", heads.target, 0, layer)
            if p.training:
                block.heads.lse = slot_of(self.kept[layer]["lse"])
                block.heads.dq_parts = shared["dq parts"]
            self._build_section(&block.after, "blocks", layer, 2, shared)
        self._build_section(&p.before, "before", 0, 0, shared)
        if self.mode != "tokens":
            self._build_section(&p.after, "after", 0, 0, shared)
            self._build_section(&p.query, "query", 0, 0, shared)
            self._build_section(&p.end, "end", 0, 0, shared)

    cdef _build_section(self, Section* section, group, Py_ssize_t layer, int number, dict shared):
        """The steps of one section of a group (of one block)."""
        cdef Pass* p = &self.p
        cdef Step* step
        # Where the units' sums of a step begin.
        cdef Py_ssize_t i, partial = 0
        steps = self._group(group, layer)
        parts, products = steps.sections[number], steps.products[number]
        for sums in steps.sums[:number]:
            partial += sum(sums) * p.K.size
        kept = self.kept[layer] if group == "blocks" else self.outside_slots[group]
        # The block's output, which the next block has, also before its branch is dropped and added.
        ends = {"y"} | {part.source for part in parts if isinstance(part, Drop) and part.target == "y"}
        section.cut = &p.image_rows if group == "end" else &p.one_row if group == "query" else &p.token_rows
        # Steps, one more than parts for that of the queries' parts, then products and sums.
        room = (len(parts) + 1) * sizeof(Step) + len(products) * sizeof(LinearStep) + 4 * len(parts) * sizeof(UnitSums)
        section.steps = <Step*> self._structs(room)
        section.linears = <LinearStep*> &section.steps[len(parts) + 1]
        section.sums = <UnitSums*> &section.linears[len(products)]
        section.count, section.linear_count, section.sum_count = len(parts), 0, 0
        for i, (part, source, column, target, add) in enumerate(steps.reads[number]):
            step, kind = &section.steps[i], type(part)
            step.scale = step.shift = step.k_scale = step.k_shift = -1
            step.source = self._slot(group, layer, source, column)
            step.d_source = self._gradient(group, source, column, layer)
            step.target, step.d_target = self._slot(group, layer, target), self._gradient(group, target, 0, layer)
            if add:
                step.add = self._slot(group, layer, add)
            step.packed = slot_of(self.in_scratch[group][PACKED])
            step.source_is_packed = (target if kind is Norm else source) == PACKED
            step.accumulate = steps.accumulating[number][i]
            step.partial = partial
            if steps.sums[number][i]:
                self._build_sums(section, part, partial)
                partial += steps.sums[number][i] * p.K.size
            if kind is Norm:
                step.role, step.forward, step.recompute, step.backward = NORM, run_norm, run_norm, norm_backward
                self._build_norm(step, group, layer, part)
            elif kind is HeadNorm:
                step.role, step.forward, step.recompute = HEAD_NORM, head_norm, head_norm
                step.backward = head_norm_backward
                self._build_head_norm(step, group, layer, part)
            elif kind is Rotate:
                step.role, step.forward, step.recompute, step.backward = ROTATE, rotate, rotate, rotate_backward
                self._build_rotate(step, layer, part)
            elif kind is Linear:
                step.role, step.forward, step.backward = LINEAR, run_linear, linear_backward
                if target not in ends:
                    step.recompute = run_linear
                step.linear = self._build_linear(section, group, layer, parts[:i], part, shared)
            elif kind is Activation:
                step.role, step.forward, step.backward = ACTIVATION, activation, activation_backward
                if _again(target, parts[i + 1 :], kept, ends):
                    step.recompute = activation
                step.kind, step.gated, step.width = ACTIVATIONS[part.kind], part.gated, part.n
                if i + 1 < len(parts) and isinstance(parts[i + 1], Drop) and target not in kept:
                    step.dropped = &section.steps[i + 1]
            elif kind is Drop:
                step.role, step.forward, step.backward = DROP, run_drop, drop_backward
                if _again(target, parts[i + 1 :], kept, ends):
                    step.recompute = run_drop
                step.width, step.place, step.branch, step.share = part.width, part.place, part.branch, part.share
                step.elements = part.elements
            else:
                step.role, step.forward, step.backward = HIDDEN, hidden, hidden_backward
                step.recompute = hidden_again if target in ends else hidden
                step.kind, step.gated = ACTIVATIONS[part.activation.kind], part.activation.gated
                step.linear = self._build_linear(section, group, layer, parts[:i], part.first, shared)
                inside = (*parts[:i], part.activation)
                step.second = self._build_linear(section, group, layer, inside, part.second, shared)
                scratch = self.in_scratch[group]
                step.d_hidden = slot_of(scratch[HIDDEN_ROWS])
                step.hidden = slot_of(kept.get(part.first.target) or scratch.get(BEFORE) or scratch[HIDDEN_ROWS])

    cdef _build_query_parts(self, Section* section, Py_ssize_t layer, heads, dict shared):
        """The sum of dq's parts, which the backward of the rows before the heads begins with."""
        cdef Step* step = &section.steps[section.count]
        section.count += 1
        step.scale = step.shift = step.k_scale = step.k_shift = -1
        step.role, step.backward, step.width = QUERY_PARTS, add_query_parts, heads.width
        step.d_source, step.partial = self._gradient("blocks", heads.source, 0, layer), shared["dq parts"]

    cdef _build_sums(self, Section* section, part, Py_ssize_t partial):
        """The gradients that are sums of the units' parts: they lie one after the other."""
        cdef UnitSums* sums
        cdef Py_ssize_t size = self.p.K.size
        if not self.p.training:
            return
        for n, target in zip(sums_of(part), sum_targets(part)):
            if target >= 0:
                sums = &section.sums[section.sum_count]
                sums.partial, sums.n, sums.target, sums.units = partial, n, target * size, section.cut.units
                section.sum_count += 1
            partial += n * size

    # --------------------------------------------------------------------------------------------- what a kind needs
    cdef _build_norm(self, Step* step, group, Py_ssize_t layer, part):
        cdef Py_ssize_t size = self.p.K.size
        step.width, step.eps, step.rms = part.width, part.eps, part.rms
        step.scale, step.shift = bytes_of(part.scale, size), bytes_of(part.shift, size)
        self._build_statistics(step, group, layer, part, 1)

    cdef _build_head_norm(self, Step* step, group, Py_ssize_t layer, part):
        cdef Py_ssize_t size = self.p.K.size
        step.width, step.eps, step.rms, step.heads = part.width, part.eps, part.rms, part.heads
        step.scale, step.k_scale = bytes_of(part.scales[0], size), bytes_of(part.scales[1], size)
        step.shift, step.k_shift = bytes_of(part.shifts[0], size), bytes_of(part.shifts[1], size)
        self._build_statistics(step, group, layer, part, 2 * part.heads)

    cdef _build_statistics(self, Step* step, group, Py_ssize_t layer, part, Py_ssize_t width):
        """Where mean and rstd of every row are kept, which have no `ld` where they are not."""
        if self.p.training:
            values = self.kept[layer] if group == "blocks" else self.outside_slots[group]
            step.mean = slot_of(values[f"stats {part.name}"])
            step.rstd = slot_of(values[f"stats {part.name}"], self._rows(group) * width * self.p.K.size)

    cdef _build_rotate(self, Step* step, Py_ssize_t layer, part):
        step.width, step.heads = part.width, part.heads
        step.learned = step.each_head = part.frequencies >= 0
        step.cosines, step.sines = self._tables_of(layer)

    cdef _set_matrix(self, LinearStep* linear, int i, matrix):
        """Where one matrix and its bias lie in the flat weights."""
        linear.weight[i], linear.bias[i] = matrix.weight * self.p.K.size, bytes_of(matrix.bias, self.p.K.size)
        linear.column[i] = matrix.column
        linear.layer_scale = -1

    cdef LinearStep* _build_linear(self, Section* section, group, Py_ssize_t layer, before, part,
                                   dict shared) except NULL:
        """A product; `before` are the parts ahead of it in its section."""
        cdef Pass* p = &self.p
        cdef LinearStep* linear = &section.linears[section.linear_count]
        cdef Py_ssize_t size = p.K.size
        cdef int i
        section.linear_count += 1
        linear.k, linear.n, linear.count = part.k, part.n, len(part.matrices)
        inside = self.relative[layer][part.name] if group == "blocks" else self.fixed[part.name]
        for i in range(linear.count):
            self._set_matrix(linear, i, part.matrices[i])
            linear.packed[i] = linear.packed_in_block[i] = inside[i]
        if part.layer_scale >= 0:
            linear.layer_scale, linear.scaled_bias_in_block = part.layer_scale * size, inside[linear.count]
            for i in range(section.linear_count - 1):
                linear.shares_scale |= section.linears[i].layer_scale == linear.layer_scale
        linear.dy, linear.rows, linear.segments = -1, section.cut.rows, 1
        if not p.training:
            return linear
        values = self.kept[layer] if group == "blocks" else self.outside_slots[group]
        source, norm = kept_source(before, part.source, values)
        linear.input = self._slot(group, layer, source, part.source_column)
        if norm is not None:
            linear.norm.given = 1
            linear.norm.mean = slot_of(values[f"stats {norm.name}"])
            linear.norm.rstd = slot_of(values[f"stats {norm.name}"], section.cut.rows * size)
            linear.norm.scale, linear.norm.shift = bytes_of(norm.scale, size), bytes_of(norm.shift, size)
        key = f"panels {part.name}"
        if key not in shared:  # one block's at a time
            title = f"packed gradient of {part.name}"
            room = lines(panels_bytes(p.K, section.cut.rows, part.n))
            shared[key] = [self._place(title, room) for _ in part.matrices]
            if part.layer_scale >= 0:
                title = f"layer scale gradient of {part.name} by panel of rows"
                shared[f"scale {part.name}"] = self._place(title, ceil_div(part.k, p.panel) * part.n * size)
        for i in range(linear.count):
            linear.panels[i] = shared[key][i]
        if part.layer_scale >= 0:
            linear.scale_sums = shared[f"scale {part.name}"]
        return linear

    # ------------------------------------------------------------------------------------------- embedding and heads
    def _build_ends(self):
        """The products outside all sections, and the buffers of the pooling and of the loss."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t stats, size = p.K.size
        cdef LinearStep* head
        cdef int i
        place = self._place
        if p.training:
            p.dlogits = place("gradient of logits", p.pool.rows * p.classes * size)
            p.pool.partial = place("final norm gradients by image group", p.image_groups * 2 * p.D * size)
        stats = lines(self.pool_stats * size)
        p.pool.mean = place("final norm statistics", 2 * stats)
        p.pool.rstd = p.pool.mean + stats
        p.logits = place("logits", p.pool.rows * p.classes * size)
        p.losses = place("losses", p.pool.rows * sizeof(double))
        p.first_x = slot_of(self.outside_slots["before"]["x0"] if p.before.count else self.kept[0]["x"])
        p.last_x = slot_of(self.kept[p.L]["x"])
        if p.pool.attention:
            p.pool.kv, p.pool.query = self._slot("after", 0, "kv"), self._slot("query", 0, self.program.pool.query)
            p.pool.d_kv = self._gradient("after", "kv")
            p.pool.d_query = self._gradient("query", self.program.pool.query)

        p.embed.k, p.embed.n, p.embed.count = p.patch_values, p.D, 1
        self._set_matrix(&p.embed, 0, self.program.embed.matrix)
        p.embed.rows, p.embed.segments, p.embed.of_images = p.patches, p.N, 1
        p.embed.dy, p.embed.dy_ld, p.embed.dy_segment = p.dx + p.prefix * p.D * size, p.D, p.T * p.D * size

        features = "pooled" if self.mode == "tokens" else self.program.features
        p.features = self._slot("end", 0, features) if self.mode != "tokens" else slot_of(
            self.outside_slots["end"]["pooled"])
        if self.mode == "tokens":
            return
        p.d_features = self._gradient("end", features)
        for i, part in enumerate(self.program.heads):
            head = &p.head[i]
            head.k, head.n, head.count = part.k, part.n, 1
            self._set_matrix(head, 0, part.matrices[0])
            head.input = self._slot("end", 0, features, part.source_column)
            head.rows, head.segments = p.pool.rows, 1
            head.dy, head.dy_ld = p.dlogits, p.classes


cdef void* address(array) except NULL:
    """Where a C-contiguous array's data lie, without asking whether they may be written."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void* start = view.buf
    PyBuffer_Release(&view)
    return start
