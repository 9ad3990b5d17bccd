"""What a Vision Transformer is made of: its parts in the order of computation, and the tensors of each part as rows.

`embedding(config)`, `block(config, i)` and `head(config)` list the parts; `parts(config)` lists all of them and
`rows(config)` their rows in storage order. Every property of a tensor is a column of its row: its role, whether
weight decay applies, how it is drawn, and where it stands in Flax and in timm. Everything that handles weights (the
layout, the initialisers, the readers of other formats) reads these columns; nothing reads the names.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .config import ViTConfig


# ---------------------------------------------------------------------------------------------------------- the columns
class Role(enum.Enum):
    """What a tensor does."""

    MATRIX = "matrix"  # (in, out), y = x @ W
    PATCH_MATRIX = "patch matrix"  # (C·P·P, D), the patch embedding; a convolution in other libraries
    BIAS = "bias"  # of a linear layer
    SCALE = "scale"  # of a norm
    SHIFT = "shift"  # of a norm
    GAMMA = "gamma"  # of a layer scale
    TOKEN = "token"  # learned tokens that stand before the patches
    POSITION = "position"  # the position embedding


class Law(enum.Enum):
    """The distribution that fresh numbers are drawn from."""

    CONSTANT = "constant"  # every number is `Init.value`
    NORMAL = "normal"  # normal with mean zero and standard deviation `Init.value`
    XAVIER = "xavier"  # uniform with variance 2 / (fan in + fan out) (Glorot & Bengio 2010)
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
    timm: tuple[Place, ...]  # in a state dict of timm; of several places the first whose array exists there

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

    def timm_names(self) -> tuple[str, ...]:
        """The names of `timm`'s places in a whole state dict."""
        prefix = "" if self.block is None else f"blocks.{self.block}."
        return tuple(prefix + place.name for place in self.timm)


class Kind(enum.Enum):
    """What a part computes."""

    LINEAR = "linear"  # x @ W + b
    NORM = "norm"  # layer norm
    ATTENTION = "attention"  # softmax(q kᵀ / sqrt(D / H)) v, head by head
    LAYER_SCALE = "layer scale"  # x * gamma, one gamma a channel
    ACTIVATION = "activation"  # the MLP's nonlinear function; of the gate, times the values, where there is a gate
    TOKENS = "tokens"  # learned tokens before the patches, positions added
    POOL = "pool"  # one feature vector of all tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One step of the computation: the tensors that it reads, and how rows of tokens go through it.

    Rows go from slot to slot: "x" is a block's input, "y" its output, any other name stands for what one part leaves to
    a later one. Linear parts that have a target in common write side by side.
    """

    name: str
    kind: Kind
    tensors: tuple[Tensor, ...] = ()
    macs: int = 0  # multiply-adds of one image in matrix products
    source: str = ""
    target: str = ""
    add: str = ""  # the residual that a linear part adds


# --------------------------------------------------------------------------------------------------------- the builders
class Where(NamedTuple):
    """Where in the model a part stands; see the columns of `Tensor`."""

    layer: int
    block: int | None = None

    @property
    def prefix(self) -> str:
        return "" if self.block is None else f"blocks.{self.block}."

    def tensor(self, name: str, shape, role: Role, init: Init, flax: Place, timm: tuple[Place, ...]) -> Tensor:
        """A row; weight decay applies to matrices only."""
        decay = role in (Role.MATRIX, Role.PATCH_MATRIX)
        return Tensor(self.prefix + name, shape, role, decay, init, self.block, self.layer, flax, timm)


def linear(
    where: Where,
    name: str,
    fan_in: int,
    fan_out: int,
    times: int,
    *,
    bias: bool,
    flax: str,
    timm: tuple[Place, ...],
    init: Init = XAVIER,
    bias_init: Init = ZERO,
    source: str = "",
    target: str = "",
    add: str = "",
) -> Part:
    """x @ W + b for `times` rows of x. `flax` and `timm` are places without the last piece of their names."""

    def places(leaf, axes):
        return tuple(Place(f"{at.name}.{leaf}", None, axes, at.index, at.count) for at in timm)

    at = Place(f"{flax}.kernel")
    tensors = [
        where.tensor(f"{name}.weight", (fan_in, fan_out), Role.MATRIX, init, at, places("weight", (1, 0))),
    ]
    if bias:
        at = Place(f"{flax}.bias")
        tensors.append(where.tensor(f"{name}.bias", (fan_out,), Role.BIAS, bias_init, at, places("bias", None)))
    macs = times * fan_in * fan_out
    return Part(where.prefix + name, Kind.LINEAR, tuple(tensors), macs, source, target, add)


def norm(where: Where, name: str, width: int, *, affine: bool, flax: str, source: str = "", target: str = "") -> Part:
    """A layer norm of rows of `width` numbers, with a learned scale and shift or without."""
    tensors: tuple[Tensor, ...] = ()
    if affine:
        scale, shift = Place(f"{flax}.scale"), Place(f"{flax}.bias")
        tensors = (
            where.tensor(f"{name}.weight", (width,), Role.SCALE, ONE, scale, (Place(f"{name}.weight"),)),
            where.tensor(f"{name}.bias", (width,), Role.SHIFT, ZERO, shift, (Place(f"{name}.bias"),)),
        )
    return Part(where.prefix + name, Kind.NORM, tensors, source=source, target=target)


def layer_scale(where: Where, name: str, width: int, value: float | None) -> list[Part]:
    """Factors of a branch's channels that start as `value`; nothing where that is None."""
    if value is None:
        return []
    place, init = Place(f"{name}.gamma"), Init(Law.CONSTANT, value)
    gamma = where.tensor(f"{name}.gamma", (width,), Role.GAMMA, init, place, (place,))
    return [Part(where.prefix + name, Kind.LAYER_SCALE, (gamma,))]


# ------------------------------------------------------------------------------------------------------------ the parts
def embedding(config: ViTConfig) -> list[Part]:
    """From images to tokens: the patch embedding; the learned tokens before the patches, and the positions.

    The rows of `tokens` stand in the order of the sequence: class token, distillation token, registers.
    """
    where = Where(layer=0)
    D, C, P, features = config.width, config.channels, config.patch_size, config.patch_features
    pixels = (C, P, P, D)  # the patch matrix's rows are ordered (C, P, P)
    patches = [
        where.tensor(
            "patch_embed.weight", (features, D), Role.PATCH_MATRIX, LECUN,
            flax=Place("patch_embed.kernel", pixels, (1, 2, 0, 3)),
            timm=(Place("patch_embed.proj.weight", pixels, (3, 0, 1, 2)),),
        )
    ]  # fmt: skip
    if config.bias:
        at, there = Place("patch_embed.bias"), Place("patch_embed.proj.bias")
        patches.append(where.tensor("patch_embed.bias", (D,), Role.BIAS, ZERO, at, (there,)))

    def learned(name, shape, role, init):
        there = Place(name, (1, math.prod(shape) // D, D))
        return where.tensor(name, shape, role, init, Place(name), (there,))

    # Without positions of their own, tokens that start equal would stay equal for ever: so only the first is zero.
    tokens = []
    if config.has_class_token:
        tokens.append(learned("cls_token", (D,), Role.TOKEN, ZERO))
    if config.dist_token:  # as DeiT draws it
        tokens.append(learned("dist_token", (D,), Role.TOKEN, Init(Law.NORMAL, 0.02)))
    if config.registers:  # as DINOv2 draws them
        tokens.append(learned("reg_token", (config.registers, D), Role.TOKEN, Init(Law.NORMAL, 1e-6)))
    tokens.append(learned("pos_embed", (config.pos_rows, D), Role.POSITION, Init(Law.NORMAL, 0.02)))
    return [
        Part("patch_embed", Kind.LINEAR, tuple(patches), config.patches * features * D),
        Part("tokens", Kind.TOKENS, tuple(tokens)),
    ]


def block(config: ViTConfig, i: int) -> list[Part]:
    """Block i: x + ls1 · proj(attention(norm1(x))), then y + ls2 · fc2(activation(fc1(norm2(y)))) of that y."""
    where = Where(layer=i + 1, block=i)
    T, D, F = config.tokens, config.width, config.hidden
    affine, bias = config.norm_affine, config.bias

    def matrix(name, fan_in, fan_out, flax, timm, **how):
        return linear(where, name, fan_in, fan_out, T, bias=bias, flax=flax, timm=timm, **how)

    def qkv(name, index):
        places = (Place("attn.qkv", index=index, count=3),)
        return matrix(f"attn.{name}", D, D, f"attn.{name}", places, source="n1", target="qkv")

    def mlp(name, fan_in, fan_out, *timm, **flow):
        return matrix(f"mlp.{name}", fan_in, fan_out, name, timm, bias_init=Init(Law.NORMAL, 1e-6), **flow)

    # timm has a gated MLP packed, the gate before the values in one matrix, or split.
    fc1 = [mlp("fc1", D, F, Place("mlp.fc1"), source="n2", target="u")]
    if config.gated:
        gate, value = Place("mlp.fc1", index=0, count=2), Place("mlp.fc1", index=1, count=2)
        fc1 = [
            mlp("fc1_gate", D, F, gate, Place("mlp.fc1_g"), source="n2", target="u"),
            mlp("fc1", D, F, value, Place("mlp.fc1_x"), source="n2", target="u"),
        ]

    return [
        norm(where, "norm1", D, affine=affine, flax="ln1", source="x", target="n1"),
        qkv("q", 0),
        qkv("k", 1),
        qkv("v", 2),
        Part(f"{where.prefix}attn", Kind.ATTENTION, macs=2 * T * T * D, source="qkv", target="o"),
        matrix("attn.proj", D, D, "attn.o", (Place("attn.proj"),), source="o", target="mid", add="x"),
        *layer_scale(where, "ls1", D, config.layer_scales[0]),
        norm(where, "norm2", D, affine=affine, flax="ln2", source="mid", target="n2"),
        *fc1,
        Part(f"{where.prefix}mlp.act", Kind.ACTIVATION, source="u", target="g"),
        mlp("fc2", F, D, Place("mlp.fc2"), source="g", target="y", add="mid"),
        *layer_scale(where, "ls2", D, config.layer_scales[1]),
    ]


def head(config: ViTConfig) -> list[Part]:
    """From tokens to logits: the final norm, the pooling, the classifier."""
    where = Where(layer=config.depth + 1)
    D = config.width
    final = [norm(where, "norm", D, affine=config.norm_affine, flax="ln_f")] if config.final_norm else []
    places = (Place("head"),)
    pooled = config.tokens if config.pool == "none" else 1
    return [
        *final,
        Part("pool", Kind.POOL),
        linear(where, "head", D, config.classes, pooled, bias=config.bias, flax="head", timm=places, init=ZERO),
    ]


def parts(config: ViTConfig) -> Iterator[Part]:
    """All parts in the order of computation."""
    yield from embedding(config)
    for i in range(config.depth):
        yield from block(config, i)
    yield from head(config)


def rows(config: ViTConfig) -> Iterator[Tensor]:
    """All rows in storage order, which is the order of computation."""
    for part in parts(config):
        yield from part.tensors


def forward_macs(config: ViTConfig) -> int:
    """Multiply-adds of one image's forward pass in matrix products."""

    def total(group):
        return sum(part.macs for part in group)

    return total(embedding(config)) + config.depth * total(block(config, 0)) + total(head(config))
