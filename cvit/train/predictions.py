"""What a model said of each picture that it was evaluated on, as a CSV file: a line of names, then one a picture."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..base.errors import check, listed, short
from ..base.files import replacing
from .evaluation import confusion_matrix


class Prediction(NamedTuple):
    """One picture: its name, its class, the class that the model gives it, and with which probability."""

    name: str
    true: str
    predicted: str
    probability: float  # of the predicted class


def write_predictions(path: str | os.PathLike, predictions: Iterable[Prediction]) -> None:
    """Write predictions.csv in place of what `path` held. Names of files that are no text keep their bytes."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(Prediction._fields)
        writer.writerows(predictions)


def read_predictions(path: str | os.PathLike) -> list[Prediction]:
    """The lines of a predictions.csv; columns beside those of `Prediction` are left out.

    Raises
    ------
    ValueError
        A column is missing, or a probability is none; the message names the line.
    OSError
        The file cannot be read.
    """
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file, restval="")
        try:
            missing = set(Prediction._fields) - set(rows.fieldnames or ())
            check(
                not missing,
                f"{path} must have the columns {', '.join(Prediction._fields)}, and lacks {listed(missing)}",
            )
            return [
                Prediction(row["name"], row["true"], row["predicted"], _probability(path, rows.line_num, row))
                for row in rows
            ]
        except csv.Error as error:
            raise ValueError(f"{path} is no table of comma-separated values: {short(error)}") from None


def confusion_of(
    predictions: Sequence[Prediction], class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The confusion matrix (classes, classes) of predictions, and the names of its classes.

    Without `class_names` the classes are those that occur, sorted: by number where all names are numbers.

    Raises
    ------
    ValueError
        A class is not among `class_names`.
    """
    found = {name for row in predictions for name in (row.true, row.predicted)}
    if class_names is None:
        numbers = all(name.isdecimal() for name in found)
        class_names = sorted(found, key=(lambda name: (int(name), name)) if numbers else None)
    index = {name: number for number, name in enumerate(class_names)}
    unknown = found - set(index)
    check(not unknown, f"predictions must name classes of the model, but not so {listed(unknown)}")
    true, predicted = (
        np.array([index[getattr(row, field)] for row in predictions], np.int64) for field in ("true", "predicted")
    )
    return confusion_matrix(true, predicted, len(class_names)), tuple(class_names)


def _probability(path: str | os.PathLike, line: int, row: dict[str, str]) -> float:
    try:
        value = float(row["probability"])
    except ValueError:
        value = math.nan
    check(0 <= value <= 1, f"{path}, line {line}: probability must lie in [0, 1], got {short(row['probability'])!r}")
    return value
