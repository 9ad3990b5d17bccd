"""What a model computes without gradients: logits, features, tokens, and what a frozen front leaves to a training step.

A large batch goes through in pieces, so that the memory it takes is bounded. Functions here work on a `ViT`, whose
methods check and document what they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..base.arrays import any_float, as_array, laid_out
from ..base.errors import check
from ..base.numbers import as_int, shown
from ..engine.plan import Plan as Engine

if TYPE_CHECKING:
    from .program import First
    from .vit import Mode, ViT

LOGITS, FEATURES = 0, 1  # of what `Engine.forward` gives


def layer_number(layer, depth: int) -> int:
    """The number of a block, counted from the end where it is negative."""
    number = as_int("layers", layer, minimum=-depth)
    check(number < depth, f"layers must be below the depth {depth}, got {number}")
    return number % depth


def as_first(first, depth: int) -> First:
    """Where training starts: the number of a block, the depth for what follows the blocks, or "head"."""
    if isinstance(first, str):
        check(first == "head", f"first must be a block's number or 'head', got {shown(first)}")
        return "head"
    return as_int("first", first, minimum=0, maximum=depth)


def pieces(model: ViT, x: np.ndarray, mode: Mode, isa: str | None = None) -> Iterator[tuple[slice, Engine, np.ndarray]]:
    """Rows of the batch, the engine for them, and their images. The caller holds the model's lock."""
    N = len(x)
    piece = model._piece(N)
    engine = model._engine(piece, mode, isa=isa)
    for start in range(0, N, piece):
        start = min(start, N - piece)  # the last piece is as large as the others and begins within the one before
        yield slice(start, start + piece), engine, laid_out(x[start : start + piece], model.dtype)


def forward(model: ViT, x, which: int) -> np.ndarray:
    """Logits or pooled features of images x, a new array (N, width), or (N, T, width)."""
    x = model._images(x)
    N = len(x)
    with model._lock:
        weights = model._checked_state().weights
        if model._piece(N) == N:  # nearly every call, and the quickest one: a small model takes some 20 microseconds
            return model._engine(N, "infer").forward(weights, laid_out(x, model._dtype))[which].copy()
        result = np.empty((N, *_row_shape(model, which)), model.dtype)
        for rows, engine, images in pieces(model, x, "infer"):
            result[rows] = engine.forward(weights, images)[which]
    return result


def tokens(model: ViT, x, layers, norm: bool) -> np.ndarray | list[np.ndarray]:
    """All tokens of images x, or with `layers` those behind each of these blocks."""
    x = model._images(x)
    depth = model.config.depth
    wanted = [depth - 1] if layers is None else [layer_number(layer, depth) for layer in layers]
    shape = (len(x), model.config.tokens, model.config.width)
    result = {layer: np.empty(shape, model.dtype) for layer in wanted}
    with model._lock:
        weights = model._checked_state().weights
        for rows, engine, images in pieces(model, x, "tokens"):
            if layers is None and norm:
                result[depth - 1][rows] = engine.tokens(weights, images)
                continue
            for layer, values in zip(sorted(result), engine.layers(weights, images, sorted(result), norm)):
                result[layer][rows] = values
    return result[depth - 1] if layers is None else [result[layer] for layer in wanted]


# ------------------------------------------------------------------------------------------------------ a frozen front
def front_shape(model: ViT, first: First) -> tuple[int, ...]:
    """Of one image: what training from `first` on begins with."""
    if first == "head":
        return _row_shape(model, FEATURES)
    return model.config.tokens, model.config.width


def front(model: ViT, x, first: First) -> np.ndarray:
    """The rows (N, ...) of images x that training from `first` on begins with, a new array."""
    x = model._images(x)
    result = np.empty((len(x), *front_shape(model, first)), model.dtype)
    with model._lock:
        fill_front(model, model._checked_state().weights, x, first, result)
    return result


def images_or_rows(model: ViT, x, first: First) -> np.ndarray:
    """x of a training step with a frozen front: images, or the rows that the front leaves; checked, not converted."""
    array, shape = as_array("x", x), front_shape(model, first)
    if array.ndim != 1 + len(shape):
        return model._images(array)
    array = any_float("x", array, ("N", *shape))
    check(len(array) > 0, "x must hold at least one image, got a batch of 0")
    return array


def fill_front(
    model: ViT, weights: np.ndarray, x: np.ndarray, first: First, to: np.ndarray, isa: str | None = None
) -> None:
    """Write the rows that training from `first` on begins with: x as it is, or what the front makes of images, on the
    instruction set of the engine behind it. The caller holds the model's lock."""
    if x.shape[1:] == front_shape(model, first):
        to.reshape(x.shape)[...] = x
        return
    to = to.reshape(len(x), *front_shape(model, first))
    for rows, engine, images in pieces(model, x, front_mode(first), isa):
        if first == "head":
            to[rows] = engine.forward(weights, images)[FEATURES]
        elif first == 0:
            to[rows] = engine.embed(weights, images)
        else:
            (to[rows],) = engine.layers(weights, images, [first - 1], False)


def front_mode(first: First) -> Mode:
    return "infer" if first == "head" else "tokens"


def _row_shape(model: ViT, which: int) -> tuple[int, ...]:
    """Of one image's logits or features."""
    width = model.config.feature_width if which == FEATURES else model.config.classes
    return (model.config.tokens, width) if model.config.pool == "none" else (width,)
