"""Images to patches and back, for elements of any size in bytes."""

from libc.string cimport memcpy


cdef inline void cut_patches(const char* image, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width,
                             Py_ssize_t patch_height, Py_ssize_t patch_width, Py_ssize_t first, Py_ssize_t last,
                             Py_ssize_t size, char* out) noexcept nogil:
    """(C, H, W) -> (patches, C·P·P): rows first to last of the grid, each patch flattened as (C, P, P); `size` bytes an
    element."""
    cdef Py_ssize_t gy, gx, c, y, run = patch_width * size
    for gy in range(first, last):
        for gx in range(width // patch_width):
            for c in range(channels):
                for y in range(patch_height):
                    memcpy(out, image + ((c * height + gy * patch_height + y) * width + gx * patch_width) * size, run)
                    out += run


cdef inline void cut_columns(const char* image, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width,
                             Py_ssize_t patch_height, Py_ssize_t patch_width, Py_ssize_t first, Py_ssize_t count,
                             Py_ssize_t start, Py_ssize_t stop, Py_ssize_t size, char* out) noexcept nogil:
    """Columns start to stop of `count` patches from number `first` on: (count, stop - start)."""
    cdef Py_ssize_t patch, across = width // patch_width, column, line, inside, run
    cdef const char* corner
    for patch in range(first, first + count):
        corner = image + (patch // across * patch_height * width + patch % across * patch_width) * size
        column = start
        while column < stop:
            line, inside = column // patch_width, column % patch_width
            run = min(patch_width - inside, stop - column)
            memcpy(out, corner + ((line // patch_height * height + line % patch_height) * width + inside) * size,
                   run * size)
            out += run * size
            column += run


cdef inline void join_patches(const char* patches, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width,
                              Py_ssize_t patch,
                              Py_ssize_t size, char* image) noexcept nogil:
    """The inverse of cut_patches over the whole grid, and so its backward: every pixel is in one patch."""
    cdef Py_ssize_t gy, gx, c, y, run = patch * size
    for gy in range(height // patch):
        for gx in range(width // patch):
            for c in range(channels):
                for y in range(patch):
                    memcpy(image + ((c * height + gy * patch + y) * width + gx * patch) * size, patches, run)
                    patches += run
