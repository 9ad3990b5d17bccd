"""What a model says of pictures: the most probable classes, and features. Pictures are taken a few at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..base.errors import check
from ..base.numbers import as_int
from ..pictures.reader import as_pictures

if TYPE_CHECKING:
    from .vit import ViT

BATCH = 32  # pictures that are decoded and computed together
Guess = tuple[str | int, float]  # a class's name, or its number where the model has no names, and its probability


def predict(model: ViT, images, top: int) -> list[Guess] | list[list[Guess]]:
    """See `ViT.predict`."""
    top = as_int("top", top)
    classes = model.config.classes
    check(classes > 0, "this model has no head (classes=0): embed() gives what a head would see")
    check(model.config.pool != "none", "this model predicts a class for every token, not one for a picture")
    pictures, single = as_pictures(images)
    names = model.class_names or range(classes)
    results = []
    for start in range(0, len(pictures), BATCH):
        for row in probabilities(model.forward(model.preprocess(pictures[start : start + BATCH]))):
            best = np.argsort(-row, kind="stable")[:top]
            results.append([(names[number], float(row[number])) for number in best])
    return results[0] if single else results


def embed(model: ViT, images) -> np.ndarray:
    """See `ViT.embed`."""
    check(model.config.pool != "none", "this model has no pooled features of a picture: tokens() gives all of them")
    pictures, _ = as_pictures(images)
    parts = [
        model.features(model.preprocess(pictures[start : start + BATCH])) for start in range(0, len(pictures), BATCH)
    ]
    return np.concatenate(parts)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits (N, classes), in float64."""
    logits = logits.astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
