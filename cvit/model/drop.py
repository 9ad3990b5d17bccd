"""`Drop`: stochastic depth and dropout of a training step, and where a program has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..base.numbers import as_int, representable
from ..engine.program import Activation, Block, Linear, Norm, Program
from ..engine.program import Drop as Step

PLACES = 8  # numbers of a block's drops: more than the most that a block has


class Drop(NamedTuple):
    """What `ViT.loss_and_grad` drops at random.

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382) leaves a residual branch of an image out and scales those
    that stay by 1 / (1 - rate of the block). The rate rises linearly from 0 at the first block to `path` at the last.
    Each attention and each MLP is drawn by itself, but for both of a parallel block, which have one draw, as in timm.

    Dropout (Srivastava et al. 2014) sets single elements to 0 and scales the others by 1 / (1 - rate): of the embedded
    tokens behind the positions, of the attention's projection, and of the MLP behind its activation and behind its
    second layer. There is none of the attention's probabilities, which timm and DeiT leave at 0.

    What is dropped is a function of (seed, place in the model, image number, token, channel) alone: not of the number
    of threads, the batch size, or the instruction set. Seeds that differ give independent masks, so a training loop
    takes one for each step, such as `seed * 2**32 + step`.

    Fields
    ------
    path : float in [0, 1)
    rate : float in [0, 1)
    seed : int in [0, 2**64)
    first : int in [0, 2**63)
        The image number of the batch's first image: parts of a batch that are accumulated count on, and so drop what
        the whole batch would.
    """

    path: float = 0.0
    rate: float = 0.0
    seed: int = 0
    first: int = 0

    @property
    def steps(self) -> tuple[bool, bool]:
        """Whether there is stochastic depth, and whether there is dropout: what a plan depends on."""
        return self.path > 0, self.rate > 0


NOTHING = Drop()


def as_drop(drop, dtype: np.dtype) -> Drop:
    """`drop` with every field checked, as kernels of `dtype` take it; None is nothing."""
    if drop is None:
        return NOTHING
    if not isinstance(drop, Drop):
        raise TypeError(f"drop must be a Drop or None, got {type(drop).__name__}")
    return Drop(
        representable("drop.path", drop.path, dtype, below_one=True),
        representable("drop.rate", drop.rate, dtype, below_one=True),
        as_int("drop.seed", drop.seed, minimum=0, maximum=2**64 - 1),
        as_int("drop.first", drop.first, minimum=0, maximum=2**63 - 1),
    )


def with_drops(program: Program, path: bool, rate: bool, one_draw: bool) -> Program:
    """The program with steps for stochastic depth and for dropout, where they are wanted.

    `one_draw`: all branches of a block are left out together.
    """
    depth = len(program.blocks)
    before = program.before
    if rate:
        source, target = ("x0", "x0") if before else ("x0", "x")
        before = (Step("tokens.drop", program.width, 0, source, target), *before)
    blocks = []
    for i, block in enumerate(program.blocks):
        share = i / (depth - 1) if path and depth > 1 else 0.0
        after = tuple(_dropped(block.after, 1 + PLACES * i, share, rate, one_draw))
        blocks.append(Block(block.before, block.heads, after))
    return dataclasses.replace(program, before=before, blocks=tuple(blocks))


def _dropped(steps: tuple, first: int, share: float, rate: bool, one_draw: bool) -> Iterator:
    """The steps behind the attention, with drops of places `first`, `first` + 1, …, which do not depend on what is
    wanted."""
    normed = {step.source for step in steps if isinstance(step, Norm) and step.add}
    place = branch = first
    for step in steps:
        elements = rate and isinstance(step, Linear | Activation)
        if isinstance(step, Linear | Norm) and step.add:  # the end of a branch
            if share or elements:
                alone, name = f"{step.target}~", f"{step.name}.drop"
                yield dataclasses.replace(step, target=alone, add="")
                where = branch if one_draw else place
                yield Step(name, _width(step), place, alone, step.target, step.add, elements, share, where)
            else:
                yield step
        else:
            yield step
            if not isinstance(step, Activation) and step.target not in normed:
                continue
            if elements:
                yield Step(f"{step.name}.drop", _width(step), place, step.target, step.target)
        place += 1


def _width(step) -> int:
    return step.width if isinstance(step, Norm) else step.n
