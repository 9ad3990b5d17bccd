"""`cvit plot DIR|MODEL [IMAGE…]`: draw what a run has learnt, and where a model looks."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .options import precision_option, quiet_decoders, threads_option, use_threads
from .output import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.vit import ViT
    from ..plots.lookup import Found

DESCRIPTION = (
    "Draw pictures of a run's folder: curves, the confusion matrix and the worst errors (of its history.csv and\n"
    "predictions.csv); and of a model: the similarity of its positions, its patch filters, and for each IMAGE the\n"
    "last block's attention and attention rollout, laid over the picture. Prints the files that it wrote."
)
EXAMPLE = "cvit plot runs/flowers rose.jpg"

Job = tuple[str, Callable[[], "Figure"]]  # the file's name, and what draws it


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "where", metavar="DIR|MODEL", help="the folder of a run, or what cvit.load takes: a file, a folder, a Hub name"
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures to show the attention on")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default the run's folder, else here)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the folder that the names in predictions.csv are relative to"
    )
    precision_option(parser)
    threads_option(parser)


def run(args) -> None:
    """Draw what there is, and say what is left out and why. Nothing to draw is an error."""
    use_threads(args.threads)
    from ..plots import figure, lookup

    figure.matplotlib()  # its absence is told before any work
    found = lookup.find(args.where, [args.data] if args.data else [], args.precision)
    if args.images and found.model is None:
        raise ValueError(f"{args.where} must have a model for the attention on pictures")
    folder = args.out or (Path(args.where) if lookup.is_run(args.where) else Path())
    jobs = [*_jobs(found), *_attention(found.model, args.images)]
    _check_files([folder / name for name, _ in jobs])
    folder.mkdir(parents=True, exist_ok=True)
    notes, written = list(found.notes), 0
    for name, draw in jobs:
        try:
            with quiet_decoders():
                drawn = draw()
        except ValueError as error:
            if name.startswith("attention"):  # what was asked for by name
                raise
            notes.append(f"{name} is left out: {error}")
            continue
        figure.write(drawn, folder / name)
        print(f"wrote {one_line(str(folder / name))}", flush=True)
        written += 1
    for note in notes:
        print(f"cvit: {one_line(note)}", file=sys.stderr)
    if not written:
        raise ValueError(f"{args.where} has nothing that can be drawn")


def _jobs(found: Found) -> Iterator[Job]:
    """The plots that need no picture, in the order of the table."""
    from ..plots import PLOTS

    sources: dict[str, tuple] = {}
    if found.history is not None:
        sources["history"] = (found.history,)
    if found.counts is not None:
        sources["confusion"] = (found.counts, found.names)
    if any(mistake.picture is not None for mistake in found.mistakes):
        sources["mistakes"] = (found.mistakes,)
    if found.model is not None:
        sources["model"] = (found.model,)
    for plot in PLOTS:
        if plot.source in sources:
            module = importlib.import_module(f"..plots.{plot.name}", __package__)
            yield f"{plot.name}.png", functools.partial(module.draw, *sources[plot.source])


def _attention(model: ViT | None, images: list[str]) -> Iterator[Job]:
    """One plot a picture, named after it: attention-NAME.png, and attention-NAME-2.png for a second of that name."""
    if model is None:
        return
    taken: set[str] = set()
    for image in images:
        stem, number = f"attention-{Path(image).stem}", 1
        while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png") in taken:
            number += 1
        taken.add(name)
        yield name, functools.partial(_attention_on, model, image)


def _attention_on(model: ViT, image: str) -> Figure:
    from ..plots import attention

    return attention.draw(attention.of_picture(model, image), Path(image).name, _prediction(model, image))


def _prediction(model: ViT, image: str) -> str:
    """The most probable class with its probability; "" for a model that gives a picture no class."""
    import numpy as np

    if model.config.classes == 0 or model.config.pool == "none":
        return ""
    logits = model.forward(model.preprocess(image))[0].astype(np.float64)
    odds = np.exp(logits - logits.max())
    best = int(odds.argmax())
    name = f"class {best}" if model.class_names is None else model.class_names[best]
    return f"{name} {odds[best] / odds.sum():.1%}"


def _check_files(paths: list[Path]) -> None:
    """Raise for a file that cvit did not write and that would be overwritten, before anything is drawn."""
    from ..plots.figure import is_own

    for path in paths:
        if path.exists() and path.stat().st_size and not is_own(path):
            raise ValueError(f"{path} was not written by cvit and would be overwritten: move it, or give another --out")
