"""The dimensions of a pass, and how its work is cut into tasks: by shapes alone, since results depend on it.

What depends on the number of threads, and no result does, is in plan.pyx.
"""

from .kernels cimport bytes_of, ceil_div, round_up
from .task cimport Pass
from .program import AttentionPool

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
# Columns of a block of hidden rows, and with an eighth more the rows of a weight gradient's: bfloat16's results are the
# same bits with every table, whatever its blocks of packed rows are.
HALF_DEPTH = 384
BAND = 48  # patches, at least, that are embedded at a time


cdef class Cutting:
    """The dimensions and the tasks of a plan."""

    # ---------------------------------------------------------------------------------------------------- dimensions
    def _read_program(self):
        """The program's numbers, as a pass reads them."""
        cdef Pass* p = &self.p
        cdef int i
        program, embed, pool = self.program, self.program.embed, self.program.pool
        size = p.K.size
        self.heads = self.outline.heads
        p.N, p.T, p.D, p.L = self.batch, program.tokens, program.width, len(program.blocks)
        p.R, p.classes, p.heads = p.N * p.T, program.classes, len(program.heads)
        p.channels, (p.height, p.width) = embed.channels, embed.image_size
        p.patch_height, p.patch_width = embed.patch_size
        p.patches = (p.height // p.patch_height) * (p.width // p.patch_width)
        p.given = program.given
        p.head_alone = p.given and p.L == 0 and p.heads > 0 and program.behind == program.heads[0].matrices[0].weight
        p.patch_values = 0 if p.given else p.channels * p.patch_height * p.patch_width
        p.prefix, p.positions_of_prefix = len(embed.prefix), embed.positions_of_prefix
        p.prefix_tokens = embed.prefix[0] * size if embed.prefix else -1
        p.positions = embed.positions * size if embed.positions >= 0 else -1
        p.patch_norm.given = embed.norm is not None and not p.given
        p.patch_norm.scale = p.patch_norm.shift = -1
        if p.patch_norm.given:
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
        ends = 2.0 * p.D * (p.patch_values + p.classes)
        self.flops = float(p.R) * (self.outline.flops + ends + 4.0 * p.T * p.D * p.L)

    # --------------------------------------------------------------------------------------------- how work is cut
    cdef _cut_tasks(self):
        """How the work is cut: by shapes alone, all that results depend on."""
        cdef Pass* p = &self.p
        p.panel = p.K.mr
        p.depth = HALF_DEPTH if p.K.half else p.K.kc
        assert p.depth <= p.K.kc
        panels = ceil_div(p.R, p.panel)
        unit_images = ceil_div(UNIT_ROWS, p.T) if p.T <= SHORT else 0
        if p.K.depth_unit > 1 and p.T % 2:  # panels hold rows in pairs, and two tasks must not write to one pair
            unit_images = round_up(unit_images, 2)
        p.token_rows.rows, p.token_rows.unit_rows = p.R, unit_images * p.T
        p.token_rows.units = ceil_div(p.N, unit_images) if unit_images else min(panels, ceil_div(p.R, UNIT_ROWS))
        p.image_rows.rows, p.image_rows.unit_rows = p.N, 0
        p.image_rows.units = p.image_rows.blocks = ceil_div(p.N, p.panel)
        p.one_row.rows = p.one_row.units = p.one_row.blocks = 1
        p.one_row.unit_rows = 0
        p.image_groups = min(p.N, 64)
        p.bands = max(1, min(p.height // p.patch_height, p.patches // BAND))
        p.key_parts = max(1, min(ceil_div(ENOUGH_TASKS, p.N * self.heads), p.T // LEAST_KEYS, MOST_KEY_PARTS))
        p.head_backward_tasks = min(p.N * self.heads * p.key_parts, MOST_HEAD_TASKS)
        # The more threads, the smaller the blocks, but for what it takes to share them out evenly.
        unit_rows = p.token_rows.unit_rows or ceil_div(panels, p.token_rows.units) * p.panel
        self.block_units = ceil_div(p.token_rows.units, self._blocks(1, 1))
        p.block_rows = min(p.R, self.block_units * unit_rows)

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

    cdef _query_parts(self, int threads):
        """In how many parts the forward takes a head's queries: each packs all keys and values, few and large ones keep
        threads waiting."""
        heads, tokens = self.p.N * self.heads, self.p.T

        def time(parts):
            return ceil_div(heads * parts, threads) * (1 / parts + PACK_HEAD / tokens) + 0.5 / parts

        return min(range(1, self._most_query_parts() + 1), key=time)
