"""How a tensor of another library becomes one of ours and back, bit for bit: reshaping and reordering, no arithmetic.

A transformation is written as two patterns, ours and theirs, of one letter an axis, with axes that are one in a shape
in parentheses and "1" for an axis of length one:

    Axes("i o", "o i")                     a linear layer whose matrix is (out, in)
    Axes("(C P Q) D", "D C P Q")           a patch embedding that is a convolution
    Axes("T D", "1 T D")                   positions with a leading axis

"..." stands for all axes of ours, whatever their number. A letter that is an axis of ours by itself has the length that
our shape gives. The others are the configuration's:

    C channels   P, Q patch height and width   D width   H heads, d their width   h attention pooling's heads, e theirs
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from ..base.errors import check
from ..model.config import ViTConfig
from ..model.rope import pairs_first

Groups = tuple[tuple[str, ...], ...]


@functools.lru_cache(maxsize=256)
def _groups(pattern: str) -> Groups:
    """The letters of each axis: "(C P Q) D" is (("C", "P", "Q"), ("D",)), and "1" an axis without letters."""
    groups: list[tuple[str, ...]] = []
    open_group: list[str] | None = None
    for token in pattern.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            open_group = []
        elif token == ")":
            groups.append(tuple(open_group or ()))
            open_group = None
        elif open_group is not None:
            open_group.append(token)
        else:
            groups.append(() if token == "1" else (token,))
    return tuple(groups)


@dataclasses.dataclass(frozen=True)
class Axes:
    """A tensor of ours as a piece of a tensor of theirs.

    Parameters
    ----------
    ours, theirs : str
        The patterns; both empty where the shapes are equal.
    axis : int
        The axis of theirs along which the pieces of one name stand one behind the other, in the order of the rows.
    pairs : bool
        Whether their rotary positions turn neighbouring channels: our last axis, of whole heads, then has another order
        (`cvit.model.rope.pairs_first`).
    part : function of a configuration, optional
        Gives (start, stop): which rows of our tensor this piece is, where theirs keeps them in several tensors.
    """

    ours: str = ""
    theirs: str = ""
    axis: int = 0
    pairs: bool = False
    part: Callable[[ViTConfig], tuple[int, int]] | None = None

    def own(self, shape: tuple[int, ...], config: ViTConfig) -> tuple[int, ...]:
        """The shape of the part of our tensor, of `shape`, that this is."""
        if self.part is None:
            return shape
        start, stop = self.part(config)
        return (stop - start, *shape[1:])

    def shape(self, shape: tuple[int, ...], config: ViTConfig) -> tuple[int, ...]:
        """The piece's shape there, for our tensor of `shape`."""
        shape = self.own(shape, config)
        if not self.theirs:
            return shape
        if "..." in self.theirs:
            return self._around(shape)
        sizes = self._sizes(shape, config)
        return tuple(math.prod(sizes[letter] for letter in group) for group in _groups(self.theirs))

    def here(self, piece: np.ndarray, shape: tuple[int, ...], config: ViTConfig) -> np.ndarray:
        """The (part of the) tensor of ours that `piece` is, where the whole tensor has `shape`."""
        shape = self.own(shape, config)
        if "..." in self.theirs:
            piece = piece.reshape(shape)
        elif self.theirs:
            sizes = self._sizes(shape, config)
            there, ours = self._letters()
            piece = piece.reshape([sizes[letter] for letter in there])
            piece = piece.transpose([there.index(letter) for letter in ours]).reshape(shape)
        return piece[..., self._order(shape, config)] if self.pairs else piece

    def there(self, tensor: np.ndarray, config: ViTConfig) -> np.ndarray:
        """The piece of theirs that our whole tensor becomes: the inverse of `here`."""
        if self.part is not None:
            tensor = tensor[slice(*self.part(config))]
        if self.pairs:
            tensor = tensor[..., np.argsort(self._order(tensor.shape, config))]
        if not self.theirs:
            return tensor
        if "..." in self.theirs:
            return tensor.reshape(self._around(tensor.shape))
        sizes = self._sizes(tensor.shape, config)
        there, ours = self._letters()
        shape = self.shape_of(sizes)
        tensor = tensor.reshape([sizes[letter] for letter in ours])
        return tensor.transpose([ours.index(letter) for letter in there]).reshape(shape)

    def shape_of(self, sizes: dict[str, int]) -> list[int]:
        """The shape that their pattern has with letters of these `sizes`."""
        return [math.prod(sizes[letter] for letter in group) for group in _groups(self.theirs)]

    def _letters(self) -> tuple[list[str], list[str]]:
        return [x for group in _groups(self.theirs) for x in group], [x for group in _groups(self.ours) for x in group]

    def _around(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a pattern of "1" and "..."."""
        before, _, after = self.theirs.partition("...")
        return ((1,) * len(before.split()) + tuple(shape)) + (1,) * len(after.split())

    def _order(self, shape, config):
        return pairs_first(shape[-1] // config.head_width, config.head_width)

    def _sizes(self, shape: tuple[int, ...], config: ViTConfig) -> dict[str, int]:
        pool_heads = config.pool_heads or config.heads
        sizes = dict(
            C=config.channels, P=config.patch[0], Q=config.patch[1], D=config.width, H=config.heads,
            d=config.head_width, h=pool_heads, e=config.width // pool_heads,
        )  # fmt: skip
        groups = _groups(self.ours)
        check(len(groups) == len(shape), f"a tensor of shape {shape} does not fit the pattern {self.ours!r}")
        for group, length in zip(groups, shape):
            if len(group) == 1:
                sizes[group[0]] = length
        return sizes


@dataclasses.dataclass(frozen=True)
class Zero:
    """Numbers of theirs that ours lacks, since they have no effect or are zero: written as zeros.

    `length` is a function of a configuration that gives their shape. With `checked` reading raises where one of them
    is not zero.
    """

    length: Callable[[ViTConfig], tuple[int, ...]]
    checked: bool = True
    axis: int = 0

    def shape(self, shape: tuple[int, ...], config: ViTConfig) -> tuple[int, ...]:
        """The piece's shape there; `shape` is not used."""
        return self.length(config)

    def here(self, piece: np.ndarray, shape: tuple[int, ...], config: ViTConfig) -> None:
        """Nothing of ours; raises where numbers that have an effect are not zero."""
        check(not (self.checked and piece.any()), "must be zero")

    def there(self, tensor, config: ViTConfig) -> np.ndarray:
        """The zeros; `tensor` is not used."""
        return np.zeros(self.length(config), np.float32)


Transformation = Axes | Zero

SAME = Axes()
LINEAR = Axes("i o", "o i")  # a matrix (out, in)
CONVOLUTION = Axes("(C P Q) D", "D C P Q")
PIXELS_FIRST = Axes("(C P Q) D", "D (P Q C)")  # a linear layer of flattened patches (P, P, C)
TOKEN = Axes("D", "1 1 D")
TOKENS = Axes("T D", "1 T D")
