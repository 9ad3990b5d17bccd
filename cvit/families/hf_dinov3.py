"""DINOv3 ViT of transformers (Siméoni et al. 2025, arXiv:2508.10104), DINOv3ViTModel: it has no class with a head.

Positions are rotary, of patches' centres, and turn channels j and j + half a head as ours do. A file without registers
has an empty tensor of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..base.errors import check
from ..model.config import ViTConfig
from ..model.rope import Rope
from .family import Given, Row, whole_patches
from .hf import HfFamily, layer_scale_value, linear, norm, register_rows, unused
from .transform import CONVOLUTION, SAME, TOKEN

DEFAULTS = {
    "num_attention_heads": 6, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "image_size": 224, "rope_theta": 100.0,
    "layerscale_value": 1.0,
}  # fmt: skip


class HfDinov3(HfFamily):
    name = "hf_dinov3_vit"
    model_types = ("dinov3_vit",)
    defaults = DEFAULTS
    processor = "DINOv3ViTImageProcessor"
    marks = ("embeddings.patch_embeddings.weight", "layer.0.attention.q_proj.weight", "layer.0.layer_scale2.lambda1")
    aliases = ((r"^model\.layer\.", "layer."),)
    patch_embedding = "embeddings.patch_embeddings.weight"
    block = "layer.{i}."

    def style(self, given: Given) -> frozenset[str]:
        known = {"mask": "embeddings.mask_token", "registers": "embeddings.register_tokens"}
        return frozenset(style for style, name in known.items() if given.has(name))

    def style_for(self, config: ViTConfig) -> frozenset[str]:
        return frozenset({"mask", "registers"})

    def config(self, given: Given) -> ViTConfig:
        keys = self.keys(given)
        fields = self.common(given, keys)
        patch = fields["patch_size"]
        size = keys.pair("image_size") if "image_size" in keys else (224, 224)
        gated = given.has("layer.0.mlp.gate_proj.weight")
        q, k, v = (given.has(f"layer.0.attention.{one}_proj.bias") for one in "qkv")
        return ViTConfig(
            **fields,
            image_size=whole_patches(size, patch),
            hidden=given.shape("layer.0.mlp.up_proj.weight", 2)[0],
            gated=gated,
            classes=0,
            class_token=1,
            registers=self.registers(given, "embeddings.register_tokens"),
            pos_tokens="none",
            rope=Rope("centred", theta=keys.number("rope_theta")),
            qkv_bias=(q, k, v),
            proj_bias=given.has("layer.0.attention.o_proj.bias"),
            mlp_bias=given.has("layer.0.mlp.up_proj.bias"),
            layer_scale=keys.number("layerscale_value"),
        )

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        block, mine = "layer.{i}.", "blocks.{i}."
        return [
            Row("embeddings.cls_token", "cls_token", TOKEN),
            *([unused("embeddings.mask_token", 1, 1, config.width)] if "mask" in style else []),
            *register_rows("embeddings.register_tokens", config, style),
            Row("embeddings.patch_embeddings.weight", "patch_embed.weight", CONVOLUTION),
            Row("embeddings.patch_embeddings.bias", "patch_embed.bias", SAME),
            *linear(f"{block}attention.q_proj", f"{mine}attn.q"),
            *linear(f"{block}attention.k_proj", f"{mine}attn.k"),
            *linear(f"{block}attention.v_proj", f"{mine}attn.v"),
            *linear(f"{block}attention.o_proj", f"{mine}attn.proj"),
            *linear(f"{block}mlp.gate_proj", f"{mine}mlp.fc1_gate"),
            *linear(f"{block}mlp.up_proj", f"{mine}mlp.fc1"),
            *linear(f"{block}mlp.down_proj", f"{mine}mlp.fc2"),
            Row(f"{block}layer_scale1.lambda1", f"{mine}ls1.gamma", SAME),
            Row(f"{block}layer_scale2.lambda1", f"{mine}ls2.gamma", SAME),
            *norm(f"{block}norm1", f"{mine}norm1"),
            *norm(f"{block}norm2", f"{mine}norm2"),
            *norm("norm", "norm"),
        ]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        check(not config.classes, f"{self.name} has no class with a head")
        q, k, v = config.qkv_biases
        return {
            "architectures": ["DINOv3ViTModel"],
            "model_type": "dinov3_vit",
            **self.common_json(config),
            "intermediate_size": config.hidden,
            "use_gated_mlp": config.gated,
            "query_bias": q,
            "key_bias": k,
            "value_bias": v,
            "proj_bias": config.has_bias("proj"),
            "mlp_bias": config.has_bias("mlp"),
            "num_register_tokens": config.registers,
            "rope_theta": config.rope.theta if config.rope else 100.0,
            "layerscale_value": layer_scale_value(config),
        }


FAMILY = HfDinov3()
