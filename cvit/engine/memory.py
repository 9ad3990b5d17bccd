"""Aligned memory for kernels."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np


def allocate(count: int, dtype) -> np.ndarray:
    """A vector of `count` elements, aligned to 64 bytes; large ones on huge pages where the system has them.

    Its pages are mapped at their first use. Raises MemoryError, with the number of bytes, where the system refuses.
    """
    dtype = np.dtype(dtype)
    size = max(count, 1) * dtype.itemsize
    if size < 1 << 20 or not hasattr(mmap, "MAP_PRIVATE"):
        raw = np.empty(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size].view(dtype)
    try:
        region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"no room for {size:,} bytes, {size / 1e9:,.3f} GB: {error}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without huge pages
            region.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(region, dtype)
