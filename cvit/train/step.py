"""One optimizer step: loss and gradient of a batch, in parts where memory is short, then the update.

The loss of a batch is the mean over its images, or with weights the weighted mean. A batch that is taken in
`accumulate` parts gives the same sums in another order: parts have the weights that their images have in the whole
batch, so the gradient differs from the whole batch's by rounding alone, at most (parts + 1) epsilon of the sum of the
parts' sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.memory import allocate
from ..model.drop import Drop
from .evaluation import not_finite
from .front import Front

NO_CLIPPING = 1e300  # a norm that no gradient exceeds: the norm is looked at all the same


class Outcome(NamedTuple):
    """What a step tells: the batch's mean loss, and how many of its images were recognised."""

    loss: float
    right: int


class Stepper:
    """Takes steps on batches of (images, targets).

    Parameters
    ----------
    model, optimizer, front : see `fit`
    label_smoothing, clip_norm, drop_path, dropout : float
    accumulate : int
        Parts of a batch.
    class_weight : array (classes,), optional
    ema : EMA, optional
    seed : int
        Of dropout and stochastic depth, together with the number of the step.
    """

    def __init__(
        self, model, optimizer, front: Front, *, label_smoothing, clip_norm, accumulate, class_weight, drop_path,
        dropout, ema, seed,
    ):  # fmt: skip
        self.model, self.optimizer, self.front, self.ema = model, optimizer, front, ema
        self.label_smoothing, self.accumulate, self.class_weight = label_smoothing, accumulate, class_weight
        self.clip_norm = NO_CLIPPING if clip_norm is None else clip_norm
        self.drop_path, self.dropout, self.seed = drop_path, dropout, seed
        size = model.weights.size
        self.grad = allocate(size, model.dtype)[:size]  # one vector for the whole run

    def __call__(self, batch, lr: float, step: int) -> Outcome:
        """Step `step` (from 0) of the run, on a batch; raises `FloatingPointError` before anything has changed where
        the loss or the gradient is not finite."""
        rows = self.front.rows(batch.images, getattr(batch, "indices", None))
        loss, right = self._loss_and_grad(rows, batch, step)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss}; {self._reason(batch.images)}")
        try:
            self.optimizer.step(self.model.weights, self.grad, lr=lr, clip_norm=self.clip_norm)
        except ValueError as error:
            raise FloatingPointError(f"the gradient is not finite: {error}; {self._reason(batch.images)}") from None
        if self.ema is not None:
            self.ema.update(self.model.weights)
        return Outcome(loss, right)

    def _loss_and_grad(self, rows, batch, step: int) -> tuple[float, int]:
        """The loss; the gradient is in `self.grad` then."""
        targets, N = np.asarray(batch.targets), len(rows)
        weights = self._weights(targets, getattr(batch, "weights", None))
        if weights is None and self.accumulate > 1:
            weights = np.full(N, 1 / N)
        parts, loss, right = min(self.accumulate, N), 0.0, 0
        for part in range(parts):
            start, stop = part * N // parts, (part + 1) * N // parts
            some = slice(start, stop)
            part_loss, _ = self.model.loss_and_grad(
                rows[some], targets[some], label_smoothing=self.label_smoothing, out=self.grad, accumulate=part > 0,
                **self._options(weights, some, step),
            )  # fmt: skip
            labels = targets[some] if targets.ndim == 1 else targets[some].argmax(axis=1)
            right += int(np.count_nonzero(self.model.logits.argmax(axis=1) == labels))
            loss += part_loss
        return loss, right

    def _options(self, weights, some: slice, step: int) -> dict:
        """What only some runs need of `loss_and_grad`."""
        options: dict = {}
        if weights is not None:
            options["sample_weight"] = weights[some]
        if self.front.first is not None:
            options["first"] = self.front.first
        if self.drop_path or self.dropout:
            seed = int(np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)[0] >> 1)
            options["drop"] = Drop(path=self.drop_path, rate=self.dropout, seed=seed, first=some.start)
        return options

    def _weights(self, targets, given) -> np.ndarray | None:
        """The weight of each image's loss in the batch's, or None where all have the same."""
        if self.class_weight is None and given is None:
            return None
        weights = np.ones(len(targets)) if given is None else np.asarray(given, np.float64)
        if self.class_weight is not None:
            of_classes = self.class_weight[targets] if targets.ndim == 1 else targets @ self.class_weight
            weights = weights * of_classes
        total = weights.sum()
        return weights / total if total > 0 else weights

    def _reason(self, images) -> str:
        """What a loss that is not finite comes from, as far as can be seen."""
        place = not_finite(np.asarray(images))
        if place is not None:
            return f"the pictures were not finite, augmentation or the data gave a nan or an infinity in image {place}"
        if not np.isfinite(self.model.weights).all():
            return "the pictures were finite, the model's weights were not"
        return "the pictures were finite; a lower learning rate may help"
