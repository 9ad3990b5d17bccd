"""DINOv2 of transformers, without registers and with them (Oquab et al. 2023, arXiv:2304.07193; Darcet et al. 2024).

A classifier sees the class token beside the mean over the patches. The first layer of a gated MLP is one matrix in
files, the gate's rows first, and two in memory. Registers have no positions. Positions are always of as many rows as
columns: transformers resamples them for every image that is not square.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..model.config import ViTConfig
from .family import Given, Row
from .hf import (
    HfFamily,
    class_tokens,
    label_keys,
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
    "num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 224, "layerscale_value": 1.0,
}  # fmt: skip


class HfDinov2(HfFamily):
    name = "hf_dinov2"
    follows_pictures = True
    model_types = ("dinov2",)
    defaults = DEFAULTS
    processor = "BitImageProcessor"
    marks: tuple[str, ...] = (
        "embeddings.cls_token", "embeddings.position_embeddings", "encoder.layer.0.attention.attention.query.weight",
        "encoder.layer.0.layer_scale1.lambda1",
    )  # fmt: skip
    prefixes = ("dinov2.",)
    base_prefix = "dinov2."
    aliases: tuple[tuple[str, str], ...] = (
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.down_proj\.", ".mlp.weights_out."),
    )
    architectures = ("Dinov2Model", "Dinov2ForImageClassification")

    def style(self, given: Given) -> frozenset[str]:
        """ "mask" where the file has the mask token, "split" where a gated MLP's first layer is two matrices."""
        known = {
            "mask": "embeddings.mask_token",
            "split": "encoder.layer.0.mlp.gate_proj.weight",
            "registers": "embeddings.register_tokens",
        }
        return frozenset(style for style, name in known.items() if given.has(name))

    def style_for(self, config: ViTConfig) -> frozenset[str]:
        return frozenset({"mask"})

    def config(self, given: Given) -> ViTConfig:
        keys = self.keys(given)
        fields = self.common(given, keys)
        tokens = given.shape("embeddings.cls_token", 3)[1]
        registers = self.registers(given, "embeddings.register_tokens")
        rows = given.shape("embeddings.position_embeddings", 3)[1]
        first = ("mlp.weights_out.weight", "mlp.fc2.weight")
        gated = given.has(f"encoder.layer.0.{first[0]}")
        if gated:
            fields["activation"] = "silu"
        classes = self.classes(given, "classifier.weight")
        return ViTConfig(
            **fields,
            image_size=keys.image_size(rows - tokens, fields["patch_size"], square=True),
            hidden=given.shape(f"encoder.layer.0.{first[not gated]}", 2)[1],
            gated=gated,
            classes=classes,
            class_token=tokens,
            registers=registers,
            pos_tokens="class" if registers else "all",
            pool="cls_mean" if classes else "cls",
            qkv_bias=given.has("encoder.layer.0.attention.attention.query.bias"),
            layer_scale=keys.number("layerscale_value"),
        )

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        block, mine = "encoder.layer.{i}.", "blocks.{i}."
        gated = [
            *linear(f"{block}mlp.gate_proj", f"{mine}mlp.fc1_gate"),
            *linear(f"{block}mlp.up_proj", f"{mine}mlp.fc1"),
        ]
        if "split" not in style:
            gated = packed(f"{block}mlp.weights_in.", (f"{mine}mlp.fc1_gate", f"{mine}mlp.fc1"))
        first = [*gated, *linear(f"{block}mlp.weights_out", f"{mine}mlp.fc2")]
        if not config.gated:
            first = [*linear(f"{block}mlp.fc1", f"{mine}mlp.fc1"), *linear(f"{block}mlp.fc2", f"{mine}mlp.fc2")]
        return [
            Row("embeddings.cls_token", "cls_token", class_tokens(config)),
            *([unused("embeddings.mask_token", 1, config.width)] if "mask" in style else []),
            Row("embeddings.patch_embeddings.projection.weight", "patch_embed.weight", CONVOLUTION),
            Row("embeddings.patch_embeddings.projection.bias", "patch_embed.bias", SAME),
            Row("embeddings.position_embeddings", "pos_embed", TOKENS),
            *register_rows("embeddings.register_tokens", config, style),
            *linear(f"{block}attention.attention.query", f"{mine}attn.q"),
            *linear(f"{block}attention.attention.key", f"{mine}attn.k"),
            *linear(f"{block}attention.attention.value", f"{mine}attn.v"),
            *linear(f"{block}attention.output.dense", f"{mine}attn.proj"),
            *first,
            Row(f"{block}layer_scale1.lambda1", f"{mine}ls1.gamma", SAME),
            Row(f"{block}layer_scale2.lambda1", f"{mine}ls2.gamma", SAME),
            *norm(f"{block}norm1", f"{mine}norm1"),
            *norm(f"{block}norm2", f"{mine}norm2"),
            *norm("layernorm", "norm"),
            *linear("classifier", "head"),
        ]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        return {
            "architectures": [self.architectures[config.classes > 0]],
            "model_type": self.model_types[0],
            **self.common_json(config),
            "mlp_ratio": swiglu_ratio(config) if config.gated else mlp_ratio(config),
            "use_swiglu_ffn": config.gated,
            "qkv_bias": all(config.qkv_biases),
            "layerscale_value": layer_scale_value(config),
            **label_keys(config.classes),
        }

    def common_json(self, config: ViTConfig) -> dict[str, Any]:
        json = super().common_json(config)
        return {**json, "hidden_act": "gelu"} if config.gated else json  # what a gated MLP reads over


class HfDinov2WithRegisters(HfDinov2):
    name = "hf_dinov2_with_registers"
    model_types = ("dinov2_with_registers",)
    marks = (*HfDinov2.marks, "embeddings.register_tokens")
    prefixes = ("dinov2_with_registers.",)
    base_prefix = "dinov2_with_registers."
    position_resampling = "bicubic antialias"
    architectures = ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification")

    def style_for(self, config: ViTConfig) -> frozenset[str]:
        return frozenset({"mask", "registers"})

    def described(self, config: ViTConfig) -> dict[str, Any]:
        return {**super().described(config), "num_register_tokens": config.registers}


FAMILY = HfDinov2()
WITH_REGISTERS = HfDinov2WithRegisters()
