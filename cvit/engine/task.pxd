"""What the steps of a pass share: where rows lie, what a step knows, what a task gets.

Letters as everywhere: N images, T tokens, D width, H heads, F hidden width, C channels, P patch, L blocks; R = N·T rows
of tokens. Every offset counts bytes, every stride (`ld`) elements; -1 stands for a weight that the model lacks.
"""

from libc.stdint cimport uint64_t
from .kernels cimport Kernels, Matrix, matrix

# ---------------------------------------------------------------------------------------------------- where rows lie
cdef enum Place:
    ARENA        # the plan's own memory
    LENT         # the gradient vector, which holds activations until gradients are written there
    STAGE        # between the stages of a block; in the thread's scratch where a task takes whole blocks
    SCRATCH      # the thread's scratch
    WEIGHTS      # the flat weights
    GRADIENT     # the flat gradient

ctypedef struct Slot:
    Place place
    Py_ssize_t at      # bytes from where the place begins to row 0 (SCRATCH: to the task's first row)
    Py_ssize_t own     # STAGE: the same in the thread's scratch
    Py_ssize_t ld
    int half           # a shift: elements have K.size >> half bytes, see half_slots in slots.py

ctypedef struct Cut:            # how rows are shared out
    Py_ssize_t rows, units      # units: the smallest blocks of rows
    Py_ssize_t unit_rows        # of every unit but the last: whole images; 0: units are equal numbers of panels
    Py_ssize_t blocks           # of one task each, for as many threads as there are

# ----------------------------------------------------------------------------------------------------------- weights
cdef enum:
    MATRICES = 3       # of one Linear, at most
    HINTS = 3          # products of one step that fetch something, at most
    RANGES = 2         # of tokens that are pooled, at most
    HEADS = 2          # classifiers, at most

ctypedef struct NormUse:   # the norm between a kept slot and the product that reads it
    int given
    Slot mean, rstd        # one value a row
    Py_ssize_t scale, shift

ctypedef struct Linear:
    Py_ssize_t k, n
    int count                              # matrices side by side
    Py_ssize_t[MATRICES] weight, bias      # in the flat weights, and their gradients in the flat gradient
    Py_ssize_t[MATRICES] column            # of the target
    Py_ssize_t[MATRICES] packed            # of W or Wᵀ in the packed weights,
    Py_ssize_t[MATRICES] packed_in_block   # and relative to the block's panels
    Py_ssize_t[MATRICES] panels            # in the arena: dy, packed for the weight gradient
    Py_ssize_t layer_scale                 # in the flat weights
    Py_ssize_t scaled_bias                 # in the packed weights: the bias times the layer scale,
    Py_ssize_t scaled_bias_in_block        # and relative to the block's panels
    Py_ssize_t scale_sums                  # in the arena: parts of the layer scale's gradient
    int shares_scale                       # whether a product before it in the section has the same layer scale
    Slot input                             # the rows that the weight gradient multiplies dy by,
    NormUse norm                           # through this norm
    Py_ssize_t rows, segments              # of the input; `segments` runs of them where it is the patches of images,
    int of_images                          # which are cut again
    Py_ssize_t dy, dy_ld, dy_segment       # where the embedding's and the head's dy lie unpacked; else -1

# ------------------------------------------------------------------------------------------------------------- steps
ctypedef struct Hint:          # what a product fetches while it runs: this slot's rows, of this task or of the next one
    int given, next_task
    Slot slot

cdef enum Role:
    NORM
    HEAD_NORM
    ROTATE
    LINEAR
    ACTIVATION
    HIDDEN
    QUERY_PARTS
    DROP

ctypedef struct Step:
    Role role                  # what kind of step it is, for the hints
    void (*forward)(const Task*, const Step*) noexcept nogil     # may be NULL, as the next two
    void (*recompute)(const Task*, const Step*) noexcept nogil   # forward again, for a checkpointed block's backward
    void (*backward)(const Task*, const Step*) noexcept nogil
    Slot source, target, add
    Slot d_source, d_target
    int source_is_packed       # the norm before left its rows as packed rows in the scratch
    int accumulate             # d_source already holds a part of its gradient
    int target_is_cached, d_source_is_cached   # hints: rows that the task has touched
    Hint[HINTS] forward_hints, backward_hints  # of each product of the step
    Py_ssize_t width           # of the rows; of a head for what works on heads
    Py_ssize_t partial         # bytes from a unit's sums to those of this step
    # a norm's, and a head norm's of q and k
    int rms
    double eps
    Py_ssize_t scale, shift, k_scale, k_shift
    Slot mean, rstd
    # of what works on heads
    Py_ssize_t heads
    Py_ssize_t cosines, sines  # in the plan's tables: rotary positions
    int each_head, learned
    # products'
    Linear* linear
    Linear* second
    Slot hidden, d_hidden      # a hidden block's rows before the activation, and in the scratch
    Slot packed                # packed rows in the scratch
    int kind, gated            # of an activation
    const Step* dropped        # the drop of its result, which its backward has to apply again; or NULL
    # a drop's
    int place, branch, elements
    double share

ctypedef struct UnitSums:      # a gradient that is the sum of the units' parts
    Py_ssize_t partial, n, target, units

ctypedef struct Section:       # the steps of a rows stage, and the weights that they use
    const Cut* cut
    Step* steps
    int count
    Linear* linears
    int linear_count
    UnitSums* sums
    int sum_count

ctypedef struct Heads:
    Py_ssize_t heads, dh
    Slot qkv, o, lse           # lse: (N, H, T), row = token of all heads' tokens
    Slot d_qkv, d_o
    Py_ssize_t dq_parts        # in the arena: (key parts - 1, R, heads · dh)

ctypedef struct Block:
    Section before
    Heads heads
    Section after

# ------------------------------------------------------------------------------------------------------------ a pass
ctypedef struct PatchNorm:     # between the patch embedding and the positions
    int given, rms
    double eps
    Py_ssize_t scale, shift
    Py_ssize_t mean, rstd      # in the arena, one value a patch,
    Py_ssize_t partial         # and parts of the gradients, one for each group of images

ctypedef struct Drops:         # what a training pass drops: see `Drop` in program.py
    double path, rate
    uint64_t seed, first       # first: the number of the batch's first image

ctypedef struct Pool:
    int each, attention
    int ranges                 # of tokens, whose means stand side by side
    Py_ssize_t[RANGES] first, count, stats   # stats: the first norm statistic of a range
    Py_ssize_t rows, width     # of the result: (N, D · ranges), or (N·T, D) with `each`
    int norm, rms              # whether a norm comes first
    double eps
    Py_ssize_t scale, shift
    Py_ssize_t mean, rstd, partial           # in the arena, as those of the patch norm
    # attention pooling
    Py_ssize_t heads, dh
    Slot query, kv, d_query, d_kv
    Py_ssize_t dq_parts        # in the arena: (N, D)

ctypedef struct Pass:
    const Kernels* K
    Py_ssize_t N, T, D, L, R, classes
    int training, frozen, checkpoint
    int hints                  # whether products fetch what is read next: no result depends on it
    int idle                   # tasks are taken and not done: what a pass costs beside its kernels
    int whole_blocks           # a task takes its rows, which are whole images, through a whole block
    int given                  # passes begin with tokens that the caller gives: nothing before the blocks is run
    int head_alone             # of such a pass: nothing but the head has a gradient
    Py_ssize_t trained         # where the weights that have a gradient begin
    double smoothing
    Drops drop
    # how the work is cut
    Py_ssize_t panel           # rows of a register tile
    Py_ssize_t depth           # columns of a block of hidden rows
    Cut token_rows, image_rows, one_row   # rows of all tokens, one row an image, one row
    Py_ssize_t block_rows      # the most token rows that a task may have
    Py_ssize_t image_groups, bands          # bands of patch rows
    Py_ssize_t query_parts, key_parts       # of a head, for forward and backward
    Py_ssize_t head_tasks, head_backward_tasks
    Py_ssize_t tile_area, tile_rows         # of weight gradients: values of a tile, its fewest rows
    # the embedding
    Py_ssize_t channels, height, width, patch_height, patch_width, patches, patch_values   # patch_values = C·P·P
    Py_ssize_t prefix, prefix_tokens, positions, positions_of_prefix
    PatchNorm patch_norm
    Linear embed
    # rows outside the blocks: all tokens before and behind them, the pooling's query, one row an image
    Section before, after, query, end
    Pool pool
    Linear[HEADS] head
    int heads                  # classifiers, whose mean the logits are
    # memory
    char* images
    const long long* labels    # one for each pooled row,
    char* targets              # or a row of the classes' shares for each
    const double* sample_weight   # one for each image; NULL: the mean
    char* weights
    char* grad
    char* lent                 # grad's first whole cache line
    char* arena
    char* stage_rows
    char* packed
    char* tables               # of rotary positions
    char* scratch              # one piece for each thread
    int* finished              # blocks whose gradients are final, for other threads to read; NULL: nobody asks
    Py_ssize_t scratch_stride, private_at   # private_at: where STAGE slots lie in a thread's scratch
    # buffers in the arena
    Py_ssize_t dx, partial, partial_stride
    Py_ssize_t pooled, logits, losses, dlogits, dpooled
    Slot patch_rows            # patches after their embedding
    Slot first_x, last_x       # the embedding's tokens, the last block's output
    Slot features, d_features  # what the head reads
    int tables_of_weights      # whether the rotary positions' frequencies are learned
    Py_ssize_t coordinates     # in the tables: (patches, 2)
    Block* blocks

ctypedef struct Task:
    Pass* p
    const Kernels* K
    const Cut* cut             # of the rows below
    char* scratch
    Py_ssize_t first, rows     # the rows of the task
    Py_ssize_t block           # its number among the blocks of rows


# ----------------------------------------------------------------------------------------------------------- cutting
cdef inline Py_ssize_t part_start(Py_ssize_t count, Py_ssize_t parts, Py_ssize_t i) noexcept nogil:
    """Where part i of `parts` equal parts of `count` things begins."""
    return count * i if parts == 1 else count * i // parts


cdef inline Py_ssize_t unit_start(const Cut* cut, Py_ssize_t panel, Py_ssize_t unit) noexcept nogil:
    """The first row of a unit: whole images, or equal numbers of whole panels, so that the products' tiles are full but
    for the last."""
    if cut.unit_rows:
        return min(cut.rows, unit * cut.unit_rows)
    return min(cut.rows, part_start((cut.rows + panel - 1) // panel, cut.units, unit) * panel)


cdef inline Py_ssize_t block_start(const Cut* cut, Py_ssize_t panel, Py_ssize_t block) noexcept nogil:
    """The first row of a block of rows, which is a few units."""
    return unit_start(cut, panel, part_start(cut.units, cut.blocks, block))


# --------------------------------------------------------------------------------------------------------- addresses
cdef inline char* offset_of(char* base, Py_ssize_t offset) noexcept nogil:
    """base + offset; NULL for an offset of -1."""
    return NULL if offset < 0 else base + offset


cdef inline char* row_of(const Task* t, const Slot* slot, Py_ssize_t row) noexcept nogil:
    """Where a row lies; of SCRATCH and of a whole block's STAGE the task's own rows alone exist."""
    cdef Py_ssize_t stride = slot.ld * (t.K.size >> slot.half)
    if slot.place == ARENA:
        return t.p.arena + slot.at + row * stride
    if slot.place == LENT:
        return t.p.lent + slot.at + row * stride
    if slot.place == WEIGHTS:
        return t.p.weights + slot.at + row * stride
    if slot.place == GRADIENT:
        return t.p.grad + slot.at + row * stride
    if slot.place == STAGE and not t.p.whole_blocks:
        return t.p.stage_rows + slot.at + row * stride
    return t.scratch + (t.p.private_at + slot.own if slot.place == STAGE else slot.at) + (row - t.first) * stride


cdef inline Matrix rows_from(const Task* t, const Slot* slot, Py_ssize_t row) noexcept nogil:
    """A slot's rows from this one on."""
    return matrix(row_of(t, slot, row), slot.ld, slot.half)


cdef inline Matrix rows_of(const Task* t, const Slot* slot) noexcept nogil:
    """The task's rows of a slot."""
    return rows_from(t, slot, t.first)


cdef inline Matrix columns(const Kernels* K, Matrix x, Py_ssize_t first) noexcept nogil:
    """x from column `first` on."""
    return matrix(<char*> x.at + first * (K.size >> x.half), x.ld, x.half)


cdef inline Matrix hinted(const Task* t, const Hint* hint) noexcept nogil:
    """What a hint stands for in this task."""
    if not hint.given:
        return matrix(NULL, 0)
    return rows_from(t, &hint.slot, t.first + (t.rows if hint.next_task else 0))
