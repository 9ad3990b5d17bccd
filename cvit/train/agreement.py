"""What the ranks of a run must have alike before its first step: versions, instruction set, settings, data, weights."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from ..base.version import VERSION
from ..engine import runtime
from ..parallel.ranks import Ranks


def versions() -> dict[str, str | None]:
    """Versions and the instruction set: what may change bits beside data and settings."""
    return dict(cvit=VERSION, numpy=np.__version__, pillow=_pillow(), isa=runtime.get_isa())


def agree(ranks: Ranks, precision: str, facts: dict[str, Any], vectors: dict[str, np.ndarray]) -> None:
    """Raise a `ValueError`, the same on every rank, where they differ in versions, facts or vectors.

    The instruction set may differ in precision "bf16", whose bits are the same on every machine.
    """
    known: dict[str, str | int | float | None] = {**versions()}
    if precision == "bf16":
        del known["isa"]
    for name, value in facts.items():
        known[name] = value if isinstance(value, (str, int, float)) else repr(value)
    for name, vector in vectors.items():
        known[f"the checksum of {name}"] = f"{zlib.crc32(np.ascontiguousarray(vector).data):08x}"
    ranks.agree(known)


def _pillow() -> str | None:
    try:
        import PIL
    except ModuleNotFoundError:
        return None
    return PIL.__version__
