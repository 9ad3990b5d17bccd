"""`train`: from data to a run's folder, killed and resumed at any moment to the same bits.

After every epoch, and within it every few minutes, all that the next step depends on goes to checkpoint/: weights,
optimizer, moving average, history, the place in the data. Order, augmentation and every other random number follow from
the seed and that place, so that a resumed run takes the same steps. Best model, history and checkpoint are written in
this order: whatever moment a run is killed at, an epoch that is done again writes the same bits again.

Of several ranks each trains, and rank 0 alone chooses the folder, reads and writes in it, and speaks.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ..base.errors import check, listed, short
from ..base.files import check_writable
from ..base.numbers import shown
from ..engine import runtime
from ..model.precision import resolved
from ..model.vit import ViT
from ..parallel.ranks import ALONE, Ranks, of
from ..train import state
from ..train.agreement import agree, versions
from ..train.ema import EMA
from ..train.history import Epoch, History, Step
from ..train.loop import Loop
from ..train.step import parts_of
from .folder import CHECKPOINT, HISTORY, MODEL, RUN, Folder, differences, flat, folder_for
from .job import Job, prepare
from .model_file import write_model
from .results import Results, best_model, finish, write_models
from .tensorboard import events

NOTHING: Callable = lambda *_: None


class Run(NamedTuple):
    """A finished run: the best model, its folder as a path, the history, and how good the best model is."""

    model: ViT
    folder: str
    history: History
    results: Results


def train(
    data,
    *,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_minutes: float = 10.0,
    cache_mb: float = 1024,
    decoders: int = 1,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    say: Callable[[str], None] | None = None,
    pictures: bool = True,
    tensorboard: bool = False,
    comm=None,
    split_optimizer: bool = False,
    timeout: float = 600.0,
    **arguments,
) -> Run:
    """Train a model on pictures and leave everything in a folder.

    Parameters
    ----------
    data : path or Found
        A folder with one folder per class, a CSV of `path,label`, an .npz of `x` and `y`, or "digits"; see
        `cvit.data.find`.
    out : path, optional
        The run's folder; by default runs/NAME, then runs/NAME-2, …
    resume : bool
        Go on with the run in `out`. Arguments that are not given are the run's own; another one is refused.
    overwrite : bool
        Begin anew in a folder that holds a run.
    save_minutes : float
        Minutes between checkpoints within an epoch.
    cache_mb, decoders : see `prepare`; they change no bit
    on_step, on_epoch : callables
        Told of every step and epoch, as by `cvit.train.fit`.
    say : callable
        Told what the user should know, a sentence at a time.
    pictures : bool
        Whether curves, confusion matrix, worst errors and a report are drawn, which needs matplotlib and jinja2.
    tensorboard : bool
        Whether loss, accuracy and learning rate also go to TensorBoard's event files in the folder.
    comm, split_optimizer, timeout : see `cvit.train.fit`
        Every rank reads the data; rank 0 alone writes to the folder. All return the same but for the times.
    **arguments
        `init`, `preset`, `validation`, `epochs`, `lr`, …: those of `prepare`.

    Returns
    -------
    Run

    Raises
    ------
    ValueError, OSError
        Wrong data, model or settings, before anything is written; a file that cannot be written.
    FloatingPointError
        The loss or the gradient is not finite: names step, learning rate, whether the pictures were finite, and the
        last good checkpoint.
    """
    ranks = of(comm, timeout=timeout)
    with ranks.guarded():
        job, folder = opened(
            data, out=out, resume=resume, overwrite=overwrite, say=say, ranks=ranks, cache_mb=cache_mb,
            decoders=decoders, **arguments,
        )  # fmt: skip
        return run_job(
            job, folder, resume=resume, save_minutes=save_minutes, on_step=on_step, on_epoch=on_epoch, say=say,
            pictures=pictures, tensorboard=tensorboard, ranks=ranks, split_optimizer=split_optimizer,
        )  # fmt: skip


def opened(
    data,
    *,
    out=None,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
    ranks: Ranks = ALONE,
    **arguments,
) -> tuple[Job, Folder]:
    """The job and the folder of `train` with these arguments, nothing written yet."""
    if resume:
        folder = _folder_for(ranks, out, _name(data), resume=True, overwrite=False)
        saved = ranks.broadcast(folder.read_facts() if ranks.first else None, RUN)
        kept = {name: value for name, value in saved["arguments"].items() if name != "data"}
        given = {name: value for name, value in arguments.items() if value is not None}
        if data is None:
            data = saved["arguments"].get("data")
            check(isinstance(data, str), f"{folder.file(RUN)} must name its data, got {shown(data)}")
        try:
            job = prepare(data, **{**kept, **given})
        except (TypeError, OverflowError, MemoryError) as error:  # in a file a wrong type or size is a wrong value
            raise ValueError(f"{folder.file(RUN)} or an argument beside it: {short(error, 500)}") from None
        _check_same(saved, job, folder)
        _say_changes(saved["machine"], job, _said(say, ranks))
        return job, folder
    if out is not None and ranks.first:
        folder_for(out, "", resume=False, overwrite=overwrite)  # an error before the pictures are read
    job = prepare(data, **arguments)
    return job, _folder_for(ranks, out, job.found.name, resume=False, overwrite=overwrite)


def _folder_for(ranks: Ranks, out, name: str, *, resume: bool, overwrite: bool) -> Folder:
    """The folder that rank 0 finds, on every rank."""
    path = os.fspath(folder_for(out, name, resume=resume, overwrite=overwrite).path) if ranks.first else None
    return Folder(ranks.broadcast(path, "the run's folder"), overwrite)


def _said(say: Callable[[str], None] | None, ranks: Ranks) -> Callable[[str], None]:
    """What the user is told with: by rank 0 alone."""
    return say if say is not None and ranks.first else NOTHING


def run_job(
    job: Job,
    folder: Folder,
    *,
    resume: bool = False,
    save_minutes: float = 10.0,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_end: Callable[[], None] | None = None,
    say: Callable[[str], None] | None = None,
    pictures: bool = True,
    tensorboard: bool = False,
    ranks: Ranks = ALONE,
    split_optimizer: bool = False,
) -> Run:
    """`train` with a job that is prepared and a folder that is chosen; `on_end` is called when training ends, before
    what follows it."""
    say = _said(say, ranks)
    parts_of(
        job.recipe.exact_reduction, ranks
    )  # a wrong number is an error before anything is written, and so is other data
    agree(ranks, job.model.precision, flat(job.settings), {})
    with folder.held() if ranks.first else contextlib.nullcontext():
        told = [on_epoch or NOTHING]
        if ranks.first:
            check_writable(folder.file(MODEL), job.model.weights.nbytes)  # a full disk is an error now, not later
            # Another process may have trained in the folder since it was chosen.
            if resume:
                _check_same(folder.read_facts(), job, folder)
            else:
                folder.check_free()
                folder.clear()
                folder.write_facts(_facts(job, ranks))
            if tensorboard:
                told.insert(0, events(folder.file("tensorboard")))
        started = time.perf_counter()
        saver = _Saver(job, folder, save_minutes, on_step, told, ranks, split_optimizer)
        if resume:
            saver.restore(say)
        history = saver.run()
        (on_end or NOTHING)()
        if ranks.first:
            folder.check_held()
            write_models(job, folder, history, saver.loop.evaluated)
        model = best_model(job, folder, ranks)
        results = finish(job, folder, history, model, time.perf_counter() - started, say, pictures, ranks)
        return Run(model, str(folder.path), history, results)


class _Saver:
    """The loop of a run, and what is written while it goes on."""

    def __init__(
        self, job: Job, folder: Folder, save_minutes: float, on_step, told: list, ranks: Ranks, split_optimizer
    ):  # fmt: skip
        recipe, model = job.recipe, job.model
        self.job, self.folder, self.told, self.ranks = job, folder, told, ranks
        self.pause, self.saved = save_minutes * 60, time.monotonic()
        self.has_checkpoint = False
        self.loop = Loop(
            model, job.feed, job.validation, epochs=recipe.epochs,
            optimizer=recipe.make_optimizer(model, job.trained), schedule=recipe.schedule(job.feed.steps),
            clip_norm=recipe.clip_norm, accumulate=recipe.accumulate,
            label_smoothing=0.0 if recipe.mixing else recipe.label_smoothing,  # mixed targets have it already
            drop_path=recipe.drop_path, dropout=recipe.dropout, class_weight=recipe.class_weight,
            ema=None if recipe.ema is None else EMA(model, recipe.ema), patience=recipe.patience, seed=recipe.seed,
            cache_mb=job.cache_mb, on_step=on_step, on_epoch=self._after_epoch, save_due=self._due, on_save=self._save,
            ranks=ranks, exact_reduction=recipe.exact_reduction, split_optimizer=split_optimizer,
        )  # fmt: skip

    def restore(self, say) -> None:
        """Take up the newest checkpoint that is whole; without any the run begins at its beginning."""
        place = self.folder.file(CHECKPOINT)
        found = self.ranks.first and place.is_dir() and any(place.iterdir())
        read = self.ranks.broadcast(state.read(place) if found else None, "the checkpoint")
        if read is None:
            say("no checkpoint was written yet: the run begins anew")
            return
        arrays, facts, warning = read
        if warning:
            say(warning)
        before, now = facts.get("parts", 1), self.loop.parts
        if before != now:
            say(f"gradients were summed in {before} parts, are in {now}: the result may differ in its last bits")
        try:
            self.loop.restore(arrays, facts)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        self.has_checkpoint = True
        position = self.loop.position
        say(f"resumed in epoch {position.epoch + 1}, after {position.step} of its steps")

    def run(self) -> History:
        """Train; a Ctrl-C leaves a checkpoint of the step it came after."""
        try:
            history = self.loop.run()
        except FloatingPointError as error:
            good = f"the last good checkpoint is {self.folder.file(CHECKPOINT)}" if self.has_checkpoint else ""
            raise FloatingPointError(f"{error}; {good or 'no checkpoint was written yet'}") from None
        if history.interrupted:
            self._save()
        return history

    def _due(self) -> bool:
        """Whether a checkpoint is, after this step: rank 0's clock says so."""
        return self.ranks.first and time.monotonic() - self.saved >= self.pause

    def _after_epoch(self, epoch: Epoch) -> None:
        history, folder = self.loop.history, self.folder
        best = history.best
        if self.ranks.first:
            folder.check_held()
            if best is None or best.epoch == epoch.epoch:
                write_model(folder, MODEL, self.loop.evaluated, self.job, epoch)
            history.write_csv(folder.file(HISTORY))
        self._save()
        for tell in self.told:
            tell(epoch)

    def _save(self) -> None:
        arrays, facts = self.loop.state()
        if self.ranks.first:
            self.folder.check_held()
            state.write(self.folder.file(CHECKPOINT), arrays, facts)
        self.saved, self.has_checkpoint = time.monotonic(), True


def _name(data) -> str:
    """What a run on `data` is called before the data is read."""
    return "run" if data is None else os.path.splitext(os.path.basename(os.path.normpath(os.fspath(data))))[0]


def _facts(job: Job, ranks: Ranks) -> dict[str, Any]:
    """run.json at the beginning of a run."""
    return dict(
        arguments=job.arguments, preset=job.preset, settings=job.settings,
        machine=machine() | ({"ranks": ranks.size} if ranks.size > 1 else {}),
        remarks=list(job.found.remarks), started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )  # fmt: skip


def machine() -> dict[str, Any]:
    """Versions, instruction set and threads: what may change bits, or time, beside the settings."""
    return dict(
        **versions(), python=platform.python_version(), system=platform.platform(),
        threads=runtime.get_num_threads(),
    )  # fmt: skip


def _check_same(saved: dict[str, Any], job: Job, folder: Folder) -> None:
    """Raise where the run to resume had other data, another model or another setting."""
    before = dict(saved["settings"])
    recipe = before.get("recipe")
    if isinstance(recipe, dict):  # begun, it may be, before there were precisions, the weights' own then, or ranks
        before["recipe"] = {"precision": resolved(None, job.model.dtype), "exact_reduction": None, **recipe}
    changed = differences(before, job.settings)
    check(
        not changed,
        f"{folder.path} holds another run, which cannot be resumed with these arguments: {listed(changed, 6)}",
    )


def _say_changes(before: dict[str, Any], job: Job, say) -> None:
    """Say what else has changed since the run began, and may change bits."""
    now = machine()
    for name in ("isa", "cvit", "numpy", "pillow"):
        if name == "isa" and job.recipe.precision == "bf16":  # whose bits are the same on all of them
            continue
        if before.get(name) != now[name]:
            say(f"{name} was {before.get(name)}, is {now[name]}: the result may differ in its last bits")
