"""From parts to a program: what the engine is to run for a configuration (the words are those of
cvit/engine/program.py)."""

from __future__ import annotations

import dataclasses
import functools

from ..engine.program import Activation, Block, Embed, Heads, Linear, Matrix, Norm, Pool, Program
from .config import ViTConfig
from .layout import Layout
from .blocks import block, embedding, head
from .parts import Kind, Part, Role


@functools.lru_cache(maxsize=64)
def program_of(config: ViTConfig) -> Program:
    """The program of `config`, with the offsets of its layout; made once."""
    layout = Layout.of(config)
    patches, tokens = embedding(config)
    *final, _, classifier = head(config)
    prefix = [row for row in tokens.tensors if row.role is Role.TOKEN]
    D = config.width
    return Program(
        tokens=config.tokens,
        width=D,
        classes=config.classes,
        size=layout.size,
        embed=Embed(
            channels=config.channels,
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=D,
            matrix=_matrix(layout, patches),
            prefix=tuple(layout.offset(row.name) + i * D for row in prefix for i in range(row.size // D)),
            positions=_offset(layout, tokens, Role.POSITION),
            positions_of_prefix=config.pos_tokens == "all",
        ),
        blocks=tuple(_block(config, layout, i) for i in range(config.depth)),
        pool=Pool(
            first=config.prefix_tokens if config.pool == "mean" else 0,
            count={"cls": 1, "mean": config.patches}.get(config.pool, config.tokens),
            each=config.pool == "none",
            norm=_norm(config, layout, final[0]) if final else None,
        ),
        head=_matrix(layout, classifier),
    )


def _block(config: ViTConfig, layout: Layout, i: int) -> Block:
    """The steps of block i on both sides of its attention."""
    steps: list = []
    for part in block(config, i):
        match part.kind:
            case Kind.NORM:
                steps.append(_norm(config, layout, part))
            case Kind.ATTENTION:
                steps.append(Heads(_short(part), config.heads, config.width, part.source, part.target))
            case Kind.ACTIVATION:
                kind, gated = config.activation, config.gated
                steps.append(Activation(_short(part), kind, config.hidden, gated, part.source, part.target))
            case Kind.LAYER_SCALE:
                steps[-1] = dataclasses.replace(steps[-1], layer_scale=_offset(layout, part, Role.GAMMA))
            case Kind.LINEAR:
                steps.append(_linear(layout, part, steps))
    at = next(number for number, step in enumerate(steps) if isinstance(step, Heads))
    return Block(tuple(steps[:at]), steps[at], tuple(steps[at + 1 :]))


def _norm(config: ViTConfig, layout: Layout, part: Part) -> Norm:
    scale, shift = _offset(layout, part, Role.SCALE), _offset(layout, part, Role.SHIFT)
    return Norm(_short(part), config.width, scale, shift, config.eps, part.source, part.target)


def _linear(layout: Layout, part: Part, steps: list) -> Linear:
    """A product of its own, or one side by side with the step before it, which is taken back from `steps`."""
    k, n = next(row.shape for row in part.tensors if row.role is Role.MATRIX)
    matrices: tuple[Matrix, ...] = (_matrix(layout, part),)
    if steps and isinstance(steps[-1], Linear) and steps[-1].target == part.target:
        matrices = (*steps.pop().matrices, *matrices)
    name = ", ".join(matrix.name for matrix in matrices)
    return Linear(name, k, n, matrices, part.source, part.target, part.add)


def _matrix(layout: Layout, part: Part) -> Matrix:
    weight = next(row for row in part.tensors if row.role in (Role.MATRIX, Role.PATCH_MATRIX))
    return Matrix(_short(part), layout.offset(weight.name), _offset(layout, part, Role.BIAS))


def _offset(layout: Layout, part: Part, role: Role) -> int:
    """Where the part's tensor of a role begins, -1 if it has none."""
    return next((layout.offset(row.name) for row in part.tensors if row.role is role), -1)


def _short(part: Part) -> str:
    """The part's name within its block: the same in every block."""
    block = next((row.block for row in part.tensors if row.block is not None), None)
    return part.name.removeprefix(f"blocks.{block}.") if block is not None else part.name.split(".", 2)[-1]
