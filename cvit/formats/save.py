"""Models out, in the names of cvit, timm, transformers or vit_jax, or as an ONNX graph: `save`.

    timm     config.json (with pretrained_cfg), model.safetensors         timm.create_model("local-dir:folder")
    hf       config.json, preprocessor_config.json, model.safetensors     transformers' from_pretrained("folder")
    cvit     model.safetensors, cvit's own, also as a file by itself      cvit.load("folder")
    npz      one .npz file, as vit_jax and big_vision write it
    onnx     one .onnx file, which onnxruntime runs

A folder that is there already keeps its other files. Every file is written under another name and renamed, all of them
after the last was written: whoever reads finds the old content or the new.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import families
from ..base.errors import check, short
from ..base.files import replacing
from ..base.numbers import shown
from ..families.family import Family
from ..families.hf import HfFamily, label_keys
from ..model.vit import ViT
from ..pictures.preprocessing import Preprocessing
from . import checkpoint, onnx_file
from .checksum import write_plain
from .folder import CONFIGS, PREPROCESSOR, WEIGHTS

CONFIG = CONFIGS[0]
# Whose files a model can be written as, by `names`, the likelier first; its own family goes before them.
FIRST_OF_HF = ("hf_vit", "hf_deit")
WRITERS: dict[str, tuple[Family, ...]] = {
    "timm": tuple(one for one in families.FAMILIES if one.name in ("timm", "timm eva"))[::-1],
    "hf": tuple(
        sorted(
            (one for one in families.FAMILIES if isinstance(one, HfFamily) and one.processor),
            key=lambda one: one.name not in FIRST_OF_HF,
        )
    ),
    "npz": tuple(one for one in families.FAMILIES if one.name == "flax npz"),
}
NAMES = ("cvit", *WRITERS, "onnx")

Write = Callable[[Path], None]


def names_for(path: str | os.PathLike) -> str:
    """What `save` writes where no names are given: by the ending, .onnx or .npz, else "cvit"."""
    return {".onnx": "onnx", ".npz": "npz"}.get(Path(path).suffix, "cvit")


def save(path: str | os.PathLike, model: ViT, names: str | None = None, *, dtype: str | None = None) -> None:
    """Write a model with its preprocessing and class names so that `names`'s own library loads it.

    Parameters
    ----------
    path : str or path
        A folder, made if it is missing; for "npz" and "onnx" a file whose name ends so, for "cvit" also one in
        .safetensors.
    model : ViT
    names : "cvit", "timm", "hf", "npz" or "onnx", optional
        By default what the path's ending says (`names_for`).
    dtype : "bf16", optional
        As of `checkpoint.save`: bfloat16 in the file, for names "cvit", "timm" and "hf".

    Raises
    ------
    ValueError
        The library could not say or compute an option of the model; the message lists why. Nothing is written then.
    ModuleNotFoundError
        onnx is missing, for "onnx".
    OSError
        As `base.files.replacing`.
    """
    names = names_for(path) if names is None else names
    check(isinstance(names, str) and names in NAMES, f"names must be one of {NAMES}, got {shown(names)}")
    dtype = checkpoint.stored_dtype(dtype)
    check(
        dtype is None or names not in ("npz", "onnx"),
        f"dtype must be None for names {names!r}, whose files have no bfloat16, got {shown(dtype)}",
    )
    path = Path(path)
    if names == "onnx":
        onnx_file.save(path, model)
        return
    if names == "npz":
        check(path.suffix == ".npz", f"a file of names 'npz' must end in .npz, got {shown(str(path))}")
        arrays, _, _ = written(model, names)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return
    if path.suffix == ".safetensors" and not path.is_dir():
        check(names == "cvit", f"names {names!r} make a folder, got the file name {shown(str(path))}")
        checkpoint.save(path, model, dtype=dtype)
        return
    if names == "cvit":
        _write_folder(path, {WEIGHTS: lambda temporary: checkpoint.save(temporary, model, dtype=dtype)})
        return
    arrays, config, family = written(model, names)
    files: dict[str, Write] = {}
    _add_names(config, model, names)
    how = _preprocessing(model)
    if how is not None and names == "timm":
        pretrained = {**how.to_timm(), "input_size": [how.channels, *how.size]}
        config["pretrained_cfg"] = {**config.get("pretrained_cfg", {}), **pretrained}
    if how is not None and names == "hf":
        preprocessor = how.to_hf()
        preprocessor["image_processor_type"] = _processor(family, preprocessor)
        files[PREPROCESSOR] = _json(preprocessor)
    if how is not None and how.keep is not None:
        _set_size(config, how.size)
    if dtype is not None and names == "hf":
        config["torch_dtype"] = "bfloat16"  # what from_pretrained(..., dtype="auto") asks
    files[CONFIG] = _json(config)
    files[WEIGHTS] = lambda temporary: _write_safetensors(temporary, arrays, dtype)
    _write_folder(path, files)


def written(model: ViT, names: str) -> tuple[dict[str, np.ndarray], dict[str, Any], Family]:
    """A model's arrays and config.json as the first family of `names` stores it that can say the model.

    Raises
    ------
    ValueError
        None can; the message has each one's reason.
    """
    origin = model.origin
    reasons: dict[str, list[str]] = {}
    own = [one for one in WRITERS[names] if origin is not None and one.name == origin.family]
    for family in [*own, *WRITERS[names]]:
        styles = [frozenset(origin.style), None] if own and origin is not None and family is own[0] else [None]
        for style in styles:
            try:
                arrays, config = families.write(model.config, model.weights, family, style)
            except (ValueError, KeyError) as error:
                reasons.setdefault(short(str(error).removeprefix(f"{family.name} "), 150), []).append(family.name)
            else:
                return arrays, config, family
    said = "; ".join(f"{', '.join(dict.fromkeys(of))}: {reason}" for reason, of in reasons.items())
    raise ValueError(f"the model cannot be written with names {names!r}: {short(said, 2000)}")


def _preprocessing(model: ViT) -> Preprocessing | None:
    """What the model does with pictures, None where their channels are not those of pictures."""
    if model.preprocessing is not None:
        return model.preprocessing
    config = model.config
    return Preprocessing.default(config.image_size, config.channels) if config.channels in (1, 3) else None


def _processor(family: Family, preprocessor: dict[str, Any]) -> str:
    """The class of a family's processor where it reads the same, else the one that stands there already."""
    named = {**preprocessor, "image_processor_type": getattr(family, "processor", "")}
    try:
        same = Preprocessing.from_hf(named) == Preprocessing.from_hf(preprocessor)
    except ValueError:
        same = False
    return (named if same else preprocessor)["image_processor_type"]


def _add_names(config: dict[str, Any], model: ViT, names: str) -> None:
    if model.class_names is None:
        return
    if names == "hf":
        config.update(label_keys(model.config.classes, model.class_names))
    else:
        config["label_names"] = list(model.class_names)


def _set_size(config: dict[str, Any], size: tuple[int, int]) -> None:
    """The size of pictures of which the patches leave a rest out, wherever config.json has one."""
    for name, value in config.items():
        if isinstance(value, dict):
            _set_size(value, size)
        elif name in ("image_size", "img_size"):
            config[name] = size[0] if size[0] == size[1] and not isinstance(value, list) else list(size)


def _json(value: dict[str, Any]) -> Write:
    text = json.dumps(value, indent=2) + "\n"

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], dtype: str | None) -> None:
    import safetensors.numpy

    metadata = {"format": "pt"}  # which transformers asks for
    if dtype == "bf16":  # which NumPy, and so the library, lacks
        write_plain(path, arrays, metadata, bfloat16=True)
        return
    try:
        safetensors.numpy.save_file(arrays, path, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from None


def _write_folder(folder: Path, files: dict[str, Write]) -> None:
    """All files of a folder: a new one appears as a whole, in one that is there they are replaced."""
    if os.path.lexists(folder):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        with contextlib.ExitStack() as stack:
            for name, write in files.items():
                write(stack.enter_context(replacing(folder / name)))
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".cvit-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        for name, write in files.items():
            with replacing(temporary / name) as file:
                write(file)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
