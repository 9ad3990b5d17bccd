"""MSN of transformers (Assran et al. 2022, arXiv:2204.07141): a ViT without a pooler."""

from __future__ import annotations

from .hf_vit import DEFAULTS, HfViT

OWN = {**DEFAULTS, "layer_norm_eps": 1e-6}


class HfViTMSN(HfViT):
    name = "hf_vit_msn"
    model_types = ("vit_msn",)
    defaults = OWN
    marks = ()
    poolers = False
    architectures = ("ViTMSNModel", "ViTMSNForImageClassification")


FAMILY = HfViTMSN()
