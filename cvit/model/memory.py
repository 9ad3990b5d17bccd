"""What a call takes of memory, as a table."""

from __future__ import annotations

import dataclasses

from ..engine.plan import Plan as Engine


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of one call, known before anything is allocated: bytes by buffer. `print(plan)` shows the table."""

    mode: str
    batch: int
    threads: int
    buffers: dict[str, int]
    lent: int = 0  # bytes of activations that lie in the gradient vector until gradients are written there
    piece: int = 0  # images that are computed at a time: the batch, but for a large one in inference

    @property
    def bytes(self) -> int:
        """All memory beside weights and gradient: activations, their gradients, packed weights, scratch."""
        return sum(self.buffers.values())

    def __str__(self):
        pieces = f" in pieces of {self.piece}" if 0 < self.piece < self.batch else ""
        kind = "training" if self.mode == "train" else "inference"
        title = f"{kind}, batch {self.batch}{pieces}, {self.threads} threads"
        rows = [*self.buffers.items(), ("total", self.bytes)]
        if self.lent:
            rows.insert(-1, ("(more in the gradient's room)", self.lent))
        return "\n".join([title, *(f"  {name:<38}{size / 1e6:>12.3f} MB" for name, size in rows)])


def buffers_of(engine: Engine) -> dict[str, int]:
    """Bytes of everything that an engine needs, by name."""
    buffers = engine.buffers
    threads = engine.threads()
    buffers[f"scratch of {threads} threads"] = buffers.pop("scratch of a thread") * threads
    return buffers
