"""What the readers of data sets hand over: the pictures of each part with the names of their classes, and remarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..base.errors import check, short
from .sources import Source

PARTS = ("train", "validation", "test")
SPELLINGS = {  # of the parts, as folders, arrays and tables name them
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
SHOWN = 3  # names that a remark repeats


@dataclasses.dataclass
class Part:
    """Pictures, the name of each one's class, and how much each counts (None: all the same)."""

    source: Source
    labels: list[str]
    weights: np.ndarray | None = None

    def take(self, indices: Sequence[int] | np.ndarray) -> Part:
        """These pictures only, in this order."""
        chosen = np.asarray(indices, np.int64)
        weights = None if self.weights is None else self.weights[chosen]
        return Part(self.source.take(chosen), [self.labels[i] for i in chosen], weights)

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass
class Reading:
    """What a reader has found: its kind, a name for the data, the parts, and the classes in their order.

    `classes` None: those of the training part, broken pictures included, sorted by name.
    """

    kind: str
    name: str
    parts: dict[str, Part]
    classes: tuple[str, ...] | None = None


class Remarks:
    """Sentences about a data set: notes on what was done, and faults, which are errors where `strict` is asked for."""

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep a sentence on something that is as it should be."""
        self.texts.append(text)

    def fault(self, text: str) -> None:
        """Keep a sentence on something that may be wrong, or raise `ValueError` with it."""
        check(not self.strict, text)
        self.texts.append(text)


def some(names: Sequence[str]) -> str:
    """The first few names for a remark, in the order given, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(short(name) for name in names[:SHOWN]) + more


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 picture", "2 pictures"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
