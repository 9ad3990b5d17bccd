"""A bounded store of decoded pictures: what fits is decoded once, the rest each time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import numpy as np

from ..base.numbers import as_int

OVERHEAD = 256  # bytes that an entry takes beside its pixels, about: its key, its array object, its place in the dict


class Cache:
    """Arrays by key, up to `limit` bytes in all. Several threads may use it at once.

    Nothing is thrown out: an epoch takes every picture once, in an order of its own, so the pictures that have left
    would be those that are needed next. Once it is full, what is not in it is made anew each time, to the same bits.

    limit : int
        At least 0; with 0 nothing is kept.
    """

    def __init__(self, limit: int):
        self.limit = as_int("limit", limit, minimum=0)
        self.used = 0
        self._arrays: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many arrays are kept."""
        return len(self._arrays)

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of `key`, which may not be written to: the kept one, or what `make()` gives."""
        array = self._arrays.get(key)
        return self._kept(key, make()) if array is None else array

    def _kept(self, key: Hashable, array: np.ndarray) -> np.ndarray:
        size = array.nbytes + OVERHEAD
        with self._lock:
            if key not in self._arrays and self.used + size <= self.limit:
                # A view would keep all of what it is a view of, which may be more than is counted here.
                array = array if array.base is None else array.copy()
                array.flags.writeable = False
                self._arrays[key] = array
                self.used += size
        return array
