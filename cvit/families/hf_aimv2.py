"""The image tower of AIMv2 of transformers (Fini et al. 2024, arXiv:2411.14402): RMSNorm, patches normed, SwiGLU.

    Aimv2VisionModel    attention pooling whose query is the learned vector itself; without `use_head` the mean
    Aimv2Model          the same, projected without a bias; the text tower is read over

Native models have fixed positions, sines and cosines of the patches' indices, which become the weights `pos_embed`; so
they are computed anew for another image size. What is written has positions as weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..base.errors import check
from ..model.config import ViTConfig
from .family import Given, Row, whole_patches
from .hf import HfFamily, linear, norm, sincos_positions
from .transform import CONVOLUTION, SAME, TOKEN

DEFAULTS = {
    "num_attention_heads": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5, "image_size": 224,
}  # fmt: skip


class HfAimv2(HfFamily):
    name = "hf_aimv2"
    model_types = ("aimv2_vision_model", "aimv2")
    defaults = DEFAULTS
    tower = "vision_config"
    processor = "CLIPImageProcessor"
    marks = ("embeddings.patch_embed.weight", "embeddings.rms_norm.weight", "encoder.layers.0.ffn.gate_proj.weight")
    prefixes = ("vision_model.",)
    base_prefix = "vision_model."
    ignored = (r"text_model\.", r"text_projection\.", r"logit_scale$")
    patch_embedding = "embeddings.patch_embed.weight"
    block = "encoder.layers.{i}."

    def headed(self, config: ViTConfig) -> bool:
        return False

    def style(self, given: Given) -> frozenset[str]:
        return frozenset(() if given.has("embeddings.position_embedding.weight") else {"native"})

    def computed(self, config: ViTConfig, style: frozenset[str]) -> Mapping[str, np.ndarray]:
        return {"pos_embed": sincos_positions(config.grid, config.width)} if "native" in style else {}

    def config(self, given: Given) -> ViTConfig:
        keys = self.keys(given)
        fields = self.common(given, keys)
        patch = fields["patch_size"]
        if "native" in self.style(given):
            size = keys.pair("image_size") if "image_size" in keys else (224, 224)
            check(fields["width"] % 4 == 0, f"fixed positions need a width that 4 divides, got {fields['width']}")
            size = whole_patches(size, patch)
        else:
            patches = given.shape("embeddings.position_embedding.weight", 2)[0]
            size = keys.image_size(patches, patch, square=True)
        return ViTConfig(
            **fields,
            image_size=size,
            hidden=given.shape("encoder.layers.0.ffn.up_proj.weight", 2)[0],
            classes=self.classes(given, "visual_projection.weight"),
            norm="rms",
            patch_norm=True,
            gated=True,
            qkv_bias=given.has("encoder.layers.0.attention.q_proj.bias"),
            proj_bias=given.has("encoder.layers.0.attention.out_proj.bias"),
            mlp_bias=given.has("encoder.layers.0.ffn.up_proj.bias"),
            pool="map" if given.has("head.cls_token") else "mean",
            pool_query=False,
            pool_hidden=-1,
            pool_bias=given.has("head.k_proj.bias"),
            head_bias=not given.has("visual_projection.weight"),
        )

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        block, mine = "encoder.layers.{i}.", "blocks.{i}."
        positions = [Row("embeddings.position_embedding.weight", "pos_embed", SAME)]
        return [
            Row("embeddings.patch_embed.weight", "patch_embed.weight", CONVOLUTION),
            Row("embeddings.patch_embed.bias", "patch_embed.bias", SAME),
            *([] if "native" in style else positions),
            *norm("embeddings.rms_norm", "patch_norm"),
            *linear(f"{block}attention.q_proj", f"{mine}attn.q"),
            *linear(f"{block}attention.k_proj", f"{mine}attn.k"),
            *linear(f"{block}attention.v_proj", f"{mine}attn.v"),
            *linear(f"{block}attention.out_proj", f"{mine}attn.proj"),
            *linear(f"{block}ffn.gate_proj", f"{mine}mlp.fc1_gate"),
            *linear(f"{block}ffn.up_proj", f"{mine}mlp.fc1"),
            *linear(f"{block}ffn.down_proj", f"{mine}mlp.fc2"),
            *norm(f"{block}rms_norm1", f"{mine}norm1"),
            *norm(f"{block}rms_norm2", f"{mine}norm2"),
            *norm("rms_norm", "norm"),
            Row("head.cls_token", "pool.latent", TOKEN),
            *linear("head.k_proj", "pool.k"),
            *linear("head.v_proj", "pool.v"),
            *linear("head.output_proj", "pool.proj"),
            *linear("visual_projection", "head"),
        ]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        check(not config.classes, f"{self.name} has no class with a head and without a text tower")
        return {
            "architectures": ["Aimv2VisionModel"],
            "model_type": "aimv2_vision_model",
            **self.common_json(config),
            "intermediate_size": config.hidden,
            "qkv_bias": all(config.qkv_biases),
            "mlp_bias": config.has_bias("mlp"),
            "use_head": config.pool == "map",
        }

    def config_json(self, config: ViTConfig, style: frozenset[str]) -> dict[str, Any]:
        return {**super().config_json(config, style), "is_native": "native" in style}


FAMILY = HfAimv2()
