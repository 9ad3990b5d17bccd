"""The encoder of a masked autoencoder of transformers (He et al. 2022, arXiv:2111.06377), of ViTMAEModel or below
ViTMAEForPreTraining, whose decoder is read over.

It is a ViT without a pooler that sees all patches: config.json is written with a `mask_ratio` of zero. (ViTMAEModel
orders the patches at random even then; its class token's features do not depend on the order.)
"""

from __future__ import annotations

from typing import Any

from ..model.config import ViTConfig
from .hf_vit import DEFAULTS, HfViT


class HfViTMAE(HfViT):
    name = "hf_vit_mae"
    model_types = ("vit_mae",)
    defaults = DEFAULTS
    marks = ()
    poolers = False
    architectures = ("ViTMAEModel", "")

    def described(self, config: ViTConfig) -> dict[str, Any]:
        return {**super().described(config), "mask_ratio": 0.0}


FAMILY = HfViTMAE()
