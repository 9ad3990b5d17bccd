"""Which parts of the flat weight tensor are trained, and with which learning rate and weight decay.

Layer-wise learning rate decay as BEiT (Bao et al. 2022, arXiv:2106.08254) has it: the deeper a layer lies below the
head, the less its weights move. timm's `param_groups_layer_decay` has the same factors, except that it counts a norm
between the last block and the pooling with that block, where BEiT's code counts it with the head.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Collection, Iterable

import numpy as np

from ..base.errors import check, listed
from ..base.numbers import finite, shown
from ..engine.update import RUN
from ..model.layout import Layout

Trained = Callable[[str], bool] | Collection[str] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """What `engine.update` goes over.

    Attributes
    ----------
    runs : array (R,) of `engine.update.RUN`
        The trained parts, increasing, neighbours of one learning rate factor and one weight decay together.
    spans : array (S,) of `engine.update.RUN`
        The same parts, all neighbours together: for passes that know neither.
    size : int
        Length of the flat weight tensor.
    names : frozenset of str
        The trained tensors.
    """

    runs: np.ndarray
    spans: np.ndarray
    size: int
    names: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether everything is trained."""
        return len(self.spans) == 1 and self.count == self.size

    @property
    def count(self) -> int:
        """How many values are trained."""
        return int((self.spans["stop"] - self.spans["start"]).sum())

    def slices(self) -> list[slice]:
        """The trained parts."""
        return [slice(int(span["start"]), int(span["stop"])) for span in self.spans]

    def taken(self, vector: np.ndarray) -> np.ndarray:
        """The trained values of `vector` (size,), a copy (count,)."""
        return np.concatenate([vector[:0], *(vector[part] for part in self.slices())])

    def within(self, part: slice) -> np.ndarray:
        """The runs inside a part of the vector alone."""
        runs = self.runs.copy()
        for edge in ("start", "stop"):
            np.clip(runs[edge], part.start, part.stop, out=runs[edge])
        return runs[runs["start"] < runs["stop"]]

    def spread(self, values: np.ndarray) -> np.ndarray:
        """A vector (size,) that has `values` (count,), as `taken` gives them, in its place and is zero elsewhere."""
        vector, begin = np.zeros(self.size, values.dtype), 0
        for part in self.slices():
            end = begin + part.stop - part.start
            vector[part] = values[begin:end]
            begin = end
        return vector


def groups(layout: Layout, layer_decay: float = 1.0, trained: Trained = None) -> Groups:
    """The trained runs of `layout`.

    Parameters
    ----------
    layer_decay : float
        Above 0 and at most 1. The learning rate's factor is `layer_decay ** (depth + 1 - layer)`, where the embedding
        is layer 0, block i is i + 1, and what follows the blocks is depth + 1.
    trained : None, function of a name or names
        None trains every tensor; else those for whose name the function is true, or that one of the patterns names
        (see `matching`).

    Raises
    ------
    TypeError, ValueError
        A wrong argument, a pattern that matches nothing, nothing left to train.
    """
    if not isinstance(layout, Layout):
        raise TypeError(f"layout must be a Layout, got {type(layout).__name__}")
    layer_decay = finite("layer_decay", layer_decay)
    check(0 < layer_decay <= 1, f"layer_decay must be above 0 and at most 1, got {layer_decay!r}")
    names = _trained(layout, trained)
    deepest = layout.config.depth + 1
    parts = [
        (entry.offset, entry.offset + entry.size, layer_decay ** (deepest - entry.row.layer), float(entry.decay))
        for entry in layout.entries.values()
        if entry.name in names
    ]
    spans = _joined((start, stop, 1.0, 0.0) for start, stop, _, _ in parts)
    return Groups(_joined(parts), spans, layout.size, frozenset(names))


def _trained(layout: Layout, trained: Trained) -> Collection[str]:
    if trained is None:
        return layout.entries.keys()
    if callable(trained):
        names = frozenset(name for name in layout.entries if trained(name))
    else:
        names = matching("trained", layout, trained)
    check(bool(names) or not layout.entries, "trained must name at least one tensor, else there is nothing to train")
    return names


def matching(argument: str, layout: Layout, patterns: Iterable[str]) -> frozenset[str]:
    """The names of the tensors that one of `patterns` matches, as shells match files: "blocks.0.*", "*.bias".

    Upper and lower case differ. A pattern that matches nothing is a `ValueError` that lists the nearest names;
    `argument` is its name for messages.
    """
    if isinstance(patterns, (str, bytes)) or not isinstance(patterns, Iterable):
        raise TypeError(f"{argument} must be a sequence of patterns, ('blocks.0.*',) say, got {shown(patterns)}")
    names: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be a sequence of patterns, texts, got {shown(pattern)} in it")
        found = [pattern] if pattern in layout.entries else fnmatch.filter(layout.entries, pattern)
        if not found:
            near = difflib.get_close_matches(pattern, layout.entries, 5, 0.3) or layout.entries
            raise ValueError(f"{argument}: {shown(pattern)} matches no tensor; near it are {listed(near, 5)}")
        names.update(found)
    return frozenset(names)


def _joined(parts: Iterable[tuple[int, int, float, float]]) -> np.ndarray:
    """Runs (start, stop, rate, decay) with neighbours of the same two numbers as one."""
    runs: list[tuple[int, int, float, float]] = []
    for start, stop, *numbers in parts:
        if runs and runs[-1][1] == start and list(runs[-1][2:]) == numbers:
            runs[-1] = (runs[-1][0], stop, *numbers)  # type: ignore[assignment]
        else:
            runs.append((start, stop, *numbers))  # type: ignore[arg-type]
    return np.array(runs, RUN)
