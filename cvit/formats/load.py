"""Models in: `load` from a path or the Hub, `from_state_dict` from arrays, `from_timm` and its like from modules.

    open_source or module -> families.read -> weights, configuration -> preprocessing, class names -> ViT

A file with cvit's own metadata is read by `checkpoint.load`. torch, timm and transformers are never imported.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .. import families
from ..base.arrays import fixed, float_dtype, is_fixed
from ..base.errors import check, short
from ..base.numbers import as_int, shown
from ..families.family import whole_patches
from ..families.hf import HfFamily, class_names
from ..families.hf_module import module_json
from ..families.reading import check_positions
from ..families.timm_vit import TimmViT
from ..model.config import ViTConfig
from ..model.origin import Origin
from ..model.precision import settled
from ..model.vit import ViT
from ..pictures.preprocessing import Preprocessing
from . import checkpoint
from .source import open_source
from .tensors import FLOATS, Tensors, tensors_of

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What a model shall be that its file is not; None as in the file."""

    image_size: tuple[int, int] | None = None
    classes: int | None = None
    channels: int | None = None
    dtype: np.dtype | None = None
    precision: str | None = None

    @classmethod
    def of(cls, image_size=None, classes=None, channels=None, dtype=None, precision=None) -> _Wanted:
        """The caller's arguments, checked."""
        if image_size is not None:
            pair = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
            check(len(pair) == 2, f"image_size must be one number or (height, width), got {short(repr(image_size))}")
            image_size = as_int("image_size", pair[0]), as_int("image_size", pair[1])
        if dtype is not None:
            dtype = float_dtype("dtype", dtype)
        if precision is not None:
            precision, dtype = settled(precision, dtype)
        return cls(
            image_size,
            None if classes is None else as_int("classes", classes, minimum=0),
            None if channels is None else as_int("channels", channels),
            dtype,
            precision,
        )

    def shape(self) -> dict[str, Any]:
        """The arguments of `families.read` and `families.adapted`."""
        return dict(image_size=self.image_size, classes=self.classes, channels=self.channels)


def load(
    where: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    channels: int | None = None,
    num_heads: int | None = None,
    strict: bool = True,
    dtype=None,
    precision: str | None = None,
    mmap: bool = False,
    revision: str | None = None,
) -> ViT:
    """A model of a file, a folder or the Hugging Face Hub, with its preprocessing and its class names.

    Parameters
    ----------
    where : str or path
        A .safetensors or .npz file: cvit's own, or one of timm, transformers, torchvision, vit_jax or big_vision, with
        its config.json beside it or without one. A folder as transformers' `save_pretrained` and timm's `save_for_hf`
        write it, of shards, too. Or "owner/name" on the Hub, which needs huggingface_hub.
    image_size : int or (int, int), optional
        Height and width in pixels, other than the file's: positions are resampled as the file's own library does. Of a
        size that patches do not divide the rest at the right and below is left out.
    classes : int, optional
        Another number than the file's gives a head of zeros, without class names; 0 gives none.
    channels : int, optional
        Another number than the file's: the patch embedding's channels are summed for 1, else repeated and scaled.
    num_heads : int, optional
        Of the blocks' attention, where the file does not tell.
    strict : bool
        Whether tensors that the model does not know, which are else left out, and weights that are not finite are an
        error.
    dtype : float32 or float64, optional
        Of the weights. None: what `precision` needs; else float64 where the file has nothing else, float32 otherwise.
    precision : "f32", "f64", "bf16", "bf16-fast" or "auto", optional
        What the model computes in, see `ViT`. None: what cvit's own file says, which `save` wrote; else as the weights
        are. What weights are stored in says nothing: a file of bfloat16 gives a model of float32.
    mmap : bool
        Weights that can only be read, of which `freeze` makes no copy; the model is not trained. Those of cvit's own
        file, where they need not be converted, stay in it, mapped into memory, and processes that load the same file
        share them. Nobody may write into that file meanwhile; replacing it by another, as `save` does, is fine.
    revision : str, optional
        A branch, tag or commit on the Hub.

    Returns
    -------
    ViT
        At the image size that the file's positions are of; but DINOv2, whose own library resamples positions for
        whatever pictures come, at that of the pictures that its preprocessor_config.json makes (224 pixels; the
        positions are of 518, which `image_size=518` keeps). Its `origin` says whose names the file has.

    Raises
    ------
    FileNotFoundError
        There is no such path, and it is no name on the Hub.
    ModuleNotFoundError
        The Hub is asked for without huggingface_hub installed.
    ValueError
        The file is damaged or a pickle, of no known family, has a part that cvit does not compute, or lacks a tensor,
        has one too many or a misshapen one; the message names file and tensor.
    OSError
        A file or the Hub cannot be read.
    """
    wanted = _Wanted.of(image_size, classes, channels, dtype, precision)
    if not isinstance(mmap, bool):
        raise TypeError(f"mmap must be True or False, got {shown(mmap)}")
    if num_heads is not None:
        num_heads = as_int("num_heads", num_heads)
    if isinstance(where, (str, os.PathLike)) and os.path.isfile(where) and revision is None:
        path = Path(os.fsdecode(where))
        if path.suffix not in (".npz", ".json") and checkpoint.is_own(path):
            return _fixed(_own(path, wanted, num_heads, mmap), mmap)
    source = open_source(where, revision)
    if checkpoint.CONFIG_KEY in source.tensors.metadata:
        return _fixed(_own(source.path, wanted, num_heads, mmap), mmap)
    with _named(source.label):
        model = _read(source.tensors, source.config, source.preprocessor, wanted, num_heads, strict)
    return _fixed(model, mmap)


def from_state_dict(
    tensors: Mapping[str, Any],
    config: Json | None = None,
    num_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    classes: int | None = None,
    channels: int | None = None,
    strict: bool = True,
    dtype=None,
    precision: str | None = None,
) -> ViT:
    """A model of tensors by name, in the names that a library has in its files or in memory.

    Parameters
    ----------
    tensors : mapping of str to array or torch tensor
    config : mapping, optional
        The content of config.json.
    num_heads, image_size, classes, channels, strict, dtype, precision
        As of `load`.

    Raises
    ------
    TypeError
        A value is no array.
    ValueError
        As `load`.
    """
    wanted = _Wanted.of(image_size, classes, channels, dtype, precision)
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config must be the dict of a config.json, got {type(config).__name__}")
    if num_heads is not None:
        num_heads = as_int("num_heads", num_heads)
    stored = tensors_of(tensors, "the weights")
    with _named("the weights"):
        return _read(stored, config, None, wanted, num_heads, strict)


def from_timm(module, *, image_size=None, classes=None, channels=None, dtype=None, precision=None) -> ViT:
    """A model of a timm module in memory, `VisionTransformer`, `VisionTransformerDistilled` or `Eva`.

    Preprocessing and class names are those of its `pretrained_cfg`. The arguments are those of `load`.

    Raises
    ------
    TypeError
        It is none of these.
    ValueError
        It has a part that cvit does not compute; the message names it.
    """
    pretrained = getattr(module, "pretrained_cfg", None)
    found = families.from_timm(module)
    json: dict[str, Any] = {"image_size": tuple(module.patch_embed.img_size)}
    if isinstance(pretrained, Mapping):
        json["pretrained_cfg"] = pretrained
    return _of_module(found, json, _Wanted.of(image_size, classes, channels, dtype, precision))


def from_hf(module, *, image_size=None, classes=None, channels=None, dtype=None, precision=None) -> ViT:
    """A model of a module of transformers in memory.

    Class names are those of its configuration, preprocessing is its family's. The arguments are those of `load`.

    Raises
    ------
    TypeError
        It is no model of transformers.
    ValueError
        It is of a class that cvit does not know or has a part that cvit does not compute; the message names it.
    """
    wanted = _Wanted.of(image_size, classes, channels, dtype, precision)
    return _of_module(families.from_hf(module), module_json(module), wanted)


def from_torchvision(module, *, image_size=None, classes=None, channels=None, dtype=None, precision=None) -> ViT:
    """A model of torchvision's `VisionTransformer` in memory. The arguments are those of `load`.

    Raises
    ------
    TypeError
        It is none.
    ValueError
        It has a part that cvit does not compute, such as a convolutional stem; the message names it.
    """
    wanted = _Wanted.of(image_size, classes, channels, dtype, precision)
    return _of_module(families.from_torchvision(module), {}, wanted)


# ------------------------------------------------------------------------------------------------------------ the parts
def _fixed(model: ViT, mmap: bool) -> ViT:
    """The model with weights that can only be read, if that was asked for."""
    if mmap and not is_fixed(model.weights):
        model.weights = fixed(model.weights)
    return model


def _read(
    tensors: Tensors, json: Json | None, preprocessor: Json | None, wanted: _Wanted, num_heads: int | None, strict: bool
) -> ViT:
    found = families.read(
        tensors, families.FAMILIES, json, num_heads=num_heads, strict=strict, dtype=wanted.dtype or _dtype_of(tensors),
        **wanted.shape(),
    )  # fmt: skip
    config, weights = found.config, found.weights
    if found.family.follows_pictures and wanted.image_size is None and preprocessor is not None:
        how = _preprocessing(found.family, config, json or {}, preprocessor)
        if how is not None and all(edge % p == 0 for edge, p in zip(how.size, config.patch)):
            check_positions(dataclasses.replace(config, image_size=how.size), weights.size)
            config, weights = families.adapted(config, weights, found.family, found.style, image_size=how.size)
    return _vit(found, config, weights, json or {}, preprocessor, wanted)


def _of_module(found: families.Model, json: Json, wanted: _Wanted) -> ViT:
    weights = found.weights.astype(wanted.dtype or found.weights.dtype, copy=False)
    config, weights = families.adapted(found.config, weights, found.family, found.style, **wanted.shape())
    return _vit(found, config, weights, json, None, wanted)


def _vit(found: families.Model, config: ViTConfig, weights, json: Json, preprocessor: Json | None, wanted) -> ViT:
    how = _preprocessing(found.family, config, json, preprocessor)
    names = _class_names(json, config.classes)  # of a new head with another number of classes there are none
    origin = Origin(found.family.name, tuple(sorted(found.style)))
    how = fitted(how, config, wanted.image_size, _said_size(json))
    return ViT(config, weights, precision=wanted.precision, preprocessing=how, class_names=names, origin=origin)


def _class_names(json: Json, classes: int) -> tuple[str, ...] | None:
    """The classes' names in config.json of transformers or timm, None where it has none, or not one for each."""
    section = json.get("pretrained_cfg")
    for place in (json, section if isinstance(section, Mapping) else {}):
        names = place.get("label_names")
        named = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        if names and named and len(names) == classes:
            return tuple(names)
    return class_names(json, classes)


def _dtype_of(tensors: Tensors) -> np.dtype:
    """float64 where all floats of a file are."""
    floats = {tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS}
    return np.dtype(np.float64 if floats == {"float64"} else np.float32)


def _preprocessing(
    family: families.Family, config: ViTConfig, json: Json, preprocessor: Json | None
) -> Preprocessing | None:
    """What stands in the files, else what the family's models have in common; None where nothing is known."""
    hints = family.preprocessing(families.Given({}, json))
    if isinstance(family, TimmViT) and hints:
        return Preprocessing.from_timm(hints)
    if preprocessor is not None:
        try:
            return Preprocessing.from_hf(preprocessor)
        except ValueError as error:
            warnings.warn(f"the preprocessing of pictures is a default one: {short(error, 300)}", stacklevel=5)
    if isinstance(family, HfFamily):
        try:
            return Preprocessing.from_hf(hints)
        except ValueError:  # of a class without defaults
            return None
    return Preprocessing(**{"size": config.image_size, **hints}) if hints else None


def fitted(
    how: Preprocessing | None,
    config: ViTConfig,
    asked: tuple[int, int] | None = None,
    said: tuple[int, int] | None = None,
) -> Preprocessing | None:
    """A preprocessing for a model's channels and image size; None where pictures cannot have these channels.

    `asked` is the image size asked for and `said` that of the model's own library, both before the pixels were left out
    that fill no patch. Of these and the preprocessing's own the first counts that the model's size comes from.
    """
    if how is None or config.channels not in (1, 3):
        return None
    how = how.with_channels(config.channels)
    for size in filter(None, (asked, how.size, said, config.image_size)):
        if whole_patches(size, config.patch) == config.image_size:
            break
    if size != how.size:
        how = how.with_size(*size)
    return dataclasses.replace(how, keep=config.image_size)


def _said_size(json: Json) -> tuple[int, int] | None:
    """The image size in a config.json, also in that of a vision tower."""
    for place in (json, *(value for value in json.values() if isinstance(value, Mapping))):
        size = place.get("image_size")
        pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        if len(pair) == 2 and all(type(edge) is int and 0 < edge < 1 << 15 for edge in pair):
            return pair
    return None


def _own(path: Path, wanted: _Wanted, num_heads: int | None, mmap: bool) -> ViT:
    """A model of cvit's own file, changed as asked for."""
    precision = "f64" if wanted.dtype == np.float64 else wanted.precision  # a precision that the file says gives way
    model = checkpoint.load(path, precision=precision, mmap=mmap)
    check(
        num_heads in (None, model.config.heads),
        f"{path}: num_heads must be {model.config.heads}, as the file says, got {num_heads}",
    )
    origin, family = model.origin, None
    if origin is not None:
        family = next((one for one in families.FAMILIES if one.name == origin.family), None)
    style = frozenset(origin.style) if origin else frozenset()
    weights = model.weights.astype(wanted.dtype or model.dtype, copy=False)
    with _named(str(path)):
        config, weights = families.adapted(model.config, weights, family, style, **wanted.shape())
    if config == model.config and weights is model.weights:
        return model
    return ViT(
        config, weights, precision=model.precision if weights.dtype == model.dtype else None,
        preprocessing=fitted(model.preprocessing, config, wanted.image_size), origin=origin,
        class_names=model.class_names if config.classes == model.config.classes else None,
    )  # fmt: skip


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Let an error of the block begin with the place that the weights come from; a wrong type in a file is a
    `ValueError`."""
    try:
        yield
    except (ValueError, TypeError) as error:
        text = str(error)
        raise ValueError(text if text.startswith(label) else f"{short(label, 300)}: {short(text, 1000)}") from None
