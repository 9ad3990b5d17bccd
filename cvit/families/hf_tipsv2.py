"""The image tower of TIPS v2 of transformers: DINOv2 with registers, in files by the names of the original.

A file's queries, keys and values are one matrix, as is the first layer of a gated MLP, the gate's rows first; in memory
they are several. A model of pictures and text is read too, without its text tower.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..base.errors import check
from ..model.config import ViTConfig
from .family import Given, Row
from .hf import (
    HfFamily,
    class_tokens,
    layer_scale_value,
    linear,
    mlp_ratio,
    norm,
    packed,
    register_rows,
    swiglu_ratio,
    unused,
)
from .transform import CONVOLUTION, SAME, TOKENS

DEFAULTS = {
    "num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 448, "layerscale_value": 1.0,
}  # fmt: skip


class HfTips2(HfFamily):
    name = "hf_tipsv2"
    model_types = ("tipsv2_vision_model", "tipsv2")
    defaults = DEFAULTS
    tower = "vision_config"
    processor = "CLIPImageProcessor"
    marks = ("register_tokens", "patch_embed.proj.weight", "blocks.0.mlp.c_fc.weight")
    prefixes = ("vision_encoder.", "vision_model.")
    aliases = (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.", ""),
        (r"^layernorm\.", "norm."),
        (r"^encoder\.layer\.", "blocks."),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"\.mlp\.down_proj\.", ".mlp.w3."),
    )
    ignored = (r"text_(encoder|model)\.", r"temperature$", r"logit_(scale|bias)$")
    patch_embedding = "patch_embed.proj.weight"
    block = "blocks.{i}."
    position_resampling = "bilinear antialias"

    def style(self, given: Given) -> frozenset[str]:
        known = {
            "mask": "mask_token",
            "registers": "register_tokens",
            "split": "blocks.0.attention.q_proj.weight",
        }
        return frozenset(style for style, name in known.items() if given.has(name))

    def style_for(self, config: ViTConfig) -> frozenset[str]:
        return frozenset({"mask", "registers"})

    def config(self, given: Given) -> ViTConfig:
        keys = self.keys(given)
        fields = self.common(given, keys)
        tokens = given.shape("cls_token", 3)[1]
        registers = self.registers(given, "register_tokens")
        gated = given.has("blocks.0.mlp.w3.weight")
        if gated:
            fields["activation"] = "silu"
        return ViTConfig(
            **fields,
            image_size=keys.image_size(given.shape("pos_embed", 3)[1] - tokens, fields["patch_size"], square=True),
            hidden=given.shape(f"blocks.0.mlp.{'w3' if gated else 'c_proj'}.weight", 2)[1],
            gated=gated,
            classes=0,
            class_token=tokens,
            registers=registers,
            pos_tokens="class" if registers else "all",
            qkv_bias=given.has("blocks.0.attn.qkv.bias", "blocks.0.attention.q_proj.bias"),
            layer_scale=keys.number("layerscale_value"),
        )

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        block, mine = "blocks.{i}.", "blocks.{i}."
        qkv = packed(f"{block}attn.qkv.", [f"{mine}attn.{one}" for one in "qkv"])
        first = packed(f"{block}mlp.w12.", [f"{mine}mlp.fc1_gate", f"{mine}mlp.fc1"])
        if "split" in style:
            qkv = [row for one in "qkv" for row in linear(f"{block}attention.{one}_proj", f"{mine}attn.{one}")]
            first = [
                *linear(f"{block}mlp.gate_proj", f"{mine}mlp.fc1_gate"),
                *linear(f"{block}mlp.up_proj", f"{mine}mlp.fc1"),
            ]
        if not config.gated:
            first = linear(f"{block}mlp.c_fc", f"{mine}mlp.fc1")
        return [
            Row("cls_token", "cls_token", class_tokens(config)),
            *([unused("mask_token", 1, config.width)] if "mask" in style else []),
            *register_rows("register_tokens", config, style),
            Row("patch_embed.proj.weight", "patch_embed.weight", CONVOLUTION),
            Row("patch_embed.proj.bias", "patch_embed.bias", SAME),
            Row("pos_embed", "pos_embed", TOKENS),
            *qkv,
            *linear(f"{block}attn.proj", f"{mine}attn.proj"),
            *first,
            *linear(f"{block}mlp.{'w3' if config.gated else 'c_proj'}", f"{mine}mlp.fc2"),
            Row(f"{block}ls1.gamma", f"{mine}ls1.gamma", SAME),
            Row(f"{block}ls2.gamma", f"{mine}ls2.gamma", SAME),
            *norm(f"{block}norm1", f"{mine}norm1"),
            *norm(f"{block}norm2", f"{mine}norm2"),
            *norm("norm", "norm"),
        ]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        check(not config.classes, f"{self.name} has no class with a head")
        json = {
            "architectures": ["Tipsv2VisionModel"],
            "model_type": "tipsv2_vision_model",
            **self.common_json(config),
            "use_swiglu_ffn": config.gated,
            "mlp_ratio": swiglu_ratio(config) if config.gated else mlp_ratio(config),
            "qkv_bias": all(config.qkv_biases),
            "layerscale_value": layer_scale_value(config),
            "num_register_tokens": config.registers,
        }
        return {**json, "hidden_act": "gelu"} if config.gated else json  # what a gated MLP reads over


FAMILY = HfTips2()
