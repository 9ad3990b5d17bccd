"""The model of a run: a published one with a head for the data's classes, or a new one of a size that fits the data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..base.errors import check
from ..base.numbers import shown
from ..formats.load import load
from ..model.config import ViTConfig
from ..model.precision import dtype_of
from ..model.variants import MOST
from ..model.vit import ViT
from ..pictures.preprocessing import Preprocessing

# For pictures whose shorter edge is at most so long: the size that they are given to the model in (None: their own),
# its patches, and the rest of its shape. Larger pictures get the last row.
SHAPES = (
    (12, None, 2, dict(width=64, depth=4, heads=4, hidden=128)),
    (40, None, 4, dict(width=96, depth=6, heads=4, hidden=192)),
    (96, 64, 8, dict(width=192, depth=6, heads=4, hidden=384)),
    (1 << 30, 128, 16, dict(width=192, depth=12, heads=3, hidden=768)),
)
SHAPE_FIELDS = ("image_size", "patch_size", "width", "depth", "heads", "hidden", "pool")


def new_model(
    edge: int,
    channels: int,
    class_names: tuple[str, ...],
    seed: int,
    shape: Mapping[str, Any],
    variant: str | None = None,
    precision: str | None = None,
) -> ViT:
    """A model with fresh weights for pictures whose shorter edge is `edge`.

    `shape` holds fields of `ViTConfig`, those of `SHAPE_FIELDS`, that are wanted otherwise than `SHAPES` has them;
    `variant` names a usual size and its patches, "S/16". A field beyond `MOST` is a `ValueError`.
    """
    size: Any
    patch: Any
    _, size, patch, rest = next(row for row in SHAPES if edge <= row[0])
    size = size or edge
    if variant is not None:
        base = ViTConfig.variant(variant, image_size=shape.get("image_size") or 224)
        patch, rest = base.patch_size, dict(width=base.width, depth=base.depth, heads=base.heads, hidden=base.hidden)
        size = base.image_size
    fields = {"patch_size": patch, **rest, **{name: value for name, value in shape.items() if value is not None}}
    if "image_size" not in fields:
        patches = fields["patch_size"]
        step = patches if isinstance(patches, int) else max(patches)
        fields["image_size"] = max(size // step, 1) * step
    for name, most in MOST.items():
        numbers = fields[name] if isinstance(fields[name], (tuple, list)) else [fields[name]]
        beyond = [number for number in numbers if isinstance(number, (int, float)) and number > most]
        check(not beyond, f"{name} must be at most {most}, got {shown(fields[name])}")
    config = ViTConfig(channels=channels, classes=len(class_names), **fields)
    # Transparent pictures are seen as on paper; the colour that a file has where it is transparent may be anything.
    how = dataclasses.replace(Preprocessing.default(config.image_size, channels), alpha="white")
    model = ViT(config, seed=seed, precision=precision, preprocessing=how, class_names=class_names)
    if "pos_embed" in model.layout.entries:
        # The usual positions, 50 times smaller than the embedded patches, leave a model that sees little data blind to
        # where a patch lies for many epochs; as large as the patches they are seen at once.
        model.layout.views(model.weights)["pos_embed"][...] *= 50
    return model


def published_model(
    init: str | os.PathLike | ViT,
    class_names: tuple[str, ...],
    seed: int,
    image_size: int | None = None,
    precision: str | None = None,
) -> ViT:
    """A model that `cvit.load` reads, to go on from.

    Its head stays where its classes have the data's names, in that order; else it gets a new one, of zeros, so that the
    first steps leave the features as they are. With `image_size` its positions are resampled; `precision` is its own
    where none is given.
    """
    if isinstance(init, ViT):
        model = init
        check(image_size is None, "image_size goes with a model that is read, not with a ViT: load it with that size")
    else:
        model = load(init, image_size=image_size, precision=precision)
    precision = precision or model.precision
    if model.class_names == class_names:
        return ViT(
            model.config, np.array(model.weights, dtype_of(precision)), precision=precision,
            checkpoint=model.checkpoint, preprocessing=model.preprocessing, class_names=class_names,
            origin=model.origin,
        )  # fmt: skip
    return with_head(model, class_names, seed, precision)


def with_head(model: ViT, class_names: tuple[str, ...], seed: int, precision: str | None = None) -> ViT:
    """`model` with a new head for these classes; everything else as it is, but for a `precision` that is given."""
    config = dataclasses.replace(model.config, classes=len(class_names))
    fresh = ViT(
        config, seed=seed, precision=precision or model.precision, checkpoint=model.checkpoint,
        preprocessing=model.preprocessing, class_names=class_names,
    )  # fmt: skip
    old, new = model.layout.views(model.weights), fresh.layout.views(fresh.weights)
    for name, view in new.items():
        if name in old and old[name].shape == view.shape and name.partition(".")[0] not in ("head", "head_dist"):
            view[...] = old[name]
    return fresh
