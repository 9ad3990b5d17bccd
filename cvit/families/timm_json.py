"""config.json of a timm model: an architecture of timm's and the arguments that make it this model.

    timm.create_model(json["architecture"], **json["model_args"])

Arguments that are classes (norms, MLPs, blocks) cannot stand in JSON: the architecture is one that has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.errors import check
from ..model.config import ViTConfig
from .timm_table import architecture

Bases = dict[tuple, str]

VIT_BASES: Bases = {  # norm, eps, MLP, block, norm of the patches, distillation token
    ("layer", 1e-6, "plain", "pre", False, False): "vit_base_patch16_224",
    ("layer", 1e-5, "plain", "pre", False, False): "vit_base_patch16_clip_224",
    ("rms", 1e-6, "plain", "pre", False, False): "test_vit4",
    ("layer", 1e-6, "packed", "pre", False, False): "vit_giant_patch14_dinov2",
    ("rms", 1e-5, "split", "pre", True, False): "aimv2_large_patch14_224",
    ("layer", 1e-6, "plain", "post", False, False): "vit_base_patch16_rpn_224",
    ("layer", 1e-6, "plain", "parallel", False, False): "vit_pwee_patch16_reg1_gap_256",
    ("rms", 1e-6, "plain", "parallel", False, False): "vit_base_patch16_xp_224",
    ("layer", 1e-6, "plain", "pairs", False, False): "vit_base_patch16_18x2_224",
    ("layer", 1e-6, "plain", "pre", False, True): "deit_base_distilled_patch16_224",
}
EVA_BASES: Bases = {  # norm, eps, whether there is a layer scale: timm leaves out an argument that is None
    ("layer", 1e-6, False): "eva_giant_patch14_224",
    ("layer", 1e-6, True): "vit_small_patch16_rope_224",
    ("layer", 1e-5, False): "vit_pe_core_base_patch16_224",
    ("layer", 1e-5, True): "vit_small_patch16_dinov3",
    ("rms", 1e-6, True): "vit_base_patch16_sapiens2",
}
GLOBAL_POOLS = {"cls": "token", "mean": "avg", "mean_all": "avg", "map": "map", "none": ""}
ACT_LAYERS = {
    "gelu_erf": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu",
    "tanh": "tanh",
}  # fmt: skip


def _ratio(width: int, hidden: int) -> float:
    """The mlp_ratio of which timm makes `hidden` as int(width * ratio)."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.25) / width


def _kind(config: ViTConfig, style: frozenset[str]) -> str:
    return ("packed" if "packed" in style else "split") if config.gated else "plain"


def _needs(library: str, needed: dict[str, bool]) -> None:
    """Raise unless all conditions hold; each is named by what the library has no way to say."""
    lacking = [what for what, holds in needed.items() if not holds]
    check(not lacking, f"{library} has no model with {', '.join(lacking)}")


def _common(config: ViTConfig) -> dict[str, Any]:
    """Arguments that both classes have, and what neither has."""
    _needs(
        "timm",
        {
            f"pool {config.pool!r}": config.pool in GLOBAL_POOLS,
            f"{config.class_tokens} class tokens": config.class_tokens <= 1,
            f"positions of {config.pos_tokens!r}": config.pos_tokens != "class",
            "norms without weights": config.norm_affine,
            "a layer before the head": not config.pre_logits,
            "a head without biases": config.has_bias("head") or not config.classes,
            "a patch embedding's bias and a norm before the blocks, or neither":
                config.has_bias("patch") != config.pre_norm,
            "attention pooling like this": config.pool != "map"
                or (config.pool_query and config.has_bias("pool") and config.bias and config.pool_hidden >= 0),
        },
    )  # fmt: skip
    scales = config.layer_scales
    return dict(
        img_size=list(config.image_size), patch_size=config.patch_size, in_chans=config.channels,
        num_classes=config.classes, global_pool=GLOBAL_POOLS[config.pool], embed_dim=config.width, depth=config.depth,
        num_heads=config.heads, qkv_bias=any(config.qkv_biases), qk_norm=config.qk_norm,
        class_token=bool(config.class_tokens), no_embed_class=config.pos_tokens == "patches",
        init_values=next((value for value in scales if value is not None), None),
    )  # fmt: skip


def _whole(config: ViTConfig, base: str | None, args: dict[str, Any]) -> dict[str, Any]:
    check(base is not None, "timm has no architecture with this combination of norm, eps, MLP and block")
    channels, size = config.channels, config.image_size
    pretrained = dict(input_size=[channels, *size], num_classes=config.classes, first_conv="patch_embed.proj",
                      classifier=["head", "head_dist"] if config.dist_head else "head")  # fmt: skip
    return dict(
        architecture=base, num_classes=config.classes, num_features=config.width, global_pool=args["global_pool"],
        model_args={name: value for name, value in args.items() if value is not None}, pretrained_cfg=pretrained,
    )  # fmt: skip


def vit_json(config: ViTConfig, style: frozenset[str]) -> dict[str, Any]:
    """config.json of a `VisionTransformer`."""
    args, kind = _common(config), _kind(config, style)
    hidden = config.hidden * (2 if kind == "packed" else 1)
    parallel = config.block == "parallel"
    _needs(
        "timm's VisionTransformer",
        {
            "rotary positions": config.rope is None,
            "biases of some of q, k and v": len(set(config.qkv_biases)) == 1,
            "biases of one of projection and MLP": config.has_bias("proj") == config.has_bias("mlp"),
            "a parallel block without biases": not parallel or config.has_bias("mlp"),
            "a norm both before and behind the pooling": not (config.final_norm and config.fc_norm),
            "attention pooling of other heads": config.pool_heads in (0, config.heads),
            "attention pooling of another hidden width": config.pool != "map"
                or (config.pool_hidden or config.hidden) == hidden,
            "a layer scale of one branch": config.layer_scale is None or None not in config.layer_scales,
            "a distillation token like this": not config.dist_token or (config.pool == "cls" and not config.registers
                and config.dist_head == bool(config.classes) and bool(config.class_tokens)),
        },
    )  # fmt: skip
    args |= dict(
        mlp_ratio=_ratio(config.width, hidden), scale_attn_norm=config.attn_norm, scale_mlp_norm=config.mlp_norm,
        proj_bias=config.has_bias("proj"), pos_embed="none" if config.pos_tokens == "none" else "learn",
        reg_tokens=config.registers, pre_norm=config.pre_norm, final_norm=config.final_norm or config.fc_norm,
        fc_norm=config.fc_norm, act_layer=ACT_LAYERS[config.activation],
        pool_include_prefix=config.pool == "mean_all"
            or (config.pool == "map" and config.prefix_tokens > 0 and config.pool_prefix),
    )  # fmt: skip
    if args["init_values"] is None and not parallel:
        args["init_values"] = 0.0  # for timm none; None itself would leave the architecture's own
    base = VIT_BASES.get((config.norm, config.eps, kind, config.block, config.patch_norm, config.dist_token))
    return _whole(config, base, args)


def eva_json(config: ViTConfig, style: frozenset[str]) -> dict[str, Any]:
    """config.json of an `Eva`."""
    args, kind = _common(config), _kind(config, style)
    biases = config.qkv_biases
    rope = config.rope
    base = EVA_BASES.get((config.norm, config.eps, config.layer_scale is not None))
    _needs(
        "timm's Eva",
        {
            "biases of q and k alone, or the like": biases in ((True, False, True), (True,) * 3, (False,) * 3),
            "other MLPs than exact GELU's and SwiGLU's": config.activation == ("silu" if config.gated else "gelu_erf"),
            f"block {config.block!r}": config.block in ("pre", "post"),
            "a norm of the patches": not config.patch_norm,
            "a distillation token": not config.dist_token,
            "projection and MLP without biases": config.has_bias("proj") and config.has_bias("mlp"),
            "the mean over all tokens": config.pool != "mean_all",
            "attention pooling of the patches alone": config.pool != "map" or config.pool_prefix
                or not config.prefix_tokens,
        },
    )  # fmt: skip
    args |= dict(
        mlp_ratio=_ratio(config.width, config.hidden), swiglu_mlp=config.gated,
        swiglu_align_to=1 if kind == "split" else 0, scale_mlp=config.mlp_norm, scale_attn_inner=config.attn_norm,
        attn_type="rope" if biases == (True,) * 3 else "eva", qkv_fused="split" not in style,
        num_reg_tokens=config.registers, use_abs_pos_emb=config.pos_tokens != "none", use_rot_pos_emb=rope is not None,
        use_post_norm=config.block == "post", use_pre_transformer_norm=config.pre_norm,
        use_post_transformer_norm=config.final_norm, use_fc_norm=config.fc_norm,
        attn_only_layer_scale=config.layer_scales[0] is not None and config.layer_scales[1] is None,
        num_kv_heads=config.heads if biases == (True,) * 3 else None,
    )  # fmt: skip
    if config.pool == "map":
        args |= dict(
            attn_pool_num_heads=config.pool_heads or config.heads,
            attn_pool_mlp_ratio=_ratio(config.width, config.pool_hidden or config.hidden),
        )
    if rope is not None:
        args |= dict(
            rope_type={"axial": "cat", "centred": "dinov3", "mixed": "mixed"}[rope.kind],
            rope_temperature=rope.theta, rope_grid_offset=rope.offset,
            rope_grid_indexing="xy" if rope.columns_first else "ij", rope_rotate_half="neighbours" not in style,
ref_feat_shape=_reference(config, base),
        )  # fmt: skip
    return _whole(config, base, args)


def _reference(config: ViTConfig, base: str | None) -> list[int] | None:
    """`ref_feat_shape`; where the architecture has one and this model none, the grid itself is none."""
    rope = config.rope
    if rope is None or rope.kind != "axial":
        return None
    if rope.reference is None and "reference" in (architecture("eva", base) or {}).get("rope", {}):
        return list(config.grid)
    return rope.reference and list(rope.reference)


def split_or_packed(config: ViTConfig) -> frozenset[str]:
    """The style of a gated MLP that an architecture of `VisionTransformer` has."""
    if not config.gated:
        return frozenset()
    key = (config.block, config.patch_norm, config.dist_token)
    return frozenset() if (config.norm, config.eps, "split", *key) in VIT_BASES else frozenset(["packed"])


def rope_fields(args: Mapping[str, Any], known: dict[str, Any] | None) -> dict[str, Any] | None:
    """The fields of `Rope` of an architecture, which are `known`, with what `model_args` change; None without."""
    if args.get("use_rot_pos_emb") is False or (known is None and not args.get("use_rot_pos_emb")):
        return None
    fields = dict(known or {})
    kinds = {"cat": "axial", "dinov3": "centred", "mixed": "mixed"}
    if "rope_type" in args:
        check(args["rope_type"] in tuple(kinds), f"config.json: rope_type must be one of {tuple(kinds)}")
        fields["kind"] = kinds[args["rope_type"]]
    if "rope_temperature" in args:
        fields["theta"] = args["rope_temperature"]
    if "rope_grid_offset" in args:
        fields["offset"] = args["rope_grid_offset"]
    if "rope_grid_indexing" in args:
        fields["columns_first"] = args["rope_grid_indexing"] == "xy"
    if args.get("ref_feat_shape") is not None:
        shape = args["ref_feat_shape"]
        fields["reference"] = (shape, shape) if isinstance(shape, int) else shape
    if fields.get("kind", "axial") != "axial":
        fields.pop("reference", None)
    if fields.get("kind") == "mixed":
        fields.pop("offset", None)
    return fields
