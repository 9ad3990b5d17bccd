"""Pixio of transformers: a ViT with several class tokens, whose mean is the pooled output.

Positions are always of as many rows as columns: transformers resamples them for every image that is not square.
"""

from __future__ import annotations

from typing import Any

from ..model.config import ViTConfig
from .hf import mlp_ratio
from .hf_vit import DEFAULTS, HfViT

OWN = {**DEFAULTS, "num_attention_heads": 16, "layer_norm_eps": 1e-6, "image_size": 256}


class HfPixio(HfViT):
    name = "hf_pixio"
    model_types = ("pixio",)
    defaults = OWN
    processor = "BitImageProcessor"
    marks = ("embeddings.cls_token", "encoder.layer.0.intermediate.dense.weight", "encoder.layer.0.norm1.weight")
    prefixes = ("pixio.",)
    aliases = (
        *HfViT.aliases,
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
    )
    norms = ("norm1", "norm2")
    poolers = False
    square = True
    architectures = ("PixioModel", "")

    def described(self, config: ViTConfig) -> dict[str, Any]:
        json = super().described(config)
        del json["intermediate_size"]
        return {**json, "mlp_ratio": mlp_ratio(config), "n_cls_tokens": config.class_tokens}


FAMILY = HfPixio()
