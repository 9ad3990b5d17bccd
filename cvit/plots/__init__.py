"""Pictures of a run and of a model: one file a plot, one row of `PLOTS` for each; and the run's report.

curves.py     loss, accuracy, learning rate       attention.py   where the model looks   figure.py   what all share
confusion.py  which classes are taken for which   positions.py   position similarity     report.py   the HTML page
mistakes.py   the worst errors as pictures        filters.py     the patch embedding     lookup.py   what a folder has

A plot's module has `draw(...)`, which gives a matplotlib Figure; `figure.write` makes a PNG of it. matplotlib, Pillow
and jinja2 are imported when something is drawn: `pip install "cvit-cpu[report]"` brings all three.
"""

from __future__ import annotations

from typing import NamedTuple


class Plot(NamedTuple):
    """A row of the table: the plot's module, what it is drawn from, and what it shows."""

    name: str  # of the module here, and of the file: NAME.png
    source: str  # "history", "confusion", "mistakes", "model" or "picture": what `draw` takes
    shows: str


PLOTS = (
    Plot("curves", "history", "loss, accuracy and learning rate of every epoch"),
    Plot("confusion", "confusion", "which classes are taken for which"),
    Plot("mistakes", "mistakes", "the worst errors as pictures"),
    Plot("positions", "model", "how similar the patches' position embeddings are"),
    Plot("filters", "model", "what the patch embedding looks for"),
    Plot("attention", "picture", "where the model looks in a picture"),
)
