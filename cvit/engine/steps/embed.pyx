"""Images to tokens: patches, their embedding, the tokens before them, positions; and the gradients of tokens and
positions.

    x[n] = [tokens; patches(image n) @ W + b] + pos                               (Dosovitskiy et al. 2021, eq. 1)
    dpos = sum over images of dx,  dtokens = its first rows,  dW = patchesᵀ dx,  db = sum of dx over patches

Positions may be those of the patches alone. Forward keeps the patches. A task of the forward is a band of patch rows in
a group of images; of the backward a token's columns. dW and db are tiles of the weight stage, in weights.pyx.
"""

from libc.string cimport memcpy
from ..kernels cimport AddRows, ColumnSums, Gemm, PackRows, adding, matrix, packed_rows, packing_rows, product, summing
from ..patches cimport cut_patches
from ..task cimport Pass, Task, part_start, row_of
from .linear cimport bias_of, panels_of


cdef void embed_task(const Task* t, Py_ssize_t task) noexcept nogil:
    cdef const Pass* p = t.p
    cdef Py_ssize_t n, D = p.D, size = t.K.size, pixels = p.channels * p.height * p.width, across = p.width // p.patch
    cdef Py_ssize_t group = task // p.bands, band = task % p.bands, grid = p.height // p.patch
    cdef Py_ssize_t top = part_start(grid, p.bands, band), bottom = part_start(grid, p.bands, band + 1)
    cdef Py_ssize_t first = top * across, count = (bottom - top) * across  # patches of the band
    cdef char* pos = p.weights + p.positions
    cdef char* patches
    cdef AddRows prefix
    cdef PackRows packing
    cdef Gemm g
    for n in range(part_start(p.N, p.image_groups, group), part_start(p.N, p.image_groups, group + 1)):
        patches = p.arena + p.patches_at + ((n if p.training else group) * p.patches + first) * p.features * size
        cut_patches(p.images + n * pixels * size, p.channels, p.height, p.width, p.patch, top, bottom, size, patches)
        if p.prefix and band == 0:
            prefix = adding(p.prefix, D, matrix(p.weights + p.prefix_tokens, D),
                            matrix(row_of(t, &p.first_x, n * p.T), D))
            if p.positions_of_prefix:
                prefix.add = matrix(pos, D)
            t.K.add_rows(&prefix)
        packing = packing_rows(count, p.features, matrix(patches, p.features), t.scratch)
        t.K.pack_rows(&packing)
        g = product(count, D, p.features, packed_rows(t.scratch, count), panels_of(p, &p.embed, 0, 0, 0, p.features),
                    matrix(row_of(t, &p.first_x, n * p.T + p.prefix + first), D))
        g.bias = bias_of(p, &p.embed, 0, 0)
        g.add = matrix(pos + ((p.prefix if p.positions_of_prefix else 0) + first) * D * size, D)
        g.hint.c_is_cached = not p.hints
        t.K.gemm(&g)


cdef void tokens_backward_task(const Task* t, Py_ssize_t task) noexcept nogil:
    """The gradients of one token of the sequence: column sums of dx, seen as (N, T·D)."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t row = p.D * t.K.size, position = task if p.positions_of_prefix else task - p.prefix
    cdef char* dpos = p.grad + p.positions + position * row
    cdef char* dtoken = p.grad + p.prefix_tokens + task * row
    cdef ColumnSums call = summing(p.N, p.D, matrix(p.arena + p.dx + task * row, p.T * p.D),
                                   dpos if position >= 0 else dtoken)
    t.K.column_sums(&call)
    if position >= 0 and task < p.prefix:
        memcpy(dtoken, dpos, row)
