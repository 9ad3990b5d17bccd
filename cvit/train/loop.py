"""The training loop and the evaluation, for any model with `loss_and_grad` and `forward` and any labelled images.

history = fit(model, train, test, epochs=20, optimizer=AdamW(model, lr=1e-3))
"""

from __future__ import annotations

import csv
import dataclasses
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..base.arrays import as_float, as_labels
from ..base.errors import check
from ..base.files import replacing
from ..base.numbers import as_int, finite
from ..data import Dataset, batches
from .optim import AdamW


class Step(NamedTuple):
    """Where a run stands after an optimizer step; means are over the images of the epoch so far."""

    epoch: int  # from 1
    step: int  # within the epoch, from 1
    images: int  # of the epoch so far
    loss: float
    accuracy: float
    lr: float


class Epoch(NamedTuple):
    """One finished epoch. The training figures are means over its batches, taken while the weights moved."""

    epoch: int  # from 1
    lr: float  # of its last step
    train_loss: float
    train_accuracy: float
    test_loss: float  # nan without test data
    test_accuracy: float
    images_per_second: float  # of training, evaluation not counted


@dataclasses.dataclass
class History:
    """What happened in a run: its finished epochs, and whether a Ctrl-C ended it before the last."""

    epochs: list[Epoch] = dataclasses.field(default_factory=list)
    interrupted: bool = False

    def write_csv(self, path) -> None:
        """One line an epoch under a line of names."""
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Epoch._fields)
            writer.writerows(self.epochs)


class Evaluation(NamedTuple):
    """Mean cross-entropy and accuracy over some images, and the predicted class of each (N,)."""

    loss: float
    accuracy: float
    predictions: np.ndarray


def fit(
    model,
    train: Dataset,
    test: Dataset | None = None,
    *,
    epochs: int,
    batch_size: int = 128,
    optimizer=None,
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    label_smoothing: float = 0.0,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    seed: int = 0,
    history: History | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train `model` in place.

    Parameters
    ----------
    model : ViT
        Its `weights` are updated in place.
    train, test : (images (N, C, H, W), labels (N,))
        `test`, if given, is evaluated after every epoch.
    epochs, batch_size : int
        Passes over the training images, and images a step; the last batch of an epoch may be smaller.
    optimizer : SGD or AdamW
        `AdamW(model)` if not given.
    schedule : step -> learning rate
        Steps count from 0 over the whole run. Without one the optimizer's own rate holds.
    clip_norm, label_smoothing : float
        See `optim` and `ViT.loss_and_grad`.
    augment : (images, rng) -> images
        Applied to every training batch, as `data.random_affine` is.
    seed : int
        Of shuffling and augmentation; each epoch has a stream of its own.
    history : History
        Of an earlier call, to go on after its last whole epoch: with the same optimizer, schedule and seed it is
        the same run, as long as that one was not stopped within an epoch.
    on_step, on_epoch : callables
        Told of every step and of every finished epoch; a progress bar hangs here.

    Ctrl-C ends the run between two steps: the model keeps what it has learnt and the history says `interrupted`.
    A wrong argument raises before the first step. A loss that is not finite raises `FloatingPointError`, and the
    weights stay those that gave it.
    """
    images, labels = _check_data("train", train, model)
    test = None if test is None else _check_data("test", test, model)
    epochs, batch_size = as_int("epochs", epochs), as_int("batch_size", batch_size)
    seed = as_int("seed", seed, minimum=0)
    label_smoothing = finite("label_smoothing", label_smoothing)
    check(label_smoothing < 1, f"label_smoothing must be below 1, got {label_smoothing!r}")
    if clip_norm is not None:
        check(finite("clip_norm", clip_norm) > 0, "clip_norm must be greater than 0 (None means no clipping)")
    optimizer = AdamW(model) if optimizer is None else optimizer
    history = History() if history is None else history
    history.interrupted = False
    steps_per_epoch = math.ceil(len(images) / batch_size)

    def train_epoch(epoch: int) -> Epoch:
        rng = np.random.default_rng([seed, epoch])
        seen, loss_sum, right, lr = 0, 0.0, 0, optimizer.lr
        start = time.perf_counter()
        for step, (x, y) in enumerate(batches(images, labels, batch_size, rng=rng, augment=augment)):
            lr = optimizer.lr if schedule is None else schedule(epoch * steps_per_epoch + step)
            loss, grad = model.loss_and_grad(x, y, label_smoothing=label_smoothing)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became {loss} in epoch {epoch + 1}, step {step + 1}; a lower learning rate may help"
                )
            right += int(np.count_nonzero(model.logits.argmax(axis=1) == y))
            optimizer.step(model.weights, grad, lr=lr, clip_norm=clip_norm)
            seen, loss_sum = seen + len(x), loss_sum + loss * len(x)
            if on_step is not None:
                on_step(Step(epoch + 1, step + 1, seen, loss_sum / seen, right / seen, lr))
        images_per_second = seen / (time.perf_counter() - start)
        result = Evaluation(math.nan, math.nan, None) if test is None else evaluate(model, *test)
        return Epoch(
            epoch + 1, lr, loss_sum / seen, right / seen, result.loss, result.accuracy, images_per_second
        )  # fmt: skip

    try:
        for epoch in range(len(history.epochs), epochs):
            history.epochs.append(train_epoch(epoch))
            if on_epoch is not None:
                on_epoch(history.epochs[-1])
    except KeyboardInterrupt:
        history.interrupted = True
    return history


def evaluate(model, images: np.ndarray, labels: np.ndarray, batch_size: int = 256) -> Evaluation:
    """Loss, accuracy and predictions of `model` on images (N, C, H, W) with labels (N,)."""
    images, labels = _check_arrays("", images, labels, model)
    logits = np.concatenate([model.forward(x) for x, _ in batches(images, labels, batch_size)])
    predictions = logits.argmax(axis=1)
    return Evaluation(_cross_entropy(logits, labels), float(np.mean(predictions == labels)), predictions)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): row = true class, column = predicted class."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def _cross_entropy(logits, labels) -> float:
    """Mean softmax cross-entropy, in float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))


def _check_data(name, data, model) -> Dataset:
    check(isinstance(data, tuple) and len(data) == 2, f"{name} must be a pair (images, labels)")
    return _check_arrays(f"{name} ", *data, model)


def _check_arrays(prefix, images, labels, model) -> Dataset:
    """Images of the model's shape and dtype and labels within its classes, checked once for a whole run."""
    config = model.config
    images = as_float(f"{prefix}images", images, ("N", config.channels, *config.image_size), model.dtype)
    check(len(images) > 0, f"{prefix}images must not be empty")
    return Dataset(images, as_labels(f"{prefix}labels", labels, len(images), config.classes))
