"""How good a model is: loss, accuracy, predictions, and the confusion matrix. And the checks of images with labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..base.arrays import as_array, as_float, as_labels
from ..base.errors import check
from ..base.numbers import as_int
from ..data import Dataset, batches
from ..parallel.ranks import ALONE, Ranks
from ..parallel.shares import own_pictures

CHUNK = 1 << 22  # values looked at together for one that is not finite


class Evaluation(NamedTuple):
    """Mean cross-entropy and accuracy over some images, and the predicted class of each (N,)."""

    loss: float
    accuracy: float
    predictions: np.ndarray


def evaluate(model, images: np.ndarray, labels: np.ndarray, batch_size: int = 256) -> Evaluation:
    """Loss, accuracy and predictions of `model` on images (N, C, H, W) with labels (N,)."""
    return evaluate_checked(model, checked_arrays("", images, labels, model), as_int("batch_size", batch_size))


def evaluate_checked(model, data, batch_size: int = 256, ranks: Ranks = ALONE) -> Evaluation:
    """`evaluate` on what `checked_arrays` or `checked_pair` gave, or on a feed; shared out among ranks."""
    return evaluation_of(*logits_of(model, data, batch_size, ranks))


def evaluation_of(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """The evaluation that logits (N, classes) and labels (N,) make."""
    predictions = logits.argmax(axis=1)
    return Evaluation(cross_entropy(logits, labels), float(np.mean(predictions == labels)), predictions)


def logits_of(model, data, batch_size: int = 256, ranks: Ranks = ALONE) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, classes) and labels (N,) of checked arrays, or of a feed's pictures without augmentation, in order.

    Each of several ranks computes those of its share, and every one gets all.
    """
    share = share_for(ranks)
    if hasattr(data, "plain"):
        parts = [(model.forward(batch.images), batch.targets) for batch in data.plain(batch_size, share)]
    else:
        own = share(len(data[0]))
        parts = [(model.forward(x), y) for x, y in batches(data[0][own], data[1][own], batch_size)]
    return gathered(parts, model, ranks)


def share_for(ranks: Ranks) -> Callable[[int], slice]:
    """Which of so many pictures an evaluation has this rank see."""
    return lambda count: own_pictures(count, ranks.rank, ranks.size)


def gathered(parts, model, ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of all pictures out of every rank's (logits, labels) of its batches."""
    none = np.empty((0, model.config.classes), model.dtype), np.empty(0, np.int64)  # a share may have no pictures
    logits, labels = (np.concatenate(ranks.allgather(np.concatenate(side))) for side in zip(none, *parts))
    return logits, labels


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes), int64: row = true class, column = predicted class.

    Labels and predictions (N,) have any integer dtype and lie in [0, classes).
    """
    classes = as_int("classes", classes)
    count = as_array("labels", labels).size
    labels = as_labels("labels", labels, count, classes)
    predictions = as_labels("predictions", predictions, count, classes)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean softmax cross-entropy of logits (N, classes), in float64. A logit of -inf is a class of probability 0."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)  # before any sum: finite logits of any size have a finite result
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))


def checked_pair(name: str, data, model) -> Dataset:
    """`data`, a tuple, list or other sequence of images and labels, as `checked_arrays` gives it."""
    check(is_pair(data), f"{name} must be a pair (images, labels), got {_kind(data)}")
    return checked_arrays(f"{name} ", data[0], data[1], model)


def is_pair(data) -> bool:
    """Whether `data` is a sequence of two that may be images and labels, and not two batches."""
    pair = isinstance(data, Sequence) and not isinstance(data, str | bytes) and len(data) == 2
    return pair and not all(isinstance(part, tuple) for part in data)


def checked_arrays(prefix: str, images, labels, model) -> Dataset:
    """Finite images of the model's shape and dtype and labels within its classes, checked once for a whole run."""
    config = model.config
    images = as_float(f"{prefix}images", images, ("N", config.channels, *config.image_size), model.dtype)
    check(len(images) > 0, f"{prefix}images must not be empty")
    check(config.pool != "none", "model must have one prediction an image, but its pool is 'none'")
    labels = as_labels(f"{prefix}labels", labels, len(images), config.classes)
    found = not_finite(images)
    check(found is None, f"{prefix}images must be finite, but image {found} holds a nan or an infinity")
    return Dataset(images, labels)


def not_finite(images: np.ndarray) -> int | None:
    """The index of the first image with a value that is not finite, None if there is none."""
    some = max(1, CHUNK // max(1, images[0].size))
    for start in range(0, len(images), some):
        finite = np.isfinite(images[start : start + some])
        if not finite.all():
            return start + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
    return None


def _kind(data) -> str:
    return f"a sequence of {len(data)}" if isinstance(data, Sequence) else f"a {type(data).__name__}"
