"""A model in one safetensors file: the tensors by the layout's names, in (in, out) order, and the config as JSON.

The format (https://github.com/huggingface/safetensors) is a JSON header and raw data; reading one runs no code. The
config stands in the header's metadata under "cvit.config", where the model has them the preprocessing of pictures under
"cvit.preprocessing", a JSON object, the names of the classes under "cvit.classes", a JSON list, under "cvit.origin"
whose names the weights had before, and under "cvit.precision" the model's precision where the weights' dtype does not
say it. Since format 4 of the config there is a checksum of all that, see checksum.py.

All tensors are F32, all F64, or all BF16. The latter take half the room of float32 and are float32 again when they are
read; what they are stored in says nothing of the precision that the model computes in.
"""

from __future__ import annotations

import json
import os

import numpy as np

from ..base.errors import check, listed, short
from ..base.files import replacing
from ..base.numbers import shown
from ..families.reading import check_positions
from ..model import config_format
from ..model.config import ViTConfig
from ..model.layout import Layout
from ..model.origin import Origin
from ..model.precision import dtype_of, resolved
from ..model.vit import ViT
from ..pictures.preprocessing import Preprocessing
from .checksum import KEY as CHECKSUM_KEY
from .checksum import NUMBER, WRITTEN, Checked, write_checked
from .safetensors_file import read_safetensors
from .tensors import Tensors

CONFIG_KEY, PREPROCESSING_KEY, CLASSES_KEY = "cvit.config", "cvit.preprocessing", "cvit.classes"
ORIGIN_KEY, PRECISION_KEY = "cvit.origin", "cvit.precision"
OWN_KEYS = (CONFIG_KEY, PREPROCESSING_KEY, CLASSES_KEY, ORIGIN_KEY, PRECISION_KEY, CHECKSUM_KEY)
CHECKSUM_SINCE = 4  # the first format whose files must have one


def save(
    path: str | os.PathLike, model: ViT, *, metadata: dict[str, str] | None = None, dtype: str | None = None
) -> None:
    """Write `model`'s weights, config, precision, preprocessing and class names to `path`, and `metadata`, a dict of
    strings, beside them.

    With dtype="bf16" weights are rounded to bfloat16, to nearest even, and the file has half the size; loaded they are
    float32 numbers, those that bfloat16 has. The file is written as `base.files.replacing` says: `path` never holds
    half a model, and what the system reports, a full disk for instance, is an `OSError` that names `path`.
    """
    dtype = stored_dtype(dtype)
    notes = dict(metadata or {})
    for key, value in notes.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise TypeError(f"metadata must map strings to strings, got {key!r}: {value!r}")
    for key in OWN_KEYS:
        check(key not in notes, f"metadata must not have the key {key!r}, which is cvit's own")
    tensors = model.layout.views(model.weights)
    notes |= notes_of(model)
    with replacing(path) as temporary:
        write_checked(temporary, tensors, notes, bfloat16=dtype == "bf16")


def stored_dtype(dtype: str | None) -> str | None:
    """`dtype` if it is one that weights can be stored in other than their own."""
    check(dtype in (None, "bf16"), f"dtype must be 'bf16' or None, got {shown(dtype)}")
    return dtype


def notes_of(model: ViT) -> dict[str, str]:
    """What a file's metadata says of a model, under cvit's own keys."""
    notes = {CONFIG_KEY: model.config.to_json()}
    if model.preprocessing is not None:
        notes[PREPROCESSING_KEY] = model.preprocessing.to_json()
    if model.class_names is not None:
        notes[CLASSES_KEY] = json.dumps(model.class_names)
    if model.origin is not None:
        notes[ORIGIN_KEY] = model.origin.to_json()
    if model.precision != resolved(None, model.dtype):
        notes[PRECISION_KEY] = model.precision
    return notes


def load(path: str | os.PathLike, *, precision: str | None = None, mmap: bool = False) -> ViT:
    """The model that `save` wrote to `path`, with its dtype, float32 for one that was stored in bfloat16.

    `precision` and `mmap` are those of `cvit.load`.

    A file that is damaged, whose checksum is not that of its contents or, since format 4, missing, or whose tensors are
    not exactly those of its config, is a `ValueError` naming the file and the reason. Nothing is allocated before the
    config, the shapes and the file's own size have been found to agree.
    """
    file = Checked(path)
    try:
        config, number = _config(path, file.tensors)
        dtype = _dtype(path, file.tensors, config)
    except ValueError:
        if file.has_checksum:  # if it is damaged, say that
            file.verify()
        raise
    weights = _weights(file, Layout.of(config), dtype, mmap)
    if precision is not None:
        weights = weights.astype(dtype_of(precision), copy=False)
    said = file.tensors.metadata.get(PRECISION_KEY)
    try:
        model = ViT(config, weights, precision=precision or said, **_about_pictures(file.tensors))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {short(error, 500)}") from None
    check(
        file.has_checksum or number < CHECKSUM_SINCE,
        f"{path} is damaged or not written by cvit: a file of format {number} must have a checksum",
    )
    return model


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The `metadata` given to `save`."""
    return {key: value for key, value in read_safetensors(path).metadata.items() if key not in OWN_KEYS}


def is_own(path: str | os.PathLike) -> bool:
    """Whether a file, which must be a regular one, is of this format: a safetensors file with a config or a checksum of
    cvit's, of which damage may have left one."""
    try:
        return not {CONFIG_KEY, CHECKSUM_KEY}.isdisjoint(read_safetensors(path).metadata)
    except ValueError:
        return False


def _config(path, tensors: Tensors) -> tuple[ViTConfig, int]:
    """The config and the number of its format."""
    text = tensors.metadata.get(CONFIG_KEY)
    if text is None:
        raise ValueError(f"{path} has no {CONFIG_KEY!r} in its metadata, so it is not a cvit model")
    try:
        return ViTConfig.from_json(text), config_format.number(text)
    except ValueError as error:
        raise ValueError(f"{path} has a wrong config: {short(error, 500)}") from None


def _about_pictures(tensors: Tensors) -> dict:
    """The preprocessing, the class names and the origin, None where the file has none."""
    notes = tensors.metadata
    preprocessing, names, origin = (notes.get(key) for key in (PREPROCESSING_KEY, CLASSES_KEY, ORIGIN_KEY))
    if names is not None:
        try:
            names = json.loads(names)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the class names are not valid JSON: {short(error, 200)}") from None
        check(isinstance(names, list), f"the class names must be a JSON list, got {short(repr(names))}")
    return dict(
        preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing), class_names=names,
        origin=None if origin is None else Origin.from_json(origin),
    )  # fmt: skip


def _dtype(path, tensors: Tensors, config: ViTConfig) -> np.dtype:
    """The dtype that all tensors are read as; they are found to be those of the config."""
    names = set(tensors)
    # A block has six tensors or more; a config with more blocks than the file could hold must not even get a layout.
    enough = 6 * config.depth < len(names)
    check(enough, f"{path} has {len(names)} tensors, too few for the {short(config.depth)} blocks of its config")
    layout = Layout.of(config)
    missing, unknown = layout.entries.keys() - names, names - layout.entries.keys()
    check(not missing, f"{path} lacks {len(missing)} of its config's tensors: {listed(missing, 3)}")
    check(not unknown, f"{path} has {len(unknown)} tensors unknown to its config: {listed(unknown, 3)}")
    dtypes = set()
    for name, entry in layout.entries.items():
        shape = tensors[name].shape
        check(shape == entry.shape, f"{path}: {name} must have shape {short(entry.shape)}, got {short(shape)}")
        dtypes.add(tensors[name].dtype)
    codes = sorted(WRITTEN.get(dtype, dtype) for dtype in dtypes)
    check(codes in (["F32"], ["F64"], ["BF16"]), f"{path} must be all F32, all F64 or all BF16, got {codes}")
    if config.rope is not None:
        check_positions(config, layout.size)
    return np.dtype(np.float64 if codes == ["F64"] else np.float32)


def _weights(file: Checked, layout: Layout, dtype: np.dtype, mmap: bool) -> np.ndarray:
    """The flat weights, checked if the file has a checksum; with `mmap` in the file's map, where they lie so."""
    whole = file.tensors[file.order[0]].dtype == dtype.name and file.order == list(layout.entries) and NUMBER.isnative
    vector = file.mapped(dtype) if mmap and whole else None
    if vector is None and whole and file.has_checksum:
        weights = np.empty(layout.size, dtype)
        file.verify(weights.view(np.uint8))
        return weights
    if file.has_checksum:
        file.verify()
    if vector is not None:
        return vector
    weights = np.empty(layout.size, dtype)
    for name, view in layout.views(weights).items():
        view[...] = file.tensors[name].read()
    return weights
