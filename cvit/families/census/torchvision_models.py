"""torchvision's `vit_*` as small models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...model.config import ViTConfig
from .. import FAMILIES, from_torchvision, read, write
from ..reading import Model
from ..torchvision_vit import HEADS
from .compare import Arrays, Candidate, fed, hooked
from .peers import draw

from torchvision import models  # isort: skip  # needs what .peers declares

CONVOLUTIONAL = "vit_b_16, convolutional stem"
PRE_LOGITS = "vit_b_16, representation_size"


class Torchvision(Candidate):
    """One of torchvision's names, or of the options that no name has."""

    def load(self) -> Model:
        with torch.device("meta"):
            whole = models.get_model(self.name.partition(",")[0])
        heads = whole.encoder.layers[0].num_heads
        if HEADS.get(whole.hidden_dim) != heads:
            raise ValueError(f"HEADS has not {heads} heads for width {whole.hidden_dim}")
        options: dict[str, Any] = {}
        if self.name == PRE_LOGITS:
            options["representation_size"] = 16
        if self.name == CONVOLUTIONAL:
            options["conv_stem_configs"] = [models.vision_transformer.ConvStemConfig(8, 3, 4)] * 2
        down = whole.patch_size
        self.module = draw(
            models.VisionTransformer(
                3 * down, down, num_layers=2, num_heads=heads, hidden_dim=8 * heads, mlp_dim=20 * heads, num_classes=5,
                **options,
            )
        ).eval()  # fmt: skip
        return from_torchvision(self.module)

    def outputs(self, config: ViTConfig, x: torch.Tensor) -> Arrays:
        module = self.module
        parts = [*module.encoder.layers, module.encoder.ln]
        (logits, features), tokens = hooked(parts, lambda: fed([module.heads.head], lambda: module(x)))
        found = {f"block {i}": block for i, block in enumerate(tokens[:-1])}
        return found | {"tokens": tokens[-1], "features": features[0], "logits": logits.numpy()}

    def returned(self, model: Model) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        arrays, _ = write(model.config, model.weights, model.family, model.style)
        state = self.module.state_dict()
        yield "the list of names", np.array(sorted(state)), np.array(sorted(arrays))
        yield from ((name, state[name].numpy(), array) for name, array in arrays.items() if name in state)
        yield "what is read", model.weights, read(arrays, FAMILIES, num_heads=model.config.heads).weights


def candidates() -> list[Candidate]:
    """torchvision's names, and the options of its class."""
    names = [name for name in models.list_models() if name.startswith("vit_")]
    return [Torchvision("torchvision", name) for name in [*names, PRE_LOGITS, CONVOLUTIONAL]]
