"""DeiT of transformers: ViT with a distillation token (Touvron et al. 2021, arXiv:2012.12877).

DeiTForImageClassification has the class token's head alone, DeiTForImageClassificationWithTeacher also that of the
distillation token, whose logits are the mean of both.
"""

from __future__ import annotations

from typing import Any

from ..base.errors import check
from ..model.config import ViTConfig
from .hf_vit import HfViT


class HfDeiT(HfViT):
    name = "hf_deit"
    model_types = ("deit",)
    processor = "DeiTImageProcessor"
    marks = ("embeddings.distillation_token", *HfViT.marks)
    prefixes = ("deit.",)
    base_prefix = "deit."
    architectures = ("DeiTModel", "DeiTForImageClassification")

    def described(self, config: ViTConfig) -> dict[str, Any]:
        check(config.dist_token, f"{self.name} has no model without a distillation token")
        json = super().described(config)
        if config.dist_head:
            json["architectures"] = ["DeiTForImageClassificationWithTeacher"]
        return json


FAMILY = HfDeiT()
