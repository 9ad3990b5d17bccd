"""The training loop, for any model with `loss_and_grad` and `forward` and any labelled images.

history = fit(model, train, test, epochs=20, optimizer=AdamW(model, lr=1e-3))

`Loop` is a run that can be stopped after any step and taken up again: `state` and `restore` hold all that its weights
depend on. `fit` is a `Loop` from beginning to end.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..base.errors import check, short
from ..base.numbers import as_int, finite, shown
from ..data import Dataset
from ..model.drop import Drop, as_drop
from ..model.vit import ViT
from ..parallel.ranks import ALONE, Ranks, of
from .agreement import agree_on_run
from .class_weights import class_weights
from .ema import EMA
from .evaluation import Evaluation, checked_pair, evaluate_checked
from .feeds import feed_of
from .freezing import first_trained
from .front import Front, KeptTest
from .history import Epoch, History, Position, Step
from .interrupts import held_back
from .optim import AdamW
from .split import SplitOptimizer
from .step import Stepper, parts_of

NOT_EVALUATED = Evaluation(math.nan, math.nan, np.empty(0, np.int64))


def fit(
    model,
    train: Dataset | Iterable | Callable[[int], Iterable],
    test: Dataset | None = None,
    *,
    epochs: int,
    batch_size: int = 128,
    optimizer=None,
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    label_smoothing: float = 0.0,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    accumulate: int = 1,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    class_weight=None,
    ema: EMA | None = None,
    patience: int | None = None,
    cache_mb: float = 1024,
    seed: int = 0,
    history: History | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    comm=None,
    exact_reduction: int | None = None,
    split_optimizer: bool = False,
    timeout: float = 600.0,
) -> History:
    """Train `model` in place.

    Parameters
    ----------
    model : ViT
        Its `weights` are updated in place. Its precision is that of the optimizer, too: in "bf16" a training has the
        same bits on every machine.
    train : (images (N, C, H, W), labels (N,)), a feed, or any iterable of batches
        Any sequence of the two, the images finite; a `cvit.data.Feed` of pictures; an iterable of (images, targets) or
        (images, targets, weights), gone through once an epoch, or a function from an epoch's number, from 0, to one.
        Targets are labels (n,) or distributions (n, classes).
    test : (images, labels) or a feed, optional
        Evaluated after every epoch.
    epochs, batch_size : int
        Passes over the training images, and images a step; the last batch of an epoch may be smaller.
    optimizer : SGD or AdamW
        Or any object with their `step` and `lr`; `AdamW(model)` if not given. What it leaves out (`trained`) is frozen:
        blocks before the first trained one run no backward, and no forward after the first epoch where images stay the
        same and `cache_mb` has room.
    schedule : step -> learning rate, finite and at least 0
        Steps count from 0 over the whole run. Without one the optimizer's own rate holds.
    clip_norm, label_smoothing : float
        See `optim` and `ViT.loss_and_grad`.
    augment : (images, rng) -> images
        Applied to every training batch of arrays, as `data.random_affine` is.
    accumulate : int
        A batch goes through the model in so many parts, whose gradients are added up: less memory, the same gradient up
        to rounding.
    drop_path, dropout : float in [0, 1)
        See `cvit.Drop`.
    class_weight : "balanced" or array (classes,), optional
        Weights of the classes in the loss.
    ema : EMA, optional
        A moving average of the weights, updated after every step. It is what `test` is evaluated with.
    patience : int, optional
        Stop when so many epochs in a row have not bettered the test accuracy (or, as accurate, the test loss).
    cache_mb : float
        Room for what a frozen front gives, 10^6 bytes.
    seed : int
        Of shuffling, augmentation, dropout and stochastic depth.
    history : History
        Of an earlier call, to go on after its last whole epoch: with the same optimizer, schedule and seed it is
        the same run, as long as that one was not stopped within an epoch.
    on_step, on_epoch : callables
        Told of every step and of every finished epoch; a progress bar hangs here.
    comm : mpi4py communicator, optional
        Its ranks share every batch out, `batch_size` images in all, and the test images. All call `fit` with the same
        arguments, which is looked at before the first step, and end with the same weights. A rank that fails ends the
        run on all: the others raise `RankError`.
    exact_reduction : int, optional
        Parts of a batch, at least one a rank, whose gradients are added in a fixed order: the weights then have the
        same bits on any number of ranks. By default there are as many parts as ranks.
    split_optimizer : bool
        Each rank keeps a share of the optimizer's state; the weights have the same bits. The optimizer that was given
        has that share alone, then and afterwards.
    timeout : float
        Seconds without a word from another rank after which it counts as lost.

    Ctrl-C ends the run between two steps: the model keeps what it has learnt and the history says `interrupted`. Of
    several ranks all end so, after the same step, where `on_step` raises `KeyboardInterrupt` on one of them.
    A wrong argument raises before the first step. A loss or a gradient that is not finite raises `FloatingPointError`,
    which names the step, its learning rate and whether the pictures were finite; the weights stay those that gave it.
    """
    ranks = of(comm, timeout=timeout)
    with ranks.guarded():
        loop = Loop(
            model, train, test, epochs=epochs, batch_size=batch_size, optimizer=optimizer, schedule=schedule,
            clip_norm=clip_norm, label_smoothing=label_smoothing, augment=augment, accumulate=accumulate,
            drop_path=drop_path, dropout=dropout, class_weight=class_weight, ema=ema, patience=patience,
            cache_mb=cache_mb, seed=seed, history=history, on_step=on_step, on_epoch=on_epoch, ranks=ranks,
            exact_reduction=exact_reduction, split_optimizer=split_optimizer,
        )  # fmt: skip
        return loop.run()


class Loop:
    """A run of `fit` that can be stopped after any step, written down and taken up again to the same bits.

    Each of several ranks has a loop. All are at the same step at the same time, and decide what comes next from numbers
    that all of them have. `save_due()` is asked after every step; when one rank says so, `on_save()` is called on all.
    """

    def __init__(
        self, model, train, test=None, *, epochs, batch_size=128, optimizer=None, schedule=None, clip_norm=None,
        label_smoothing=0.0, augment=None, accumulate=1, drop_path=0.0, dropout=0.0, class_weight=None, ema=None,
        patience=None, cache_mb=1024, seed=0, history=None, on_step=None, on_epoch=None, ranks: Ranks = ALONE,
        exact_reduction=None, split_optimizer=False, save_due=None, on_save=None,
    ):  # fmt: skip
        functions = {"schedule": schedule, "augment": augment, "on_step": on_step, "on_epoch": on_epoch}
        _check_objects(optimizer, history, ema, functions)
        batch_size, seed = as_int("batch_size", batch_size), as_int("seed", seed, minimum=0)
        self.epochs = as_int("epochs", epochs)
        self.patience = None if patience is None else as_int("patience", patience)
        self.ranks = ranks
        self.parts = parts_of(exact_reduction, ranks)
        self.feed = feed_of(train, model, batch_size, augment, seed)
        self.test = test if test is None or hasattr(test, "plain") else checked_pair("test", test, model)
        check(patience is None or test is not None, "patience needs test, whose accuracy it looks at")
        label_smoothing = finite("label_smoothing", label_smoothing)
        check(label_smoothing < 1, f"label_smoothing must be below 1, got {label_smoothing!r}")
        if clip_norm is not None:
            check(finite("clip_norm", clip_norm) > 0, "clip_norm must be greater than 0 (None means no clipping)")
        as_drop(Drop(path=drop_path, rate=dropout), model.dtype)
        self.model, self.schedule = model, schedule
        self.optimizer: Any = AdamW(model) if optimizer is None else optimizer
        if split_optimizer:
            self.optimizer = SplitOptimizer(self.optimizer, ranks)
        self.ema = ema
        # What is evaluated where there is a moving average: a model of its weights.
        self.average = None if ema is None else ViT(model.config, ema.weights, precision=model.precision)
        self.history = History() if history is None else history
        self.history.interrupted = self.history.stopped_early = False
        self.on_step, self.on_epoch, self.save_due, self.on_save = on_step, on_epoch, save_due, on_save
        groups = getattr(self.optimizer, "groups", None)
        first = None if groups is None else first_trained(model.layout, groups.names)
        most = int(finite("cache_mb", cache_mb) * 1e6)
        self.front = Front(model, first, keep=self.feed.fixed, most_bytes=most, ranks=ranks)
        self.kept_test = self._kept_test()
        self.stepper = Stepper(
            model, self.optimizer, self.front, label_smoothing=label_smoothing, clip_norm=clip_norm,
            accumulate=as_int("accumulate", accumulate),
            class_weight=class_weights(class_weight, self.feed.labels, model.config.classes),
            drop_path=drop_path, dropout=dropout, ema=ema, seed=seed, ranks=ranks, parts=self.parts,
        )  # fmt: skip
        self.settings = dict(
            epochs=self.epochs, batch_size=batch_size, clip_norm=clip_norm, label_smoothing=label_smoothing,
            accumulate=self.stepper.accumulate, drop_path=drop_path, dropout=dropout, patience=self.patience, seed=seed,
            exact_reduction=exact_reduction, split_optimizer=split_optimizer, precision=model.precision,
            optimizer=(type(self.optimizer).__name__, getattr(self.optimizer, "numbers", None)),
            ema=None if ema is None else (ema.decay, ema.warmup),
        )  # fmt: skip
        done = len(self.history.epochs)
        check(not done or self.feed.steps is not None, "history needs data whose number of batches is known")
        self.position = Position(epoch=done, total=done * (self.feed.steps or 0), lr=self.optimizer.lr)

    # ------------------------------------------------------------------------------------------------------- the run
    @property
    def evaluated(self) -> ViT:
        """The model that is evaluated and saved: that of the moving average where there is one."""
        if self.average is None:
            return self.model
        self.average.weights[...] = self.ema.weights
        return self.average

    def run(self) -> History:
        """Go on to the end, to an early stop, or to a Ctrl-C."""
        agree_on_run(self)
        try:
            while self.position.epoch < self.epochs and not self._out_of_patience():
                self._epoch()
        except KeyboardInterrupt:
            if self.ranks.size > 1 and not self.history.interrupted:
                raise  # amid a step: the other ranks do not know of it
            self.history.interrupted = True
        return self.history

    def _epoch(self) -> None:
        """The rest of the epoch at hand, and its evaluation."""
        position = self.position
        before, start = position.images, time.perf_counter()
        self.feed = self.front.behind(self.feed)
        batches = self.feed.epoch(position.epoch, skip=position.step, share=self.stepper.share)
        try:
            for batch in batches:
                self._step(batch)
        finally:
            if hasattr(batches, "close"):
                batches.close()  # ends the threads that decode ahead
        seconds = time.perf_counter() - start
        check(position.images > 0, f"train gave no batch in epoch {position.epoch + 1}")
        result = self._evaluation()
        epoch = Epoch(
            position.epoch + 1, position.lr, position.loss / position.images, position.right / position.images,
            result.loss, result.accuracy, (position.images - before) / seconds,
        )  # fmt: skip
        with held_back():  # what on_epoch writes belongs to the history: both are there, or neither
            self.history.epochs.append(epoch)
            self.position = Position(position.epoch + 1, total=position.total, lr=position.lr)
            if self.on_epoch is not None:
                self.on_epoch(epoch)

    def _evaluation(self) -> Evaluation:
        if self.test is None:
            return NOT_EVALUATED
        if self.kept_test is not None:
            return self.kept_test(self.evaluated, self.stepper.grad)
        return evaluate_checked(self.evaluated, self.test, ranks=self.ranks)

    def _kept_test(self) -> KeptTest | None:
        """The test pictures' rows, where that saves their way through a front that is frozen."""
        if self.test is None:
            return None
        plain: Any = self.test if hasattr(self.test, "plain") else feed_of(self.test, self.model, 256, None, 0)
        return KeptTest(self.front, plain) if KeptTest.suits(self.front, plain.images) else None

    def _step(self, batch) -> None:
        position = self.position
        lr = self.optimizer.lr if self.schedule is None else _scheduled(self.schedule, position.total)
        stop, taken = False, position.total
        try:
            with held_back():
                self._take(batch, lr)
        except KeyboardInterrupt:
            if position.total == taken:  # it has come before it was held back: there was no step
                raise
            stop = True
        mean = position.loss / position.images, position.right / position.images
        self._tell(Step(position.epoch + 1, position.step, position.images, *mean, lr), stop)

    def _take(self, batch, lr: float) -> None:
        """The step itself, and its place in the run."""
        position = self.position
        try:
            outcome = self.stepper(batch, lr, position.total)
        except FloatingPointError as error:
            where = f"in epoch {position.epoch + 1}, step {position.step + 1} (learning rate {lr:g})"
            what, _, reason = str(error).partition("; ")
            raise FloatingPointError(f"{what} {where}; {reason}") from None
        n = outcome.images
        position.step, position.total, position.lr = position.step + 1, position.total + 1, lr
        position.images, position.right = position.images + n, position.right + outcome.right
        position.loss += outcome.loss * n

    def _tell(self, step: Step, stop: bool) -> None:
        """Tell of a step; then save where that is due, and stop after a Ctrl-C or where `on_step` has raised a
        `KeyboardInterrupt`: both on all ranks, if only one says so."""
        try:
            if self.on_step is not None:
                self.on_step(step)
        except KeyboardInterrupt:
            stop = True
        save = self.save_due is not None and self.save_due()
        wishes = self.ranks.allgather(np.array([[stop, save]]), "every rank's word on going on")
        stop, save = map(bool, np.max(np.concatenate(wishes), axis=0))
        if save and self.on_save is not None:
            self.on_save()
        if stop:
            self.history.interrupted = True
            raise KeyboardInterrupt

    def _out_of_patience(self) -> bool:
        best = self.history.best
        if self.patience is None or best is None or len(self.history.epochs) - best.epoch < self.patience:
            return False
        self.history.stopped_early = True
        return True

    # ----------------------------------------------------------------------------------------------------- the state
    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Vectors by name, not copied, and facts that JSON can hold: with them `restore` goes on to the same bits.

        All ranks call it. What rank 0 gets is the state, where the others may lack the optimizer's vectors.
        """
        arrays = {"weights": self.model.weights}
        facts: dict = {"position": dataclasses.asdict(self.position), "history": [list(e) for e in self.history.epochs]}
        facts |= {"precision": self.model.precision, "parts": self.parts}
        for part, holder in (("optimizer", self.optimizer), ("ema", self.ema)):
            if holder is None:
                continue
            numbers = {}
            for name, value in holder.state_dict().items():
                if isinstance(value, np.ndarray):
                    arrays[f"{part}.{name}"] = value
                else:
                    numbers[name] = list(value) if isinstance(value, tuple) else value
            facts[part] = numbers
        return arrays, facts

    def restore(self, arrays: dict[str, np.ndarray], facts: dict) -> None:
        """Take over what `state` gave; raises `ValueError` where it is not of a run like this one."""
        own = self.model.precision
        said = facts.get("precision", own)  # which states that were written before there were precisions do not say
        check(said == own, f"the run was trained in precision {shown(said)}, so it cannot go on in {own!r}")
        try:
            weights = arrays["weights"]
            own_weights = self.model.weights
            same = weights.shape == own_weights.shape and weights.dtype == own_weights.dtype
            check(same, f"the weights must be {own_weights.size} of {own_weights.dtype}")
            position = _position(facts["position"])
            epochs = [_epoch(row) for row in facts["history"]]
            for part, holder in (("optimizer", self.optimizer), ("ema", self.ema)):
                if holder is not None:
                    vectors = {name[len(part) + 1 :]: a for name, a in arrays.items() if name.startswith(f"{part}.")}
                    holder.load_state_dict({**facts[part], **vectors})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the state of another kind of run: {short(error, 300)}") from None
        self.model.weights[...] = weights
        self.history.epochs[:], self.position = epochs, position


def _position(numbers: dict) -> Position:
    """The position that a state's facts hold; TypeError or ValueError where it is none."""
    position = Position(**numbers)
    for name in ("epoch", "step", "total", "images", "right"):
        as_int(f"position: {name}", getattr(position, name), minimum=0, maximum=1 << 53)
    for name in ("loss", "lr"):
        finite(f"position: {name}", getattr(position, name), minimum=-math.inf)
    return position


def _epoch(row: list) -> Epoch:
    """The epoch that a row of a state's facts is; its figures may be nan, but are numbers."""
    epoch = Epoch(*row)
    as_int("history: epoch", epoch.epoch, maximum=1 << 53)
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in epoch):
        raise TypeError(f"history must hold numbers, got {shown(row)}")
    return epoch


def _check_objects(optimizer, history, ema, functions) -> None:
    """Raise for an argument of `fit` that is not the kind of object it must be."""
    # The class itself has `step` and `lr` as well, but no weights yet.
    usable = not isinstance(optimizer, type) and callable(getattr(optimizer, "step", None)) and hasattr(optimizer, "lr")
    if optimizer is not None and not usable:
        raise TypeError(f"optimizer must be one, AdamW(model, lr=1e-3) for example, got {optimizer!r}")
    if history is not None and not isinstance(history, History):
        raise TypeError(f"history must be the History of an earlier call, got {history!r}")
    if ema is not None and not isinstance(ema, EMA):
        raise TypeError(f"ema must be an EMA, EMA(model, decay=0.999) for example, got {ema!r}")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")


def _scheduled(schedule, step: int) -> float:
    """The schedule's learning rate.

    None would mean the optimizer's own rate to `step`, which is not what a schedule says.
    """
    return finite(f"the learning rate that schedule gives for step {step}", schedule(step))
