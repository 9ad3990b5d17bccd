"""What the ranks of a run must have alike before its first step: versions, instruction set, settings, data, weights."""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.version import VERSION
from ..data import Dataset
from ..engine import runtime
from ..parallel.ranks import Ranks

if TYPE_CHECKING:
    from .loop import Loop


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


def agree_on_run(loop: Loop) -> None:
    """Raise a `ValueError`, the same on every rank, unless all are about to train the same."""
    if loop.ranks.size == 1:
        return  # with nobody to differ from
    facts = {**loop.settings, "position": dataclasses.astuple(loop.position)}
    vectors = {"the weights": loop.model.weights}
    for name, data in (("training data", loop.feed), ("test data", loop.test)):
        if hasattr(data, "digest"):
            facts[name] = data.digest()
        elif isinstance(data, Dataset):
            vectors |= {f"images of the {name}": data.images, f"labels of the {name}": data.labels}
    if loop.ema is not None:
        vectors["the average"] = loop.ema.weights
    groups = getattr(loop.optimizer, "groups", None)
    if groups is not None:
        vectors["what is trained"] = groups.runs.view(np.uint8)
    agree(loop.ranks, loop.model.precision, facts, vectors)


def _pillow() -> str | None:
    try:
        import PIL
    except ModuleNotFoundError:
        return None
    return PIL.__version__
