"""Large vectors that are handed out, and whose memory is used again when nothing refers to them any more."""

from __future__ import annotations

import weakref

import numpy as np

from .memory import allocate

KEPT = 4  # vectors whose memory is kept: enough for a few threads that train one model


class Vectors:
    """Vectors of one length and type, none of which overlaps another that is still referenced.

    Every vector is a new array object on memory of this pool. A view of it refers to it: NumPy shortens a chain of
    bases only from array to array, and its base is a memoryview. So does whatever took its buffer or its DLPack
    capsule. When a weak reference to the vector is dead, then nothing that could read or write the memory is left.
    """

    def __init__(self, size: int, dtype: np.dtype):
        self._size, self._dtype = size, dtype
        self._kept: list[tuple[memoryview, weakref.ref]] = []

    def take(self) -> np.ndarray:
        """A vector of any content, valid for as long as it or a view of it is referenced."""
        for i, (memory, holder) in enumerate(self._kept):  # noqa: B007
            if holder() is None:
                break
        else:
            memory = allocate(self._size, self._dtype)[: self._size].data
            del self._kept[
                : max(0, len(self._kept) + 1 - KEPT)
            ]  # the oldest: its memory is freed with the last reference
            i = len(self._kept)
        vector = np.frombuffer(memory, self._dtype)
        self._kept[i : i + 1] = [(memory, weakref.ref(vector))]
        return vector
