"""From a program to the nodes of an ONNX graph: a function for each kind of step, in the table `STEPS`.

The graph is made of the words that the engine runs (cvit/engine/program.py), unfused and with the same weights:
matrices stand (in, out) as initializers of the layout's names. A slot becomes a value, or several side by side, which
are joined only where a step reads them as one. Token rows are (N, T, D) with a symbolic N, rows behind the pooling
(N, D).

Operators are those of opset 17, in the forms that onnxruntime's optimizer knows and fuses (the GELUs, RMSNorm). Patches
are cut by Reshape and Transpose and multiplied, since onnxruntime has no convolution in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..engine.program import (
    Activation,
    AttentionPool,
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
from .onnx_nodes import Graph, Slots

OPSET, IR_VERSION = 17, 8  # of June 2022: the first with LayerNormalization, and its format
IMAGES, LOGITS, FEATURES = "images", "logits", "features"


# ------------------------------------------------------------------------------------------------------------ the steps
def normed(g: Graph, x: str, width: int, scale: int, shift: int, eps: float, rms: bool) -> str:
    """The norm of the last axis, `width` numbers, times the weights at `scale`, plus those at `shift` (-1: none)."""
    if not rms:
        factors = g.weight(scale) if scale >= 0 else g.constant(f"ones_{width}", np.ones(width, g.dtype))
        shifts = [g.weight(shift)] if shift >= 0 else []
        return g.op("LayerNormalization", x, factors, *shifts, axis=-1, epsilon=eps)
    square = g.op("Pow", x, g.number(2.0)) if g.fusible else g.op("Mul", x, x)
    mean = g.op("ReduceMean", square, axes=[-1], keepdims=1)
    y = g.op("Div", x, g.op("Sqrt", g.op("Add", mean, g.number(eps))))
    return g.op("Mul", y, g.weight(scale)) if scale >= 0 else y


def _norm(g: Graph, slots: Slots, step: Norm, program: Program) -> None:
    y = normed(g, slots.read(step.source), step.width, step.scale, step.shift, step.eps, step.rms)
    slots.write(step.target, g.op("Add", slots.read(step.add), y) if step.add else y, step.width)


def _head_norm(g: Graph, slots: Slots, step: HeadNorm, program: Program) -> None:
    width = step.heads * step.width
    for i in range(2):
        heads = g.reshape(slots.read(step.source, i * width, width), 0, 0, step.heads, step.width)
        y = normed(g, heads, step.width, step.scales[i], step.shifts[i], step.eps, step.rms)
        slots.write(step.target, g.reshape(y, 0, 0, width), width, i * width)
    slots.write(step.target, slots.read(step.source, 2 * width, width), width, 2 * width)


def _rotate(g: Graph, slots: Slots, step: Rotate, program: Program) -> None:
    """Channels j and j + half of each head are turned by their angle: (a cos - b sin, b cos + a sin)."""
    assert program.rotation is not None
    width, half = step.heads * step.width, step.width // 2
    cosines, sines = _tables(g, step, program.rotation, program.tokens)
    for i in range(2):
        heads = g.reshape(slots.read(step.target, i * width, width), 0, 0, step.heads, step.width)
        a, b = g.cut(heads, -1, 0, half), g.cut(heads, -1, half, step.width)
        first = g.op("Sub", g.op("Mul", a, cosines), g.op("Mul", b, sines))
        second = g.op("Add", g.op("Mul", b, cosines), g.op("Mul", a, sines))
        slots.write(step.target, g.reshape(g.join([first, second]), 0, 0, width), width, i * width)


def _tables(g: Graph, step: Rotate, rotation: Rotation, tokens: int) -> tuple[str, str]:
    """Cosines and sines (T, 1 or heads, width / 2). Tokens before the patches have the angle 0.

    Those of learned frequencies are made here, too: onnxruntime has had a cosine in float64 for some versions only.
    """
    prefix, half = tokens - len(rotation.coordinates), step.width // 2
    if rotation.angles is not None:
        name, angles = "rope", rotation.angles[:, None]
    else:
        name, (down, across) = f"{g.prefix}attn.rope", g.values(step.frequencies, 2, step.heads, half)
        places = rotation.coordinates.astype(g.dtype)[:, :, None, None]
        angles = places[:, 0] * down + places[:, 1] * across
    angles = np.pad(angles, ((prefix, 0), (0, 0), (0, 0)))
    cosines, sines = (function(angles).astype(g.dtype) for function in (np.cos, np.sin))
    return g.constant(f"{name}.cosines", cosines), g.constant(f"{name}.sines", sines)


def product(g: Graph, x: str, matrix: Matrix) -> str:
    """x @ W + b."""
    y = g.op("MatMul", x, g.weight(matrix.weight))
    return g.op("Add", y, g.weight(matrix.bias)) if matrix.bias >= 0 else y


def _linear(g: Graph, slots: Slots, step: Linear, program: Program) -> None:
    x = slots.read(step.source, step.source_column, step.k)
    add = slots.read(step.add) if step.add else ""
    for matrix in step.matrices:
        y = product(g, x, matrix)
        if step.layer_scale >= 0:
            y = g.op("Mul", y, g.weight(step.layer_scale))
        slots.write(step.target, g.op("Add", add, y) if add else y, step.n, matrix.column)


def _gelu_tanh(g: Graph, x: str) -> str:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) / 2."""
    cube = g.op("Mul", g.op("Pow", x, g.number(3.0)), g.number(0.044715))
    inner = g.op("Mul", g.op("Add", x, cube), g.number(math.sqrt(2 / math.pi)))
    return g.op("Mul", g.op("Mul", x, g.number(0.5)), g.op("Add", g.op("Tanh", inner), g.number(1.0)))


def _gelu_erf(g: Graph, x: str) -> str:
    """x (1 + erf(x / sqrt(2))) / 2."""
    erf = g.op("Erf", g.op("Div", x, g.number(math.sqrt(2))))
    return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.number(1.0))), g.number(0.5))


def _sigmoid(g: Graph, x: str) -> str:
    """1 / (1 + exp(-x))."""
    if g.fusible:
        return g.op("Sigmoid", x)
    return g.op("Div", g.number(1.0), g.op("Add", g.op("Exp", g.op("Neg", x)), g.number(1.0)))


def _quick_gelu(g: Graph, x: str) -> str:
    """x sigmoid(1.702 x)."""
    return g.op("Mul", x, _sigmoid(g, g.op("Mul", x, g.number(1.702))))


def _silu(g: Graph, x: str) -> str:
    """x sigmoid(x)."""
    return g.op("Mul", x, _sigmoid(g, x))


ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": _gelu_erf,
    "quick_gelu": _quick_gelu,
    "silu": _silu,
    "relu": lambda g, x: g.op("Relu", x),
    "tanh": lambda g, x: g.op("Tanh", x),
}


def _activation(g: Graph, slots: Slots, step: Activation, program: Program) -> None:
    y = ACTIVATIONS[step.kind](g, slots.read(step.source, 0, step.n))
    if step.gated:
        y = g.op("Mul", y, slots.read(step.source, step.n, step.n))
    slots.write(step.target, y, step.n)


def attended(g: Graph, q: str, k: str, v: str, heads: int, width: int) -> str:
    """softmax(q kᵀ / sqrt(width)) v, head by head: q of (N or 1, queries, D), k and v of (N, tokens, D)."""
    q, k, v = (g.reshape(one, 0, 0, heads, width) for one in (q, k, v))
    q, v = (g.op("Transpose", one, perm=[0, 2, 1, 3]) for one in (q, v))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 3, 1]))
    scores = g.op("Mul", scores, g.number(1 / math.sqrt(width)))
    o = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    return g.reshape(g.op("Transpose", o, perm=[0, 2, 1, 3]), 0, 0, heads * width)


def _heads(g: Graph, slots: Slots, step: Heads, program: Program) -> None:
    q, k, v = (slots.read(step.source, i * step.width, step.width) for i in range(3))
    slots.write(step.target, attended(g, q, k, v, step.heads, step.width // step.heads), step.width)


STEPS: dict[type, Callable[..., None]] = {
    Norm: _norm,
    HeadNorm: _head_norm,
    Rotate: _rotate,
    Linear: _linear,
    Activation: _activation,
    Heads: _heads,
}


def run(g: Graph, slots: Slots, steps: tuple, program: Program) -> None:
    """Add the nodes of some steps."""
    for step in steps:
        with g.of(step.name):
            STEPS[type(step)](g, slots, step, program)


# ------------------------------------------------------------------------------------------------- around the blocks
def embedded(g: Graph, embed: Embed) -> str:
    """Images (N, C, height, width) to tokens (N, T, D)."""
    (height, width), (down, across), D = embed.image_size, embed.patch_size, embed.width
    rows, columns = height // down, width // across
    patches = rows * columns
    with g.of("patch_embed"):
        x = g.reshape(IMAGES, 0, embed.channels, rows, down, columns, across)
        x = g.op("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
        x = product(g, g.reshape(x, 0, patches, embed.channels * down * across), embed.matrix)
    norm = embed.norm
    if norm is not None:
        with g.of(norm.name):
            x = normed(g, x, norm.width, norm.scale, norm.shift, norm.eps, norm.rms)
    with g.of("tokens"):
        positions = None
        if embed.positions >= 0:
            positions = g.values(embed.positions, embed.positions_of_prefix + patches, D)
            x = g.op("Add", x, g.constant("tokens.positions", positions[embed.positions_of_prefix :]))
        if not embed.prefix:
            return x
        prefix = np.stack([g.values(offset, D) for offset in embed.prefix])
        if positions is not None:
            prefix[: embed.positions_of_prefix] += positions[: embed.positions_of_prefix]
        count = g.op("Shape", IMAGES, start=0, end=1)
        shape = g.op("Concat", count, g.ints(*prefix.shape), axis=0)
        return g.join([g.op("Expand", g.constant("tokens.prefix", prefix), shape), x], axis=1)


def pooled(g: Graph, x: str, pool: Pool, program: Program) -> str:
    """Of each image the mean of each range of tokens, side by side (N, …), or every token, behind the final norm.

    The norm is taken of the tokens that are pooled alone.
    """
    norm, means = program.norm, []
    for first, count in pool.ranges:
        y = x if count == program.tokens else g.cut(x, 1, first, first + count)
        if norm is not None:
            y = normed(g, y, norm.width, norm.scale, norm.shift, norm.eps, norm.rms)
        if pool.each:
            return y
        means.append(g.reshape(y, -1, program.width) if count == 1 else g.op("ReduceMean", y, axes=[1], keepdims=0))
    return g.join(means)


def attention_pooled(g: Graph, slots: Slots, pool: AttentionPool, program: Program) -> str:
    """One query, equal for all images, over the tokens' keys and values: (N, D)."""
    with g.of("pool.latent"):
        slots.write("latent", g.reshape(g.weight(program.latent), 1, pool.width), pool.width)
    run(g, slots, program.query, program)
    run(g, slots, program.after, program)
    with g.of("pool"):
        k, v = (slots.read("kv", i * pool.width, pool.width) for i in range(2))
        if pool.first:
            k, v = (g.cut(one, 1, pool.first, program.tokens) for one in (k, v))
        q = g.reshape(slots.read(pool.query), 1, 1, pool.width)
        return g.reshape(attended(g, q, k, v, pool.heads, pool.width // pool.heads), -1, pool.width)


def compute(g: Graph, program: Program, two: bool) -> list[tuple[str, str]]:
    """Add the nodes of a whole program: its outputs, as (name outside, value).

    `two`: the features are of the class token and of the distillation token, side by side. Their mean is given, as by
    `ViT.features`.
    """
    slots, D = Slots(g), program.width
    slots.write("x0" if program.before else "x", embedded(g, program.embed), D)
    run(g, slots, program.before, program)
    for i, block in enumerate(program.blocks):
        g.prefix = f"blocks.{i}."
        run(g, slots, (*block.before, block.heads, *block.after), program)
        x, slots = slots.read("y"), Slots(g)
        slots.write("x", x, D)
    g.prefix = ""
    if isinstance(program.pool, AttentionPool):
        slots.write("pooled", attention_pooled(g, slots, program.pool, program), D)
    else:
        with g.of("norm"):
            y = pooled(g, slots.read("x"), program.pool, program)
        slots.write("pooled", y, D if program.pool.each else D * len(program.pool.ranges))
    run(g, slots, program.end, program)
    features = slots.read(program.features)
    outputs = []
    with g.of("head"):
        found = [slots.read(program.features, head.source_column, head.k) for head in program.heads]
        logits = [product(g, x, head.matrices[0]) for x, head in zip(found, program.heads)]
        if logits:
            outputs.append((LOGITS, _mean(g, logits)))
        if two:
            features = _mean(g, [slots.read(program.features, i * D, D) for i in range(2)])
    return [*outputs, (FEATURES, features)]


def _mean(g: Graph, values: list[str]) -> str:
    """The mean of one value or of two."""
    return values[0] if len(values) == 1 else g.op("Mul", g.op("Add", *values), g.number(0.5))
