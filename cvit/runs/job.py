"""A run that is ready to begin: data, model, recipe and feeds, checked and made, nothing written yet."""

from __future__ import annotations

import dataclasses
import os
import zlib
from typing import Any

from ..base.errors import check, listed
from ..base.numbers import shown
from ..data import Augmentation, Cache, Feed, Found, find
from ..model.vit import ViT
from ..pictures.preprocessing import Preprocessing
from ..train.freezing import freezing
from .architecture import SHAPE_FIELDS, new_model, published_model
from .recipe import PRESETS, Recipe, recipe_of


@dataclasses.dataclass
class Job:
    """Everything of a run before its first step. `settings` is what must stay the same when it is resumed."""

    arguments: dict[str, Any]  # as `prepare` was given them, for run.json
    found: Found
    preset: str
    model: ViT
    how: Preprocessing
    recipe: Recipe
    feed: Feed
    validation: Feed | None
    test: Feed | None
    trained: frozenset[str] | None
    first: int | str | None  # of `ViT.loss_and_grad`
    cache_mb: float
    settings: dict[str, Any]


def prepare(
    data: str | os.PathLike | Found,
    *,
    init: str | os.PathLike | ViT | None = None,
    preset: str | None = None,
    variant: str | None = None,
    validation: float | None = None,
    strict: bool = False,
    decoders: int = 1,
    cache_mb: float = 1024,
    checkpoint: str | None = None,
    precision: str | None = None,
    **settings,
) -> Job:
    """Read the data, choose model and recipe, and check that they fit each other.

    Parameters
    ----------
    data : path or Found
        What `cvit.data.find` takes.
    init : path, Hub name or ViT, optional
        A model to go on from; without one a new model is made.
    preset : "scratch", "finetune" or "probe", optional
        By default "finetune" with `init` and "scratch" without.
    variant : str, optional
        Of a new model, a size and its patches: "Ti/16".
    validation, strict : see `cvit.data.find`
    decoders : int
        Threads that decode pictures ahead.
    cache_mb : float
        Room for decoded pictures, 10^6 bytes.
    checkpoint : "block", optional
        See `ViT`: far less memory, a slower step, the same bits.
    precision : "f32", "f64", "bf16", "bf16-fast" or "auto", optional
        See `ViT`. None: that of `init`, "f32" for a new model. The recipe holds what "auto" became.
    **settings
        Fields of `Recipe`, of its `Augmentation`, and of the new model's shape (`SHAPE_FIELDS`), each by its name.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    arguments = dict(
        data=data if isinstance(data, str) else os.fspath(data) if isinstance(data, os.PathLike) else data.name,
        init=None if init is None else "a model in memory" if isinstance(init, ViT) else os.fspath(init),
        preset=preset, variant=variant, validation=validation, strict=strict, **settings,
    )  # fmt: skip
    found = data if isinstance(data, Found) else find(data, validation=validation, strict=strict)
    preset = preset or ("scratch" if init is None else "finetune")
    check(preset in PRESETS, f"preset must be one of {listed(PRESETS)}, got {shown(preset)}")
    check(init is not None or preset == "scratch", f"preset {preset!r} needs init, the model to go on from")
    shape = {name: settings.pop(name) for name in SHAPE_FIELDS if name in settings}
    edge, channels = min(found.train.size), found.train.channels
    seed = settings.get("seed", 0)
    if init is None:
        model = new_model(edge, channels, found.class_names, seed, shape, variant, precision)
    else:
        wrong = [name for name in shape if name != "image_size"] + (["variant"] if variant else [])
        check(not wrong, f"init brings its own shape: {listed(wrong)} cannot be chosen beside it")
        model = published_model(init, found.class_names, seed, shape.get("image_size"), precision)
    if checkpoint is not None:
        model = ViT(
            model.config, model.weights, precision=model.precision, checkpoint=checkpoint,
            preprocessing=model.preprocessing, class_names=model.class_names, origin=model.origin,
        )  # fmt: skip
    arguments["precision"] = settings["precision"] = model.precision
    pooled = model.config.pool != "none"
    check(pooled, "the model must have one prediction a picture, but its pool is 'none'")
    recipe = recipe_of(preset, min(edge, *model.config.image_size), len(found.train), settings)
    return _assembled(arguments, found, preset, model, recipe, decoders, cache_mb)


def _assembled(arguments, found, preset, model, recipe, decoders, cache_mb) -> Job:
    how = model.preprocessing or Preprocessing.default(model.config.image_size, model.config.channels)
    model.preprocessing = how
    cache = Cache(int(cache_mb * 1e6))
    trained, first = freezing(model.layout, recipe.freeze, last_blocks=recipe.train_blocks, head_only=recipe.head_only)
    everything = trained == frozenset(model.layout.entries)
    augmentation = recipe.augmentation
    still = augmentation == Augmentation.none()
    # What small pictures are moved over is their own background; timm's recipes fill with the mean.
    moved = augmentation.affine is not None or augmentation.pad_crop > 0
    feed = Feed(
        found.train, how, recipe.batch_size, augmentation=None if still else augmentation,
        mixing=recipe.mixing, seed=recipe.seed, decoders=decoders, cache=cache,
        fill=found.train.background(how.channels) if moved else None,
    )  # fmt: skip
    plain = lambda pictures: None if pictures is None else Feed(pictures, how, 256, decoders=decoders, cache=cache)
    config = model.config
    settings = dict(
        data=dict(digest=found.train.digest(), train=len(found.train), classes=list(found.class_names)),
        model=dict(config=config.to_json(), first_weights=f"{zlib.crc32(model.weights):08x}", dtype=str(model.dtype)),
        recipe=recipe.to_json(),
        preprocessing=how.to_json(),
    )
    for name, pictures in (("validation", found.validation), ("test", found.test)):
        settings["data"][name] = None if pictures is None else pictures.digest()
    return Job(
        arguments, found, preset, model, how, recipe, feed, plain(found.validation), plain(found.test),
        None if everything else trained, first, cache_mb, settings,
    )  # fmt: skip
