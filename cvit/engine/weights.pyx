"""Everything done to weight matrices: packing them for the products, and the tiles of their gradients.

Packing. A pass multiplies by W (forward) or Wᵀ (backward), from panels that gemm.inc describes. A matrix is packed once per pass, in
strips of columns, as extra tasks of the stage before the one that needs it; one block's panels are kept at a time. A frozen model
keeps all of them.

Gradients, for y = x @ W + b over all rows of tokens:

    dW = xᵀ dy,   db = column sums of dy

A task is one tile of one dW, or of q's, k's and v's, which share x: it runs over the rows in a few equal blocks, in order, packs its
columns of x (normalising them again where x is a norm's output) and adds the product to the tile. The dy of a block's gradients lie packed
already: the rows stages wrote them so. The tiles at the top of a dW also add up db.
"""

from .kernels cimport (
    block_depth, column_room, column_sums, gemm_columns, pack_columns, pack_panels, pack_panels_transposed, real,
)
from .state cimport KEEP_MID, KEEP_O, KEEP_STATS, KEEP_U, KEEP_X, Pass, ceil_div, cut, kept, pack_room, panel_size, part

cdef enum:
    STRIP = 128  # columns of a packing task, a multiple of every panel's width
    MOST_ROWS = 196  # of dW in a tile
    WIDEST = 384  # columns of a tile that packs dy itself


# ------------------------------------------------------------------------------------------------------------- packing
cdef struct Matrix:  # (k, n) as the product sees it, where its weight lies, where its panels go
    Py_ssize_t k, n, weight, packed


cdef Py_ssize_t matrices(Pass* p, Group group, bint transposed, Py_ssize_t layer, Matrix* out) noexcept nogil:
    """The matrices of a group, at most 3; returns how many."""
    cdef Py_ssize_t D = p.D, F = p.F, block = p.w.blocks + layer * p.w.block_stride
    cdef Py_ssize_t qkv = p.at.pack_qkv + pack_room(p, layer), mlp = p.at.pack_mlp + pack_room(p, layer)
    if group == QKV:
        out[0] = Matrix(D, D, block + p.w.block.q_w, qkv)
        out[1] = Matrix(D, D, block + p.w.block.k_w, qkv + panel_size(D, D))
        out[2] = Matrix(D, D, block + p.w.block.v_w, qkv + 2 * panel_size(D, D))
        return 3
    if group == MLP:
        out[0] = Matrix(D, D, block + p.w.block.o_w, mlp)
        mlp += panel_size(D, D)
        if transposed:
            out[1] = Matrix(F, D, block + p.w.block.fc1_w, mlp)
            out[2] = Matrix(D, F, block + p.w.block.fc2_w, mlp + panel_size(F, D))
        else:
            out[1] = Matrix(D, F, block + p.w.block.fc1_w, mlp)
            out[2] = Matrix(F, D, block + p.w.block.fc2_w, mlp + panel_size(D, F))
        return 3
    if group == HEAD:
        if transposed:
            out[0] = Matrix(p.classes, D, p.w.head_w, p.at.pack_head)
        else:
            out[0] = Matrix(D, p.classes, p.w.head_w, p.at.pack_head)
        return 1
    out[0] = Matrix(p.features, D, p.w.patch_w, p.at.pack_patch)
    return 1


cdef Py_ssize_t pack_tasks(Pass* p, Group group) noexcept nogil:
    """Strips of a group; W and Wᵀ are counted alike, by the wider of the two."""
    cdef Matrix[3] table
    cdef Py_ssize_t tasks = 0, i, count
    if p.frozen:
        return 0
    count = matrices(p, group, False, 0, table)
    for i in range(count):
        tasks += ceil_div(max(table[i].k, table[i].n), STRIP)
    return tasks


cdef void pack_task(real* s, Pass* p, Group group, bint transposed, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Matrix[3] table
    cdef Py_ssize_t i = 0, strips, column, columns, k, n
    cdef real* w
    cdef real* b
    matrices(p, group, transposed, layer, table)
    while True:
        strips = ceil_div(max(table[i].k, table[i].n), STRIP)
        if task < strips:
            break
        task -= strips
        i += 1
    k, n = table[i].k, table[i].n
    column = task * STRIP
    columns = min(<Py_ssize_t> STRIP, n - column)
    if columns <= 0:
        return
    w = part(s, p.weights, table[i].weight)
    b = part(s, p.packed, table[i].packed) + column * k
    if transposed:
        pack_panels_transposed(&p.kernels, k, columns, w + column * k, k, b, k, 0)
    else:
        pack_panels(&p.kernels, k, columns, w + column, n, b, k, 0)


# ----------------------------------------------------------------------------------------------------------- gradients
ctypedef void* Address

cdef struct Gradient:  # dw[i] (m, n) = aᵀ b[i] over `segments` runs of `rows` rows; all pointers of the pass's element type
    Py_ssize_t m, n, parts, rows, segments
    void* a
    Py_ssize_t lda, a_segment
    void* mean          # a is normalised with these, unless NULL
    void* rstd
    void* scale
    void* shift
    int packed          # b is in panels of R rows, b[i] `b_part` after b[0]; else one matrix of rows
    void* b
    Py_ssize_t b_part, ldb, b_segment
    Address[3] dw
    Address[3] db         # NULL without biases


cdef inline Py_ssize_t gradients(Group group) noexcept nogil:
    return 3 if group == MLP else 1


cdef void block_gradient(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t which, Gradient* g) noexcept nogil:
    """q, k and v side by side, projection, fc1, fc2 of a block."""
    cdef Py_ssize_t D = p.D, F = p.F, block = p.w.blocks + layer * p.w.block_stride, i
    cdef Py_ssize_t[6] w = [p.w.block.q_w, p.w.block.k_w, p.w.block.v_w, p.w.block.o_w, p.w.block.fc1_w, p.w.block.fc2_w]
    cdef Py_ssize_t[6] b = [p.w.block.q_b, p.w.block.k_b, p.w.block.v_b, p.w.block.o_b, p.w.block.fc1_b, p.w.block.fc2_b]
    cdef real* stats = kept(s, p, KEEP_STATS, layer)
    cdef Py_ssize_t norm_w = -1, norm_b = -1, first = which + 2 if which else 0
    g.m = g.n = g.lda = D
    g.packed = True
    if which == 0:
        g.parts, g.b_part = 3, panel_size(p.R, D)
        g.a = kept(s, p, KEEP_X, layer)
        g.b = part(s, p.arena, p.at.dqkv_panels)
        norm_w, norm_b = p.w.block.norm1_w, p.w.block.norm1_b
    elif which == 1:
        g.a = kept(s, p, KEEP_O, layer)
        g.b = part(s, p.arena, p.at.dmid_panels)
    elif which == 2:
        g.a = kept(s, p, KEEP_MID, layer)
        g.b = part(s, p.arena, p.at.du_panels)
        g.n = F
        stats += 2 * p.R
        norm_w, norm_b = p.w.block.norm2_w, p.w.block.norm2_b
    else:
        g.a = kept(s, p, KEEP_U, layer)  # gelu(u) by now
        g.b = part(s, p.arena, p.at.dy_panels)
        g.m = g.lda = F
    for i in range(g.parts):
        g.dw[i] = part(s, p.grad, block + w[first + i])
        g.db[i] = part(s, p.grad, -1 if b[first + i] < 0 else block + b[first + i])
    if which == 0 or which == 2:
        g.mean = stats
        g.rstd = stats + p.R
        g.scale = part(s, p.weights, -1 if norm_w < 0 else block + norm_w)
        g.shift = part(s, p.weights, -1 if norm_b < 0 else block + norm_b)


cdef void describe(real* s, Pass* p, Group group, Py_ssize_t layer, Py_ssize_t which, Gradient* g) noexcept nogil:
    g.mean = g.rstd = g.scale = g.shift = NULL
    g.parts, g.packed, g.b_part = 1, False, 0
    g.rows, g.segments, g.a_segment, g.b_segment = p.R, 1, 0, 0
    if group == QKV:
        block_gradient(s, p, layer, 0, g)
    elif group == MLP:
        block_gradient(s, p, layer, which + 1, g)
    elif group == HEAD:
        g.m = g.lda = p.D
        g.n = g.ldb = p.classes
        g.rows = p.N
        g.a, g.b = part(s, p.arena, p.at.pooled), part(s, p.arena, p.at.dlogits)
        g.dw[0], g.db[0] = part(s, p.grad, p.w.head_w), part(s, p.grad, p.w.head_b)
    else:
        g.m = g.lda = p.features
        g.n = g.ldb = p.D
        g.rows, g.segments = p.patches, p.N
        g.a, g.a_segment = part(s, p.arena, p.at.patches), p.patches * p.features
        g.b, g.b_segment = part(s, p.arena, p.at.dx) + p.class_token * p.D, p.T * p.D
        g.dw[0], g.db[0] = part(s, p.grad, p.w.patch_w), part(s, p.grad, p.w.patch_b)


cdef void cut_tiles(Pass* p, Gradient* g, Py_ssize_t* high, Py_ssize_t* wide) noexcept nogil:
    """How many tiles a gradient has. A tile is as wide as it can be, since its columns of x are packed once for all its columns of dy."""
    cdef Py_ssize_t rows
    wide[0] = 1 if g.packed else ceil_div(g.n, WIDEST)
    rows = min(<Py_ssize_t> MOST_ROWS, max(p.tile_rows, p.tile_area * wide[0] // (g.n * g.parts)))
    high[0] = ceil_div(g.m, max(p.panel, rows // p.panel * p.panel))


cdef Py_ssize_t gradient_tasks(Pass* p, Group group) noexcept nogil:
    """The tiles of a group, and for a half of a block with norm parameters one task more for their sums."""
    cdef Gradient g
    cdef Py_ssize_t tasks = 0, i, high, wide
    for i in range(gradients(group)):
        describe(<float*> NULL, p, group, 0, i, &g)
        cut_tiles(p, &g, &high, &wide)
        tasks += high * wide
    return tasks + (group in (QKV, MLP) and p.w.block.norm1_w >= 0)


cdef void gradient_task(real* s, Pass* p, Group group, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Gradient g
    cdef Py_ssize_t i, high, wide, panels
    for i in range(gradients(group)):
        describe(s, p, group, layer, i, &g)
        cut_tiles(p, &g, &high, &wide)
        if task < high * wide:
            panels = ceil_div(g.m, p.panel)
            gradient_tile(s, p, &g, cut(panels, high, task // wide) * p.panel,
                          min(g.m, cut(panels, high, task // wide + 1) * p.panel),
                          cut(g.n, wide, task % wide), cut(g.n, wide, task % wide + 1))
            return
        task -= high * wide
    norm_gradients(s, p, layer, group == MLP)


cdef void gradient_tile(real* s, Pass* p, Gradient* g, Py_ssize_t m0, Py_ssize_t m1, Py_ssize_t n0, Py_ssize_t n1) noexcept nogil:
    """Rows m0 to m1 and columns n0 to n1 of every dw, and that part of every db where m0 is 0. Packed dy are taken as a whole."""
    cdef Py_ssize_t depth = gradient_depth(p, s), blocks = ceil_div(g.rows, depth), segment, block, row, rows, i, again
    cdef real* a = s
    cdef real* b = s + depth * column_room(&p.kernels, s, MOST_ROWS)
    cdef real* dy
    cdef real* db
    cdef real* soon
    cdef real* mean = <real*> NULL
    cdef real* rstd = <real*> NULL
    cdef real* scale = <real*> NULL
    cdef real* shift = <real*> NULL
    if g.scale != NULL:
        scale, shift = <real*> g.scale + m0, <real*> g.shift + m0
    for segment in range(g.segments):
        for block in range(blocks):
            row = cut(g.rows, blocks, block)
            rows = cut(g.rows, blocks, block + 1) - row
            again = segment or block
            if g.mean != NULL:
                mean, rstd = <real*> g.mean + row, <real*> g.rstd + row
            pack_columns(&p.kernels, rows, m1 - m0, <real*> g.a + segment * g.a_segment + row * g.lda + m0, g.lda, mean, rstd,
                         scale, shift, a)
            for i in range(g.parts):
                db = <real*> g.db[i] + n0 if m0 == 0 and g.db[i] != NULL else <real*> NULL
                soon = <real*> NULL
                if i == 0:  # the tile's next rows of x, or those that the next tile begins with
                    soon = <real*> g.a + ((row + rows) * g.lda + m0 if block + 1 < blocks else m1)
                if g.packed:
                    dy = <real*> g.b + i * g.b_part
                    gemm_columns(&p.kernels, m1 - m0, g.n, rows, a, dy, g.rows, row, <real*> g.dw[i] + m0 * g.n, g.n, again, db,
                                 soon, g.lda)
                else:
                    dy = <real*> g.b + segment * g.b_segment + row * g.ldb + n0
                    pack_panels(&p.kernels, rows, n1 - n0, dy, g.ldb, b, rows, 0)
                    gemm_columns(&p.kernels, m1 - m0, n1 - n0, rows, a, b, rows, 0, <real*> g.dw[i] + m0 * g.n + n0, g.n, again, db,
                                 <real*> NULL, 0)


cdef void norm_gradients(real* s, Pass* p, Py_ssize_t layer, bint second) noexcept nogil:
    """The parts of a norm's scale and shift gradients, added in order."""
    cdef Py_ssize_t scale = p.w.block.norm2_w if second else p.w.block.norm1_w
    cdef Py_ssize_t shift = p.w.block.norm2_b if second else p.w.block.norm1_b
    cdef Py_ssize_t block = p.w.blocks + layer * p.w.block_stride
    cdef real* parts = part(s, p.arena, p.at.partial) + 2 * second * p.D
    column_sums(&p.kernels, p.units, p.D, parts, 4 * p.D, 0, <real> 1, part(s, p.grad, block + scale))
    column_sums(&p.kernels, p.units, p.D, parts + p.D, 4 * p.D, 0, <real> 1, part(s, p.grad, block + shift))


cdef inline Py_ssize_t gradient_depth(Pass* p, real* kind) noexcept nogil:
    """The most rows that a tile multiplies at a time: an eighth more than other products do, so that few are left over."""
    return block_depth(&p.kernels, kind) * 9 // 8


cdef Py_ssize_t gradient_scratch(real* kind, Pass* p) noexcept nogil:
    return gradient_depth(p, kind) * (column_room(&p.kernels, kind, MOST_ROWS) + ceil_div(WIDEST, 32) * 32)
