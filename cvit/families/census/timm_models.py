"""timm's names as small models: those of `MODULES`, which are read, and those of `OTHERS`, which are refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...model.config import ViTConfig
from .. import FAMILIES, from_timm, read, write
from ..reading import Model, configuration, given, recognise
from ..timm_module import describe, family_of
from .compare import Arrays, Candidate
from .peers import draw

import timm  # isort: skip  # needs what .peers declares

MODULES = ("vision_transformer", "deit", "eva")
OTHERS = ("vision_transformer_relpos", "beit", "vision_transformer_hybrid")
DIFFERENT_BLOCKS = "sapiens2"  # part of the names whose middle blocks are not as the first


@functools.cache
def names(*modules: str) -> list[str]:
    """All of timm's names of these modules."""
    return [name for module in modules or MODULES for name in timm.list_models(module=module)]


def _options(name: str) -> dict[str, Any]:
    # Two blocks. Grouped queries are in middle blocks alone, and the list of their heads has one number a block.
    return dict(depth=2, **(dict(num_kv_heads=(None, None)) if DIFFERENT_BLOCKS in name else {}))


def empty(name: str) -> Any:
    """The model of a name with two blocks and without numbers."""
    with torch.device("meta"):
        return timm.create_model(name, **_options(name))


def whole(name: str) -> Any:
    """The model of a name with all its blocks, without numbers."""
    with torch.device("meta"):
        return timm.create_model(name)


def heads_of(module: Any) -> int:
    """The attention heads of the first block."""
    block = module.blocks[0]
    return (block if hasattr(block, "num_heads") else getattr(block, "attn", None) or block.attns[0].attn).num_heads


def small(name: str, like: Any = None, **options: Any) -> Any:
    """The model of a name with its own heads, eight channels each, two blocks, 4 x 3 patches: float64, drawn.

    `like` is the `empty` one, where it is there already.
    """
    module = like or empty(name)
    down, across = module.patch_embed.patch_size
    heads = heads_of(module)
    given = dict(embed_dim=8 * heads, img_size=(4 * down, 3 * across), num_classes=5 if module.num_classes else 0)
    return draw(timm.create_model(name, **{**_options(name), **given, **options}).double().eval())


def results(module: Any, images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and logits (features without a head) of images (N, C, H, W), of the module's numbers."""
    with torch.no_grad():
        images = torch.from_numpy(np.asarray(images))
        return module.forward_features(images).numpy(), module(images).numpy()


class Timm(Candidate):
    """One of timm's names."""

    def load(self) -> Model:
        if self.group.partition(" ")[2] in OTHERS:
            return from_timm(whole(self.name))
        if DIFFERENT_BLOCKS in self.name:
            describe(whole(self.name))
        module = empty(self.name)
        check_name(self.name, module)
        self.module = small(self.name, module).float()
        return from_timm(self.module)

    def outputs(self, config: ViTConfig, x: torch.Tensor) -> Arrays:
        module = self.module
        tokens, blocks = module.forward_intermediates(
            x, return_prefix_tokens=module.num_prefix_tokens > 0, norm=False, output_fmt="NLC"
        )
        found = {}
        for i, block in enumerate(blocks):
            patches, before = block if isinstance(block, tuple) else (block, block[:, :0])
            found[f"block {i}"] = torch.cat([before, patches], 1).numpy()
        found["tokens"] = tokens.numpy()
        found["features"] = _mean(module.forward_head(tokens, pre_logits=True)).numpy()
        if config.classes:
            found["logits"] = module(x).numpy()
        return found

    def logits(self, config: ViTConfig, x: torch.Tensor) -> torch.Tensor:
        return _mean(self.module(x))

    def returned(self, model: Model) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        arrays, _ = write(model.config, model.weights, model.family, model.style)
        state = self.module.state_dict()
        yield "the list of names", np.array(sorted(state)), np.array(sorted(arrays))
        yield from ((name, state[name].numpy(), array) for name, array in arrays.items() if name in state)
        again = read(arrays, [model.family], config=model.config, style=model.style)
        yield "what is read as it was", model.weights, again.weights
        arrays, said = write(model.config, model.weights, model.family)
        yield "what is read by config.json", model.weights, read(arrays, FAMILIES, said).weights


def _mean(result: Any) -> torch.Tensor:
    """The mean of a distilled model's two results where it gives both."""
    return sum(result) / len(result) if isinstance(result, tuple) else result


def check_name(name: str, module: Any) -> None:
    """Raise unless the name alone says what its module says: a file of it has names, shapes and `architecture`."""
    config, style = describe(module)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    said = {"architecture": name}
    family = recognise(list(shapes), said, FAMILIES)
    facts, _ = given(family, shapes, said)
    read_as = family.name, configuration(family, facts), family.style(facts)
    if read_as != (family_of(module).name, config, style):
        raise ValueError(f"by its name it is {read_as}, but the module is {config}, {set(style)}")


def candidates() -> list[Candidate]:
    """Every name of the modules, by module."""
    return [Timm(f"timm {module}", name) for module in (*MODULES, *OTHERS) for name in names(module)]
