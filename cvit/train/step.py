"""One optimizer step: loss and gradient of a batch, in parts where memory or work is shared, then the update.

The loss of a batch is the mean over its images, or with weights the weighted mean. It is a sum of parts, each with the
weights that its images have in the whole batch, and so is its gradient: the parts are those of the ranks, or as many as
an exact reduction says, and are added in a fixed tree (cvit/parallel/reduction.py). A rank computes its own parts and
comes to know the sum, the same bits on every rank. A process alone has one part, which is the whole batch.

A part goes through the model in `accumulate` passes, whose gradients are added one after the other. The gradient of a
batch that is cut differs from the whole one's by rounding alone, at most (parts · passes + 1) epsilon of the sum of the
sizes of what is added.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..base.errors import check
from ..base.numbers import as_int
from ..engine.memory import allocate
from ..engine.plan import Progress
from ..model.drop import Drop
from ..parallel.ranks import ALONE, Ranks
from ..parallel.reduction import Reduction
from ..parallel.shares import own_parts, part_slices
from ..parallel.tree import Tree
from .evaluation import not_finite
from .front import Front

NO_CLIPPING = 1e300  # a norm that no gradient exceeds: the norm is looked at all the same


class Outcome(NamedTuple):
    """What a step tells: the batch's mean loss, how many of its images were recognised, and how many it has."""

    loss: float
    right: int
    images: int


class _Work(NamedTuple):
    """A rank's share of a batch in a step."""

    rows: np.ndarray  # the images, or what comes out of a frozen front
    targets: np.ndarray
    weights: np.ndarray | None  # of all images of the batch
    parts: list[slice]  # of the batch
    begin: int  # the first of these images in it
    step: int


class Stepper:
    """Takes steps on batches of (images, targets), or on a rank's share of them.

    Parameters
    ----------
    model, optimizer, front : see `fit`
    label_smoothing, clip_norm, drop_path, dropout : float
    accumulate : int
        Passes of a part.
    class_weight : array (classes,), optional
    ema : EMA, optional
    seed : int
        Of dropout and stochastic depth, together with the number of the step.
    ranks : Ranks
        Who shares the batches out.
    parts : int
        Of a batch, at least one a rank.
    """

    def __init__(
        self, model, optimizer, front: Front, *, label_smoothing, clip_norm, accumulate, class_weight, drop_path,
        dropout, ema, seed, ranks: Ranks = ALONE, parts: int = 1,
    ):  # fmt: skip
        self.model, self.optimizer, self.front, self.ema = model, optimizer, front, ema
        self.label_smoothing, self.accumulate, self.class_weight = label_smoothing, accumulate, class_weight
        self.clip_norm = NO_CLIPPING if clip_norm is None else clip_norm
        self.drop_path, self.dropout, self.seed = drop_path, dropout, seed
        self.ranks, self.parts, self.own = ranks, parts, own_parts(ranks.rank, ranks.size, parts)
        size = model.weights.size
        self.grad = allocate(size, model.dtype)[:size]  # one vector for the whole run
        self.reduction = Reduction(ranks, model.layout.pieces(front.first), size, model.dtype, parts)

    def share(self, images: int) -> slice:
        """Which images of a batch of so many are this rank's."""
        slices = part_slices(images, self.parts)
        return slice(slices[self.own.start].start, slices[self.own.stop - 1].stop)

    def __call__(self, batch, lr: float, step: int) -> Outcome:
        """Step `step` (from 0) of the run, on this rank's share of a batch; raises `FloatingPointError`, on every rank,
        before anything has changed where the loss or the gradient is not finite."""
        rows = self.front.rows(batch.images, getattr(batch, "indices", None))
        loss, right = self._loss_and_grad(rows, batch, step)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss}; {self._reason(batch)}")
        try:
            self.optimizer.step(self.model.weights, self.grad, lr=lr, clip_norm=self.clip_norm)
        except ValueError as error:
            raise FloatingPointError(f"the gradient is not finite: {error}; {self._reason(batch)}") from None
        if self.ema is not None:
            self.ema.update(self.model.weights)
        return Outcome(loss, right, _whole(batch))

    def _loss_and_grad(self, rows, batch, step: int) -> tuple[float, int]:
        """The whole batch's loss and how many are right; its gradient is in `self.grad` then."""
        N, targets = _whole(batch), np.asarray(batch.targets)
        weights = self._weights(targets, getattr(batch, "weights", None))
        if weights is None and self.parts * self.accumulate > 1:
            weights = np.full(N, 1 / N)
        work = _Work(rows, targets, weights, part_slices(N, self.parts), self.share(N).start, step)
        told = np.zeros((len(self.own), 2))  # of each part its loss and how many are right; of one without images 0
        if self.reduction.overlaps and self.accumulate == 1:
            with self._followed(N) as progress:
                if len(rows):
                    told[0] = self._part(work, self.own.start, self.grad, {"progress": progress})
        else:
            for part, room in self.reduction.own(images=N, out=self.grad):
                told[part - self.own.start] = self._part(work, part, room, {})
            self.reduction.finish(images=N, out=self.grad)
        losses, rights = np.concatenate(self.ranks.allgather(told)).T
        return _sum(losses), int(rights.sum())

    @contextlib.contextmanager
    def _followed(self, images: int) -> Iterator[Progress]:
        """What the block's pass has finished of `self.grad` is added up over the ranks behind it."""
        progress = Progress()
        self.reduction.start(self.grad, progress, images=images)
        try:
            yield progress
        except BaseException:
            self.reduction.stop()
            raise
        self.reduction.wait()

    def _part(self, work: _Work, part: int, grad: np.ndarray, options: dict) -> tuple[float, int]:
        """A part's share of the batch's loss, and its right ones; its gradient is in `grad` then."""
        loss, right, begin = 0.0, 0, work.parts[part].start
        images = work.parts[part].stop - begin
        if self.front.first is not None:
            options["first"] = self.front.first
        for number, piece in enumerate(part_slices(images, min(self.accumulate, images))):
            start, stop = begin + piece.start, begin + piece.stop  # in the batch
            some = slice(start - work.begin, stop - work.begin)
            targets = work.targets[some]
            if work.weights is not None:
                options["sample_weight"] = work.weights[start:stop]
            if self.drop_path or self.dropout:
                options["drop"] = self._drop(work.step, start)
            piece_loss, _ = self.model.loss_and_grad(
                work.rows[some], targets, label_smoothing=self.label_smoothing, out=grad, accumulate=number > 0,
                **options,
            )  # fmt: skip
            labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
            right += int(np.count_nonzero(self.model.logits.argmax(axis=1) == labels))
            loss += piece_loss
        return loss, right

    def _drop(self, step: int, first: int) -> Drop:
        """What is dropped in a step, of images from number `first` of the batch on: the same however it is cut."""
        seed = int(np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)[0] >> 1)
        return Drop(path=self.drop_path, rate=self.dropout, seed=seed, first=first)

    def _weights(self, targets, given) -> np.ndarray | None:
        """The weight of each image's loss in the batch's, of all ranks' images; None where all have the same."""
        if self.class_weight is None and given is None:
            return None
        targets = np.concatenate(self.ranks.allgather(targets, "every rank's targets"))
        weights = np.ones(len(targets))
        if given is not None:
            weights = np.concatenate(self.ranks.allgather(np.asarray(given, np.float64), "every rank's weights"))
        if self.class_weight is not None:
            of_classes = self.class_weight[targets] if targets.ndim == 1 else targets @ self.class_weight
            weights = weights * of_classes
        total = weights.sum()
        return weights / total if total > 0 else weights

    def _reason(self, batch) -> str:
        """What a loss that is not finite comes from, as far as can be seen: the same words on every rank."""
        found = not_finite(np.asarray(batch.images)) if len(batch.images) else None
        place = math.inf if found is None else self.share(_whole(batch)).start + found
        place = np.min(self.ranks.allgather(np.array([place], np.float64)))
        if place < math.inf:
            text = "the pictures were not finite, augmentation or the data gave a nan or an infinity in image"
            return f"{text} {place:.0f}"
        if not np.isfinite(self.model.weights).all():
            return "the pictures were finite, the model's weights were not"
        return "the pictures were finite; a lower learning rate may help"


def parts_of(exact_reduction: int | None, ranks: Ranks) -> int:
    """How many parts a batch has."""
    if exact_reduction is None:
        return ranks.size
    parts = as_int("exact_reduction", exact_reduction)
    check(parts >= ranks.size, f"exact_reduction must be at least the number of ranks, {ranks.size}, got {parts}")
    return parts


def _whole(batch) -> int:
    """How many images the batch has of which these are a share."""
    whole = getattr(batch, "whole", None)
    return len(batch.images) if whole is None else whole


def _sum(losses: np.ndarray) -> float:
    """The parts' losses, added in the order in which their gradients are."""
    tree, held = Tree(len(losses)), {}
    for part, loss in enumerate(losses.tolist()):
        held[part, part + 1] = loss
        tree.put(held, (part, part + 1), lambda node, left, right: left + right)
    return held[tree.root]
