"""What the families of transformers have in common: config.json's keys and defaults, and how a file is written.

A family reads dimensions off the tensors and everything else off config.json, where a key that the file lacks has the
default of its class. Names are those of published files, which are also written; the names that version 5 has in
memory are aliases.
"""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..base.errors import check, short
from ..base.numbers import as_int
from ..model.config import ViTConfig
from ..model.layout import Layout
from .family import Family, Given, Row
from .transform import LINEAR, SAME, TOKEN, TOKENS, Transformation, Zero

ACTIVATIONS = {
    "gelu": "gelu_erf", "gelu_python": "gelu_erf", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu", "relu": "relu",
    "tanh": "tanh",
}  # fmt: skip
WRITTEN = {
    "gelu_erf": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu",
    "tanh": "tanh",
}  # fmt: skip
MOST_EDGE = 1 << 15  # pixels of an image's edge


class Keys(dict):
    """config.json with its class's defaults; what is read has its type checked."""

    def text(self, name: str) -> str:
        value = self.get(name)
        check(isinstance(value, str), f"config.json: {name} must be a string, got {short(repr(value))}")
        return value  # type: ignore[return-value]

    def activation(self, name: str = "hidden_act") -> str:
        known = self.text(name)
        check(known in ACTIVATIONS, f"config.json: {name} must be one of {tuple(ACTIVATIONS)}, got {short(known)}")
        return ACTIVATIONS[known]

    def number(self, name: str) -> Any:
        value = self.get(name)
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30
        check(right, f"config.json: {name} must be a number, got {short(repr(value))}")
        return value

    def flag(self, name: str) -> bool:
        value = self.get(name)
        check(isinstance(value, bool), f"config.json: {name} must be true or false, got {short(repr(value))}")
        return value  # type: ignore[return-value]

    def pair(self, name: str) -> tuple[int, int]:
        value = self.get(name)
        pair = value if isinstance(value, (list, tuple)) else (value, value)
        right = len(pair) == 2 and all(isinstance(one, int) and not isinstance(one, bool) for one in pair)
        right = right and all(0 < one <= MOST_EDGE for one in pair)
        check(right, f"config.json: {name} must be one number or two of 1 to {MOST_EDGE}, got {short(repr(value))}")
        return pair[0], pair[1]

    def image_size(self, patches: int, patch: tuple[int, int], *, square: bool = False) -> tuple[int, int]:
        """The size whose patches the positions are of: that of config.json, less pixels that fill no patch.

        With `square` the positions are of as many rows as columns, whatever config.json says.
        """
        edge = math.isqrt(patches)
        grid = (edge, edge)
        if "image_size" in self:
            size = self.pair("image_size")
            said = size[0] // patch[0], size[1] // patch[1]
            check(
                said[0] * said[1] == patches,
                f"config.json: image_size {size} has {said[0] * said[1]} patches, but positions are of {patches}",
            )
            grid = grid if square else said
        check(grid[0] * grid[1] == patches, f"positions of {patches} patches are of no square grid")
        return grid[0] * patch[0], grid[1] * patch[1]


class HfFamily(Family):
    """A family of transformers.

    Attributes
    ----------
    model_types : tuple of str
        Values of config.json's key `model_type`.
    defaults : mapping
        What the class of config.json has for keys that a file lacks.
    tower : str
        The key of the vision tower's own configuration in that of a model of pictures and text.
    base_prefix : str
        What stands before the names of the model below a head, in files.
    processor : str
        The class of the image processor.
    """

    model_types: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}
    tower: str = ""
    base_prefix: str = ""
    processor: str = ""
    position_resampling = "bicubic"
    patch_embedding = "embeddings.patch_embeddings.projection.weight"
    block = "encoder.layer.{i}."

    # ------------------------------------------------------------------------------------------------ what to define
    @abc.abstractmethod
    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        """Rows of all models of the family; those of tensors that `config` lacks are left out."""

    @abc.abstractmethod
    def described(self, config: ViTConfig) -> dict[str, Any]:
        """The content of config.json for a configuration."""

    # -------------------------------------------------------------------------------------------------------- reading
    def claims(self, json: Mapping[str, Any]) -> bool:
        return json.get("model_type") in self.model_types

    def keys(self, given: Given) -> Keys:
        """config.json's keys, those of the vision tower before the others."""
        keys = Keys(self.defaults)
        if not given.json:
            del keys["image_size"], keys["num_attention_heads"]
        keys.update(given.json)
        tower = given.json.get(self.tower)
        if isinstance(tower, Mapping):
            keys.update({**self.defaults, **tower})
        if given.num_heads is not None:
            keys["num_attention_heads"] = given.num_heads
        check("num_attention_heads" in keys, "num_heads must be given: no config.json says how many heads there are")
        return keys

    def common(self, given: Given, keys: Keys) -> dict[str, Any]:
        """Fields of the configuration that every family reads alike, `patch_size` as a pair."""
        shape = given.shape(self.patch_embedding, 4)
        fields = dict(
            width=shape[0], channels=shape[1], patch_size=shape[2:], depth=given.blocks(self.block),
            heads=as_int("num_attention_heads", keys.number("num_attention_heads")), activation=keys.activation(),
            eps=keys.number("rms_norm_eps" if "rms_norm_eps" in self.defaults else "layer_norm_eps"),
        )  # fmt: skip
        for key, field in (("hidden_size", "width"), ("num_hidden_layers", "depth")):
            said = keys.get(key)
            check(
                said is None or said == fields[field],
                f"config.json: {key} is {short(repr(said))}, but the tensors are of {fields[field]}",
            )
        return fields

    def classes(self, given: Given, *names: str) -> int:
        """The rows of the first of these matrices that is there, 0 if none is."""
        return next((given.shape(name, 2)[0] for name in names if given.has(name)), 0)

    def registers(self, given: Given, name: str) -> int:
        """How many registers there are; a file may have an empty tensor of them."""
        shape = given.shapes.get(name, (1, 0, 0))
        check(len(shape) == 3, f"{name} must have 3 dimensions, got shape {shape}")
        return shape[1]

    def refuse(self, given: Given) -> str | None:
        named = given.json.get("architectures")
        named = named[0] if isinstance(named, (list, tuple)) and named else ""
        if "ForImageClassification" in str(named) and not given.has("classifier.weight", "cls_classifier.weight"):
            return f"a classifier without classes ({named})"
        return None

    def rows(self, config: ViTConfig, style: frozenset[str] = frozenset()) -> list[Row]:
        names = {re.sub(r"^blocks\.\d+\.", "blocks.{i}.", name) for name in Layout.of(config).entries}
        return [row for row in self.table(config, style) if not row.ours or row.ours in names]

    def preprocessing(self, given: Given) -> dict[str, Any]:
        return {"image_processor_type": self.processor}

    # -------------------------------------------------------------------------------------------------------- writing
    def headed(self, config: ViTConfig) -> bool:
        """Whether what is written has the base model below a head, so that its names have the prefix."""
        return config.classes > 0

    def file_name(self, name: str, config: ViTConfig) -> str:
        head = re.match(r"(\w+_)?classifier\.|visual_projection\.", name)
        return name if head or not self.headed(config) else self.base_prefix + name

    def config_json(self, config: ViTConfig, style: frozenset[str]) -> dict[str, Any]:
        check(config.depth > 0, f"{self.name} has no model without blocks")
        return self.described(config)

    def common_json(self, config: ViTConfig) -> dict[str, Any]:
        """Keys that every family has."""
        one = config.image_size[0] == config.image_size[1]
        return {
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "hidden_act": WRITTEN[config.activation],
            "rms_norm_eps" if "rms_norm_eps" in self.defaults else "layer_norm_eps": config.eps,
            "image_size": config.image_size[0] if one else list(config.image_size),
            "patch_size": config.patch_size if isinstance(config.patch_size, int) else list(config.patch_size),
            "num_channels": config.channels,
        }


# ---------------------------------------------------------------------------------------------------------------- rows
def linear(theirs: str, ours: str) -> list[Row]:
    """A linear layer's matrix and bias."""
    return [Row(f"{theirs}.weight", f"{ours}.weight", LINEAR), Row(f"{theirs}.bias", f"{ours}.bias", SAME)]


def norm(theirs: str, ours: str) -> list[Row]:
    """A norm's scale and shift."""
    return [Row(f"{theirs}.weight", f"{ours}.weight", SAME), Row(f"{theirs}.bias", f"{ours}.bias", SAME)]


def packed(theirs: str, ours: Sequence[str]) -> list[Row]:
    """Linear layers whose matrices stand one behind the other; `theirs` ends before "weight" and "bias"."""
    kinds = (("weight", LINEAR), ("bias", SAME))
    return [Row(f"{theirs}{kind}", f"{one}.{kind}", how) for kind, how in kinds for one in ours]


def class_tokens(config: ViTConfig) -> Transformation:
    """Class tokens (1, n, D) there: ours have no first axis, and with a single one only the last."""
    return TOKEN if config.class_tokens == 1 else TOKENS


def unused(name: str, *shape: int) -> Row:
    """A tensor that has no effect: zeros are written, and anything is read."""
    return Row(name, "", Zero(lambda config: shape, checked=False))


def register_rows(name: str, config: ViTConfig, style: frozenset[str]) -> list[Row]:
    """The row of the registers; an empty tensor where there are none but the file has it (style "registers")."""
    if config.registers:
        return [Row(name, "reg_token", TOKENS)]
    return [unused(name, 1, 0, config.width)] if "registers" in style else []


# --------------------------------------------------------------------------------------------------------- class names
def class_names(json: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    """The classes' names that config.json has, None where it has none but placeholders, or not one for each."""
    table = json.get("id2label")
    if not isinstance(table, Mapping):
        return None
    names = [table.get(str(i), table.get(i)) for i in range(classes)]
    if len(table) != classes or not classes or not all(isinstance(name, str) for name in names):
        return None
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else tuple(names)


def label_keys(classes: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """config.json's keys of the classes, with placeholders where they have no names."""
    names = list(names) if names else [f"LABEL_{i}" for i in range(classes)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


# -------------------------------------------------------------------------------------------------------------- others
def mlp_ratio(config: ViTConfig) -> int:
    """The whole number that `mlp_ratio` must be for a hidden layer's width."""
    check(config.hidden % config.width == 0, f"the hidden width {config.hidden} is no multiple of {config.width}")
    return config.hidden // config.width


def layer_scale_value(config: ViTConfig) -> float:
    """The initial value of the attention's layer scale, which the family's models all have."""
    value = config.layer_scales[0]
    check(value is not None, "the family has no model without layer_scale")
    return value  # type: ignore[return-value]


def swiglu_ratio(config: ViTConfig) -> int:
    """The `mlp_ratio` of which two thirds, rounded up to a multiple of 8, are the hidden width of a gated MLP."""
    for ratio in range(1, 3 * config.hidden // config.width + 3):
        if (int(config.width * ratio * 2 / 3) + 7) // 8 * 8 == config.hidden:
            return ratio
    raise ValueError(f"no mlp_ratio gives a gated MLP of width {config.hidden} beside {config.width}")


def sincos_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """(rows · columns, width): sin and cos of the column's index, then of the row's, at width / 4 frequencies."""
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    angles = [index[:, None] * frequencies for index in (column, row)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
