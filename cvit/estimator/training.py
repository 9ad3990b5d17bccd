"""The model that an estimator trains, an epoch of its training, and how the learning rate goes."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable

from .. import families
from ..base.errors import check
from ..base.numbers import as_int, shown
from ..engine.memory import allocate
from ..formats.load import load
from ..model.config import ViTConfig
from ..model.precision import dtype_of
from ..model.vit import ViT
from ..train.optim import AdamW
from .samples import Samples
from .standardize import Standardizer

MOST_PATCHES = 8  # along an edge, where `patch_size` is not given
LARGEST_PATCH = 16


def patch_for(height: int, width: int) -> int:
    """A patch size for images that size: an eighth of the longer edge, rounded up, at least 2 and at most 16 pixels.

    So 8 x 8 has 4 x 4 patches of 2 pixels, 28 x 28 has 7 x 7 of 4, and 224 x 224 has 14 x 14 of 16. Of images below
    4 pixels every pixel is a patch.
    """
    edge = max(height, width)
    return 1 if edge < 4 else min(LARGEST_PATCH, max(2, math.ceil(edge / MOST_PATCHES)))


def whole(edge: int, patch: int) -> int:
    """The next multiple of `patch` from `edge` on."""
    return -(-edge // patch) * patch


def new_model(
    shape, classes: int, seed: int, patch_size, width, depth, heads, hidden, precision: str | None = None
) -> ViT:
    """A ViT with first weights of `seed` for images of `shape` (C, h, w), padded to whole patches."""
    channels, h, w = shape
    patch = patch_for(h, w) if patch_size is None else patch_size
    pair = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    check(len(pair) == 2, f"patch_size must be one number or (height, width), got {shown(patch_size)}")
    down, across = (as_int("patch_size", edge) for edge in pair)
    config = ViTConfig(
        image_size=(whole(h, down), whole(w, across)), patch_size=(down, across), channels=channels, width=width,
        depth=depth, heads=heads, hidden=0 if hidden is None else as_int("hidden", hidden), classes=classes,
        pool="mean",
    )  # fmt: skip
    model = ViT(config, seed=seed, precision=precision)
    # The usual positions are 50 times smaller than the embedded patches, and a small model is blind for many epochs to
    # where a patch lies; as large as the patches they are seen at once.
    model.layout.views(model.weights)["pos_embed"][...] *= 50
    return model


def read_model(name: str, value, precision: str | None = None, **changes) -> ViT:
    """The model that a parameter is or names, a ViT or what `cvit.load` takes; `changes` go to `load`.

    With a `precision` other than its own a ViT is copied, but for weights of the same dtype.
    """
    if isinstance(value, ViT):
        if precision is None:
            return value
        weights = value.weights.astype(dtype_of(precision), copy=False)
        return ViT(
            value.config, weights, precision=precision, preprocessing=value.preprocessing,
            class_names=value.class_names, origin=value.origin,
        )  # fmt: skip
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a ViT, a path or a name on the Hub, got {shown(value)}")
    return load(value, precision=precision, **changes)


def started_from(init, shape, classes: int, precision: str | None = None) -> ViT:
    """The model `init` with a new head of zeros, for images of `shape` (C, h, w) padded to whole patches.

    Without a `precision` a model of "bf16" stays one, and any other is of float32. Positions are resampled and channels
    summed or repeated as `cvit.load` does. `init` itself stays as it is.
    """
    channels, h, w = shape
    model = read_model("init", init)
    precision = precision or ("f32" if model.precision == "f64" else model.precision)
    check(model.config.pool != "none", "init must have one prediction an image, but its pool is 'none'")
    down, across = model.config.patch
    size = whole(h, down), whole(w, across)
    if not isinstance(init, ViT):
        model = read_model("init", init, image_size=size)  # from the file's own positions, resampled once
    origin = model.origin
    family = families.family_named(origin.family) if origin else None
    style = frozenset(origin.style if origin else ())
    weights = model.weights.astype(dtype_of(precision))
    config, weights = families.adapted(model.config, weights, family, style, size, 0, channels)
    config, weights = families.adapted(config, weights, family, style, classes=classes)
    return ViT(config, weights, precision=precision, origin=origin)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The numbers of a training run, checked by what uses them."""

    batch_size: int
    clip_norm: float | None
    label_smoothing: float
    seed: int


class Trainer:
    """A model, its optimizer, and room for a gradient."""

    def __init__(self, model: ViT, optimizer: AdamW, recipe: Recipe):
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self._grad = allocate(model.weights.size, model.dtype)[: model.weights.size]

    def epoch(
        self, samples: Samples, standardizer: Standardizer, number: int, rate: Callable[[int], float] | None = None
    ) -> float:
        """Train on every example once. Returns the mean loss, weighted, taken while the weights moved.

        A step's gradient is the mean over its batch of w_n times that of example n, with weights w of mean 1 over all
        examples: its expectation is the gradient of the weighted mean loss. `rate` gives the learning rate of a step,
        counted from 0 in this epoch.

        Raises
        ------
        FloatingPointError
            A loss is not finite.
        """
        recipe, total = self.recipe, 0.0
        for step, (x, y, weights) in enumerate(samples.batches(standardizer, recipe.batch_size, recipe.seed, number)):
            loss, _ = self.model.loss_and_grad(
                x, y, label_smoothing=recipe.label_smoothing, out=self._grad,
                sample_weight=None if weights is None else weights / len(x),
            )  # fmt: skip
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became {loss} in epoch {number + 1}, step {step + 1}: a lower learning_rate may help"
                )
            lr = None if rate is None else rate(step)
            self.optimizer.step(self.model.weights, self._grad, lr=lr, clip_norm=recipe.clip_norm)
            total += loss * len(x)
        return total / len(samples)
