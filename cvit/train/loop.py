"""The training loop and the evaluation, for any model with `loss_and_grad` and `forward` and any labelled images.

history = fit(model, train, test, epochs=20, optimizer=AdamW(model, lr=1e-3))
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from ..base.errors import check
from ..base.numbers import as_int, finite
from ..data import Dataset, batches
from ..engine.memory import allocate
from .evaluation import Evaluation, checked_pair, evaluate_checked, not_finite
from .history import Epoch, History, Step
from .optim import AdamW


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
        Any sequence of the two, the images finite. `test`, if given, is evaluated after every epoch.
    epochs, batch_size : int
        Passes over the training images, and images a step; the last batch of an epoch may be smaller.
    optimizer : SGD or AdamW
        Or any object with their `step` and `lr`; `AdamW(model)` if not given.
    schedule : step -> learning rate, finite and at least 0
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
    images, labels = checked_pair("train", train, model)
    test = None if test is None else checked_pair("test", test, model)
    epochs, batch_size = as_int("epochs", epochs), as_int("batch_size", batch_size)
    seed = as_int("seed", seed, minimum=0)
    label_smoothing = finite("label_smoothing", label_smoothing)
    check(label_smoothing < 1, f"label_smoothing must be below 1, got {label_smoothing!r}")
    if clip_norm is not None:
        check(finite("clip_norm", clip_norm) > 0, "clip_norm must be greater than 0 (None means no clipping)")
    _check_objects(
        optimizer, history, {"schedule": schedule, "augment": augment, "on_step": on_step, "on_epoch": on_epoch}
    )
    optimizer = AdamW(model) if optimizer is None else optimizer
    history = History() if history is None else history
    history.interrupted = False
    steps_per_epoch = math.ceil(len(images) / batch_size)
    first_step = len(history.epochs) * steps_per_epoch
    size = model.weights.size
    grad = allocate(size, model.dtype)[:size]  # one vector for the whole run

    def train_epoch(epoch: int, step: int) -> Epoch:
        """The epoch whose first step is step `step` of the whole run."""
        rng = np.random.default_rng([seed, epoch])
        seen, loss_sum, right, lr = 0, 0.0, 0, optimizer.lr
        start = time.perf_counter()
        for number, (x, y) in enumerate(batches(images, labels, batch_size, rng=rng, augment=augment), start=1):
            lr = optimizer.lr if schedule is None else _scheduled(schedule, step)
            loss, _ = model.loss_and_grad(x, y, label_smoothing=label_smoothing, out=grad)
            if not math.isfinite(loss):
                reason = _reason(model, x, updated=step > first_step)
                raise FloatingPointError(f"the loss became {loss} in epoch {epoch + 1}, step {number}; {reason}")
            right += int(np.count_nonzero(model.logits.argmax(axis=1) == y))
            optimizer.step(model.weights, grad, lr=lr, clip_norm=clip_norm)
            step, seen, loss_sum = step + 1, seen + len(x), loss_sum + loss * len(x)
            if on_step is not None:
                on_step(Step(epoch + 1, number, seen, loss_sum / seen, right / seen, lr))
        images_per_second = seen / (time.perf_counter() - start)
        result = (
            Evaluation(math.nan, math.nan, np.empty(0, np.int64)) if test is None else evaluate_checked(model, test)
        )
        return Epoch(
            epoch + 1, lr, loss_sum / seen, right / seen, result.loss, result.accuracy, images_per_second
        )  # fmt: skip

    try:
        for epoch in range(len(history.epochs), epochs):
            history.epochs.append(train_epoch(epoch, epoch * steps_per_epoch))
            if on_epoch is not None:
                on_epoch(history.epochs[-1])
    except KeyboardInterrupt:
        history.interrupted = True
    return history


def _check_objects(optimizer, history, functions) -> None:
    """Raise for an argument of `fit` that is not the kind of object it must be."""
    # The class itself has `step` and `lr` as well, but no weights yet.
    usable = not isinstance(optimizer, type) and callable(getattr(optimizer, "step", None)) and hasattr(optimizer, "lr")
    if optimizer is not None and not usable:
        raise TypeError(f"optimizer must be one, AdamW(model, lr=1e-3) for example, got {optimizer!r}")
    if history is not None and not isinstance(history, History):
        raise TypeError(f"history must be the History of an earlier call, got {history!r}")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")


def _scheduled(schedule, step: int) -> float:
    """The schedule's learning rate.

    None would mean the optimizer's own rate to `step`, which is not what a schedule says.
    """
    return finite(f"the learning rate that schedule gives for step {step}", schedule(step))


def _reason(model, x, updated: bool) -> str:
    """What a loss that is not finite comes from. The training images themselves are known to be finite."""
    if not_finite(np.asarray(x)) is not None:
        return "augment gave images that are not finite"
    if not updated and not np.isfinite(model.weights).all():
        return "the model's weights were not finite before the first step"
    return "a lower learning rate may help"
