"""Images to tokens: patches, their embedding, class token and positions; and the positions' gradients.

    x[n] = [cls; patches(image n) @ W + b] + pos                                  (Dosovitskiy et al. 2021, eq. 1)
    dpos = sum over images of dx,  dcls = dpos[0],  dW = patchesᵀ dx,  db = sum of dx over patches

Forward keeps the patches. A task of the forward is a band of patch rows in a group of images; of the backward
a token's columns. dW and db are tiles of the weight stage, in _weights.pyx.
"""

from libc.string cimport memcpy
from .kernels cimport column_sums, gemm, pack_rows, real
from .state cimport KEEP_X, Pass, cut, kept, part


cdef void cut_patches(real* image, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width, Py_ssize_t patch, Py_ssize_t first,
                      Py_ssize_t last, real* out) noexcept nogil:
    """(C, H, W) -> (patches, C·P·P): rows first to last of the grid, each patch flattened as (C, P, P)."""
    cdef Py_ssize_t gy, gx, c, y
    for gy in range(first, last):
        for gx in range(width // patch):
            for c in range(channels):
                for y in range(patch):
                    memcpy(out, image + (c * height + gy * patch + y) * width + gx * patch, patch * sizeof(real))
                    out += patch


cdef void join_patches(real* patches, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width, Py_ssize_t patch,
                       real* image) noexcept nogil:
    """The inverse of cut_patches, and so its backward: every pixel is in one patch."""
    cdef Py_ssize_t gy, gx, c, y
    for gy in range(height // patch):
        for gx in range(width // patch):
            for c in range(channels):
                for y in range(patch):
                    memcpy(image + (c * height + gy * patch + y) * width + gx * patch, patches, patch * sizeof(real))
                    patches += patch


cdef void embed_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t n, i, D = p.D, pixels = p.channels * p.height * p.width, across = p.width // p.patch
    cdef Py_ssize_t group = task // p.bands, band = task % p.bands, grid = p.height // p.patch
    cdef Py_ssize_t top = cut(grid, p.bands, band), bottom = cut(grid, p.bands, band + 1)
    cdef Py_ssize_t first = top * across, count = (bottom - top) * across  # patches of the band
    cdef real* patches
    cdef real* x
    cdef real* pos = part(s, p.weights, p.w.pos)
    cdef real* cls = part(s, p.weights, p.w.cls)
    for n in range(cut(p.N, p.image_groups, group), cut(p.N, p.image_groups, group + 1)):
        patches = part(s, p.arena, p.at.patches) + ((n if p.training else group) * p.patches + first) * p.features
        x = kept(s, p, KEEP_X, 0) + n * p.T * D
        cut_patches(<real*> p.images + n * pixels, p.channels, p.height, p.width, p.patch, top, bottom, patches)
        if p.class_token and band == 0:
            for i in range(D):
                x[i] = cls[i] + pos[i]
        pack_rows(&p.kernels, count, p.features, patches, p.features, <real> 1, s)
        gemm(&p.kernels, count, D, p.features, s, part(s, p.packed, p.at.pack_patch), p.features, 0,
             x + (p.class_token + first) * D, D, part(s, p.weights, p.w.patch_b), pos + (p.class_token + first) * D, D, False,
             <real*> NULL, 0)


cdef void positions_backward_task(real* s, Pass* p, Py_ssize_t task) noexcept nogil:
    """dpos and dcls over 1 of T ranges: columns of dx seen as (N, T·D)."""
    cdef Py_ssize_t first = task * p.D
    cdef real* dpos = part(s, p.grad, p.w.pos)
    column_sums(&p.kernels, p.N, p.D, part(s, p.arena, p.at.dx) + first, p.T * p.D, 0, <real> 1, dpos + first)
    if task == 0 and p.class_token:
        memcpy(part(s, p.grad, p.w.cls), dpos, p.D * sizeof(real))
