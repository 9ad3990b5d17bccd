"""transformers' classes as small models: `built` makes one of a `Case`, `theirs` is what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ...model.config import ViTConfig
from ..hf_all import HF_FAMILIES
from ..hf_module import from_hf
from ..reading import Model, read, write
from .compare import Arrays, Candidate, fed, hooked
from .hf_cases import ALL, NOWHERE, SMALL, TEXT, Case, named
from .peers import draw

import transformers  # isort: skip  # needs what .peers declares

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

OF_TEXT_TOO = (
    "CLIPModel", "MetaClip2Model", "SiglipModel", "Siglip2Model", "Aimv2Model", "Tipsv2Model",
)  # fmt: skip
WITH_PROJECTION = ("CLIP", "MetaClip2", "Aimv2")
HEADS = ("classifier", "cls_classifier", "distillation_classifier", "visual_projection")


def built(case: Case) -> Any:
    """The model of a case, in float32, drawn."""
    options = {key: value for key, value in {**SMALL, **case.options}.items() if value is not None}
    if case.vision:
        labels = {} if case.kind.endswith("Model") else {"num_labels": 3}
        options = dict(vision_config=options, text_config=TEXT, **labels)
        if case.kind.startswith(WITH_PROJECTION):
            options["projection_dim"] = 24
    config = getattr(transformers, case.config)(**options)
    return draw(getattr(transformers, case.kind)(config, **case.init)).eval()


def arguments(kind: str, config: ViTConfig, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a class takes for images (N, C, H, W)."""
    given = {"pixel_values": x}
    if "MAE" in kind:
        given["noise"] = torch.arange(config.patches, dtype=x.dtype).expand(len(x), -1)
    if kind.startswith("Siglip2"):
        (down, across), (rows, columns) = config.patch, config.grid
        patches = x.reshape(len(x), config.channels, rows, down, columns, across).permute(0, 2, 4, 3, 5, 1)
        given["pixel_values"] = patches.reshape(len(x), rows * columns, -1)
        given["spatial_shapes"] = torch.tensor([[rows, columns]] * len(x))
        given["pixel_attention_mask"] = torch.ones(len(x), rows * columns, dtype=torch.int64)
    return given


def run(module: Any, config: ViTConfig, x: torch.Tensor, **options: Any) -> Mapping[str, torch.Tensor]:
    """The outputs by their names in transformers, of a module whose decoder or text tower is left out."""
    kind = type(module).__name__
    given = arguments(kind, config, x) | options
    if kind in ("ViTMAEForPreTraining", "ViTForMaskedImageModeling"):
        module = module.vit
    if kind in OF_TEXT_TOO:
        found = module.get_image_features(**given)
        return {"image_embeds": found.pooler_output if hasattr(found, "pooler_output") else found}
    found = module(**given)
    names = ("last_hidden_state", "pooler_output", "logits", "image_embeds")
    return {name: found[name] for name in names if found.get(name) is not None}


def theirs(module: Any, config: ViTConfig, x: np.ndarray, **options: Any) -> Arrays:
    """The outputs of a module in float64, by name."""
    with torch.no_grad():
        found = run(module.double(), config, torch.from_numpy(np.asarray(x, np.float64)), **options)
    return {name: tensor.numpy() for name, tensor in found.items()}


def blocks_of(module: Any, depth: int) -> Any:
    """The blocks of the image tower."""
    for name, part in module.named_modules():
        if type(part).__name__ == "ModuleList" and len(part) == depth and "text" not in name and "decoder" not in name:
            return part
    raise ValueError(f"{type(module).__name__} has no list of {depth} blocks")


@dataclasses.dataclass
class Transformers(Candidate):
    """A class of transformers with the options of a case."""

    case: Case

    def load(self) -> Model:
        self.module = built(self.case)
        model = from_hf(self.module)
        if model.family.name != self.case.family:
            raise ValueError(f"is of family {model.family.name}, not {self.case.family}")
        return model

    def tokens_are_normed(self, config: ViTConfig) -> bool:
        return not config.pre_norm  # CLIP's last_hidden_state is not

    def outputs(self, config: ViTConfig, x: torch.Tensor) -> Arrays:
        module = self.module
        heads = [part for name, part in module.named_modules() if name.rpartition(".")[2] in HEADS]
        (given, features), blocks = hooked(
            blocks_of(module, config.depth), lambda: fed(heads, lambda: run(module, config, x))
        )
        found = {f"block {i}": block for i, block in enumerate(blocks)}
        for name, tensor in given.items():
            if name == "last_hidden_state":
                found["tokens"] = tensor.numpy()
            elif name in ("logits", "image_embeds"):
                found["logits" if config.classes else "features"] = tensor.numpy()
            elif not config.classes:
                found["features"] = tensor.numpy()
        if features and config.classes:
            found["features"] = np.mean(features, axis=0)
        if "features" not in found and not config.classes:  # a class without a pooler: its first token, or the mean
            tokens = found["tokens"]
            found["features"] = tokens[:, 0] if config.pool == "cls" else tokens.mean(1)
        return found

    def logits(self, config: ViTConfig, x: torch.Tensor) -> torch.Tensor:
        found = run(self.module, config, x)
        return found["logits"] if "logits" in found else found["image_embeds"]

    def returned(self, model: Model) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        if self.case.written == NOWHERE:
            return
        arrays, said = write(model.config, model.weights, model.family)
        again = read(arrays, HF_FAMILIES, said)
        yield "what is read", model.weights, again.weights
        if again.config != model.config:
            raise ValueError(f"what is written is read as {again.config}")
        arrays, _ = write(model.config, model.weights, model.family, model.style)
        yield (
            "what is read in the file's style",
            model.weights,
            read(arrays, [model.family], config=model.config, style=model.style).weights,
        )


def candidates() -> list[Candidate]:
    """Every case, by family."""
    families = [case.family.removeprefix("hf_") or "others" for case in ALL]
    return [Transformers(f"transformers {family}", named(case), case) for family, case in zip(families, ALL)]
