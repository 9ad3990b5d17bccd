"""The .npz files of google-research's vit_jax and big_vision: kernels (in, out), heads as axes of their own.

Both number a block's modules, vit_jax all of them in one row, big_vision (style "big_vision") each kind by itself;
big_vision's scanned models (style "scanned") stack their blocks along a first axis. GELU is that by tanh.
"""

from __future__ import annotations

import math

from ..model.config import ViTConfig
from .family import Family, Row
from .transform import SAME, TOKEN, TOKENS, Axes

PIXELS = Axes("(C P Q) D", "P Q C D")
TO_HEADS, HEADS_BIAS, FROM_HEADS = Axes("i (H d)", "i H d"), Axes("(H d)", "H d"), Axes("(H d) o", "H d o")
POOL_TO_HEADS, POOL_HEADS_BIAS, POOL_FROM_HEADS = (
    Axes("i (h e)", "i h e"),
    Axes("(h e)", "h e"),
    Axes("(h e) o", "h e o"),
)

POSITIONS = ("Transformer/posembed_input/pos_embedding", "pos_embedding")  # vit_jax's, big_vision's
MODULES = {  # norm, attention, norm, MLP of a block
    False: ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    True: ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}


def _norm(theirs: str, ours: str, how=lambda axes: axes) -> list[Row]:
    return [Row(f"{theirs}/scale", f"{ours}.weight", how(SAME)), Row(f"{theirs}/bias", f"{ours}.bias", how(SAME))]


def _dense(theirs: str, ours: str, how=lambda axes: axes, kernel=SAME, bias=SAME) -> list[Row]:
    return [Row(f"{theirs}/kernel", f"{ours}.weight", how(kernel)), Row(f"{theirs}/bias", f"{ours}.bias", how(bias))]


def _stacked(axes: Axes) -> Axes:
    """The same piece behind a first axis of the blocks."""
    ranks = {TO_HEADS: "i (H d)", HEADS_BIAS: "(H d)", FROM_HEADS: "(H d) o"}
    return Axes(ranks[axes], f"1 {axes.theirs}") if axes.theirs else Axes("...", "1 ...")


class FlaxNpz(Family):
    """vit_jax's and big_vision's parameters, as `/`-joined names."""

    name = "flax npz"
    prefixes = ("opt/target/", "params/", "opt/target/params/")
    ignored = (r"opt/", r"step$", r"states?/")
    position_resampling = "bilinear corners"

    def has_marks(self, names):
        names = set(self.spelling(names).values())
        return "embedding/kernel" in names and any(name.startswith("Transformer/encoderblock") for name in names)

    def style(self, given):
        style = set()
        if given.has("Transformer/encoderblock/LayerNorm_0/scale"):
            style |= {"scanned", "big_vision"}
        if given.has(POSITIONS[1], "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"):
            style.add("big_vision")
        return frozenset(style)

    def most_blocks(self, given):
        return 1 << 12 if "scanned" in self.style(given) else super().most_blocks(given)

    def style_for(self, config):
        return frozenset(["big_vision"] if config.pos_tokens == "patches" or config.pool == "map" else [])

    def config(self, given):
        down, across, channels, width = given.shape("embedding/kernel", 4)
        style = self.style(given)
        first, attention, _, mlp = MODULES["big_vision" in style]
        if "scanned" in style:
            block, extra = "Transformer/encoderblock", 1
            depth = given.shape(f"{block}/{first}/scale", 2)[0]
        else:
            block, extra, depth = "Transformer/encoderblock_0", 0, given.blocks("Transformer/encoderblock_{i}/")
        heads = given.shape(f"{block}/{attention}/query/kernel", 3 + extra)[1 + extra]
        cls = given.has("cls")
        rows = given.shape(POSITIONS["big_vision" in style], 3)[1]
        fields = dict(pool="cls" if cls else "mean", class_token=cls, pos_tokens="all")
        if given.has("MAPHead_0/probe"):
            pool_heads = given.shape("MAPHead_0/MultiHeadDotProductAttention_0/query/kernel", 3)[1]
            hidden = given.shape("MAPHead_0/MlpBlock_0/Dense_0/kernel", 2)[1]
            fields |= dict(pool="map", pool_heads=0 if pool_heads == heads else pool_heads, pool_hidden=hidden)
        hidden = given.shape(f"{block}/{mlp}/Dense_0/kernel", 2 + extra)[-1]
        if fields.get("pool_hidden") == hidden:
            fields["pool_hidden"] = 0
        sizes = [given.image_size] if given.image_size else []
        sizes += [(side * down, side * across) for side in (math.isqrt(rows - cls), math.isqrt(rows))]
        found = next(
            (
                (size, kept)
                for size in sizes
                for kept in ("all", "patches")
                if size[0] // down * (size[1] // across) == rows - (cls if kept == "all" else 0)
            ),
            None,
        )
        if found is None:
            raise ValueError(f"{rows} positions fit no square grid of patches: give image_size=")
        fields["image_size"], kept = found
        fields["pos_tokens"] = kept if cls else "all"
        return ViTConfig(
            patch_size=(down, across),
            channels=channels,
            width=width,
            depth=depth,
            heads=heads,
            hidden=hidden,
            classes=given.shape("head/kernel", 2)[1] if given.has("head/kernel") else 0,
            pre_logits=given.shape("pre_logits/kernel", 2)[1] if given.has("pre_logits/kernel") else 0,
            **fields,
        )

    def preprocessing(self, given):
        return dict(resize="squash", interpolation="bilinear", crop=False, mean=(0.5,) * 3, std=(0.5,) * 3)

    def rows(self, config, style=frozenset()):
        norm1, attention, norm2, mlp = MODULES["big_vision" in style]
        scanned = "scanned" in style
        block = "Transformer/encoderblock" if scanned else "Transformer/encoderblock_{i}"
        how = _stacked if scanned else lambda axes: axes
        rows = _dense("embedding", "patch_embed", kernel=PIXELS)
        if config.class_tokens:
            rows.append(Row("cls", "cls_token", TOKEN if config.class_tokens == 1 else TOKENS))
        if config.pos_rows:
            rows.append(Row(POSITIONS["big_vision" in style], "pos_embed", TOKENS))
        rows += _norm(f"{block}/{norm1}", "blocks.{i}.norm1", how)
        for name, there in zip("qkv", ("query", "key", "value")):
            rows += _dense(f"{block}/{attention}/{there}", f"blocks.{{i}}.attn.{name}", how, TO_HEADS, HEADS_BIAS)
        rows += _dense(f"{block}/{attention}/out", "blocks.{i}.attn.proj", how, FROM_HEADS)
        rows += _norm(f"{block}/{norm2}", "blocks.{i}.norm2", how)
        rows += _dense(f"{block}/{mlp}/Dense_0", "blocks.{i}.mlp.fc1", how)
        rows += _dense(f"{block}/{mlp}/Dense_1", "blocks.{i}.mlp.fc2", how)
        rows += _norm("Transformer/encoder_norm", "norm")
        if config.pool == "map":
            there = "MAPHead_0/MultiHeadDotProductAttention_0"
            rows.append(Row("MAPHead_0/probe", "pool.latent", TOKEN))
            for name, theirs in zip("qkv", ("query", "key", "value")):
                rows += _dense(f"{there}/{theirs}", f"pool.{name}", kernel=POOL_TO_HEADS, bias=POOL_HEADS_BIAS)
            rows += _dense(f"{there}/out", "pool.proj", kernel=POOL_FROM_HEADS)
            rows += _norm("MAPHead_0/LayerNorm_0", "pool.norm")
            rows += _dense("MAPHead_0/MlpBlock_0/Dense_0", "pool.fc1")
            rows += _dense("MAPHead_0/MlpBlock_0/Dense_1", "pool.fc2")
        if config.pre_logits:
            rows += _dense("pre_logits", "pre_logits")
        return rows + (_dense("head", "head") if config.classes else [])
