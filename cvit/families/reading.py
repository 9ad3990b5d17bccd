"""`read` and `write`: a model in the names of another library, to ours and back.

    names, shapes -> family -> configuration -> its table of rows -> every name and shape checked -> numbers

Nothing is read before all names and shapes are as the table says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..base.arrays import as_array, float_dtype
from ..base.errors import check, listed, short
from ..base.numbers import as_int, shown
from ..engine.runtime import get_num_threads
from ..model.config import BIASES, ViTConfig
from ..model.layout import Layout
from ..model.parts import Law
from .compare import differences
from .family import Family, Given, Row, closest, expanded, unknown_part, whole_patches
from .positions import resample

SMALL = 1 << 20  # weights that one thread reads
MOST_READERS = 8
MOST_POSITIONS = 1 << 22  # values: of a model of 384 channels 1672 pixels at patches of 16
STRIP = 16  # floats of a line of the cache
FRESH = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")  # of a head for other classes


class Model(NamedTuple):
    """What `read` makes of a file."""

    config: ViTConfig
    weights: np.ndarray  # (size,) in the order of `Layout.of(config)`
    family: Family
    style: frozenset[str]


def recognise(
    names: Sequence[str], json: Mapping[str, Any] | None, families: Sequence[Family], *, file: str = "the file"
) -> Family:
    """The family that a file is of: the one that its config.json names, else the first whose marks its names have."""
    reason = unknown_part(names)
    check(reason is None, f"{file} has a part that cvit does not compute: {reason}")
    for family in families:
        if json and family.claims(json):
            return family
    kind = (json or {}).get("model_type")  # transformers': its names alone do not tell what a model computes
    check(kind is None, f"{file} is of no known family: model_type {short(repr(kind))}")
    found = next((family for family in families if family.has_marks(names)), None)
    if found is None:
        known = ", ".join(family.name for family in families)
        raise ValueError(f"{file} is of no known family ({known}); its tensors begin with {listed(names, 4)}")
    return found


def given(
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    json: Mapping[str, Any] | None = None,
    num_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> tuple[Given, dict[str, str]]:
    """What is known of a file in its family's spelling, and the file's name of each name."""
    spelling = family.spelling(shapes)
    files: dict[str, str] = {}
    for name, ours in spelling.items():
        check(ours not in files, f"{short(name)} and {short(files.get(ours, ''))} are two names of one tensor")
        files[ours] = name
    if image_size is not None:
        image_size = _pair(image_size)
    known = {ours: tuple(shapes[name]) for ours, name in files.items()}
    return Given(known, dict(json or {}), num_heads, image_size), files


def configuration(family: Family, facts: Given) -> ViTConfig:
    """The configuration of a file at the image size that its tensors have; refuses what cvit does not compute."""
    reason = family.refuse(facts)
    check(reason is None, f"the model has a part that cvit does not compute: {reason}")
    config = family.config(facts)
    # A depth that only config.json names is checked before there is a row for each block.
    check(
        config.depth <= family.most_blocks(facts),
        f"{config.depth} blocks cannot stand in a file of {len(facts.shapes)} tensors",
    )
    check(
        max(config.class_tokens, config.registers) <= 1 << 20,
        f"a model of {config.class_tokens} class tokens and {config.registers} registers is not one of {family.name}",
    )
    check_positions(config, sum(math.prod(shape) for shape in facts.shapes.values()))
    return tidy(config)


def check_positions(config: ViTConfig, stored: int) -> None:
    """Raise for an image size that no tensor of a file bears out and that would take far more memory than its `stored`
    values: positions that are computed, rotary or resampled are made for as many patches as a few digits say."""
    values = config.patches * config.width
    check(
        values <= max(MOST_POSITIONS, stored),
        f"positions of {short(config.patches)} patches are {short(values)} values, too many for a file of {stored}",
    )


def tidy(config: ViTConfig) -> ViTConfig:
    """The same model with the default where a field says what the default means, so that equal models are equal."""
    plain: dict[str, Any] = {}
    for name in BIASES:
        if getattr(config, name) == config.bias:
            plain[name] = None
    if config.qkv_bias == (config.bias,) * 3:
        plain["qkv_bias"] = None
    if config.class_tokens == (config.pool in ("cls", "cls_mean")):
        plain["class_token"] = None
    if config.pool != "map" or config.pool_heads == config.heads:
        plain["pool_heads"] = 0
    if config.pool != "map" or config.pool_hidden == config.hidden:
        plain["pool_hidden"] = 0
    if config.pool != "map" or not config.prefix_tokens:
        plain["pool_prefix"] = True
    if config.pos_rows == config.tokens:
        plain["pos_tokens"] = "all"
    return dataclasses.replace(config, **plain)


def read(
    tensors: Mapping[str, Any],
    families: Sequence[Family],
    config_json: Mapping[str, Any] | None = None,
    *,
    num_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    channels: int | None = None,
    strict: bool = True,
    config: ViTConfig | None = None,
    style: frozenset[str] | None = None,
    dtype=np.float32,
) -> Model:
    """The configuration and the flat weights of a file of another library.

    Parameters
    ----------
    tensors : mapping of name to tensor
        Each has a `shape`, and either a method `read(strict=)` that gives its array or is array-like (torch's tensors,
        too).
    families : sequence of Family
        Those to look among; one is taken as it is.
    config_json : mapping, optional
        The content of config.json.
    num_heads : int, optional
        Where neither the file nor the name of its architecture tells it.
    image_size : int or (int, int), optional
        Another size than the file's: its positions are resampled by the family's rule. Pixels below and to the right
        that fill no patch do not count, as in a convolution.
    classes : int, optional
        Another number than the file's: the head is a fresh one of zeros; 0 for none.
    channels : int, optional
        Another number than the file's: the patch embedding's are summed for one, else repeated in turn and scaled, as
        timm does.
    strict : bool
        Whether tensors that no row names, and numbers of a file that are not finite, are an error, or read over.
    config : ViTConfig, optional
        What the model is (at its file's image size), where the caller knows it, say from the module itself.
    style : frozenset, optional
        The file's style (`Family.style`), where the caller knows it.
    dtype : float32 or float64
        Of the weights.

    Raises
    ------
    ValueError
        The file is of no known family, has a part that cvit does not compute, or a tensor is missing, unknown or
        misshapen; the message names it and the closest known name.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    family = families[0] if len(families) == 1 else recognise(list(shapes), config_json, families)
    facts, files = given(family, shapes, config_json, num_heads, image_size)
    if config is None:
        config = configuration(family, facts)
    if style is None:
        style = family.style(facts)
    table = expanded(family.rows(config, style), config.depth)
    layout = Layout.of(config)
    _check_names(table, layout, facts.shapes, files, strict, family.computed(config, style))
    flat = np.zeros(layout.size, float_dtype("dtype", dtype))
    views = layout.views(flat)

    def fill(name: str) -> None:
        _fill(table[name], _array(files[name], tensors[files[name]], strict), layout, views)

    if flat.size < SMALL:
        for name in table:
            fill(name)
    else:  # NumPy copies without the GIL, and most of the time is that of the memory
        with ThreadPoolExecutor(min(get_num_threads(), MOST_READERS), "read") as pool:
            for _ in pool.map(fill, table):
                pass
    for name, tensor in family.computed(config, style).items():
        views[name][...] = tensor
    target, flat = adapted(config, flat, family, style, facts.image_size, classes, channels)
    return Model(target, flat, family, style)


def adapted(
    config: ViTConfig,
    weights: np.ndarray,
    family: Family | None,
    style: frozenset[str],
    image_size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    channels: int | None = None,
) -> tuple[ViTConfig, np.ndarray]:
    """A model for another image size, number of classes or of channels, as `read` says; the same where none differs.

    Positions of a model that is of no family (None) are resampled as timm does.
    """
    changes: dict[str, Any] = {}
    if image_size is not None:
        size, patch = _pair(image_size), config.patch
        whole = whole_patches(size, patch)
        check(min(whole) > 0, f"image_size must be at least a patch of {patch}, got {size}")
        if whole != config.image_size:
            changes["image_size"] = whole
    if classes is not None and classes != config.classes:
        changes["classes"] = as_int("classes", classes, minimum=0)
    if channels is not None and channels != config.channels:
        changes["channels"] = as_int("channels", channels)
    if not changes:
        return config, weights
    target = dataclasses.replace(config, **changes)
    layout = Layout.of(target)
    flat = np.zeros(layout.size, weights.dtype)
    views, own = layout.views(flat), Layout.of(config).views(weights)
    for name, view in views.items():
        if name == "pos_embed":
            rule = family.position_resampling if family else Family.position_resampling
            view[...] = resample(own[name], config.pos_prefix, config.grid, target.grid, rule)
        elif name == "patch_embed.weight" and "channels" in changes:
            pixels = own[name].reshape(config.channels, math.prod(config.patch), -1)
            view[...] = _other_channels(pixels, target.channels).reshape(target.patch_features, -1)
        elif name in FRESH and "classes" in changes:
            init = layout.entries[name].row.init
            view[...] = init.value if init.law is Law.CONSTANT else 0.0
        else:
            view[...] = own[name]
    for name, tensor in family.computed(target, style).items() if family else ():
        views[name][...] = tensor
    return target, flat


def write(
    config: ViTConfig, weights: np.ndarray, family: Family, style: frozenset[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A model as its family's own library stores it: arrays by name, of the weights' dtype, and config.json's content.

    `style` is the one that `read` gave, for the spelling of the file that was read; None the family's own choice.

    Raises
    ------
    ValueError
        The family has no name for a tensor of this model, or its files cannot say an option: its library could not
        compute it.
    """
    if style is None:
        style = family.style_for(config)
    layout = Layout.of(config)
    views = layout.views(weights)
    table = expanded(family.rows(config, style), config.depth)
    named = {row.ours for rows in table.values() for row in rows}
    computed = family.computed(config, style)
    missing = layout.entries.keys() - named - computed.keys()
    check(not missing, f"{family.name} has no place for {listed(missing, 2)}")
    for name, tensor in computed.items():
        same = np.array_equal(views[name], np.asarray(tensor, np.float32))
        check(same, f"{name} is not what {family.name} computes in its place; write it in another style")
    json = family.config_json(config, style)
    shapes = {family.file_name(name, config): shape_there(rows, layout) for name, rows in table.items()}
    _check_said(config, shapes, family, json)
    arrays = {}
    for name, rows in table.items():
        pieces = [row.how.there(views.get(row.ours, weights[:0]), config) for row in rows]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=rows[0].how.axis)
        arrays[family.file_name(name, config)] = np.array(whole, dtype=weights.dtype, order="C")
    return arrays, json


# -------------------------------------------------------------------------------------------------------------- helpers
def _pair(image_size) -> tuple[int, int]:
    pair = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    check(len(pair) == 2, f"image_size must be one number or (height, width), got {image_size!r}")
    return as_int("image_size", pair[0]), as_int("image_size", pair[1])


def _check_said(config: ViTConfig, shapes, family: Family, json: Mapping[str, Any]) -> None:
    """Raise unless what is written says which model it is (for heads and image size one may have to be asked)."""
    facts, _ = given(family, shapes, json, config.heads, config.image_size)
    wrong = [f"{field}={shown(getattr(config, field))}" for field in differences(config, configuration(family, facts))]
    check(not wrong, f"a file of the family {family.name!r} cannot say {', '.join(wrong)}")


def shape_there(rows: list[Row], layout: Layout) -> tuple[int, ...]:
    """The shape that a tensor of theirs must have."""
    shapes = [row.how.shape(layout.entries[row.ours].shape if row.ours else (), layout.config) for row in rows]
    axis = rows[0].how.axis
    whole = list(shapes[0])
    if len(shapes) > 1:
        whole[axis] = sum(shape[axis] for shape in shapes)
    return tuple(whole)


def _check_names(table: dict[str, list[Row]], layout: Layout, shapes, files: dict[str, str], strict: bool, computed):
    """Raise one error that names every missing, unknown and misshapen tensor (the first few of each)."""
    named = {row.ours for rows in table.values() for row in rows}
    unnamed = layout.entries.keys() - named - computed.keys()
    check(not unnamed, f"a model of this family cannot have {listed(unnamed)}")
    missing, unknown = sorted(table.keys() - shapes.keys()), sorted(shapes.keys() - table.keys())
    wrong = []
    for name in table.keys() & shapes.keys():
        needed = shape_there(table[name], layout)
        if shapes[name] != needed:
            wrong.append(f"{short(files[name])} must have shape {needed}, got {shapes[name]}")
    faults = []
    if missing:
        faults.append(f"the file lacks {listed(missing, 4)}{closest(missing[0], unknown or shapes)}")
    if unknown and strict:
        near = closest(unknown[0], missing or table)
        faults.append(f"it has what this model does not know: {listed((files[name] for name in unknown), 4)}{near}")
    if wrong:
        faults.append("; ".join(sorted(wrong)[:4]))
    check(not faults, "; ".join(faults))


def _array(name: str, tensor, strict: bool) -> np.ndarray:
    """A tensor's numbers as an array of floats; a file's, with `strict`, must be finite."""
    if hasattr(tensor, "read"):
        array = tensor.read(strict=strict)
    else:
        if "bfloat16" in str(getattr(tensor, "dtype", "")) and hasattr(tensor, "float"):
            tensor = tensor.float()  # torch's: NumPy has no such type
        array = as_array(short(name), tensor)
    check(array.dtype.kind in "fiu", f"{short(name)} must hold numbers, got {array.dtype}")
    return array


def _fill(rows: list[Row], whole: np.ndarray, layout: Layout, into: Mapping[str, np.ndarray]) -> None:
    """Every piece of a tensor of theirs to where it belongs."""
    axis, start, config = rows[0].how.axis, 0, layout.config
    for row in rows:
        shape = layout.entries[row.ours].shape if row.ours else ()
        piece = whole
        if len(rows) > 1:
            length = row.how.shape(shape, config)[axis]
            piece = whole[(slice(None),) * axis + (slice(start, start + length),)]
            start += length
        try:
            tensor = row.how.here(piece, shape, config)
        except ValueError as error:
            raise ValueError(f"{row.theirs}: {error}") from None
        if row.ours and tensor is not None:
            part = getattr(row.how, "part", None)
            view = into[row.ours]
            _copy(tensor, view[slice(*part(config)) if part else ...])


def _copy(tensor: np.ndarray, view: np.ndarray) -> None:
    """`view[...] = tensor`; of a transposed matrix whole lines of the cache at a time, which is three times as fast."""
    if tensor.ndim == 2 and tensor.flags.f_contiguous and not tensor.flags.c_contiguous and tensor.size > STRIP * STRIP:
        for start in range(0, tensor.shape[1], STRIP):
            view[:, start : start + STRIP] = tensor[:, start : start + STRIP]
    else:
        view[...] = tensor


def _other_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """A patch embedding (C, P·P, D) for another number of channels, as timm's `adapt_input_conv` makes it."""
    if channels == 1:
        return pixels.sum(axis=0, keepdims=True)
    turn = np.arange(channels) % len(pixels)
    return pixels[turn] * pixels.dtype.type(len(pixels) / channels)
