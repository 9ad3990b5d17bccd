"""Rotary position embedding: the angles by which each head's queries and keys are turned (Su et al. 2021,
arXiv:2104.09864; for two axes Heo et al. 2024, arXiv:2403.13298).

A head of width dh has dh / 2 pairs of channels, and a patch at (row, column) turns pair j by an angle of its own. Here
pair j is channels j and j + dh / 2, whatever the original's order is: who reads weights reorders the columns of W_q and
W_k (`pairs_first`), which no product of a query with a key notices.

    "axial"     pairs in two equal halves, one an axis; frequency theta^(-i / (dh / 4)), i = 0 … dh / 4 - 1, of the
                patch's index plus `offset`; `reference` stretches the grid to that of pre-training (EVA-02, PE)
    "centred"   the same frequencies times 2 pi, of the patch's centre with each axis in [-1, 1] (DINOv3)
    "mixed"     learned frequencies of both axes for each pair, head and block, of the patch's index (RoPE-ViT)
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ..base.errors import check, short
from ..base.numbers import as_int, finite

KINDS = ("axial", "centred", "mixed")


@dataclasses.dataclass(frozen=True)
class Rope:
    """How patches turn queries and keys.

    Parameters
    ----------
    kind : "axial", "centred" or "mixed"
    theta : float
        Base of the frequencies, above 0.
    offset : float
        Added to the indices of rows and columns ("axial").
    reference : None or (int, int)
        Rows and columns of the grid that the model was trained on: indices are scaled as if the grid had so many
        ("axial").
    columns_first : bool
        Whether the first half of the pairs (of "mixed": the first row of frequencies) is of the column, not the row.
    """

    kind: str = "axial"
    theta: float = 10000.0
    offset: float = 0.0
    reference: tuple[int, int] | None = None
    columns_first: bool = False

    def __post_init__(self):
        def fix(name, value):
            object.__setattr__(self, name, value)

        check(self.kind in KINDS, f"rope: kind must be one of {KINDS}, got {short(repr(self.kind))}")
        fix("theta", finite("rope: theta", self.theta))
        check(0 < self.theta <= 1e30, f"rope: theta must be above 0 and at most 1e30, got {self.theta}")
        fix("offset", finite("rope: offset", self.offset, minimum=-1e6))
        check(self.offset <= 1e6, f"rope: offset must be at most 1e6, got {self.offset}")
        if self.reference is not None:
            pair = self.reference
            check(
                isinstance(pair, (tuple, list)) and len(pair) == 2,
                f"rope: reference must be None or (rows, columns), got {short(repr(pair))}",
            )
            fix("reference", (as_int("rope: reference", pair[0]), as_int("rope: reference", pair[1])))
        if not isinstance(self.columns_first, bool):
            raise TypeError(f"rope: columns_first must be True or False, got {short(repr(self.columns_first))}")

    @property
    def learned(self) -> bool:
        """Whether the frequencies are weights."""
        return self.kind == "mixed"


def coordinates(rope: Rope, grid: tuple[int, int]) -> np.ndarray:
    """(rows · columns, 2): each patch's coordinates, in the order that the pairs have."""
    axes: list[np.ndarray] = []
    for length, reference in zip(grid, rope.reference or grid):
        if rope.kind == "centred":
            axes.append(2 * (np.arange(length) + 0.5 + rope.offset) / length - 1)
        else:
            axes.append((np.arange(length) + rope.offset) * (reference / length))
    both = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return both[:, ::-1] if rope.columns_first else both


def angles(rope: Rope, grid: tuple[int, int], head_width: int) -> np.ndarray:
    """(rows · columns, head_width / 2), float64: the angles of kinds whose frequencies are fixed."""
    bands = head_width // 4
    frequencies = rope.theta ** (-np.arange(bands) / bands)
    if rope.kind == "centred":
        frequencies = 2 * math.pi * frequencies
    return (coordinates(rope, grid)[:, :, None] * frequencies).reshape(len(coordinates(rope, grid)), -1)


def pairs_first(heads: int, head_width: int) -> np.ndarray:
    """The channels of all heads in the order in which pairs that lay side by side, (0, 1), (2, 3), …, lie half a head
    apart: what turns the original's columns into ours."""
    head = np.concatenate([np.arange(0, head_width, 2), np.arange(1, head_width, 2)])
    return (np.arange(heads)[:, None] * head_width + head).reshape(-1)
