"""What the engine can run: the vocabulary of a program, and the two rewritings that make it fast.

A model describes itself in these words (cvit/model/blocks.py does so from a configuration); the engine turns them into
steps, buffers and tasks and knows nothing else of models. Rows of tokens go from slot to slot, and a slot is a name:

    "x"            the block's input, the residual stream          "y"   its output, the next block's "x"
    any other      rows that a step of the block leaves for a later one, such as "qkv", "o", "mid", "u"

A weight is the offset of its first element in the flat weight tensor, -1 if there is none.

    Norm        target = norm of source, + add
    HeadNorm    target = source with a norm of each head's q and k
    Rotate      q and k turned in place by the patches' angles
    Linear      target = source @ W + b, times the layer scale, + add; several matrices that share their source
                stand side by side
    Activation  target = f(source), or f(first half) * second half
    Heads       target = softmax attention of source, which holds q, k and v side by side
    Hidden      Linear, Activation and Linear in one: the hidden rows never leave the cache
    Drop        in training alone: target = source without what is dropped at random, + add

Outside the blocks the same words work on the slots "x0", the tokens before a norm that precedes the blocks; "z" and
"kv", from the last block's output to the keys and values of attention pooling; "latent" and "query", its one row; and
from "pooled" on, one row an image.

`fuse` puts Hidden in the place of the three, and lets a norm write the packed rows that the product behind it reads.
Both change where values lie and not how they are computed: `Plan(..., fused=False)` runs the program as it was given,
to the same bits. (But for the gradient of a wide gated MLP's input, whose two matrices' parts are then added up in
another order.)
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

PACKED = "packed"  # the slot of a norm whose rows go straight into the operand of the next product


class Matrix(NamedTuple):
    """One matrix (k, n) of a Linear, its bias (n), and the target's column that its first one goes to."""

    name: str
    weight: int
    bias: int = -1
    column: int = 0


@dataclasses.dataclass(frozen=True)
class Norm:
    """Layer norm over rows of `width` (Ba et al. 2016, arXiv:1607.06450), or RMSNorm (arXiv:1910.07467)."""

    name: str
    width: int
    scale: int
    shift: int
    eps: float
    source: str
    target: str
    rms: bool = False
    add: str = ""


@dataclasses.dataclass(frozen=True)
class HeadNorm:
    """A norm of `width` channels for each of `heads` heads of q and of k, which share their scales; v is copied."""

    name: str
    heads: int
    width: int  # of a head
    scales: tuple[int, int]  # of q and of k
    shifts: tuple[int, int]
    eps: float
    source: str
    target: str
    rms: bool = False


@dataclasses.dataclass(frozen=True)
class Rotate:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): q and k of `heads` heads in slot `target`, turned in
    place; by angles that the program has, or by those of learned frequencies (2, heads, width / 2)."""

    name: str
    heads: int
    width: int  # of a head
    frequencies: int  # of learned ones, else -1
    target: str

    @property
    def source(self) -> str:
        return self.target


@dataclasses.dataclass(frozen=True, eq=False)
class Rotation:
    """What the patches' rotary positions are: angles (patches, width / 2), or, of learned frequencies, coordinates
    (patches, 2); float64."""

    angles: np.ndarray | None
    coordinates: np.ndarray


@dataclasses.dataclass(frozen=True)
class Linear:
    """Products of one source (rows, k) with matrices (k, n), side by side in the target."""

    name: str
    k: int
    n: int
    matrices: tuple[Matrix, ...]
    source: str
    target: str
    add: str = ""
    source_column: int = 0
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
class Drop:
    """Dropout of elements (Srivastava et al. 2014), and of a residual branch of an image as a whole (stochastic depth,
    Huang et al. 2016, arXiv:1603.09382). The rates are a call's: `elements` says whether its dropout applies, and
    `share` is the factor of its rate for branches. Random bits are those of numbers: `place` of this step's elements,
    `branch` of the branch. Without `add` source and target are one slot, but for the embedded tokens."""

    name: str
    width: int
    place: int
    source: str
    target: str
    add: str = ""
    elements: bool = True
    share: float = 0.0
    branch: int = 0


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
    patch_size: tuple[int, int]
    width: int
    matrix: Matrix
    norm: Norm | None  # of the patches' rows, before the positions
    prefix: tuple[int, ...]  # the offset of each token that stands before the patches
    positions: int  # -1 for none
    positions_of_prefix: int  # how many of the tokens before the patches have one


@dataclasses.dataclass(frozen=True)
class Pool:
    """Of each image the mean of tokens [first, first + count) for every range, side by side; or, with `each`, all of
    the only range."""

    ranges: tuple[tuple[int, int], ...]
    each: bool = False


@dataclasses.dataclass(frozen=True)
class AttentionPool:
    """Attention of one query, the slot `query` (1, width), over keys and values "kv" (tokens, 2 * width), of all tokens
    from `first` on."""

    heads: int
    width: int
    first: int  # of the tokens that it sees
    query: str  # "query", or "latent" where no product makes it


@dataclasses.dataclass(frozen=True, eq=False)  # so that it is the key of what is read off it without being read
class Program:
    """A whole model: what the engine makes a plan of."""

    tokens: int
    width: int
    classes: int  # 0: no head
    size: int  # of the flat weight tensor
    embed: Embed
    before: tuple  # steps of token rows before the blocks, from "x0" to "x"
    blocks: tuple[Block, ...]
    behind: int  # the offset of the first weight behind the blocks
    norm: Norm | None  # of the last block's tokens
    latent: int  # the learned query's offset, of attention pooling
    query: tuple  # steps of its one row
    after: tuple  # steps of token rows from "x" to "kv", of attention pooling: the norm is the first of them
    pool: Pool | AttentionPool
    end: tuple  # steps of one row an image, from "pooled" on
    features: str  # the slot that the head reads
    feature_width: int
    heads: tuple[Linear, ...]  # the logits are their mean
    rotation: Rotation | None
    given: bool = False  # passes begin with tokens, not with images: weights before `blocks` have no gradient

    def __str__(self) -> str:
        """One line a step; equal blocks are shown once."""
        embed, pool = self.embed, self.pool
        source = f"images ({embed.channels}, {embed.image_size[0]}, {embed.image_size[1]})"
        source = "given    tokens" if self.given else f"embed    {source}"
        lines = [f"{source} -> x ({self.tokens}, {self.width})"]
        lines += _section("rows", fuse(self.before))
        i = 0
        while i < len(self.blocks):
            text, first = _lines_of(self.blocks[i]), i
            while i < len(self.blocks) and _lines_of(self.blocks[i]) == text:
                i += 1
            lines += ["", f"block {first}" if i == first + 1 else f"blocks {first} to {i - 1}", *text]
        lines.append("")
        if isinstance(pool, AttentionPool):
            lines += _section("rows", fuse(self.after)) + _section("query", self.query)
            lines.append(f"pool     kv -> pooled, attention of {pool.query}, {pool.heads} heads")
        else:
            norm = "norm, " if self.norm else ""
            means = [f"mean of {count} tokens" if count > 1 else f"token {first}" for first, count in pool.ranges]
            lines.append(f"pool     x -> {norm}{'each token' if pool.each else ' and '.join(means)}")
        lines += _section("end", fuse(self.end))
        for head in self.heads:
            lines.append(f"head     {head.k} -> {self.classes} logits")
        return "\n".join(lines)


def _section(title: str, steps: tuple) -> list[str]:
    """The steps of a section, one line each."""
    return [f"{title if i == 0 else '':<8} {_line_of(step)}" for i, step in enumerate(steps)]


def _lines_of(block: Block) -> list[str]:
    """The steps of a block as a pass runs them, one line each."""
    lines = []
    for title, steps in (("rows", fuse(block.before)), ("heads", (block.heads,)), ("rows", fuse(block.after))):
        lines += [f"  {title if i == 0 else '':<6} {_line_of(step)}" for i, step in enumerate(steps)]
    return lines


def _line_of(step) -> str:
    match step:
        case Norm():
            add = f" + {step.add}" if step.add else ""
            return f"norm        {step.source}{add} -> {step.target} ({step.width})   {step.name}"
        case HeadNorm():
            return f"head norm   {step.source} -> {step.target}, {step.heads} heads of {step.width}   {step.name}"
        case Rotate():
            return f"rotate      {step.target}, {step.heads} heads of {step.width}   {step.name}"
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
        case Drop():
            add = f" + {step.add}" if step.add else ""
            return f"drop        {step.source}{add} -> {step.target}   {step.name}"
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
        readers_follow = readers and readers == fused[i + 1 : i + 1 + len(readers)]
        if isinstance(step, Norm) and not step.add and isinstance(behind, (Linear, Hidden)) and readers_follow:
            fused[i] = dataclasses.replace(step, target=PACKED)
            for j, reader in enumerate(readers, i + 1):
                if isinstance(reader, Hidden):
                    fused[j] = dataclasses.replace(reader, first=dataclasses.replace(reader.first, source=PACKED))
                else:
                    fused[j] = dataclasses.replace(reader, source=PACKED)
    return tuple(fused)


def source_of(step) -> str:
    """The slot that a step reads."""
    return step.first.source if isinstance(step, Hidden) else step.source


def target_of(step) -> str:
    """The slot that a step writes."""
    return step.second.target if isinstance(step, Hidden) else step.target


def added_by(step) -> str:
    """The slot that a step adds to what it writes, or ""."""
    return getattr(step.second if isinstance(step, Hidden) else step, "add", "")


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
