"""The report of a run: one HTML page that needs no network, no script and no other file.

    history, counts, mistakes, … -> the sections' values and pictures -> report.html.j2

Every name that comes from outside goes through jinja2's autoescaping. The pictures are data URLs, and the page's
Content-Security-Policy allows nothing else to be loaded.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..base.errors import check
from ..base.files import replacing
from ..pictures.open import pillow
from ..train.history import History
from . import confusion as confusion_plot
from . import curves
from .attention import Attention, overlay
from .figure import label, png
from .mistakes import Mistake, thumbnail

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.j2"
MOST_MISTAKES = 24
MOST_ROWS = 30  # of the table of classes, before the rest is folded away
EDGE = 208  # pixels of a picture's longer edge
QUALITY = 82  # of JPEG
SMALL = 48  # pixels of a picture that is kept as it is, and enlarged by the browser


class Picture(NamedTuple):
    """An image of the page: its data URL, what stands for it where it is not seen, and its size in pixels."""

    source: str
    text: str
    width: int
    height: int
    pixelated: bool = False


class Case(NamedTuple):
    """One of the worst errors, as the page shows it."""

    mistake: Mistake
    picture: Picture | None
    attention: Picture | None


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    history: History | curves.Columns | None = None,
    classes: Sequence[str] | None = None,
    confusion=None,
    mistakes: Sequence[Mistake] = (),
    attention: Sequence[Attention | None] = (),
    settings: Mapping[str, Any] | None = None,
    times: Mapping[str, Any] | None = None,
    remarks: Sequence[str] = (),
) -> None:
    """Write a run's report to `path`, in place of what it held. What is not given has no section.

    Parameters
    ----------
    path : str or path
    title : str
    history : History or mapping of str to sequence of float, optional
        See `curves.draw`.
    classes : sequence of str, optional
        The names of the classes; numbers without.
    confusion : array (classes, classes) of int, optional
        Row = true class, column = predicted class.
    mistakes : sequence of Mistake
        Of any order and number: the `MOST_MISTAKES` surest are shown.
    attention : sequence of Attention or None
        Of each of `mistakes`, in their order, as `attention.of_picture` gives it; may be shorter.
    settings : mapping of str to value, optional
        The run's configuration. A value that is a mapping becomes a group of its own.
    times : mapping of str to float or str, optional
        Seconds, or text that is shown as it is.
    remarks : sequence of str
        What the reader should know first: pictures that were skipped, an interrupted run.

    Raises
    ------
    ModuleNotFoundError
        jinja2, matplotlib or Pillow is missing.
    ValueError
        An argument is wrong, or a picture cannot be opened.
    """
    check(len(attention) <= len(mistakes), f"attention must be of mistakes, {len(mistakes)}, got {len(attention)}")
    template = _template()
    rows = [] if confusion is None else confusion_plot.by_class(confusion, classes)
    cases = _cases(mistakes, attention)
    page = template.render(
        title=label(title, 120),
        remarks=list(map(str, remarks)),
        facts=_facts(history, rows),
        curves=[] if history is None else _curves(history),
        rows=rows[:MOST_ROWS],
        more_rows=rows[MOST_ROWS:],
        confusion=None if confusion is None else _confusion(confusion, classes),
        cases=cases,
        mistakes=len(mistakes),
        groups=_groups(settings or {}),
        times=[(label(name, 80), _duration(value)) for name, value in (times or {}).items()],
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _template():
    """The page's template, with autoescaping."""
    try:
        import jinja2
    except ModuleNotFoundError:
        raise ModuleNotFoundError('the report needs jinja2: pip install "cvit-cpu[report]"') from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda share: "–" if math.isnan(share) else f"{100 * share:.1f}\u00a0%"
    environment.filters["plain"] = lambda text: label(text, 200)
    return environment.get_template(TEMPLATE)


def _facts(history, rows: Sequence[confusion_plot.ClassRow]) -> list[tuple[str, str]]:
    """The figures at the head of the page, as (value, what it is)."""
    facts = []
    pictures, correct = sum(row.pictures for row in rows), sum(row.correct for row in rows)
    if pictures:
        facts += [
            (f"{100 * correct / pictures:.1f} %", "accuracy"),
            (f"{pictures - correct:,} of {pictures:,}", "pictures wrong"),
            (f"{len(rows):,}", "classes"),
        ]
    if history is not None:
        columns = curves.columns_of(history)
        best = curves.best_epoch(columns)
        facts.append((f"{len(columns['epoch']):,}", "epochs"))
        if best is not None:
            facts.append((f"{columns['epoch'][best]:.0f}", "best epoch"))
    return facts


def _curves(history) -> list[Picture]:
    """A picture for each panel: side by side where there is room, one below the other on a phone."""
    columns = curves.columns_of(history)
    return [_figure(curves.draw(columns, [name], 3.8), _story(columns, name)) for name in curves.PANELS]


def _story(columns: curves.Columns, name: str) -> str:
    """A panel in words: where each line begins and ends."""
    panel = curves.PANELS[name]
    told = []
    for text, column, *_ in panel.lines:
        values = panel.factor * columns.get(column, np.array([]))
        values = values[np.isfinite(values)]
        if len(values):
            told.append(f"{text} from {values[0]:.3g} to {values[-1]:.3g}")
    unit = " in percent" if panel.factor == 100 else ""
    return f"{panel.title}{unit} over the epochs: {', '.join(told) or 'not measured'}."


def _confusion(counts, classes: Sequence[str] | None) -> Picture:
    text = (
        "Confusion matrix: rows are true classes, columns predicted ones. The table of classes says the same in words."
    )
    return _figure(confusion_plot.draw(counts, classes), text)


def _cases(mistakes: Sequence[Mistake], attention: Sequence[Attention | None]) -> list[Case]:
    """The worst mistakes, each with its picture and what the model looked at."""
    pairs = [(mistake, attention[i] if i < len(attention) else None) for i, mistake in enumerate(mistakes)]
    pairs.sort(key=lambda pair: -pair[0].probability)
    cases = []
    for mistake, looked in pairs[:MOST_MISTAKES]:
        name = label(mistake.name, 80)
        shown = None if mistake.picture is None else _image(thumbnail(mistake.picture, EDGE), f"Picture {name}")
        laid_over = None
        if looked is not None:
            laid_over = _image(_reduced(overlay(looked.seen, looked.rollout)), f"Where the model looked in {name}")
        cases.append(Case(mistake, shown, laid_over))
    return cases


def _groups(settings: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings as (group, [(name, value)]): those without a group first, in a group without a name."""
    single = [(label(name, 80), _value(value)) for name, value in settings.items() if not isinstance(value, Mapping)]
    groups = [("", single)] if single else []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            groups.append((label(name, 80), [(label(key, 80), _value(inner)) for key, inner in value.items()]))
    return groups


def _value(value) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return label(", ".join(map(_value, value)), 400)
    return label(value, 400)


def _duration(value) -> str:
    """Seconds in words; text as it is."""
    if isinstance(value, str):
        return label(value, 200)
    seconds = float(value)
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _figure(figure: Figure, text: str) -> Picture:
    content = png(figure)
    width, height = pillow().open(io.BytesIO(content)).size
    return _encoded(content, "png", text, width, height)


def _reduced(pixels: np.ndarray) -> np.ndarray:
    image = pillow().fromarray(pixels)
    image.thumbnail((EDGE, EDGE))
    return np.asarray(image)


def _image(pixels: np.ndarray, text: str) -> Picture:
    """A picture (h, w, 3): JPEG, or PNG where it is so small that JPEG would blur it."""
    image = pillow().fromarray(pixels)
    small = max(image.size) <= SMALL
    file = io.BytesIO()
    image.save(file, "PNG" if small else "JPEG", optimize=True, **({} if small else dict(quality=QUALITY)))
    return _encoded(file.getvalue(), "png" if small else "jpeg", text, image.width, image.height, small)


def _encoded(content: bytes, kind: str, text: str, width: int, height: int, pixelated: bool = False) -> Picture:
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(source, text, width, height, pixelated)
