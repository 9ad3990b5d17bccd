"""Everything done to weight matrices: packing them for the products, and the tiles of their gradients.

Packing. A pass multiplies by W (forward) or Wᵀ (backward), from panels that gemm.inc describes. A matrix is packed once
per pass, in strips of columns, as extra tasks of the stage before the one that needs it; one block's panels are kept at
a time. A frozen model keeps all of them.

Gradients, for y = x @ W + b over all rows of tokens:

    dW = xᵀ dy,   db = column sums of dy

A task is one tile of one Linear's dW, of all its matrices side by side, since they share x: it runs over the rows in a
few equal blocks, in order, packs its columns of x (normalising them again where x is a norm's output) and adds the
product to the tile. The dy of a block's gradients lie packed already: the rows stages wrote them so. The tiles at the
top of a dW also add up db.
"""

from ..kernels cimport (
    GemmColumns, Matrix, PackColumns, PackPanels, Panels, ceil_div, column_room, columns_product, matrix, packing_columns, packing_panels,
    panels,
)
from ..task cimport ARENA, Linear, Pass, Slot, Task, offset_of, part_start, row_of

cdef enum:
    STRIP = 128      # columns of a packing task, a multiple of every panel's width
    MOST_ROWS = 196  # of dW in a tile
    WIDEST = 384     # columns of a tile that packs dy itself


# ------------------------------------------------------------------------------------------------------------- packing
cdef Py_ssize_t pack_count(const Pass* p, const Linear* linears, int count) noexcept nogil:
    """Strips of these matrices; W and Wᵀ are counted alike, by the wider of the two."""
    cdef Py_ssize_t tasks = 0
    cdef int i
    if p.frozen:
        return 0
    for i in range(count):
        tasks += linears[i].count * ceil_div(max(linears[i].k, linears[i].n), STRIP)
    return tasks


cdef void pack_task(const Task* t, const Linear* linears, int count, bint transposed, Py_ssize_t task) noexcept nogil:
    cdef const Linear* w = linears
    cdef Py_ssize_t strips = ceil_div(max(w.k, w.n), STRIP), column, wanted, k, n
    cdef int i
    cdef char* b
    cdef PackPanels call
    while task >= strips * w.count:
        task -= strips * w.count
        w += 1
        strips = ceil_div(max(w.k, w.n), STRIP)
    i, column = task // strips, task % strips * STRIP
    k, n = w.k, w.n
    if transposed:
        k, n = n, k
    wanted = min(<Py_ssize_t> STRIP, n - column)
    if wanted <= 0:
        return
    b = t.p.packed + w.packed[i] + column * k * t.K.packed_size
    if transposed:
        call = packing_panels(k, wanted, matrix(t.p.weights + w.weight[i] + column * k * t.K.size, k), panels(b, k))
        t.K.pack_panels_transposed(&call)
    else:
        call = packing_panels(k, wanted, matrix(t.p.weights + w.weight[i] + column * t.K.size, n), panels(b, k))
        t.K.pack_panels(&call)


# ----------------------------------------------------------------------------------------------------------- gradients
cdef void count_tiles(const Pass* p, const Linear* w, Py_ssize_t* high, Py_ssize_t* wide) noexcept nogil:
    """How many tiles a gradient has.

    A tile is as wide as it can be, since its columns of x are packed once for all its columns of dy.
    """
    cdef Py_ssize_t rows
    wide[0] = 1 if w.dy < 0 else ceil_div(w.n, WIDEST)
    rows = min(<Py_ssize_t> MOST_ROWS, max(p.tile_rows, p.tile_area * wide[0] // (w.n * w.count)))
    high[0] = ceil_div(w.k, max(p.panel, rows // p.panel * p.panel))


cdef Py_ssize_t gradient_count(const Pass* p, const Linear* linears, int count) noexcept nogil:
    cdef Py_ssize_t tasks = 0, high, wide
    cdef int i
    for i in range(count):
        count_tiles(p, &linears[i], &high, &wide)
        tasks += high * wide
    return tasks


cdef void gradient_task(const Task* t, const Linear* linears, int count, Py_ssize_t task) noexcept nogil:
    cdef const Linear* w
    cdef Py_ssize_t high, wide, panel = t.p.panel, rows
    cdef int i
    for i in range(count):
        w = &linears[i]
        count_tiles(t.p, w, &high, &wide)
        if task < high * wide:
            rows = ceil_div(w.k, panel)
            gradient_tile(t, w, part_start(rows, high, task // wide) * panel, min(w.k, part_start(rows, high, task // wide + 1) * panel),
                          part_start(w.n, wide, task % wide), part_start(w.n, wide, task % wide + 1))
            return
        task -= high * wide


cdef void gradient_tile(const Task* t, const Linear* w, Py_ssize_t m0, Py_ssize_t m1, Py_ssize_t n0, Py_ssize_t n1) noexcept nogil:
    """Rows m0 to m1 and columns n0 to n1 of every dW, and that part of every db where m0 is 0.

    Packed dy are taken as a whole.
    """
    cdef const Pass* p = t.p
    cdef Py_ssize_t size = t.K.size, depth = gradient_depth(p), blocks = ceil_div(w.rows, depth), segment, block, row, rows
    cdef char* a = t.scratch
    cdef char* b = a + depth * column_room(t.K, MOST_ROWS) * t.K.packed_size
    cdef char* x
    cdef PackColumns packing
    cdef PackPanels dy
    cdef GemmColumns g
    cdef int i
    for segment in range(w.segments):
        for block in range(blocks):
            row = part_start(w.rows, blocks, block)
            rows = part_start(w.rows, blocks, block + 1) - row
            x = row_of(t, &w.input, row) + segment * w.input_segment + m0 * size
            packing = packing_columns(rows, m1 - m0, matrix(x, w.input.ld), a)
            if w.norm.given:
                packing.mean, packing.rstd = row_of(t, &w.norm.mean, row), row_of(t, &w.norm.rstd, row)
                if w.norm.scale >= 0:
                    packing.scale, packing.shift = p.weights + w.norm.scale + m0 * size, p.weights + w.norm.shift + m0 * size
            t.K.pack_columns(&packing)
            for i in range(w.count):
                g = columns_product(m1 - m0, n1 - n0, rows, a, panels(b, rows),
                                    matrix(p.grad + w.weight[i] + (m0 * w.n + n0) * size, w.n))
                if w.dy < 0:
                    g.b = panels(p.arena + w.panels[i], w.rows, row)
                else:
                    dy = packing_panels(rows, n1 - n0, matrix(p.arena + w.dy + segment * w.dy_segment + (row * w.dy_ld + n0) * size,
                                                              w.dy_ld), panels(b, rows))
                    t.K.pack_panels(&dy)
                g.accumulate = segment or block
                g.hint.c_is_cached = not p.hints
                if m0 == 0 and w.bias[i] >= 0:
                    g.column_sums = p.grad + w.bias[i] + n0 * size
                if i == 0 and w.dy < 0 and p.hints:  # the tile's next rows of x, or those that the next tile begins with
                    g.hint.next = matrix(row_of(t, &w.input, row + rows if block + 1 < blocks else 0)
                                         + (m0 if block + 1 < blocks else m1) * size, w.input.ld)
                t.K.gemm_columns(&g)


cdef inline Py_ssize_t gradient_depth(const Pass* p) noexcept nogil:
    """The most rows that a tile multiplies at a time: an eighth more than other products do, so that few are left
    over."""
    return p.K.kc * 9 // 8


cdef Py_ssize_t gradient_scratch(const Pass* p) noexcept nogil:
    """Bytes."""
    return gradient_depth(p) * (column_room(p.K, MOST_ROWS) + ceil_div(WIDEST, 32) * 32) * p.K.packed_size
