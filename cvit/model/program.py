"""From parts to a program: what the engine is to run for a configuration (the words are those of
cvit/engine/program.py)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from ..engine.program import (
    Activation,
    AttentionPool,
    Block,
    Embed,
    HeadNorm,
    Heads,
    Linear,
    Matrix,
    Norm,
    Pool,
    Program,
    Rotate,
    Rotation,
)
from .blocks import block, embedding, head
from .config import ViTConfig
from .drop import with_drops
from .layout import Layout
from .parts import Kind, Part, Role
from .rope import angles, coordinates

First = int | Literal["head"]  # where training starts: a block, the depth, or the head; what lies before is frozen


def program_of(config: ViTConfig, path: bool = False, rate: bool = False) -> Program:
    """The program of `config`, with the offsets of its layout; made once. With `path` it has steps for stochastic
    depth, with `rate` for dropout."""
    return _program_of(config, path, rate)  # a cache takes arguments that are given for others than their defaults


@functools.lru_cache(maxsize=64)
def _program_of(config: ViTConfig, path: bool, rate: bool) -> Program:
    if path or rate:
        return with_drops(program_of(config), path, rate, one_draw=config.block == "parallel")
    make = _Steps(config, Layout.of(config))
    layout, D = make.layout, config.width
    first, last = embedding(config), head(config)
    patches, tokens = first[0], next(part for part in first if part.kind is Kind.TOKENS)
    prefix = [row for row in tokens.tensors if row.role is Role.TOKEN]
    patch_norm = next((part for part in first if part.kind is Kind.NORM and not part.source), None)
    at = next(i for i, part in enumerate(last) if part.kind in (Kind.POOL, Kind.ATTENTION_POOL))
    ahead, pooling, behind = last[:at], last[at], last[at + 1 :]
    final = next((part for part in ahead if part.kind is Kind.NORM), None)
    latent = next((part for part in ahead if part.kind is Kind.TOKENS), None)
    query = [part for part in ahead if part.source == "latent"]
    heads = [part for part in behind if part.target == "logits"]
    end = [part for part in behind if part.target != "logits"]
    pool: Pool | AttentionPool = Pool(_ranges(config), config.pool == "none")
    if pooling.kind is Kind.ATTENTION_POOL:
        first_seen = 0 if config.pool_prefix else config.prefix_tokens
        pool = AttentionPool(pooling.heads, pooling.width, first_seen, "query" if query else "latent")
    return Program(
        tokens=config.tokens,
        width=D,
        classes=config.classes,
        size=layout.size,
        embed=Embed(
            channels=config.channels,
            image_size=config.image_size,
            patch_size=config.patch,
            width=D,
            matrix=make.matrix(patches),
            norm=make.norm(patch_norm) if patch_norm else None,
            prefix=tuple(layout.offset(row.name) + i * D for row in prefix for i in range(row.size // D)),
            positions=make.offset(tokens, Role.POSITION),
            positions_of_prefix=config.pos_prefix,
        ),
        before=make.steps([part for part in first if part.source == "x0"]),
        blocks=tuple(_block(make, i) for i in range(config.depth)),
        behind=min((layout.offset(row.name) for part in last for row in part.tensors), default=layout.size),
        norm=make.norm(final) if final else None,
        latent=make.offset(latent, Role.TOKEN) if latent else -1,
        query=make.steps(query),
        after=make.steps([part for part in ahead if part.source in ("x", "z")]) if latent else (),
        pool=pool,
        end=make.steps(end),
        features=next((part.target for part in reversed(end) if part.target), "pooled"),
        feature_width=config.feature_width,
        heads=tuple(make.linear(part) for part in heads),
        rotation=_rotation(config),
    )


@functools.lru_cache(maxsize=64)
def tail_of(config: ViTConfig, first: First, path: bool = False, rate: bool = False) -> Program:
    """The program of what is trained behind a frozen front: blocks `first` and on, which begin with tokens, and what
    follows them; of "head" the head, which begins with its features. Offsets are those of the whole model."""
    program = program_of(config, path, rate)  # whose drops know their places in the whole model
    if first != "head":
        return dataclasses.replace(program, given=True, before=(), blocks=program.blocks[first:])
    each = config.pool == "none"
    tokens = config.tokens if each else 1  # the features are tokens, of which each is its own mean
    return dataclasses.replace(
        program, given=True, tokens=tokens, width=program.feature_width, before=(), blocks=(), norm=None, latent=-1,
        query=(), after=(), pool=Pool(((0, tokens),), each), end=(), features="pooled", rotation=None,
        behind=program.heads[0].matrices[0].weight,
    )  # fmt: skip


def _ranges(config: ViTConfig) -> tuple[tuple[int, int], ...]:
    """Which tokens are pooled: of each range the mean."""
    classes = (0, config.class_tokens)
    patches = (config.prefix_tokens, config.patches)
    if config.dist_head:
        return classes, (config.class_tokens, 1)
    return {"cls": (classes,), "mean": (patches,), "cls_mean": (classes, patches)}.get(
        config.pool, ((0, config.tokens),)
    )


def _rotation(config: ViTConfig) -> Rotation | None:
    if config.rope is None:
        return None
    fixed = None if config.rope.learned else angles(config.rope, config.grid, config.head_width)
    return Rotation(fixed, coordinates(config.rope, config.grid))


def _block(make: _Steps, i: int) -> Block:
    """The steps of block i on both sides of its attention."""
    steps = make.steps(block(make.config, i))
    at = next(number for number, step in enumerate(steps) if isinstance(step, Heads))
    return Block(steps[:at], steps[at], steps[at + 1 :])


class _Steps:
    """Steps of parts, with the offsets of a layout."""

    def __init__(self, config: ViTConfig, layout: Layout):
        self.config, self.layout = config, layout

    def steps(self, parts: list[Part]) -> tuple:
        """A step for each part; products of one source into one target stand side by side."""
        steps: list = []
        for part in parts:
            match part.kind:
                case Kind.NORM:
                    steps.append(self.norm(part))
                case Kind.HEAD_NORM:
                    steps.append(self.head_norm(part))
                case Kind.ROPE:
                    width, frequencies = self.config.head_width, self.offset(part, Role.FREQUENCY)
                    steps.append(Rotate(_short(part), part.heads, width, frequencies, part.target))
                case Kind.ATTENTION:
                    steps.append(Heads(_short(part), part.heads, part.width, part.source, part.target))
                case Kind.ACTIVATION:
                    kind, gated = part.activation, part.gated
                    steps.append(Activation(_short(part), kind, part.width, gated, part.source, part.target))
                case Kind.LAYER_SCALE:
                    gamma = self.layout.offset(f"{part.name}.gamma")
                    steps[-1] = dataclasses.replace(steps[-1], layer_scale=gamma)
                case Kind.LINEAR:
                    step = self.linear(part)
                    if steps and isinstance(steps[-1], Linear) and _beside(steps[-1], step):
                        matrices = (*steps.pop().matrices, *step.matrices)
                        name = ", ".join(matrix.name for matrix in matrices)
                        step = dataclasses.replace(step, name=name, matrices=matrices)
                    steps.append(step)
        return tuple(steps)

    def norm(self, part: Part) -> Norm:
        scale, shift = self.offset(part, Role.SCALE), self.offset(part, Role.SHIFT)
        eps, rms = self.config.eps_of(part.name), self.config.norm == "rms"
        return Norm(_short(part), part.width, scale, shift, eps, part.source, part.target, rms, part.add)

    def head_norm(self, part: Part) -> HeadNorm:
        def both(role):
            found = tuple(self.layout.offset(row.name) for row in part.tensors if row.role is role)
            return found or (-1, -1)

        eps, rms = self.config.eps_of(part.name), self.config.norm == "rms"
        return HeadNorm(
            _short(part), part.heads, self.config.head_width, both(Role.SCALE), both(Role.SHIFT), eps, part.source,
            part.target, rms,
        )  # fmt: skip

    def linear(self, part: Part) -> Linear:
        k, n = next(row.shape for row in part.tensors if row.role is Role.MATRIX)
        matrix = self.matrix(part)
        return Linear(matrix.name, k, n, (matrix,), part.source, part.target, part.add, part.source_column)

    def matrix(self, part: Part) -> Matrix:
        weight = next(row for row in part.tensors if row.role in (Role.MATRIX, Role.PATCH_MATRIX))
        return Matrix(_short(part), self.layout.offset(weight.name), self.offset(part, Role.BIAS), part.column)

    def offset(self, part: Part, role: Role) -> int:
        """Where the part's tensor of a role begins, -1 if it has none."""
        return next((self.layout.offset(row.name) for row in part.tensors if row.role is role), -1)


def _beside(one: Linear, other: Linear) -> bool:
    """Whether two products share their source and their target."""
    same = (one.source, one.source_column, one.target) == (other.source, other.source_column, other.target)
    return same and one.n == other.n and not one.add


def _short(part: Part) -> str:
    """The part's name within its block: the same in every block."""
    block = next((row.block for row in part.tensors if row.block is not None), None)
    if block is not None:
        return part.name.removeprefix(f"blocks.{block}.")
    return part.name.split(".", 2)[-1] if part.name.startswith("blocks.") else part.name
