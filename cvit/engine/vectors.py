"""Large vectors that are handed out, and whose memory is used again when nobody holds them any more."""

from __future__ import annotations

import weakref

import numpy as np

from .memory import allocate

KEPT = 4  # vectors whose memory is kept: for a few threads, or for a caller who looks at the last few


class Vectors:
    """Vectors of one length and type, each without overlap with any other that is still held.

    Every vector is a new array object on memory of this pool. A view of it refers to it: NumPy shortens a chain of
    bases only from array to array, and its base is a memoryview. So does whatever took its buffer or its DLPack
    capsule. When a weak reference to the vector is dead, then nothing that could read or write the memory is left.
    """

    def __init__(self, size: int, dtype: np.dtype):
        self._size, self._dtype = size, dtype
        self._kept: list[tuple[memoryview, weakref.ref]] = []

    def take(self) -> np.ndarray:
        """A vector of any content. It is the caller's for as long as he holds it or a view of it."""
        free = next((i for i, (_, vector) in enumerate(self._kept) if vector() is None), None)
        if free is not None:
            memory, _ = self._kept.pop(free)
        else:
            memory = memoryview(allocate(self._size, self._dtype)[: self._size])
            del self._kept[: len(self._kept) - KEPT + 1]  # the oldest: its memory goes with who holds it
        taken = np.frombuffer(memory, self._dtype)
        self._kept.append((memory, weakref.ref(taken)))
        return taken
