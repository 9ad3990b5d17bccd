"""Images to tokens: patches, their embedding, a norm, the tokens before them, positions; and all their gradients.

    x[n] = [tokens; norm(patches(image n) @ W + b)] + pos                         (Dosovitskiy et al. 2021, eq. 1)
    dpos = sum over images of dx,  dtokens = its first rows,  dW = patchesᵀ dx,  db = sum of dx over patches

Positions may be those of the patches and of the first few tokens alone, or none. Forward keeps what a norm normalises,
and no patches, which the backward cuts again. A task of the forward is a band of patch rows in a group of images; of
the backward a token's columns, and of the norm's a group of images. dW and db are tiles of the weight stage, in
weights.pyx.
"""

from libc.string cimport memcpy, memset
from ..kernels cimport (
    AddRows, ColumnSums, Gemm, Norm, NormBackward, PackRows, adding, ceil_div, matrix, normalisation,
    normalisation_backward, packed_rows, packing_rows, product, rows_bytes, summing,
)
from ..patches cimport cut_patches
from ..task cimport Pass, Task, offset_of, part_start, row_of
from .linear cimport bias_of, panels_of


cdef Py_ssize_t embed_scratch(const Pass* p) noexcept nogil:
    """Bytes: a band's patches, and packed."""
    cdef Py_ssize_t rows = ceil_div(p.height // p.patch_height, p.bands) * (p.width // p.patch_width)
    return rows_bytes(p.K, rows, p.patch_values) + rows * p.patch_values * p.K.size


cdef void embed_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t n, D = p.D, size = t.K.size, pixels = p.channels * p.height * p.width
    cdef Py_ssize_t group = task // p.bands, band = task % p.bands
    cdef Py_ssize_t grid = p.height // p.patch_height, across = p.width // p.patch_width
    cdef Py_ssize_t top = part_start(grid, p.bands, band), bottom = part_start(grid, p.bands, band + 1)
    cdef Py_ssize_t first = top * across, count = (bottom - top) * across  # patches of the band
    cdef char* pos = offset_of(p.weights, p.positions)
    cdef char* patches = t.scratch + rows_bytes(t.K, count, p.patch_values)
    cdef char* x
    cdef PackRows packing
    cdef Gemm g
    if pos != NULL:
        pos += (p.positions_of_prefix + first) * D * size
    for n in range(part_start(p.N, p.image_groups, group), part_start(p.N, p.image_groups, group + 1)):
        cut_patches(p.images + n * pixels * size, p.channels, p.height, p.width, p.patch_height, p.patch_width, top,
                    bottom, size, patches)
        if p.prefix and band == 0:
            prefix_tokens(t, row_of(t, &p.first_x, n * p.T))
        packing = packing_rows(count, p.patch_values, matrix(patches, p.patch_values), t.scratch)
        t.K.pack_rows(&packing)
        x = row_of(t, &p.first_x, n * p.T + p.prefix + first)
        g = product(count, D, p.patch_values, packed_rows(t.scratch, count),
                    panels_of(p, &p.embed, 0, 0, 0, p.patch_values), matrix(x, D))
        g.bias = bias_of(p, &p.embed, 0, 0)
        if p.patch_norm.given:
            if p.training:
                g.c = matrix(row_of(t, &p.patch_rows, n * p.patches + first), D)
        elif pos != NULL:
            g.add = matrix(pos, D)
        g.hint.c_is_cached = not p.hints
        t.K.gemm(&g)
        if p.patch_norm.given:
            normalise_patches(t, n * p.patches + first, count, <char*> g.c.at, x, pos)


cdef void prefix_tokens(const Task* t, char* x) noexcept nogil:
    """The tokens before the patches, the first of them with positions."""
    cdef const Pass* p = t.p
    cdef AddRows call = adding(p.positions_of_prefix, p.D, matrix(p.weights + p.prefix_tokens, p.D), matrix(x, p.D))
    cdef Py_ssize_t done = p.positions_of_prefix * p.D * t.K.size
    if p.positions_of_prefix:
        call.add = matrix(p.weights + p.positions, p.D)
        t.K.add_rows(&call)
    memcpy(x + done, p.weights + p.prefix_tokens + done, p.prefix * p.D * t.K.size - done)


cdef void normalise_patches(const Task* t, Py_ssize_t first, Py_ssize_t count, char* rows, char* x,
                            char* pos) noexcept nogil:
    """x = norm(rows) + pos; `first` is the number of the first row among all patches of the batch."""
    cdef const Pass* p = t.p
    cdef Norm call = normalisation(count, p.D, matrix(rows, p.D), p.patch_norm.eps)
    cdef AddRows positions = adding(count, p.D, matrix(x, p.D), matrix(x, p.D))
    call.rms, call.y = p.patch_norm.rms, matrix(x, p.D)
    call.scale = offset_of(p.weights, p.patch_norm.scale)
    call.shift = offset_of(p.weights, p.patch_norm.shift)
    if p.training:
        call.mean = p.arena + p.patch_norm.mean + first * t.K.size
        call.rstd = p.arena + p.patch_norm.rstd + first * t.K.size
    t.K.norm(&call)
    if pos != NULL:
        positions.add = matrix(pos, p.D)
        t.K.add_rows(&positions)


cdef void patch_norm_backward_task(const Task* t, Py_ssize_t task) noexcept nogil:
    """dx of the patches becomes the gradient of their embedding, in place; a group of images has its own sums."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t n, size = t.K.size
    cdef char* sums = p.arena + p.patch_norm.partial + task * 2 * p.D * size
    cdef char* dx
    cdef NormBackward call
    memset(sums, 0, 2 * p.D * size)
    for n in range(part_start(p.N, p.image_groups, task), part_start(p.N, p.image_groups, task + 1)):
        dx = p.arena + p.dx + (n * p.T + p.prefix) * p.D * size
        call = normalisation_backward(p.patches, p.D, matrix(dx, p.D),
                                      matrix(row_of(t, &p.patch_rows, n * p.patches), p.D), matrix(dx, p.D))
        call.rms = p.patch_norm.rms
        call.mean = p.arena + p.patch_norm.mean + n * p.patches * size
        call.rstd = p.arena + p.patch_norm.rstd + n * p.patches * size
        if p.patch_norm.scale >= 0:
            call.scale, call.dscale = p.weights + p.patch_norm.scale, sums
        if p.patch_norm.shift >= 0:
            call.dshift = sums + p.D * size
        t.K.norm_backward(&call)


cdef void group_sums(const Task* t, Py_ssize_t partial, Py_ssize_t scale, Py_ssize_t shift) noexcept nogil:
    """The gradients of a norm's scale and shift from the groups' parts, added in order."""
    cdef const Pass* p = t.p
    cdef char* parts = p.arena + partial
    cdef ColumnSums call
    if scale >= 0:
        call = summing(p.image_groups, p.D, matrix(parts, 2 * p.D), p.grad + scale)
        t.K.column_sums(&call)
    if shift >= 0:
        call = summing(p.image_groups, p.D, matrix(parts + p.D * t.K.size, 2 * p.D), p.grad + shift)
        t.K.column_sums(&call)


cdef void tokens_backward_task(const Task* t, Py_ssize_t task) noexcept nogil:
    """The gradients of one token of the sequence: column sums of dx, seen as (N, T·D)."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t row = p.D * t.K.size, position = task
    cdef bint positioned = p.positions >= 0 and (task < p.positions_of_prefix or task >= p.prefix)
    cdef char* dtoken = p.grad + p.prefix_tokens + task * row
    cdef char* dpos
    cdef ColumnSums call
    if task >= p.prefix:
        position -= p.prefix - p.positions_of_prefix
    if not positioned and task >= p.prefix:
        return
    dpos = p.grad + p.positions + position * row if positioned else dtoken
    call = summing(p.N, p.D, matrix(p.arena + p.dx + task * row, p.T * p.D), dpos)
    t.K.column_sums(&call)
    if positioned and task < p.prefix:
        memcpy(dtoken, dpos, row)
