"""`cvit predict MODEL IMAGE…|DIR`: the most probable classes of pictures."""

from __future__ import annotations

import csv
import json
import sys

from .options import (
    MOST_IMAGES,
    listed_pictures,
    option,
    precision_option,
    quiet_decoders,
    threads_option,
    use_threads,
    whole,
)
from .output import one_line

DESCRIPTION = """\
Print the most probable classes of each picture, by the names that the model has for them. Of a folder all pictures, in
the folders below it, too; those that cannot be decoded are then named on standard error and left out."""
EXAMPLE = "cvit predict vit.safetensors photos/ --csv > predictions.csv"

BATCH = 16  # pictures in a pass


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "model", metavar="MODEL", help="what cvit.load takes: a file, a run's folder, or a name on the Hugging Face Hub"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR", help="pictures: JPEG, PNG, WebP and others; folders")
    option(parser, "--top", 5, whole(1, MOST_IMAGES), "classes to print for each picture")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print a JSON list, one object for each picture")
    forms.add_argument("--csv", action="store_true", help="print rows image,rank,class,name,probability")
    precision_option(parser)
    threads_option(parser)


def run(args) -> None:
    """Predict and print. A picture given by its name that cannot be decoded is an error before anything of its batch is
    printed."""
    use_threads(args.threads)
    from .. import load

    pictures = list(listed_pictures(args.images))
    model = load(args.model, precision=args.precision, mmap=True).freeze()
    show = _json if args.json else _csv if args.csv else _text
    show(_results(model, pictures, args.top))


def _results(model, pictures, top: int):
    """For each picture its name and its `top` classes: number, name where the model has names, probability."""
    done = 0
    for start in range(0, len(pictures), BATCH):
        with quiet_decoders():
            good = list(_decoded(model, pictures[start : start + BATCH]))
        for name, guesses in zip([name for name, _ in good], _guesses(model, [values for _, values in good], top)):
            done += 1
            yield {"image": name, "classes": [_class(model, *guess) for guess in guesses]}
    if not done:
        raise ValueError(f"none of the {len(pictures)} pictures could be decoded")


def _decoded(model, pictures):
    for name, file, named in pictures:
        try:
            yield name, model.preprocess(file)
        except (ValueError, OSError) as error:
            if named:
                raise
            print(f"cvit: left out: {one_line(str(error))}", file=sys.stderr, flush=True)


def _guesses(model, values: list, top: int):
    """(number, probability) of the best classes of each picture."""
    import numpy as np

    from ..model.recognition import probabilities

    if not values:
        return
    logits = model.forward(np.concatenate(values))
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"the model predicts no class of a picture: its output has the shape {logits.shape}")
    for row in probabilities(logits):
        yield [(int(number), float(row[number])) for number in np.argsort(-row, kind="stable")[:top]]


def _class(model, number: int, probability: float) -> dict:
    named = {} if model.class_names is None else {"name": model.class_names[number]}
    return {"class": number, **named, "probability": probability}


def _text(results) -> None:
    for result in results:
        print(one_line(result["image"]))
        for entry in result["classes"]:
            name = one_line(entry["name"]) if "name" in entry else f"class {entry['class']}"
            print(f"  {entry['probability']:7.2%}  {name}")


def _json(results) -> None:
    print(json.dumps(list(results), indent=2))


def _csv(results) -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["image", "rank", "class", "name", "probability"])
    for result in results:
        for rank, entry in enumerate(result["classes"], start=1):
            cells = result["image"], rank, entry["class"], entry.get("name", ""), f"{entry['probability']:.6f}"
            rows.writerow(cells)
