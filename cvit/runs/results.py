"""What is written at the end of a run: the last model, predictions, results in run.json, plots and the report."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..formats.load import load
from ..model.vit import ViT
from ..parallel.ranks import Ranks
from ..train.evaluation import cross_entropy, logits_of
from ..train.history import History
from ..train.predictions import Prediction, write_predictions
from .folder import LAST, MODEL, PREDICTIONS, Folder
from .job import Job
from .model_file import write_model


class Results(NamedTuple):
    """How good a run's best model is; accuracies are shares, nan where there are no such pictures."""

    best_epoch: int  # 0 where no epoch was evaluated
    validation_accuracy: float
    validation_loss: float
    last_accuracy: float  # of the last epoch's model on the validation pictures
    test_accuracy: float
    test_loss: float
    seconds: float


class Predicted(NamedTuple):
    """A part of the data with what the model says of it."""

    part: str  # "validation" or "test"
    pictures: Any  # cvit.data.pictures.Pictures
    labels: np.ndarray  # (N,)
    logits: np.ndarray  # (N, classes)

    @property
    def probabilities(self) -> np.ndarray:
        """(N, classes), float64."""
        odds = np.exp(self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.logits.argmax(axis=1) == self.labels))


def write_models(job: Job, folder: Folder, history: History, last: ViT) -> None:
    """Write the models that a run ends with, before all else: what follows costs no result if it fails."""
    epoch = history.epochs[-1] if history.epochs else None
    write_model(folder, LAST, last, job, epoch)
    if history.best is None:  # stopped within the first epoch, or nothing to validate with: the last is all there is
        write_model(folder, MODEL, last, job, epoch)


def best_model(job: Job, folder: Folder, ranks: Ranks) -> ViT:
    """The best model, which rank 0 has written, on every rank."""
    if ranks.first:
        model = load(folder.file(MODEL))
        ranks.broadcast(model.weights, "the best model")
        return model
    model = job.model
    return ViT(
        model.config, ranks.broadcast(None, "the best model"), precision=model.precision, checkpoint=model.checkpoint,
        preprocessing=model.preprocessing, class_names=model.class_names,
    )  # fmt: skip


def finish(
    job: Job, folder: Folder, history: History, model: ViT, seconds: float, say, pictures: bool, ranks: Ranks
) -> Results:
    """Judge the best model, and write what a run ends with beside its models."""
    best = history.best
    epoch = history.epochs[-1] if history.epochs else None
    predicted = predictions(model, job, ranks)
    by_part = {part.part: part for part in predicted}
    validation, test = by_part.get("validation"), by_part.get("test")
    nan = float("nan")
    results = Results(
        best.epoch if best else 0,
        validation.accuracy if validation else nan,
        cross_entropy(validation.logits, validation.labels) if validation else nan,
        epoch.test_accuracy if epoch else nan,
        test.accuracy if test else nan,
        cross_entropy(test.logits, test.labels) if test else nan,
        seconds,
    )
    if ranks.first:
        _write(job, folder, history, predicted, results, say, pictures)
    ranks.barrier("rank 0 to write the results")
    return results


def _write(job: Job, folder: Folder, history: History, predicted: list[Predicted], results: Results, say, pictures):
    """predictions.csv, the results in run.json, plots and report."""
    if predicted:
        _written(folder, predicted[-1], job.found.class_names)  # the test pictures where there are any
    facts = folder.read_facts()
    facts["results"] = {name: _json(value) for name, value in results._asdict().items()}
    facts["results"] |= dict(epochs=len(history.epochs), interrupted=history.interrupted, early=history.stopped_early)
    folder.write_facts({name: value for name, value in facts.items() if name != "format"})
    if pictures:
        from .drawing import draw_run

        draw_run(folder, job, history, predicted, results, facts, say)


def predictions(model: ViT, job: Job, ranks: Ranks) -> list[Predicted]:
    """What a model says of the validation and the test pictures, on every rank."""
    found = []
    for part, feed in (("validation", job.validation), ("test", job.test)):
        if feed is not None:
            logits, labels = logits_of(model, feed, ranks=ranks)
            found.append(Predicted(part, feed.pictures, labels, logits))
    return found


def _written(folder: Folder, judged: Predicted, class_names) -> None:
    """predictions.csv: a row for each picture that the best model was judged by."""
    probabilities = judged.probabilities
    guesses = probabilities.argmax(axis=1)
    rows = (
        Prediction(name, class_names[label], class_names[guess], float(row[guess]))
        for name, label, guess, row in zip(judged.pictures.names, judged.labels, guesses, probabilities)
    )
    write_predictions(folder.file(PREDICTIONS), rows)


def _json(value):
    """JSON has no nan."""
    return None if isinstance(value, float) and np.isnan(value) else value
