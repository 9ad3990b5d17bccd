"""What a run would take, without taking it: data, model, memory, time by a few measured steps, and room on the disk."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import statistics
import time
from collections.abc import Iterator

from ..train.front import Front
from ..train.step import Stepper
from .folder import Folder
from .job import Job
from .recipe import Recipe

LABEL = 11  # columns of the word that a line begins with
STEPS = 3  # that are measured, after one that makes the plans


def forecast(job: Job, folder: Folder) -> Iterator[str]:
    """Lines that tell what `train` would do. The job stays as it is: the steps are taken on a copy of its model."""
    found, recipe, config = job.found, job.recipe, job.model.config
    yield f"data       {found.name}: {_counts(job)}"
    yield f"classes    {len(found.class_names)}: {_some(found.class_names)}"
    for remark in found.remarks:
        yield f"           {remark}"
    size = "x".join(map(str, config.image_size))
    yield (
        f"model      {job.model.layout.size:,} weights, {config.depth} blocks of width {config.width}, "
        f"{config.tokens} tokens of {size} pixels"
        + (f", from {job.arguments['init']}" if job.arguments["init"] else "")
    )
    if job.trained is not None:
        entries = job.model.layout.entries
        yield f"trained    {sum(entries[name].size for name in job.trained):,} of the weights"
    yield f"recipe     {job.preset}: {_settings(recipe)}"
    yield f"memory     {memory(job) / 1e6:,.0f} MB for a step, beside the decoded pictures that are kept"
    step, evaluation = measured(job)
    epoch = step * job.feed.steps + evaluation
    yield (
        f"time       {step * 1e3:,.0f} ms a step, {duration(epoch)} an epoch, {duration(epoch * recipe.epochs)} in all "
        f"({recipe.epochs} epochs of {job.feed.steps} steps)"
    )
    needed, free = disk(job, folder)
    yield f"disk       {needed / 1e6:,.0f} MB of {free / 1e6:,.0f} MB that are free"
    yield f"folder     {folder.path}"


def memory(job: Job) -> int:
    """Bytes of weights, gradient, optimizer and activations of a step."""
    recipe, weights = job.recipe, job.model.weights.nbytes
    vectors = 2 + (2 if recipe.optimizer == "adamw" else 1) + (recipe.ema is not None)
    part = -(-min(recipe.batch_size, len(job.found.train)) // recipe.accumulate)
    return vectors * weights + job.model.plan(part, "train").bytes


def measured(job: Job) -> tuple[float, float]:
    """Seconds of a step with its pictures, the median of a few; and of an evaluation of the validation pictures."""
    model, recipe = copy.deepcopy(job.model), job.recipe
    optimizer = recipe.make_optimizer(model, job.trained)
    stepper = Stepper(
        model, optimizer, Front(model, job.first, keep=False, most_bytes=0), label_smoothing=0.0,
        clip_norm=recipe.clip_norm, accumulate=recipe.accumulate, class_weight=None, drop_path=recipe.drop_path,
        dropout=recipe.dropout, ema=None, seed=recipe.seed,
    )  # fmt: skip
    times, start = [], time.perf_counter()
    batches = job.feed.epoch(0)
    try:
        for number, batch in zip(range(STEPS + 1), batches):
            stepper(batch, 0.0, number)
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
    finally:
        batches.close()
    evaluation = 0.0
    if job.validation is not None:
        some = next(job.validation.plain(32))
        start = time.perf_counter()
        model.forward(some.images)
        evaluation = (time.perf_counter() - start) / len(some.images) * job.validation.images
    return statistics.median(times[1:] or times), evaluation


def disk(job: Job, folder: Folder) -> tuple[int, int]:
    """Bytes that a run's folder grows to, the temporary file of a checkpoint included, and bytes that are free."""
    weights, recipe = job.model.weights.nbytes, job.recipe
    state = weights * (1 + (2 if recipe.optimizer == "adamw" else 1) + (recipe.ema is not None))
    place = folder.path
    while not place.exists():
        place = place.parent
    return 2 * weights + 3 * state + (2 << 20), shutil.disk_usage(os.path.realpath(place)).free


def duration(seconds: float) -> str:
    """Seconds as a reader would say them: "42 s", "3 min 20 s", "5 h 12 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _counts(job: Job) -> str:
    parts = [("training", job.found.train), ("validation", job.found.validation), ("test", job.found.test)]
    return ", ".join(f"{len(pictures):,} {name}" for name, pictures in parts if pictures is not None) + " pictures"


def _some(names, most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _settings(recipe: Recipe) -> str:
    """The settings that are not a recipe's defaults, and the two that everyone asks for."""
    shown = [f"{recipe.epochs} epochs", f"batch {recipe.batch_size}", f"learning rate {recipe.lr:g}"]
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        plain = field.default if field.default is not dataclasses.MISSING else None
        if field.name not in ("epochs", "batch_size", "lr", "augmentation") and value != plain:
            shown.append(f"{field.name} {value}")
    return ", ".join(shown)
