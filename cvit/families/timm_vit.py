"""timm's `VisionTransformer` and DeiT: names, and what names and shapes say of the options.

Heads, eps, the activation and the like are no tensors: they are in `timm_table.py` by the architecture's name, or read
off a module (`timm_module.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..base.errors import check, short
from ..model.config import ViTConfig
from ..model.rope import Rope
from .family import Family, Given, Row, whole_patches
from .timm_json import rope_fields, split_or_packed, vit_json
from .timm_table import architecture
from .transform import CONVOLUTION, LINEAR, SAME, TOKEN, TOKENS, Axes, Transformation

POOLS = {"token": "cls", "avg": "mean", "map": "map", "": "none"}  # timm's global_pool
ACTIVATIONS = {  # timm's act_layer, the first of each the one that is written
    "gelu": "gelu_erf", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu",
    "relu": "relu", "tanh": "tanh",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the table
def linear(theirs: str, ours: str, bias: bool, how: Transformation = LINEAR) -> list[Row]:
    """The rows of a linear layer."""
    rows = [Row(f"{theirs}.weight", f"{ours}.weight", how)]
    return [*rows, Row(f"{theirs}.bias", f"{ours}.bias", SAME)] if bias else rows


def norm(theirs: str, ours: str, config: ViTConfig, how: Transformation = SAME) -> list[Row]:
    """The rows of a norm."""
    rows = [Row(f"{theirs}.weight", f"{ours}.weight", how)]
    return [*rows, Row(f"{theirs}.bias", f"{ours}.bias", how)] if config.norm == "layer" else rows


def embedding_rows(config: ViTConfig) -> list[Row]:
    """From the patches to the first block."""
    rows = linear("patch_embed.proj", "patch_embed", config.has_bias("patch"), CONVOLUTION)
    if config.patch_norm:
        rows += norm("patch_embed.norm", "patch_norm", config)
    if config.class_tokens:
        rows.append(Row("cls_token", "cls_token", TOKEN if config.class_tokens == 1 else TOKENS))
    if config.dist_token:
        rows.append(Row("dist_token", "dist_token", TOKEN))
    if config.registers:
        rows.append(Row("reg_token", "reg_token", TOKENS))
    if config.pos_rows:
        rows.append(Row("pos_embed", "pos_embed", TOKENS))
    return rows + (norm("norm_pre", "norm_pre", config) if config.pre_norm else [])


def mlp_rows(config: ViTConfig, theirs: str, ours: str, packed: bool) -> list[Row]:
    """An MLP; of a gated one the gate is the first half of fc1, or fc1_g."""
    bias, rows = config.has_bias("mlp"), []
    if not config.gated:
        rows += linear(f"{theirs}.fc1", f"{ours}.fc1", bias)
    else:
        gate, value = ("fc1", "fc1") if packed else ("fc1_g", "fc1_x")
        rows += linear(f"{theirs}.{gate}", f"{ours}.fc1_gate", bias)
        rows += linear(f"{theirs}.{value}", f"{ours}.fc1", bias)
    if config.mlp_norm:
        rows += norm(f"{theirs}.norm", f"{ours}.norm", config)
    return rows + linear(f"{theirs}.fc2", f"{ours}.fc2", bias)


def attention_rows(config: ViTConfig, theirs: str, ours: str, style: frozenset[str]) -> list[Row]:
    """An attention: q, k and v one behind the other, or ("split") by themselves, biases as timm's Eva has them
    ("bias apart") or as parts of the linear layer."""
    rows: list[Row] = []
    for name, bias in zip("qkv", config.qkv_biases):
        turned = "neighbours" in style and name != "v"
        there = f"{theirs}.{name}_proj" if "split" in style else f"{theirs}.qkv"
        rows.append(Row(f"{there}.weight", f"{ours}.{name}.weight", Axes("i o", "o i", pairs=turned)))
        if bias:
            there = f"{theirs}.{name}_bias" if "bias apart" in style else f"{there}.bias"
            rows.append(Row(there, f"{ours}.{name}.bias", Axes(pairs=turned)))
    if config.qk_norm:
        how = Axes(pairs="neighbours" in style)
        rows += norm(f"{theirs}.q_norm", f"{ours}.q_norm", config, how)
        rows += norm(f"{theirs}.k_norm", f"{ours}.k_norm", config, how)
    if config.attn_norm:
        rows += norm(f"{theirs}.norm", f"{ours}.norm", config)
    return rows + linear(f"{theirs}.proj", f"{ours}.proj", config.has_bias("proj"))


def head_rows(config: ViTConfig) -> list[Row]:
    """From the last block to the logits."""
    rows = norm("norm", "norm", config) if config.final_norm else []
    if config.pool == "map":
        bias = config.has_bias("pool")
        rows.append(Row("attn_pool.latent", "pool.latent", TOKEN))
        if config.pool_query:
            rows += linear("attn_pool.q", "pool.q", bias)
        rows += linear("attn_pool.kv", "pool.k", bias) + linear("attn_pool.kv", "pool.v", bias)
        rows += linear("attn_pool.proj", "pool.proj", config.bias)
        if config.pool_hidden >= 0:
            rows += norm("attn_pool.norm", "pool.norm", config)
            rows += linear("attn_pool.mlp.fc1", "pool.fc1", config.bias)
            rows += linear("attn_pool.mlp.fc2", "pool.fc2", config.bias)
    if config.fc_norm:
        rows += norm("fc_norm", "fc_norm", config)
    if config.classes:
        rows += linear("head", "head", config.has_bias("head"))
        if config.dist_head:
            rows += linear("head_dist", "head_dist", config.has_bias("head"))
    return rows


def _one_after_the_other(config: ViTConfig, style: frozenset[str]) -> list[Row]:
    rows = norm("blocks.{i}.norm1", "blocks.{i}.norm1", config)
    rows += attention_rows(config, "blocks.{i}.attn", "blocks.{i}.attn", style)
    rows += norm("blocks.{i}.norm2", "blocks.{i}.norm2", config)
    rows += mlp_rows(config, "blocks.{i}.mlp", "blocks.{i}.mlp", "packed" in style)
    for branch, scale in enumerate(config.layer_scales, 1):
        if scale is not None:
            rows.append(Row(f"blocks.{{i}}.ls{branch}.gamma", f"blocks.{{i}}.ls{branch}.gamma", SAME))
    return rows


def _parallel(config: ViTConfig, style: frozenset[str]) -> list[Row]:
    """`ParallelScalingBlock`: one product for the hidden layer, q, k and v."""
    rows = norm("blocks.{i}.in_norm", "blocks.{i}.norm1", config)
    pieces = ["mlp.fc1", "attn.q", "attn.k", "attn.v"]
    rows += [Row("blocks.{i}.in_proj.weight", f"blocks.{{i}}.{piece}.weight", LINEAR) for piece in pieces]
    if all(config.qkv_biases):
        rows += [Row("blocks.{i}.in_proj.bias", f"blocks.{{i}}.{piece}.bias", SAME) for piece in pieces]
    else:
        rows.append(Row("blocks.{i}.mlp_bias", "blocks.{i}.mlp.fc1.bias", SAME))
    if config.qk_norm:
        rows += norm("blocks.{i}.q_norm", "blocks.{i}.attn.q_norm", config)
        rows += norm("blocks.{i}.k_norm", "blocks.{i}.attn.k_norm", config)
    rows += linear("blocks.{i}.attn_out_proj", "blocks.{i}.attn.proj", config.has_bias("proj"))
    rows += linear("blocks.{i}.mlp_out_proj", "blocks.{i}.mlp.fc2", config.has_bias("mlp"))
    if config.layer_scales[0] is not None:
        rows.append(Row("blocks.{i}.ls.gamma", "blocks.{i}.ls1.gamma", SAME))
    return rows


def _pairs(config: ViTConfig, style: frozenset[str]) -> list[Row]:
    """`ParallelThingsBlock` of two."""
    rows: list[Row] = []
    for j, end in enumerate(("", "_2")):
        there = f"blocks.{{i}}.attns.{j}"
        rows += norm(f"{there}.norm", f"blocks.{{i}}.norm1{end}", config)
        rows += attention_rows(config, f"{there}.attn", f"blocks.{{i}}.attn{end}", style)
        if config.layer_scales[0] is not None:
            rows.append(Row(f"{there}.ls.gamma", f"blocks.{{i}}.ls1{end}.gamma", SAME))
        there = f"blocks.{{i}}.ffns.{j}"
        rows += norm(f"{there}.norm", f"blocks.{{i}}.norm2{end}", config)
        rows += mlp_rows(config, f"{there}.mlp", f"blocks.{{i}}.mlp{end}", "packed" in style)
        if config.layer_scales[1] is not None:
            rows.append(Row(f"{there}.ls.gamma", f"blocks.{{i}}.ls2{end}.gamma", SAME))
    return rows


BLOCK_ROWS = {"pre": _one_after_the_other, "post": _one_after_the_other, "parallel": _parallel, "pairs": _pairs}


# ------------------------------------------------------------------------------------------------- off names and shapes
def positions(given: Given, patch: tuple[int, int], prefixes: Mapping[str, int], sizes: Iterable) -> dict[str, Any]:
    """`image_size` and `pos_tokens` of a position embedding.

    `prefixes` are the rows before the patches of each value of `pos_tokens`, the likelier first, and `sizes` image
    sizes that the grid may be of; where none fits it is square.
    """
    rows = given.shape("pos_embed", 3)[1]
    for size in filter(None, [*sizes, given.image_size]):
        for tokens, prefix in prefixes.items():
            if (size[0] // patch[0]) * (size[1] // patch[1]) == rows - prefix:
                return dict(image_size=whole_patches(size, patch), pos_tokens=tokens)
    for tokens, prefix in prefixes.items():
        side = math.isqrt(max(rows - prefix, 0))
        if side and side * side == rows - prefix:
            return dict(image_size=(side * patch[0], side * patch[1]), pos_tokens=tokens)
    raise ValueError(f"pos_embed has {rows} rows, which fit no square grid of patches: give image_size=")


def section(given: Given, name: str) -> Mapping[str, Any]:
    """An object of config.json; empty where it is missing."""
    value = given.json.get(name) or {}
    check(isinstance(value, Mapping), f"config.json: {name} must be an object, got {short(repr(value))}")
    return value


def one_of(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    """What `known` has for a value of config.json."""
    good = isinstance(value, str) and value in known
    check(good, f"config.json: {name} must be one of {tuple(known)}, got {short(repr(value))}")
    return known[value]


def json_sizes(given: Given) -> list[tuple[int, int]]:
    """The image sizes that config.json names."""
    size, shape = section(given, "model_args").get("img_size"), section(given, "pretrained_cfg").get("input_size")
    pairs = [(size, size) if isinstance(size, int) else size, shape[1:] if isinstance(shape, (list, tuple)) else None]
    return [
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(side, int) for side in pair)
    ]


def json_fields(given: Given) -> dict[str, Any]:
    """What config.json says beyond the architecture's name."""
    args, fields = section(given, "model_args"), {}
    pool = args.get("global_pool", given.json.get("global_pool"))
    if pool is not None:
        fields["pool"] = one_of("global_pool", pool, POOLS)
        if pool == "avg" and args.get("pool_include_prefix"):
            fields["pool"] = "mean_all"
    if args.get("act_layer") is not None:
        fields["activation"] = one_of("act_layer", args["act_layer"], ACTIVATIONS)
    for theirs, ours in (("num_heads", "heads"), ("attn_pool_num_heads", "pool_heads")):
        if args.get(theirs) is not None:
            fields[ours] = args[theirs]
    return fields


def shape_fields(given: Given) -> dict[str, Any]:
    """What names and shapes say, of `VisionTransformer` and of `Eva`; but for image size and positions."""
    width, channels, *patch = given.shape("patch_embed.proj.weight", 4)
    has = given.has
    if has("blocks.0.in_proj.weight"):
        kind, attn, mlp, norm1 = "parallel", "blocks.0", "blocks.0.mlp", "blocks.0.in_norm"
        out, hidden = "blocks.0.attn_out_proj", given.shape("blocks.0.mlp_out_proj.weight", 2)[1]
    elif has("blocks.0.attns.0.norm.weight"):
        kind, attn, mlp, norm1 = "pairs", "blocks.0.attns.0.attn", "blocks.0.ffns.0.mlp", "blocks.0.attns.0.norm"
        out, hidden = f"{attn}.proj", given.shape(f"{mlp}.fc2.weight", 2)[1]
    else:
        kind, attn, mlp, norm1 = "pre", "blocks.0.attn", "blocks.0.mlp", "blocks.0.norm1"
        out, hidden = f"{attn}.proj", given.shape(f"{mlp}.fc2.weight", 2)[1]
    one = has(f"{attn}.qkv.bias", "blocks.0.in_proj.bias")
    gated = has(f"{mlp}.fc1_g.weight") or packed(given)
    scales = [
        1.0 if has(f"blocks.0.ls{i}.gamma", f"blocks.0.gamma_{i}", "blocks.0.ls.gamma", f"blocks.0.{part}.0.ls.gamma")
        else None for i, part in ((1, "attns"), (2, "ffns"))
    ]  # fmt: skip
    fields = dict(
        patch_size=tuple(patch), channels=channels, width=width, depth=given.blocks("blocks.{i}."), hidden=hidden,
        classes=given.shape("head.weight", 2)[0] if has("head.weight") else 0, block=kind, gated=gated,
        activation="silu" if gated else "gelu_erf", norm="layer" if has(f"{norm1}.bias") else "rms",
        class_token=has("cls_token"), dist_token=has("dist_token"), dist_head=has("head_dist.weight"),
        registers=given.shape("reg_token", 3)[1] if has("reg_token") else 0,
        patch_bias=has("patch_embed.proj.bias"), patch_norm=has("patch_embed.norm.weight"),
        pre_norm=has("norm_pre.weight"), final_norm=has("norm.weight"), fc_norm=has("fc_norm.weight"),
        qkv_bias=tuple(one or has(f"{attn}.{x}_bias", f"{attn}.{x}_proj.bias") for x in "qkv"),
        qk_norm=has(f"{attn}.q_norm.weight"), attn_norm=has(f"{attn}.norm.weight") and kind != "parallel",
        mlp_norm=has(f"{mlp}.norm.weight"), proj_bias=has(f"{out}.bias"),
        mlp_bias=has(f"{mlp}.fc2.bias", "blocks.0.mlp_out_proj.bias"),
        layer_scale=None if scales == [None, None] else tuple(scales),
    )  # fmt: skip
    if has("attn_pool.latent"):
        fields["pool"] = "map"
        fields["pool_hidden"] = given.shape("attn_pool.mlp.fc1.weight", 2)[0] if has("attn_pool.mlp.fc1.weight") else -1
        if fields["pool_hidden"] == hidden:
            fields["pool_hidden"] = 0
    else:
        fields["pool"] = "cls" if has("cls_token") and not has("fc_norm.weight") else "mean"
    if has(f"{attn}.q_norm.weight"):
        fields["heads"] = width // given.shape(f"{attn}.q_norm.weight", 1)[0]
    if has("rope.freqs"):  # as all of timm's names have it
        fields |= dict(heads=given.shape("rope.freqs", 4)[2], rope=Rope("mixed", theta=10.0, columns_first=True))
    return fields


def packed(given: Given) -> bool:
    """Whether fc1 holds the gate and the values."""
    for mlp in ("blocks.0.mlp", "blocks.0.ffns.0.mlp"):
        first, second = given.shapes.get(f"{mlp}.fc1.weight"), given.shapes.get(f"{mlp}.fc2.weight")
        if first and second and len(second) == 2:
            return first[0] == 2 * second[1]
    return False


# ----------------------------------------------------------------------------------------------------------- the family
class TimmViT(Family):
    """timm.models.vision_transformer.VisionTransformer, timm.models.deit.VisionTransformerDistilled."""

    name = "timm"
    prefixes = ("module.", "model.")
    aliases = ((r"^register_tokens$", "reg_token"), (r"^patch_embed\.backbone\.norm", "patch_embed.norm"))
    ignored: tuple[str, ...] = (r"mask_token$",)
    position_resampling = "bicubic antialias"
    of_module: tuple[str, ...] = ("VisionTransformer", "VisionTransformerDistilled")  # classes of its modules
    table = "vit"
    kind = re.compile(r"blocks\.0\.(attn\.qkv\.weight|in_proj\.weight|attns\.0\.attn\.qkv\.weight)")

    def has_marks(self, names):
        names = set(self.spelling(names).values())
        return "patch_embed.proj.weight" in names and any(map(self.kind.match, names))

    def claims(self, json):
        return self._known(json) is not None

    def _known(self, json) -> dict[str, Any] | None:
        return architecture(self.table, json.get("architecture"))

    def refuse(self, given):
        known = self._known(given.json) or {}
        if given.has("blocks.0.out_proj.weight"):
            return "one output projection of attention and MLP (blocks.0.out_proj)"
        return known.get("refused")

    def config(self, given):
        fields = shape_fields(given)
        known = dict(self._known(given.json) or {})
        known.pop("style", None)
        sizes = [*json_sizes(given), known.pop("image_size", None)]
        args = section(given, "model_args")
        rope = rope_fields(args, known.pop("rope", None))
        if rope is not None:
            known["rope"] = Rope(**rope)
        registers, first = fields["registers"], fields["class_token"] + fields["dist_token"]
        if fields["pool"] == "map" and self.table == "vit" and registers + first:
            fields["pool_prefix"] = bool(args.get("pool_include_prefix", known.pop("pool_prefix", False)))
        if args.get("use_post_norm") is not None:
            known["block"] = "post" if args["use_post_norm"] else fields["block"]
        patch = fields["patch_size"]
        if given.has("pos_embed"):
            prefixes = {"all": first + registers, "patches": 0}
            fields |= positions(given, patch, prefixes if first + registers else {"all": 0}, sizes)
        else:
            size = next(filter(None, [given.image_size, *sizes]), None)
            if size is None:
                raise ValueError("the file does not say for which image size it is: give image_size=")
            fields |= dict(image_size=whole_patches(size, patch), pos_tokens="none")
        fields |= known | json_fields(given)
        if given.num_heads is not None:
            fields["heads"] = given.num_heads
        elif "heads" not in fields:
            named = self.claims(given.json)
            check(named, "the file does not say how many attention heads the model has: give num_heads=")
            fields["heads"] = fields["width"] // 64
        return ViTConfig(**fields)

    def style(self, given):
        return frozenset(["packed"] if packed(given) else [])

    def style_for(self, config):
        return split_or_packed(config)

    def config_json(self, config, style):
        return vit_json(config, style)

    def preprocessing(self, given):
        pretrained = section(given, "pretrained_cfg") or given.json  # where files of timm 0.x have the same keys
        names = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
        return {name: pretrained[name] for name in names if name in pretrained}

    def rows(self, config, style=frozenset()):
        return [*embedding_rows(config), *BLOCK_ROWS[config.block](config, style), *head_rows(config)]
