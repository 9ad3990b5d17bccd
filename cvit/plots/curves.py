"""The curves of a training run: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..base.errors import check, listed, short
from ..train.history import Epoch, History
from .figure import BLUE, GREEN, GREY, SMALL, TEXT, TITLE, VERMILION, is_own, new_figure, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Columns = Mapping[str, Any]  # by name, each (epochs,) numbers, nan where a value is missing

FEW = 25  # epochs whose points are marked: a run of one epoch has no line


class Panel(NamedTuple):
    """One of the figure's parts: its title, its axis, and the columns that it shows, as label, column and colour."""

    title: str
    axis: str
    factor: float
    lines: tuple[tuple[str, str, str, str], ...]  # label, column, colour, line style


PANELS = {
    "loss": Panel("Loss", "cross-entropy (lower is better)", 1, (
        ("training", "train_loss", BLUE, "--"), ("validation", "test_loss", VERMILION, "-"),
    )),
    "accuracy": Panel("Accuracy", "correctly classified (%)", 100, (
        ("training", "train_accuracy", BLUE, "--"), ("validation", "test_accuracy", VERMILION, "-"),
    )),
    "lr": Panel("Learning rate", "learning rate at the epoch's end", 1, (("learning rate", "lr", GREEN, "-"),)),
}  # fmt: skip


def curves(history: History | Columns, path: str | os.PathLike) -> None:
    """Write the curves of a run as a PNG; see `draw`."""
    write(draw(history), path)


def is_curves(path: str | os.PathLike) -> bool:
    """Whether the file `path` is a PNG that `curves` drew."""
    return is_own(path)


def draw(history: History | Columns, panels: Sequence[str] = tuple(PANELS), width: float = 4.4) -> Figure:
    """The `panels` ("loss", "accuracy", "lr") side by side, with the best epoch marked.

    Augmented images and smoothed labels are harder than plain ones, so training may well look worse than validation.

    Parameters
    ----------
    history : History, or mapping of str to sequence of float
        Columns by the names of `Epoch`. A column, or a value of it, may be missing (nan).
    panels : sequence of str
    width : float
        Of a panel, in inches.
    """
    unknown = set(panels) - set(PANELS)
    check(not unknown and len(panels) > 0, f"panels must be some of {', '.join(PANELS)}, got {listed(unknown)}")
    columns = columns_of(history)
    figure = new_figure(width * len(panels), 0.9 * width)
    best = best_epoch(columns)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        _panel(axes, PANELS[name], columns, best)
    return figure


def columns_of(history: History | Columns) -> dict[str, np.ndarray]:
    """The columns of a history by name, each (epochs,) in float64; infinities, which no axis has, become nan."""
    if isinstance(history, History):
        names = history.epochs[0]._fields if history.epochs else Epoch._fields
        columns: Columns = {name: [getattr(epoch, name) for epoch in history.epochs] for name in names}
    elif isinstance(history, Mapping):
        columns = history
    else:
        raise TypeError(f"history must be a History or a mapping of columns, got {type(history).__name__}")
    check("epoch" in columns, f"history must have a column epoch, got {listed(map(str, columns))}")
    arrays = {name: np.array(column, np.float64) for name, column in columns.items()}
    count = arrays["epoch"].shape
    wrong = [name for name, column in arrays.items() if column.shape != count or column.ndim != 1]
    check(not wrong, f"history must have one value an epoch in every column, but not so {listed(wrong)}")
    return {name: np.where(np.isfinite(column), column, np.nan) for name, column in arrays.items()}


def read_columns(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The columns of a history.csv by name; an empty value, or one that is no number, is nan.

    Raises
    ------
    ValueError
        The file is no history of epochs.
    """
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        try:
            names, *rows = [row for row in csv.reader(file) if row] or [[]]
        except csv.Error as error:
            raise ValueError(f"{path} is no table of comma-separated values: {short(error)}") from None
    check("epoch" in names, f"{path} must begin with a line of names, with epoch among them")
    columns = {name: [_number(row, index) for row in rows] for index, name in enumerate(names)}
    return columns_of(columns)


def best_epoch(columns: Columns) -> int | None:
    """The index of the epoch with the highest test accuracy, of several the lowest test loss, then the first; None
    without test data."""
    count = len(columns["epoch"])
    accuracy, loss = (columns.get(name, np.full(count, np.nan)) for name in ("test_accuracy", "test_loss"))
    ranked = [
        (-accuracy[i] if accuracy[i] == accuracy[i] else math.inf, loss[i] if loss[i] == loss[i] else math.inf, i)
        for i in range(count)
        if accuracy[i] == accuracy[i] or loss[i] == loss[i]
    ]
    return min(ranked)[2] if ranked else None


def _number(row: list[str], index: int) -> float:
    try:
        return float(row[index])
    except (ValueError, IndexError):
        return math.nan


def _panel(axes, panel: Panel, columns: Columns, best: int | None) -> None:
    """Draw one panel; where there is nothing to show, say so."""
    from matplotlib.ticker import MaxNLocator

    epochs = columns["epoch"]
    axes.set_title(panel.title, fontsize=TITLE)
    axes.set_xlabel("epoch", fontsize=TEXT)
    axes.set_ylabel(panel.axis, fontsize=TEXT)
    axes.tick_params(labelsize=TEXT)
    axes.grid(color="#cccccc", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = [line for line in panel.lines if np.isfinite(columns.get(line[1], np.nan)).any()]
    if not drawn:
        axes.set(xticks=[], yticks=[])
        text = "no epoch is finished" if len(epochs) == 0 else "not measured"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY, fontsize=TEXT)
        return
    mark = "o" if len(epochs) <= FEW else None
    for text, name, colour, style in drawn:
        values = panel.factor * columns[name]
        axes.plot(epochs, values, style, color=colour, label=text, linewidth=1.8, marker=mark, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if best is not None:
        axes.axvline(epochs[best], color=GREY, linestyle=":", linewidth=1.3, label=_best_label(panel, columns, best))
    axes.legend(
        fontsize=SMALL + 1, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, handlelength=1.8,
    )  # fmt: skip


def _best_label(panel: Panel, columns: Columns, best: int) -> str:
    """The epoch's number, with the test's value where the panel shows one."""
    text = f"best epoch: {columns['epoch'][best]:.0f}"
    value = columns[panel.lines[-1][1]][best]
    if panel.lines[-1][0] != "validation" or not math.isfinite(value):
        return text
    return f"{text} ({100 * value:.1f} %)" if panel.factor == 100 else f"{text} ({value:.3g})"
