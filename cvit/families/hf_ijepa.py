"""I-JEPA of transformers (Assran et al. 2023, arXiv:2301.08243): a ViT without a class token.

IJepaModel has no pooled output; what is read pools as IJepaForImageClassification does, by the mean.
"""

from __future__ import annotations

from .hf_vit import HfViT


class HfIJepa(HfViT):
    name = "hf_ijepa"
    model_types = ("ijepa",)
    marks = ()
    prefixes = ("ijepa.",)
    base_prefix = "ijepa."
    poolers = False
    architectures = ("IJepaModel", "IJepaForImageClassification")


FAMILY = HfIJepa()
