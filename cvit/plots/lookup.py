"""What a folder of a run, or a model alone, has to draw: history, predictions, the wrong pictures, weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..base.errors import check
from ..formats.load import load
from ..model.vit import ViT
from ..train.predictions import Prediction, confusion_of, read_predictions
from .curves import Columns, read_columns
from .mistakes import MOST, Mistake, worst

HISTORY, PREDICTIONS = "history.csv", "predictions.csv"
WEIGHTS = (".safetensors", ".npz")


@dataclasses.dataclass
class Found:
    """What there is to draw. None and empty lists stand for what is missing; `notes` say why something is."""

    model: ViT | None = None
    history: Columns | None = None
    counts: np.ndarray | None = None  # (classes, classes), the confusion matrix
    names: tuple[str, ...] = ()  # of its classes
    mistakes: list[Mistake] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def is_run(where: str | os.PathLike) -> bool:
    """Whether `where` is the folder of a run: one with a history or predictions in it."""
    return any(os.path.isfile(os.path.join(where, name)) for name in (HISTORY, PREDICTIONS))


def find(where: str | os.PathLike, data: Sequence[str | os.PathLike] = (), precision: str | None = None) -> Found:
    """What the folder of a run has to draw, or a model: a file, a folder, or a name on the Hub.

    Parameters
    ----------
    where : str or path
    data : sequence of str or path
        Folders in which the pictures that predictions.csv names are looked for, before the run's folder and the current
        one.
    precision : str, optional
        Of the model, see `cvit.load`.

    Raises
    ------
    ValueError, OSError
        A file is damaged or cannot be read; see `cvit.load`, `read_columns` and `read_predictions`.
    """
    found = Found()
    if not is_run(where):
        found.model = load(where, precision=precision)
        return found
    folder = Path(where)
    if any(name.endswith(WEIGHTS) for name in os.listdir(folder)):
        found.model = load(folder, precision=precision)
    else:
        found.notes.append(f"{folder} has no model in it")
    if (folder / HISTORY).is_file():
        found.history = read_columns(folder / HISTORY)
    if (folder / PREDICTIONS).is_file():
        _read(found, folder, data)
    else:
        found.notes.append(f"{folder} has no {PREDICTIONS}: confusion and mistakes are left out")
    return found


def _read(found: Found, folder: Path, data: Sequence[str | os.PathLike]) -> None:
    """The confusion matrix and the worst mistakes with their pictures."""
    predictions = read_predictions(folder / PREDICTIONS)
    check(bool(predictions), f"{folder / PREDICTIONS} must have a line for at least one picture")
    known = None if found.model is None else found.model.class_names
    found.counts, found.names = confusion_of(predictions, known)
    wrong = [row for row in predictions if row.true != row.predicted]
    places = [*map(Path, data), folder, Path()]
    shown = {id(row) for row in sorted(wrong, key=lambda row: -row.probability)[:MOST]}
    found.mistakes = [_mistake(row, places if id(row) in shown else []) for row in wrong]
    missing = sum(mistake.picture is None for mistake in worst(found.mistakes, MOST)) if wrong else 0
    if missing:
        found.notes.append(
            f"{missing} of the pictures that {PREDICTIONS} names are not found; --data names their folder"
        )


def _mistake(row: Prediction, places: Sequence[Path]) -> Mistake:
    picture = next((place / row.name for place in places if (place / row.name).is_file()), None)
    return Mistake(row.name, picture, row.true, row.predicted, row.probability)
