"""What the stages of a pass share: the model's dimensions, where its weights lie, where the arena's buffers lie.

Letters as everywhere: N images, T tokens, D width, H heads, F hidden width, C channels, P patch, L blocks; R = N·T rows of tokens.
Offsets count elements; -1 stands for a weight that the configuration lacks. In a forward without gradients all blocks share one
set of activations and `mid` is `x`; with checkpointing all share one but for `x`.
"""

from .kernels cimport Kernels, real

ctypedef struct BlockWeights:  # relative to the block's start
    Py_ssize_t norm1_w, norm1_b, q_w, q_b, k_w, k_b, v_w, v_b, o_w, o_b
    Py_ssize_t norm2_w, norm2_b, fc1_w, fc1_b, fc2_w, fc2_b

ctypedef struct Weights:
    Py_ssize_t patch_w, patch_b, cls, pos
    Py_ssize_t blocks, block_stride
    BlockWeights block
    Py_ssize_t norm_w, norm_b, head_w, head_b
    Py_ssize_t size

# What each block keeps for its backward.
cdef enum Keep:
    KEEP_X                                  # (R, D) its input; of a block after the last: the last one's output
    KEEP_QKV                                # (R, 3 D)
    KEEP_O                                  # (R, D) the heads' outputs side by side
    KEEP_LSE                                # (N, H, T)
    KEEP_MID                                # (R, D) after attention
    KEEP_U                                  # (R, F) before GELU; the backward turns it into gelu(u)
    KEEP_STATS                              # (4, R) mean and rstd of norm1, then of norm2
    KEEPS                                   # how many these are

ctypedef struct Buffers:
    Py_ssize_t patches                      # (N · patches, C·P·P)
    Py_ssize_t final_stats                  # (2, R or N) of the final norm
    Py_ssize_t pooled, logits, losses       # (N, D), (N, classes), (N,)
    # of the backward
    Py_ssize_t dlogits, dpooled             # (N, classes), (N, D)
    Py_ssize_t dx                           # (R, D): the residual stream's gradient, from the last block to the first
    Py_ssize_t dq_parts                     # (key parts - 1, R, D) what the other parts of the keys add to dq
    Py_ssize_t dy_panels, dmid_panels       # (R, D) packed for the weight gradients: dx as it entered the block, and after its MLP
    Py_ssize_t dqkv_panels, du_panels       # 3 x (R, D) and (R, F), the same
    Py_ssize_t partial                      # (units, 4, D) parts of a block's norm scale and shift gradients
    Py_ssize_t final_partial                # (image groups, 2, D) the same of the final norm
    # packed weights: of one block at a time, of two in turns, or, frozen, of all
    Py_ssize_t pack_patch, pack_qkv, pack_mlp, pack_head, pack_stride, pack_rooms
    Py_ssize_t size

ctypedef struct Pass:
    Kernels kernels
    Py_ssize_t N, T, D, H, dh, F, L, R, classes, patches
    Py_ssize_t channels, height, width, patch, features   # features = C·P·P
    int class_token, gelu, final_norm, training, frozen, checkpoint
    int idle                                # tasks are taken and not done: what a pass costs beside its kernels
    int together                            # a task takes its rows, which are whole images, through a whole block
    Py_ssize_t own                          # in a thread's scratch: what such a task keeps to itself
    double eps, smoothing
    Weights w
    Buffers at
    Py_ssize_t panel                        # rows of a product's tile
    Py_ssize_t units, unit_images           # the smallest blocks of token rows: so many short images, or, if 0, a few panels
    Py_ssize_t row_blocks, block_rows       # blocks for as many threads as there are; the most rows that one may have
    Py_ssize_t image_groups, bands          # bands of patch rows
    Py_ssize_t query_parts, key_parts       # of a head, for forward and backward
    Py_ssize_t head_tasks, head_backward_tasks
    Py_ssize_t tile_area, tile_rows         # of the weights' gradients: values of a tile, its fewest rows
    void* images
    const long long* labels
    void* weights
    void* grad
    void* arena
    void* lent                              # grad's first whole cache line: see `kept`
    const Py_ssize_t* places                # (blocks + 1, KEEPS) offsets in the arena, or, negative, in `lent`
    void* between                           # what lies between the stages of a block, when they are stages: see _block.pyx
    void* packed
    void* scratch                           # one piece for each thread
    Py_ssize_t scratch_stride
    double loss


cdef inline real* part(real* kind, void* base, Py_ssize_t offset) noexcept nogil:
    """base + offset in elements; NULL for an offset of -1."""
    return NULL if offset < 0 else <real*> base + offset


cdef inline real* kept(real* kind, Pass* p, Keep what, Py_ssize_t layer) noexcept nogil:
    """What block `layer` keeps: in the arena, or where gradients of weights will be written when it is no longer needed."""
    cdef Py_ssize_t place = p.places[layer * KEEPS + what]
    return <real*> p.arena + place if place >= 0 else <real*> p.lent - place


cdef inline Py_ssize_t cut(Py_ssize_t count, Py_ssize_t parts, Py_ssize_t i) noexcept nogil:
    """Where part i of `parts` equal parts of `count` things begins."""
    return count * i if parts == 1 else count * i // parts


cdef inline Py_ssize_t split(Py_ssize_t a, Py_ssize_t b, Py_ssize_t* rest) noexcept nogil:
    """a // b, and what is left over, of numbers below 2^32: a division of 64 bits takes as long as a small task's products."""
    cdef unsigned int quotient = <unsigned int> a // <unsigned int> b
    rest[0] = <unsigned int> a - quotient * <unsigned int> b
    return quotient


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t unit_start(Pass* p, Py_ssize_t unit) noexcept nogil:
    """The first row of a unit: whole images, or equal ones of whole panels, so that the products' tiles are full but for the last."""
    if p.unit_images:
        return min(p.R, unit * p.unit_images * p.T)
    return min(p.R, cut(ceil_div(p.R, p.panel), p.units, unit) * p.panel)


cdef inline Py_ssize_t block_start(Pass* p, Py_ssize_t block) noexcept nogil:
    """The first row of a block of token rows, which is a few units."""
    return unit_start(p, cut(p.units, p.row_blocks, block))


cdef inline Py_ssize_t pack_room(Pass* p, Py_ssize_t layer) noexcept nogil:
    """Where the packed weights of block `layer` lie, after those of the first."""
    return 0 if p.at.pack_rooms == 1 else layer % p.at.pack_rooms * p.at.pack_stride


cdef inline Py_ssize_t panel_size(Py_ssize_t k, Py_ssize_t n) noexcept nogil:
    """Room for a packed (k, n) matrix, for any instruction set."""
    return k * (ceil_div(n, 32) * 32)
