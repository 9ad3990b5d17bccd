"""The parts of a model, one after the other: the embedding, a block of each kind, what follows the blocks.

`parts(config)` lists all of them and `rows(config)` their tensors in storage order, which is the order of computation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .parts import (
    LECUN,
    ZERO,
    Init,
    Kind,
    Law,
    Part,
    Place,
    Role,
    Tensor,
    Where,
    layer_scale,
    linear,
    norm,
    norm_tensors,
)

if TYPE_CHECKING:
    from .config import ViTConfig


# -------------------------------------------------------------------------------------------------------- the embedding
def embedding(config: ViTConfig) -> list[Part]:
    """From images to tokens: the patch embedding, its norm; the learned tokens before the patches, and the positions;
    the norm before the blocks.

    The rows of `tokens` stand in the order of the sequence: class tokens, distillation token, registers.
    """
    where = Where(layer=0)
    D, features = config.width, config.patch_features
    pixels = (config.channels, *config.patch, D)  # the patch matrix's rows are ordered (C, P, P)
    place = Place("patch_embed.kernel", pixels, (1, 2, 0, 3))
    patches = [where.tensor("patch_embed.weight", (features, D), Role.PATCH_MATRIX, LECUN, place)]
    if config.has_bias("patch"):
        patches.append(where.tensor("patch_embed.bias", (D,), Role.BIAS, ZERO))
    add_norm = functools.partial(norm, where, kind=config.norm, affine=config.norm_affine)

    def learned(name, shape, role, init):
        return where.tensor(name, shape, role, init)

    # Without positions of their own, tokens that start equal would stay equal for ever: so only the first is zero.
    tokens, drawn = [], Init(Law.NORMAL, 0.02)
    if config.class_tokens:
        shape = (D,) if config.class_tokens == 1 else (config.class_tokens, D)
        tokens.append(learned("cls_token", shape, Role.TOKEN, ZERO if config.class_tokens == 1 else drawn))
    if config.dist_token:  # as DeiT draws it
        tokens.append(learned("dist_token", (D,), Role.TOKEN, drawn))
    if config.registers:  # as DINOv2 draws them
        tokens.append(learned("reg_token", (config.registers, D), Role.TOKEN, Init(Law.NORMAL, 1e-6)))
    if config.pos_rows:
        tokens.append(learned("pos_embed", (config.pos_rows, D), Role.POSITION, drawn))
    return [
        Part("patch_embed", Kind.LINEAR, tuple(patches), config.patches * features * D),
        *([add_norm("patch_norm", D)] if config.patch_norm else []),
        Part("tokens", Kind.TOKENS, tuple(tokens)),
        *([add_norm("norm_pre", D, source="x0", target="x")] if config.pre_norm else []),
    ]


# ------------------------------------------------------------------------------------------------------------ the blocks
class Builder:
    """The parts of one block. Those of a second branch have a name that ends in "_2"."""

    def __init__(self, config: ViTConfig, i: int):
        self.config, self.where = config, Where(layer=i + 1, block=i)

    def norm(self, name: str, source: str, target: str, *, flax: str = "", width: int = 0, add: str = "") -> list[Part]:
        config = self.config
        return [
            norm(
                self.where, name, width or config.width, kind=config.norm, affine=config.norm_affine, flax=flax,
                source=source, target=target, add=add,
            )
        ]  # fmt: skip

    def qkv(self, source: str, target: str, attn: str = "attn", *, branch: int = 0, branches: int = 1) -> list[Part]:
        """q, k and v beside each other; of several branches q of all, k of all, v of all."""
        T, D = self.config.tokens, self.config.width
        return [
            linear(
                self.where, f"{attn}.{name}", D, D, T, bias=bias, source=source, target=target,
                column=(i * branches + branch) * D,
            )
            for i, (name, bias) in enumerate(zip("qkv", self.config.qkv_biases))
        ]  # fmt: skip

    def heads(self, source: str, *, branches: int = 1) -> list[Part]:
        """From q, k and v, which stand in `source`, to the heads' outputs "o"."""
        config, where = self.config, self.where
        T, D, H = config.tokens, config.width * branches, config.heads * branches
        parts = []
        if config.qk_norm:
            tensors = [
                tensor
                for name in ("attn.q_norm", "attn.k_norm")
                for tensor in norm_tensors(where, name, config.head_width, config.norm, config.norm_affine)
            ]
            name = f"{where.prefix}attn.qk_norm"
            parts.append(
                Part(name, Kind.HEAD_NORM, tuple(tensors), source=source, target="qkv", width=3 * D, heads=H)
            )
        if config.rope is not None:
            tensors = []
            if config.rope.learned:
                shape, init = (2, config.heads, config.head_width // 2), Init(Law.ROTARY, config.rope.theta)
                tensors = [where.tensor("attn.rope", shape, Role.FREQUENCY, init)]
            name = f"{where.prefix}attn.rope"
            parts.append(Part(name, Kind.ROPE, tuple(tensors), source="qkv", target="qkv", width=3 * D, heads=H))
        name = f"{where.prefix}attn"
        return [
            *parts,
            Part(name, Kind.ATTENTION, macs=2 * T * T * D, source="qkv", target="o", width=D, heads=H),
        ]  # fmt: skip

    def proj(self, target: str, add: str, attn: str = "attn", ls: str = "ls1", *, branch: int = 0) -> list[Part]:
        config = self.config
        T, D = config.tokens, config.width
        source, parts = "o", []
        if config.attn_norm:
            parts, source = self.norm(f"{attn}.norm", "o", "on"), "on"
        out = linear(
            self.where, f"{attn}.proj", D, D, T, bias=config.has_bias("proj"), flax=f"{attn}.o", source=source,
            target=target, add=add, source_column=branch * D,
        )  # fmt: skip
        return [*parts, out, *layer_scale(self.where, ls, D, config.layer_scales[0])]

    def fc1(self, source: str, target: str = "u", mlp: str = "mlp") -> list[Part]:
        config = self.config
        D, F = config.width, config.hidden
        names = ("fc1_gate", "fc1") if config.gated else ("fc1",)
        return [self._mlp(mlp, name, D, F, source=source, target=target, column=i * F) for i, name in enumerate(names)]

    def fc2(self, target: str, add: str, source: str = "u", mlp: str = "mlp", ls: str = "ls2") -> list[Part]:
        """Activation, norm if there is one, and the second layer; without a name of its own the attention's layer
        scale."""
        config = self.config
        F, g = config.hidden, source.replace("u", "g")
        act = Part(
            f"{self.where.prefix}{mlp}.act", Kind.ACTIVATION, source=source, target=g, width=F,
            activation=config.activation, gated=config.gated,
        )  # fmt: skip
        parts = [act]
        if config.mlp_norm:
            parts += self.norm(f"{mlp}.norm", g, f"{g}n", width=F)
            g = f"{g}n"
        parts.append(self._mlp(mlp, "fc2", F, config.width, source=g, target=target, add=add))
        if ls:
            return [*parts, *layer_scale(self.where, ls, config.width, config.layer_scales[1])]
        shared = Part(f"{self.where.prefix}ls1", Kind.LAYER_SCALE)  # the attention's, whose tensor stands there
        return parts if config.layer_scales[0] is None else [*parts, shared]

    def _mlp(self, mlp, name, fan_in, fan_out, **flow):
        bias, T = self.config.has_bias("mlp"), self.config.tokens
        flax = name if mlp == "mlp" else f"{mlp}.{name}"
        return linear(
            self.where, f"{mlp}.{name}", fan_in, fan_out, T, bias=bias, flax=flax,
            bias_init=Init(Law.NORMAL, 1e-6), **flow,
        )  # fmt: skip


def _qkv_slot(config) -> str:
    """Where q, k and v are written: a norm of the heads reads them there and writes "qkv"."""
    return "qkv0" if config.qk_norm else "qkv"


def _pre(b: Builder) -> list[Part]:
    """mid = x + ls1 · proj(attention(norm1(x))), y = mid + ls2 · fc2(activation(fc1(norm2(mid))))."""
    slot = _qkv_slot(b.config)
    return [
        *b.norm("norm1", "x", "n1", flax="ln1"),
        *b.qkv("n1", slot),
        *b.heads(slot),
        *b.proj("mid", "x"),
        *b.norm("norm2", "mid", "n2", flax="ln2"),
        *b.fc1("n2"),
        *b.fc2("y", "mid"),
    ]


def _post(b: Builder) -> list[Part]:
    """mid = x + norm1(proj(attention(x))), y = mid + norm2(fc2(activation(fc1(mid))))."""
    slot = _qkv_slot(b.config)
    return [
        *b.qkv("x", slot),
        *b.heads(slot),
        *b.proj("a", ""),
        *b.norm("norm1", "a", "mid", flax="ln1", add="x"),
        *b.fc1("mid"),
        *b.fc2("m", ""),
        *b.norm("norm2", "m", "y", flax="ln2", add="mid"),
    ]


def _parallel(b: Builder) -> list[Part]:
    """y = x + ls1 · (proj(attention(n)) + fc2(activation(fc1(n)))) with n = norm1(x): one layer scale for both."""
    slot = _qkv_slot(b.config)
    return [
        *b.norm("norm1", "x", "n1", flax="ln1"),
        *b.qkv("n1", slot),
        *b.fc1("n1"),
        *b.heads(slot),
        *b.proj("mid", "x"),
        *b.fc2("y", "mid", ls=""),
    ]


def _pairs(b: Builder) -> list[Part]:
    """mid = x + both attentions of norms of x, y = mid + both MLPs of norms of mid.

    Both norms stand before both MLPs: a norm's backward adds to the gradient of the residual stream, which each MLP's
    backward has read by then.
    """
    return [
        *b.norm("norm1", "x", "n1", flax="ln1"),
        *b.qkv("n1", "qkv", branches=2),
        *b.norm("norm1_2", "x", "n1_2"),
        *b.qkv("n1_2", "qkv", "attn_2", branch=1, branches=2),
        *b.heads("qkv", branches=2),
        *b.proj("mid1", "x"),
        *b.proj("mid", "mid1", "attn_2", "ls1_2", branch=1),
        *b.norm("norm2", "mid", "n2", flax="ln2"),
        *b.norm("norm2_2", "mid", "n2_2"),
        *b.fc1("n2"),
        *b.fc2("y1", "mid"),
        *b.fc1("n2_2", "u_2", "mlp_2"),
        *b.fc2("y", "y1", "u_2", "mlp_2", "ls2_2"),
    ]


BLOCKS = {"pre": _pre, "post": _post, "parallel": _parallel, "pairs": _pairs}


def block(config: ViTConfig, i: int) -> list[Part]:
    """The parts of block i."""
    return BLOCKS[config.block](Builder(config, i))


# -------------------------------------------------------------------------------------------------------------- the head
def head(config: ViTConfig) -> list[Part]:
    """From tokens to logits: the final norm, the pooling, what follows it, the classifier.

    Attention pooling's parts run over all tokens up to the slot "kv" and over one row up to "query"; from the slot
    "pooled" on there is one row an image (a token, with pool="none").
    """
    where = Where(layer=config.depth + 1)
    D, rows = config.width, config.tokens if config.pool == "none" else 1
    add_norm = functools.partial(norm, where, kind=config.norm, affine=config.norm_affine)
    parts = [add_norm("norm", D, flax="ln_f", source="x", target="z")] if config.final_norm else []
    last = "pooled"
    if config.pool == "map":
        parts += _attention_pool(config, where, "z" if config.final_norm else "x")
        last = parts[-1].target
    else:
        parts.append(Part("pool", Kind.POOL))
    width = config.pooled_width
    if config.fc_norm:
        parts.append(add_norm("fc_norm", width, source=last, target="fc"))
        last = "fc"
    if config.pre_logits:
        parts += [
            linear(
                where, "pre_logits", width, config.pre_logits, rows, bias=config.has_bias("head"), source=last,
                target="pre",
            ),
            Part(
                "pre_logits.act", Kind.ACTIVATION, source="pre", target="features", width=config.pre_logits,
                activation=config.pre_logits_activation,
            ),
        ]  # fmt: skip
        last, width = "features", config.pre_logits
    if config.classes:
        bias = config.has_bias("head")
        names = ("head", "head_dist") if config.dist_head else ("head",)
        share = D if config.dist_head and not config.pre_logits else width
        parts += [
            linear(
                where, name, share, config.classes, rows, bias=bias, init=ZERO, source=last, target="logits",
                source_column=i * share,
            )
            for i, name in enumerate(names)
        ]  # fmt: skip
    return parts


def _attention_pool(config: ViTConfig, where: Where, tokens: str) -> list[Part]:
    """One query attends to all tokens, head by head; then a projection, and an MLP behind a norm."""
    T, D, bias = config.tokens, config.width, config.has_bias("pool")
    H, F = config.pool_heads or config.heads, config.pool_hidden or config.hidden
    latent = where.tensor("pool.latent", (D,), Role.TOKEN, Init(Law.NORMAL, 0.02))
    query = Part("pool.latent", Kind.TOKENS, (latent,), target="latent", width=D)
    parts = [query]
    if config.pool_query:
        parts.append(linear(where, "pool.q", D, D, 1, bias=bias, source="latent", target="query"))
    parts += [
        linear(where, "pool.k", D, D, T, bias=bias, source=tokens, target="kv"),
        linear(where, "pool.v", D, D, T, bias=bias, source=tokens, target="kv", column=D),
        Part("pool", Kind.ATTENTION_POOL, macs=2 * T * D, source="kv", target="pooled", width=D, heads=H),
        linear(where, "pool.proj", D, D, 1, bias=config.bias, source="pooled", target="m"),
    ]
    if config.pool_hidden < 0:
        return parts
    act = Part("pool.act", Kind.ACTIVATION, source="pu", target="pg", width=F, activation=config.activation)
    return [
        *parts,
        norm(
            where, "pool.norm", D, kind=config.norm, affine=config.norm_affine, source="m", target="pn"
        ),
        linear(where, "pool.fc1", D, F, 1, bias=config.bias, source="pn", target="pu"),
        act,
        linear(where, "pool.fc2", F, D, 1, bias=config.bias, source="pg", target="f", add="m"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- all parts
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
