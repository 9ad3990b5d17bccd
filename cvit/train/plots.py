"""The curves of a training run as a PNG. Needs matplotlib: `pip install "cvit-cpu[demo]"`."""

from __future__ import annotations

from ..base.files import replacing
from .history import History

MARK = "cvit"  # the PNG's "Software" (PNG specification, 11.3.4.3)


def curves(history: History, path) -> None:
    """Draw loss and accuracy over the epochs, training and test, side by side.

    Augmented images and smoothed labels are harder than plain ones, so training may well look worse than test.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state, rendered by Agg

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [epoch.epoch for epoch in history.epochs]
    for part in ("train", "test"):
        left.plot(epochs, [getattr(epoch, f"{part}_loss") for epoch in history.epochs], label=part)
        right.plot(epochs, [100 * getattr(epoch, f"{part}_accuracy") for epoch in history.epochs], label=part)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": MARK})


def is_curves(path) -> bool:
    """Whether the file `path` is a PNG that `curves` drew: the mark stands before the pixels."""
    with open(path, "rb") as file:
        begin = file.read(4096).partition(b"IDAT")[0]
    return begin.startswith(b"\x89PNG") and f"tEXtSoftware\0{MARK}".encode() in begin
