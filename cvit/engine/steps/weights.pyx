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

A layer scale g (Touvron et al. 2021, arXiv:2103.17239) multiplies the columns of a product, y = (x W + b) g: that is a
product with W' = W g and b' = b g, so W is packed times g, and b' is made beside it. From the tiles of dW' = xᵀ dy
follow

    dW = dW' g,   db = db' g,   dg = column sums of W dW', plus b db'

Each panel of rows of a tile has its part of dg, however tiles are cut; `scale_sums` adds the parts in order, a stage
later.
"""

from ..kernels cimport (
    AddRows, ColumnSums, GemmColumns, Matrix, PackColumns, PackPanels, Unscale, adding, ceil_div, columns_bytes,
    columns_product, matrix, packing_columns, packing_panels, panel_depth, panels, panels_bytes, summing,
)
from ..patches cimport cut_columns
from ..task cimport Linear, Pass, Task, columns, part_start, row_of, rows_from

cdef enum:
    STRIP = 128      # columns of a packing task, a multiple of every panel's width
    MOST_ROWS = 196  # of dW in a tile, about
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
    b = t.p.packed + w.packed[i] + panels_bytes(t.K, k, column)
    if transposed:
        call = packing_panels(k, wanted, matrix(t.p.weights + w.weight[i] + column * k * t.K.size, k), panels(b, k))
        if w.layer_scale >= 0:
            call.factor = t.p.weights + w.layer_scale
        t.K.pack_panels_transposed(&call)
    else:
        call = packing_panels(k, wanted, matrix(t.p.weights + w.weight[i] + column * t.K.size, n), panels(b, k))
        if w.layer_scale >= 0:
            call.factor = t.p.weights + w.layer_scale + column * t.K.size
            scale_bias(t, w, column, wanted)
        t.K.pack_panels(&call)


cdef void scale_bias(const Task* t, const Linear* w, Py_ssize_t column, Py_ssize_t count) noexcept nogil:
    """Columns of the bias times the layer scale."""
    cdef Py_ssize_t at = column * t.K.size
    cdef AddRows call
    if w.bias[0] >= 0:
        call = adding(1, count, matrix(t.p.weights + w.bias[0] + at, count),
                      matrix(t.p.packed + w.scaled_bias + at, count))
        call.columns = t.p.weights + w.layer_scale + at
        t.K.add_rows(&call)


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
            gradient_tile(t, w, part_start(rows, high, task // wide) * panel,
                          min(w.k, part_start(rows, high, task // wide + 1) * panel),
                          part_start(w.n, wide, task % wide), part_start(w.n, wide, task % wide + 1))
            return
        task -= high * wide


cdef void gradient_tile(const Task* t, const Linear* w, Py_ssize_t m0, Py_ssize_t m1, Py_ssize_t n0,
                        Py_ssize_t n1) noexcept nogil:
    """Rows m0 to m1 and columns n0 to n1 of every dW, and that part of every db where m0 is 0.

    Packed dy are taken as a whole.
    """
    cdef const Pass* p = t.p
    cdef Py_ssize_t size = t.K.size, depth = gradient_depth(p), blocks = ceil_div(w.rows, depth)
    cdef Py_ssize_t unit = t.K.depth_unit, units = ceil_div(w.rows, unit), segment, block, row, rows
    cdef char* a = t.scratch
    cdef char* b = a + columns_bytes(t.K, depth, highest(p))
    cdef Matrix x
    cdef PackColumns packing
    cdef PackPanels dy
    cdef GemmColumns g
    cdef int i
    for segment in range(w.segments):
        for block in range(blocks):
            row = part_start(units, blocks, block) * unit
            rows = min(w.rows, part_start(units, blocks, block + 1) * unit) - row
            if w.of_images:  # into the room of dy's panels, which come after them
                x = matrix(b, m1 - m0)
                cut_columns(p.images + segment * p.channels * p.height * p.width * size, p.channels, p.height, p.width,
                            p.patch_height, p.patch_width, row, rows, m0, m1, size, b)
            else:
                x = columns(t.K, rows_from(t, &w.input, row), m0)
            packing = packing_columns(rows, m1 - m0, x, a)
            if w.norm.given:
                packing.mean, packing.rstd = row_of(t, &w.norm.mean, row), row_of(t, &w.norm.rstd, row)
                if w.norm.scale >= 0:
                    packing.scale = p.weights + w.norm.scale + m0 * size
                if w.norm.shift >= 0:
                    packing.shift = p.weights + w.norm.shift + m0 * size
            t.K.pack_columns(&packing)
            for i in range(w.count):
                g = columns_product(m1 - m0, n1 - n0, rows, a, panels(b, rows),
                                    matrix(p.grad + w.weight[i] + (m0 * w.n + n0) * size, w.n))
                if w.dy < 0:
                    g.b = panels(p.arena + w.panels[i], w.rows, row)
                else:
                    dy = packing_panels(rows, n1 - n0,
                                        matrix(p.arena + w.dy + segment * w.dy_segment + (row * w.dy_ld + n0) * size,
                                                              w.dy_ld), panels(b, rows))
                    t.K.pack_panels(&dy)
                g.accumulate = segment or block
                g.hint.c_is_cached = not p.hints
                if m0 == 0 and w.bias[i] >= 0:
                    g.column_sums = p.grad + w.bias[i] + n0 * size
                if i == 0 and w.dy < 0 and p.hints:
                    # The tile's next rows of x, or those that the next tile begins with.
                    g.hint.next = columns(t.K, rows_from(t, &w.input, row + rows if block + 1 < blocks else 0),
                                          m0 if block + 1 < blocks else m1)
                t.K.gemm_columns(&g)
    if w.layer_scale >= 0:
        unscale_tile(t, w, m0, m1, n0, n1)


cdef void unscale_tile(const Task* t, const Linear* w, Py_ssize_t m0, Py_ssize_t m1, Py_ssize_t n0,
                       Py_ssize_t n1) noexcept nogil:
    """A tile of dW' becomes one of dW; each panel of its rows leaves its part of the layer scale's gradient."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t row, at, size = t.K.size
    cdef Unscale call
    call.n, call.factor = n1 - n0, p.weights + w.layer_scale + n0 * size
    for row from m0 <= row < m1 by p.panel:
        at = w.weight[0] + (row * w.n + n0) * size
        call.rows = min(p.panel, m1 - row)
        call.w, call.dw = matrix(p.weights + at, w.n), matrix(p.grad + at, w.n)
        call.sums = p.arena + w.scale_sums + (row // p.panel * w.n + n0) * size
        t.K.unscale(&call)


cdef void scale_sums(const Task* t, const Linear* linears, int count, Py_ssize_t task) noexcept nogil:
    """The gradient of one layer scale from its parts, product by product where several share it."""
    cdef const Linear* w = linears
    cdef Py_ssize_t layer_scale
    cdef int i
    while w.layer_scale < 0 or w.shares_scale or task > 0:
        task -= w.layer_scale >= 0 and not w.shares_scale
        w += 1
    layer_scale = w.layer_scale
    for i in range(count):
        if linears[i].layer_scale == layer_scale:
            add_scale_sums(t, &linears[i])


cdef void add_scale_sums(const Task* t, const Linear* w) noexcept nogil:
    """One product's share, and its bias's gradient from that of the scaled bias."""
    cdef const Pass* p = t.p
    cdef ColumnSums sums
    cdef AddRows both
    cdef Unscale call
    cdef char* parts = p.arena + w.scale_sums
    sums = summing(ceil_div(w.k, p.panel), w.n, matrix(parts, w.n), p.grad + w.layer_scale)
    sums.accumulate = w.shares_scale
    t.K.column_sums(&sums)
    if w.bias[0] >= 0:  # the parts are used up: their first row takes b db'
        call.rows, call.n, call.factor, call.sums = 1, w.n, p.weights + w.layer_scale, parts
        call.w, call.dw = matrix(p.weights + w.bias[0], w.n), matrix(p.grad + w.bias[0], w.n)
        t.K.unscale(&call)
        both = adding(1, w.n, matrix(parts, w.n), matrix(p.grad + w.layer_scale, w.n))
        both.add = both.y
        t.K.add_rows(&both)


cdef inline Py_ssize_t highest(const Pass* p) noexcept nogil:
    """The most rows of dW that a tile has: whole panels."""
    return MOST_ROWS // p.panel * p.panel


cdef inline Py_ssize_t gradient_depth(const Pass* p) noexcept nogil:
    """The most rows that a tile multiplies at a time: an eighth more than other products do, so that few are left
    over."""
    return panel_depth(p.K, p.depth * 9 // 8)


cdef Py_ssize_t gradient_scratch(const Pass* p) noexcept nogil:
    """Bytes."""
    return columns_bytes(p.K, gradient_depth(p), highest(p)) + max(
        panels_bytes(p.K, gradient_depth(p), WIDEST), gradient_depth(p) * highest(p) * p.K.size)
