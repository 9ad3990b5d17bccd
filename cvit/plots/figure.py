"""What all plots share: figures, colours, text that comes from outside, and the way to a PNG.

Figures are made without pyplot: there is no display, no global state, and Agg renders them. The colours can be told
apart by the colour-blind: those of Okabe and Ito ("Color Universal Design", 2008) for lines, viridis and cividis for
shares. All text is at least as large as 11 pixels at 100 %.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..base.errors import short
from ..base.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "cvit"  # the PNG's "Software" (PNG specification, 11.3.4.3)
DPI = 120
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"  # Okabe and Ito's, and a neutral one
TITLE, TEXT, SMALL = 12, 10, 8  # points; 8 points are 13 pixels
# Families that hold what DejaVu Sans lacks; those that are installed are asked in this order.
FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "WenQuanYi Zen Hei", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji", "Symbola", "Arial Unicode MS",
)  # fmt: skip


def matplotlib() -> Any:
    """The module, imported when it is needed: it is not among the base dependencies."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError('plots need matplotlib: pip install "cvit-cpu[plots]"') from None
    return matplotlib


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, `width` x `height` inches, whose parts make room for each other."""
    figure = matplotlib().figure.Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    return figure


def write(figure: Figure, path: str | os.PathLike) -> None:
    """Write the figure as a PNG, in place of what `path` held, with the mark that `is_own` looks for."""
    with replacing(path) as temporary:
        temporary.write_bytes(png(figure))


def png(figure: Figure) -> bytes:
    """The figure as a PNG in memory, without empty margins."""
    file = io.BytesIO()
    with _all_glyphs():
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": MARK}, bbox_inches="tight", pad_inches=0.12)
    return file.getvalue()


def is_own(path: str | os.PathLike) -> bool:
    """Whether the file `path` is a PNG that `write` wrote: the mark stands before the pixels."""
    with open(path, "rb") as file:
        begin = file.read(4096).partition(b"IDAT")[0]
    return begin.startswith(b"\x89PNG") and f"tEXtSoftware\0{MARK}".encode() in begin


def label(text, most: int = 40) -> str:
    """A name from outside, of a class or a file, as text on one line: the middle of a long one is left out.

    Control characters, and bytes of file names that are no text, are written as escapes.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))
    if len(line) <= most:
        return line
    end = (most - 1) // 2
    return f"{line[: most - 1 - end]}…{line[len(line) - end :]}"


def shortened(text, most: int) -> str:
    """As `label`, but of a long name the beginning stays: classes are told apart by how they begin."""
    return short(label(text, 10**9), most)


@functools.cache
def _families() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ("DejaVu Sans", *(family for family in FALLBACKS if family in installed))


def foreign() -> dict[str, Any]:
    """The arguments of a matplotlib text that holds names from outside: $ is a dollar, and more scripts are known."""
    return dict(parse_math=False, fontfamily=list(_families()))


@contextlib.contextmanager
def _all_glyphs() -> Iterator[None]:
    """No warning for a character that no installed font has: a box stands in its place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
