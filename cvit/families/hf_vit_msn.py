"""MSN of transformers (Assran et al. 2022, arXiv:2204.07141): a ViT without a pooler."""

from __future__ import annotations

from .hf_vit import DEFAULTS, HfViT


class HfViTMSN(HfViT):
    name = "hf_vit_msn"
    model_types = ("vit_msn",)
    defaults = {**DEFAULTS, "layer_norm_eps": 1e-6}
    marks = ()
    poolers = False
    architectures = ("ViTMSNModel", "ViTMSNForImageClassification")


FAMILY = HfViTMSN()
