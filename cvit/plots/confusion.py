"""The confusion matrix with the names of the classes: rows are true classes, columns predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from .figure import SMALL, TEXT, TITLE, foreign, matplotlib, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 30  # classes with room for their names
NAME = 22  # characters of a name
NO_PICTURES = "#d9d9d9"  # rows of classes without a picture
CHARACTER = 0.62  # a digit's width in DejaVu Sans, in units of the font's size


class ClassRow(NamedTuple):
    """How one class fares: its pictures, how many are found, and what the others are most often taken for."""

    name: str
    pictures: int
    correct: int
    taken_for: str  # "" where there is no mistake
    times: int

    @property
    def accuracy(self) -> float:
        """The share of the class's pictures that are found; nan without pictures."""
        return self.correct / self.pictures if self.pictures else float("nan")


def draw(counts, names: Sequence[str] | None = None) -> Figure:
    """The matrix as a Figure: the share of each true class by colour, the counts as numbers where they fit.

    Of more than `MOST` classes the most confused ones are shown; shares are of all pictures of a class in any case.

    Parameters
    ----------
    counts : array (classes, classes) of int
        As `confusion_matrix` gives them: row = true class, column = predicted class.
    names : sequence of str, optional
        One for each class; numbers without.
    """
    counts, names = checked(counts, names)
    total = len(counts)
    chosen = most_confused(counts)
    shares = np.full(counts.shape, np.nan)
    np.divide(counts, counts.sum(axis=1, keepdims=True), out=shares, where=counts.sum(axis=1, keepdims=True) > 0)
    shown, shares = counts[np.ix_(chosen, chosen)], shares[np.ix_(chosen, chosen)]
    texts = [shortened(names[index], NAME) for index in chosen]

    size = len(chosen)
    cell = float(np.clip(5.0 / size, 0.36, 0.9))  # inches
    space = 0.085 * max(map(len, texts))
    figure = new_figure(max(size * cell + space + 1.7, 4.8), max(size * cell + space * (size > 4) + 1.3, 3.6))
    axes = figure.subplots()
    colours = matplotlib().colormaps["cividis"].with_extremes(bad=NO_PICTURES)
    # By the square root of the share: else a mistake of a few percent had the colour of none.
    norm = matplotlib().colors.PowerNorm(0.5, 0, 100)
    image = axes.imshow(100 * shares, cmap=colours, norm=norm)
    small = TEXT if size <= 15 else SMALL
    turned = 90 if size > 15 else 45 if size > 4 or max(map(len, texts)) > 8 else 0
    if max(map(len, texts)) <= 3:
        turned = 0
    axes.set_xticks(
        range(size), texts, fontsize=small, rotation=turned, rotation_mode="anchor",
        ha={0: "center", 45: "right", 90: "right"}[turned], va={0: "top", 45: "center", 90: "center"}[turned],
        **foreign(),
    )  # fmt: skip
    axes.set_yticks(range(size), texts, fontsize=small, **foreign())
    axes.set_xlabel("predicted class", fontsize=TEXT)
    axes.set_ylabel("true class", fontsize=TEXT)
    axes.set_title(_title(counts, size, total), fontsize=TITLE)
    _numbers(axes, shown, shares, cell)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, ticks=[0, 1, 5, 10, 20, 40, 60, 80, 100])
    bar.set_label("share of the true class's pictures (%)", fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def checked(counts, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """Counts (classes, classes) as int64 and a name for each class."""
    counts = as_array("counts", counts)
    if counts.dtype.kind not in "iu":
        raise TypeError(f"counts must have an integer dtype, got {counts.dtype}")
    square = counts.ndim == 2 and counts.shape[0] == counts.shape[1] > 0
    check(square, f"counts must have shape (classes, classes), got {counts.shape}")
    check(bool((counts >= 0).all()), f"counts must not be negative, got {counts.min()}")
    names = list(map(str, range(len(counts)) if names is None else names))
    check(len(names) == len(counts), f"names must be {len(counts)}, one a class, got {len(names)}")
    return counts.astype(np.int64), names


def most_confused(counts: np.ndarray, most: int = MOST) -> np.ndarray:
    """The `most` classes with the most mistakes, theirs and those of other classes that are taken for them, in order of
    their numbers; all classes where there are no more."""
    if len(counts) <= most:
        return np.arange(len(counts))
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    return np.sort(np.argsort(-wrong, kind="stable")[:most])


def by_class(counts, names: Sequence[str] | None = None) -> list[ClassRow]:
    """A row for each class, the lowest accuracy first; classes without pictures come last."""
    counts, names = checked(counts, names)
    rows = []
    for index, row in enumerate(counts):
        others = row.copy()
        others[index] = 0
        other = int(others.argmax())
        taken = (names[other], int(others[other])) if others[other] else ("", 0)
        rows.append(ClassRow(names[index], int(row.sum()), int(row[index]), *taken))
    return sorted(rows, key=lambda row: (row.pictures == 0, row.accuracy if row.pictures else 0, -row.pictures))


def _title(counts: np.ndarray, size: int, total: int) -> str:
    pictures, correct = int(counts.sum()), int(np.trace(counts))
    right = f"{correct:,} of {pictures:,} pictures correct" if pictures else "no pictures"
    if pictures:
        right += f" ({100 * correct / pictures:.1f} %)"
    if size == total:
        return f"Confusion matrix: {right}"
    return f"Confusion matrix: the {size} most confused of {total:,} classes\nin all classes {right}"


def _numbers(axes, counts: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """The counts that are not 0 in their cells, unless the longest would be smaller than it can be read."""
    longest = len(f"{counts.max():,}")
    size = min(TEXT, 0.85 * 72 * cell / (CHARACTER * longest))
    if size < SMALL - 1:
        return
    for row, column in np.argwhere(counts > 0):
        colour = "black" if shares[row, column] > 0.25 else "white"
        text = f"{counts[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
