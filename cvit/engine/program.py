"""What the engine can run: the vocabulary of a program, and the two rewritings that make it fast.

A model describes itself in these words (cvit/model/parts.py does so from a configuration); the engine turns them into
steps, buffers and tasks and knows nothing else of models. Rows of tokens go from slot to slot, and a slot is a name:

    "x"            the block's input, the residual stream          "y"   its output, the next block's "x"
    any other      rows that a step of the block leaves for a later one, such as "qkv", "o", "mid", "u"

A weight is the offset of its first element in the flat weight tensor, -1 if there is none.

    Norm target = layer norm of source Linear target = source @ W + b, times the layer scale, + add; several matrices
    that share their source stand side by side Activation target = f(source), or f(first half) * second half Heads
    target = softmax attention of source, which holds q, k and v side by side Hidden Linear, Activation and Linear in
    one: the hidden rows never leave the cache

`fuse` puts Hidden in the place of the three, and lets a norm write the packed rows that the product behind it reads.
Both change
where values lie and not how they are computed: `Plan(..., fused=False)` runs the program as it was given, to the same
bits. (But for the gradient of a wide gated MLP's input, whose two matrices' parts are then added up in another order.)
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

PACKED = "packed"  # the slot of a norm whose rows go straight into the operand of the next product


class Matrix(NamedTuple):
    """One matrix (k, n) of a Linear, and its bias (n)."""

    name: str
    weight: int
    bias: int = -1


@dataclasses.dataclass(frozen=True)
class Norm:
    """Layer norm over rows of `width` (Ba et al. 2016, arXiv:1607.06450)."""

    name: str
    width: int
    scale: int
    shift: int
    eps: float
    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class Linear:
    """Products of one source (rows, k) with matrices (k, n): target (rows, len(matrices) * n)."""

    name: str
    k: int
    n: int
    matrices: tuple[Matrix, ...]
    source: str
    target: str
    add: str = ""
    layer_scale: int = -1  # (n) multiplies the product and its bias (Touvron et al. 2021, arXiv:2103.17239)

    @property
    def flops(self) -> int:
        """Of a row."""
        return 2 * self.k * self.n * len(self.matrices)


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation of `n` columns; `gated`: the source has 2 n, and the activated first half multiplies the second."""

    name: str
    kind: str
    n: int
    gated: bool
    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class Hidden:
    """A Linear, an Activation and a Linear, a block of hidden columns at a time."""

    first: Linear
    activation: Activation
    second: Linear

    @property
    def name(self) -> str:
        return f"{self.first.name}, {self.activation.name}, {self.second.name}"


@dataclasses.dataclass(frozen=True)
class Heads:
    """Softmax attention of `heads` heads over the tokens of each image (Vaswani et al. 2017, arXiv:1706.03762)."""

    name: str
    heads: int
    width: int
    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class Block:
    """What a block does: to rows before the attention, to heads, to rows after it."""

    before: tuple
    heads: Heads
    after: tuple


@dataclasses.dataclass(frozen=True)
class Embed:
    """Images to tokens: [prefix; patches @ W + b], plus the positions of all tokens or of the patches alone."""

    channels: int
    image_size: tuple[int, int]
    patch_size: int
    width: int
    matrix: Matrix
    prefix: tuple[int, ...]  # the offset of each token that stands before the patches
    positions: int
    positions_of_prefix: bool


@dataclasses.dataclass(frozen=True)
class Pool:
    """Tokens [first, first + count) of each image, through the norm if there is one: their mean, or, with `each`, all
    of them."""

    first: int
    count: int
    each: bool
    norm: Norm | None


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole model: what the engine makes a plan of."""

    tokens: int
    width: int
    classes: int
    size: int  # of the flat weight tensor
    embed: Embed
    blocks: tuple[Block, ...]
    pool: Pool
    head: Matrix

    def __str__(self) -> str:
        """One line a step; equal blocks are shown once."""
        embed, pool = self.embed, self.pool
        lines = [
            f"embed    images ({embed.channels}, {embed.image_size[0]}, {embed.image_size[1]}) "
            f"-> x ({self.tokens}, {self.width})",
        ]
        i = 0
        while i < len(self.blocks):
            text, first = _lines_of(self.blocks[i]), i
            while i < len(self.blocks) and _lines_of(self.blocks[i]) == text:
                i += 1
            lines += ["", f"block {first}" if i == first + 1 else f"blocks {first} to {i - 1}", *text]
        norm = "norm, " if pool.norm else ""
        rows = (
            "each token" if pool.each else f"mean of {pool.count} tokens" if pool.count > 1 else f"token {pool.first}"
        )
        lines += ["", f"pool     x -> {norm}{rows}", f"head     {self.width} -> {self.classes} logits"]
        return "\n".join(lines)


def _lines_of(block: Block) -> list[str]:
    """The steps of a block as a pass runs them, one line each."""
    lines = []
    for title, steps in (("rows", fuse(block.before)), ("heads", (block.heads,)), ("rows", fuse(block.after))):
        lines += [f"  {title if i == 0 else '':<6} {_line_of(step)}" for i, step in enumerate(steps)]
    return lines


def _line_of(step) -> str:
    match step:
        case Norm():
            return f"norm        {step.source} -> {step.target} ({step.width})   {step.name}"
        case Heads():
            return f"attention   {step.source} -> {step.target}, {step.heads} heads of {step.width // step.heads}"
        case Linear():
            add = (" * layer scale" if step.layer_scale >= 0 else "") + (f" + {step.add}" if step.add else "")
            shape = (
                f"({step.k}, {len(step.matrices)} x {step.n})" if len(step.matrices) > 1 else f"({step.k}, {step.n})"
            )
            return f"linear      {step.source} @ {shape}{add} -> {step.target}   {step.name}"
        case Activation():
            return f"activation  {step.kind}({step.source}) -> {step.target} ({step.n})"
    first, second = step.first, step.second
    add = (" * layer scale" if second.layer_scale >= 0 else "") + (f" + {second.add}" if second.add else "")
    return (
        f"hidden      {step.activation.kind}({first.source} @ ({first.k}, {first.n})) @ ({second.k}, {second.n}){add} "
        f"-> {second.target}   {step.name}"
    )


def fuse(steps: tuple) -> tuple:
    """The steps of a section with its two rewritings: see the head of this file."""
    fused: list = []
    for step in steps:
        fused.append(step)
        if len(fused) >= 3 and _is_hidden(*fused[-3:]):
            fused[-3:] = [Hidden(*fused[-3:])]
    for i, (step, behind) in enumerate(itertools.pairwise(fused)):
        readers = [other for other in fused if source_of(other) == getattr(step, "target", None)]
        if isinstance(step, Norm) and isinstance(behind, (Linear, Hidden)) and readers == [behind]:
            fused[i] = dataclasses.replace(step, target=PACKED)
            if isinstance(behind, Hidden):
                fused[i + 1] = dataclasses.replace(behind, first=dataclasses.replace(behind.first, source=PACKED))
            else:
                fused[i + 1] = dataclasses.replace(behind, source=PACKED)
    return tuple(fused)


def source_of(step) -> str:
    """The slot that a step reads."""
    return step.first.source if isinstance(step, Hidden) else step.source


def _is_hidden(first, activation, second) -> bool:
    return (
        isinstance(first, Linear)
        and isinstance(activation, Activation)
        and isinstance(second, Linear)
        and activation.source == first.target
        and second.source == activation.target
        and not first.add
        and first.layer_scale < 0
        and len(second.matrices) == 1
    )
