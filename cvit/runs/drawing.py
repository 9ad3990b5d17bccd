"""The pictures of a finished run: curves, confusion matrix, worst errors, and the report that shows all of them.

They come last and cost no result: what cannot be drawn, for want of matplotlib say, is told and left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..formats.load import load
from ..train.evaluation import confusion_matrix
from ..train.history import History
from .folder import MODEL, Folder
from .forecast import duration
from .job import Job

if TYPE_CHECKING:
    from .results import Predicted, Results

MOST = 24  # of the worst errors
WITH_ATTENTION = 12  # of these; the attention of larger pictures takes its time


def draw_run(
    folder: Folder, job: Job, history: History, predicted: list[Predicted], results: Results, facts: dict[str, Any], say
) -> None:
    """Draw everything that the run has something for."""
    try:
        from ..plots import confusion, curves, figure, mistakes
        from ..plots.figure import matplotlib

        matplotlib()
    except ModuleNotFoundError as error:
        say(f"no plots and no report: {error}")
        return
    if history.epochs:
        figure.write(curves.draw(history), folder.file("curves.png"))
    part = predicted[-1] if predicted else None  # the test pictures where there are any, else those of the validation
    worst, counts = [], None
    if part is not None:
        counts = confusion_matrix(part.labels, part.logits.argmax(axis=1), len(job.found.class_names))
        figure.write(confusion.draw(counts, job.found.class_names), folder.file("confusion.png"))
        worst = worst_of(part, job.found.class_names)
        figure.write(mistakes.draw(worst), folder.file("mistakes.png"))
    _report(folder, job, history, counts, worst, results, facts, say)


def worst_of(part: Predicted, class_names) -> list:
    """The worst errors among predictions, the surest first."""
    from ..plots.mistakes import Mistake

    probabilities = part.probabilities
    guesses = probabilities.argmax(axis=1)
    sure = probabilities[range(len(guesses)), guesses]
    wrong = sorted((-sure[i], i) for i in range(len(guesses)) if guesses[i] != part.labels[i])[:MOST]
    return [
        Mistake(
            part.pictures.names[i], part.pictures.decoded(i, part.pictures.channels), class_names[part.labels[i]],
            class_names[guesses[i]], float(sure[i]),
        )
        for _, i in wrong
    ]  # fmt: skip


def _report(folder, job, history, counts, worst, results, facts, say) -> None:
    try:
        from ..plots.report import write_report

        model = load(folder.file(MODEL))
        write_report(
            folder.file("report.html"),
            title=f"Training on {job.found.name}",
            history=history if history.epochs else None,
            classes=job.found.class_names,
            confusion=counts,
            mistakes=worst,
            attention=_attention(model, worst[:WITH_ATTENTION]),
            settings=_settings(job, facts),
            times=_times(results, history, facts),
            remarks=job.found.remarks,
        )
    except ModuleNotFoundError as error:
        say(f"no report: {error}")


def _attention(model, worst) -> list:
    from ..plots.attention import of_picture

    return [of_picture(model, mistake.picture) for mistake in worst] if model.config.depth else []


def _settings(job: Job, facts: dict[str, Any]) -> dict[str, Any]:
    config, machine = job.model.config, facts["machine"]
    plain = {name: value for name, value in job.recipe.to_json().items() if name != "augmentation"}
    augmentation = {
        name: value
        for name, value in job.recipe.augmentation.to_json().items()
        if value not in (None, 0) and name != "format"
    }
    return {
        "preset": job.preset,
        "model": f"{job.model.layout.size:,} weights, {config.depth} blocks of width {config.width}, "
        f"{config.tokens} tokens",
        "first weights": job.arguments["init"] or "drawn",
        "picture size": " x ".join(map(str, config.image_size)),
        **{name: value for name, value in plain.items() if value not in (None, [], False)},
        **{f"augmentation: {name}": value for name, value in augmentation.items()},
        **{name: value for name, value in machine.items() if value is not None},
    }


def _times(results: Results, history: History, facts: dict[str, Any]) -> dict[str, Any]:
    speeds = sorted(epoch.images_per_second for epoch in history.epochs)
    times = {"begun": facts["started"], "time": duration(results.seconds), "epochs": len(history.epochs)}
    if speeds:
        times["images per second in training"] = f"{speeds[len(speeds) // 2]:,.0f}"
    return times
