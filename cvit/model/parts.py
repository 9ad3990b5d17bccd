"""What a Vision Transformer is made of: its parts in the order of computation, and the tensors of each part as rows.

Here are the columns and the builders. `embedding(config)`, `block(config, i)` and `head(config)` in blocks.py list the
parts of a model. Every property of a tensor is a column of its row: its role, whether weight decay applies, how it is
drawn, and where it stands in Flax. Everything that handles weights (the layout, the initialisers) reads these columns;
nothing reads the names but the families of other libraries' models (cvit/families), which map theirs to ours.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import NamedTuple

import numpy as np


# ---------------------------------------------------------------------------------------------------------- the columns
class Role(enum.Enum):
    """What a tensor does."""

    MATRIX = "matrix"  # (in, out), y = x @ W
    PATCH_MATRIX = "patch matrix"  # (C·P·P, D), the patch embedding; a convolution in other libraries
    BIAS = "bias"  # of a linear layer
    SCALE = "scale"  # of a norm
    SHIFT = "shift"  # of a norm
    GAMMA = "gamma"  # of a layer scale
    TOKEN = "token"  # learned tokens that stand before the patches, or that attention pooling asks with
    POSITION = "position"  # the position embedding
    FREQUENCY = "frequency"  # (2, heads, head width / 2), of learned rotary positions


class Law(enum.Enum):
    """The distribution that fresh numbers are drawn from."""

    CONSTANT = "constant"  # every number is `Init.value`
    NORMAL = "normal"  # normal with mean zero and standard deviation `Init.value`
    XAVIER = "xavier"  # uniform with variance 2 / (fan in + fan out) (Glorot & Bengio 2010)
    ROTARY = "rotary"  # frequencies of base `Init.value`, both axes turned by an angle of each head's own
    LECUN = "lecun"  # normal with variance 1 / fan in (LeCun et al. 1998), truncated at two standard deviations


class Init(NamedTuple):
    """How the scheme "vit" of `init_weights` draws a tensor."""

    law: Law
    value: float = 0.0


ZERO, ONE, XAVIER, LECUN = Init(Law.CONSTANT, 0.0), Init(Law.CONSTANT, 1.0), Init(Law.XAVIER), Init(Law.LECUN)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands in another library.

    The array `name` there consists of `count` slices of equal length along its first axis; slice number `index` is
    `tensor.reshape(shape).transpose(axes)`, where None leaves the tensor as it is.
    """

    name: str  # below the block, where the tensor belongs to one
    shape: tuple[int, ...] | None = None
    axes: tuple[int, ...] | None = None
    index: int = 0
    count: int = 1

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole array there, for a tensor of `shape`."""
        there = self.shape or shape
        if self.axes is not None:
            there = tuple(there[axis] for axis in self.axes)
        return (self.count * there[0], *there[1:])

    def there(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor as its slice of the array there: a view where NumPy can make one."""
        tensor = tensor.reshape(self.shape or tensor.shape)
        return tensor if self.axes is None else tensor.transpose(self.axes)

    def here(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor of `shape` that the whole array there holds: the inverse of `there`."""
        length = len(array) // self.count
        array = array[self.index * length : (self.index + 1) * length]
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        return array.reshape(shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """One row: a tensor and all of its properties."""

    name: str
    shape: tuple[int, ...]
    role: Role
    decay: bool  # whether weight decay applies
    init: Init
    block: int | None  # the block it belongs to; None before and after the blocks
    layer: int  # for layer-wise decay: 0 the embedding, i + 1 block i, depth + 1 what follows the blocks
    flax: Place

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def flax_path(self, api: str) -> tuple:
        """The keys that lead to the tensor in a Flax tree, where `api` is "nnx" or "linen".

        `blocks.0.norm1.weight` stands at ("blocks", 0, "ln1", "scale") in NNX and ("block_0", "ln1", "scale") in Linen.
        """
        path = self.flax.name.split(".")
        if self.block is None:
            return (*path,)
        return ("blocks", self.block, *path) if api == "nnx" else (f"block_{self.block}", *path)


class Kind(enum.Enum):
    """What a part computes."""

    LINEAR = "linear"  # x @ W + b
    NORM = "norm"  # layer norm or RMSNorm of the rows
    HEAD_NORM = "head norm"  # of each head's queries and keys
    ROPE = "rope"  # rotary positions: queries and keys turned
    ATTENTION = "attention"  # softmax(q kᵀ / sqrt(D / H)) v, head by head
    LAYER_SCALE = "layer scale"  # x * gamma, one gamma a channel
    ACTIVATION = "activation"  # the MLP's nonlinear function; of the gate, times the values, where there is a gate
    TOKENS = "tokens"  # learned tokens before the patches, positions added
    POOL = "pool"  # one feature vector of all tokens
    ATTENTION_POOL = "attention pool"  # one attention of a learned query over the tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One step of the computation: the tensors that it reads, and how rows of tokens go through it.

    Rows go from slot to slot: "x" is a block's input, "y" its output, any other name stands for what one part leaves to
    a later one. Linear parts whose source and target are the same write side by side.
    """

    name: str
    kind: Kind
    tensors: tuple[Tensor, ...] = ()
    macs: int = 0  # multiply-adds of one image in matrix products
    source: str = ""
    target: str = ""
    add: str = ""  # the residual that a linear part or a norm adds
    column: int = 0  # where in the target a linear part's first column goes,
    source_column: int = 0  # and where in the source its first row comes from
    width: int = 0  # of the rows that the part writes
    heads: int = 0  # of an attention, a head norm, rotary positions
    activation: str = ""
    gated: bool = False


# --------------------------------------------------------------------------------------------------------- the builders
class Where(NamedTuple):
    """Where in the model a part stands; see the columns of `Tensor`."""

    layer: int
    block: int | None = None

    @property
    def prefix(self) -> str:
        return "" if self.block is None else f"blocks.{self.block}."

    def tensor(self, name: str, shape, role: Role, init: Init, flax: Place | None = None) -> Tensor:
        """A row; weight decay applies to matrices only."""
        decay = role in (Role.MATRIX, Role.PATCH_MATRIX)
        return Tensor(self.prefix + name, shape, role, decay, init, self.block, self.layer, flax or Place(name))


def linear(
    where: Where,
    name: str,
    fan_in: int,
    fan_out: int,
    times: int,
    *,
    bias: bool,
    flax: str = "",
    init: Init = XAVIER,
    bias_init: Init = ZERO,
    **flow,
) -> Part:
    """x @ W + b for `times` rows of x. `flax` is the place without the last piece of its name."""
    tensors = [
        where.tensor(f"{name}.weight", (fan_in, fan_out), Role.MATRIX, init, Place(f"{flax or name}.kernel")),
    ]
    if bias:
        place = Place(f"{flax or name}.bias")
        tensors.append(where.tensor(f"{name}.bias", (fan_out,), Role.BIAS, bias_init, place))
    macs = times * fan_in * fan_out
    return Part(where.prefix + name, Kind.LINEAR, tuple(tensors), macs, width=fan_out, **flow)


def norm(where: Where, name: str, width: int, *, kind: str, affine: bool, flax: str = "", **flow) -> Part:
    """A norm of rows of `width` numbers, with a learned scale, and of kind "layer" a shift, or without."""
    return Part(
        where.prefix + name, Kind.NORM, norm_tensors(where, name, width, kind, affine, flax), width=width, **flow
    )


def norm_tensors(where: Where, name: str, width: int, kind: str, affine: bool, flax: str = "") -> tuple[Tensor, ...]:
    """The scale and shift of a norm."""
    if not affine:
        return ()
    scale, shift = Place(f"{flax or name}.scale"), Place(f"{flax or name}.bias")
    tensors = [where.tensor(f"{name}.weight", (width,), Role.SCALE, ONE, scale)]
    if kind == "layer":
        tensors.append(where.tensor(f"{name}.bias", (width,), Role.SHIFT, ZERO, shift))
    return tuple(tensors)


def layer_scale(where: Where, name: str, width: int, value: float | None) -> list[Part]:
    """Factors of a branch's channels that start as `value`; nothing where that is None."""
    if value is None:
        return []
    gamma = where.tensor(f"{name}.gamma", (width,), Role.GAMMA, Init(Law.CONSTANT, value))
    return [Part(where.prefix + name, Kind.LAYER_SCALE, (gamma,))]
