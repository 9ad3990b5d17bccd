"""The cases of a target drawn by atheris (libFuzzer), which looks for those that reach lines not seen before.

The bytes that libFuzzer varies are the random numbers of a case: so what it explores are the choices of `changes.py`,
and every case is as well-formed as the others.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from .running import failure, prepare_process, scratch


class Chosen(random.Random):
    """Random numbers that are the given bytes, one after the other, then zeros."""

    def __init__(self, data: bytes):
        super().__init__(0)
        self._data, self._at = data, 0

    def getrandbits(self, k: int) -> int:
        """The next k bits, of whole bytes."""
        size = (k + 7) // 8
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece, "little") & ((1 << k) - 1)

    def random(self) -> float:
        """The next two bytes as a number in [0, 1), the largest for zeros: what is rare does not follow the end."""
        return 1 - (self.getrandbits(16) + 1) / (1 << 16)


def guide(name: str, options: list[str]) -> int:
    """Let atheris run cases of a target; `options` are libFuzzer's, -max_total_time=60 for instance."""
    import atheris

    with atheris.instrument_imports(include=["cvit"]):
        from .targets import target_of

        target = target_of(name)
    prepare_process()
    place = scratch()
    folder = Path(place.name, "a", "b")
    folder.mkdir(parents=True)

    def run(data: bytes) -> None:
        failed = failure(target, Chosen(data), folder)
        if failed is not None:
            raise AssertionError("\n".join(failed))

    atheris.Setup([sys.argv[0], "-max_len=4096", *options], run)
    atheris.Fuzz()
    return 0
