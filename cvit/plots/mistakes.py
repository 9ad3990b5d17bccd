"""The worst errors as pictures, with the names of their files: what is mislabelled or hard is seen at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..base.errors import check
from ..base.numbers import as_int
from ..pictures.open import open_picture
from .figure import GREY, SMALL, TITLE, VERMILION, foreign, label, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 24  # pictures in a figure
COLUMNS = 6
EDGE = 240  # pixels that a tile has room for
NAME, FILE = 20, 25  # characters that fit below a picture


class Mistake(NamedTuple):
    """A picture that was taken for another class.

    The picture is what `open_picture` takes: a Pillow image, a uint8 array (h, w) or (h, w, c), or a path; None where
    it is not there any more.
    """

    name: str  # of its file, or what the data calls it
    picture: Any
    true: str  # the class's name
    predicted: str
    probability: float  # that the model gave the predicted class


def worst(mistakes: Sequence[Mistake], most: int = MOST) -> list[Mistake]:
    """The `most` mistakes that the model was surest of, the surest first."""
    return sorted(mistakes, key=lambda mistake: -mistake.probability)[: as_int("most", most)]


def draw(mistakes: Sequence[Mistake], most: int = MOST) -> Figure:
    """A grid of the `most` worst mistakes: each picture with its true and predicted class, the probability that the
    model gave the latter, and the file's name.

    Raises
    ------
    ValueError, OSError
        A picture cannot be opened.
    """
    shown = worst(mistakes, most)
    for mistake in shown:
        right = 0 <= mistake.probability <= 1
        check(right, f"probability of {label(mistake.name)} must lie in [0, 1], got {mistake.probability}")
    pictures = [None if mistake.picture is None else thumbnail(mistake.picture) for mistake in shown]
    tallest = max((picture.shape[0] / picture.shape[1] for picture in pictures if picture is not None), default=0.75)
    columns = min(COLUMNS, max(3, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = new_figure(1.85 * columns, (1.65 * min(max(tallest, 0.4), 1.4) + 0.95) * rows + 0.4)
    figure.suptitle(_title(len(shown), len(mistakes)), fontsize=TITLE)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, mistake, picture in zip(grid, shown, pictures):
        _tile(axes, mistake, picture)
    return figure


def thumbnail(picture, edge: int = EDGE) -> np.ndarray:
    """A picture as uint8 RGB (h, w, 3) of at most `edge` pixels, small ones as they are."""
    image = open_picture(picture)
    if max(image.size) > edge:
        image.thumbnail((edge, edge))
    return np.asarray(image)


def _tile(axes, mistake: Mistake, picture: np.ndarray | None) -> None:
    if picture is None:
        place = dict(ha="center", va="center", transform=axes.transAxes)
        axes.text(0.5, 0.5, "picture not found", color=GREY, fontsize=SMALL, **place)
        axes.set_aspect(1)
    else:
        axes.imshow(picture, interpolation="nearest")
    lines = (
        (f"true: {shortened(mistake.true, NAME)}", "black"),
        (f"taken for: {shortened(mistake.predicted, NAME - 4)}", VERMILION),
        (f"probability {100 * mistake.probability:.1f} %", "black"),
        (label(mistake.name, FILE), GREY),
    )
    for number, (text, colour) in enumerate(lines):
        axes.annotate(
            text, (0.5, 0), (0, -4 - 11.5 * number), xycoords="axes fraction", textcoords="offset points",
            ha="center", va="top", fontsize=SMALL, color=colour, annotation_clip=False, **foreign(),
        )  # fmt: skip


def _title(shown: int, total: int) -> str:
    if not total:
        return "No mistakes"
    if shown == total:
        return "All mistakes, the surest first" if total > 1 else "The only mistake"
    return f"The {shown} surest of {total:,} mistakes"
