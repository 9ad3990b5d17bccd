"""`cvit eval MODEL PATH`: accuracy and confusion matrix of a model on pictures."""

from __future__ import annotations

import csv
from pathlib import Path

from .options import (
    MOST_IMAGES,
    MOST_THREADS,
    option,
    precision_option,
    quiet_decoders,
    threads_option,
    use_threads,
    whole,
)
from .output import one_line

DESCRIPTION = (
    "Print accuracy, accuracy by class and the confusion matrix of a model on pictures: what `cvit train` takes. Of\n"
    "data with a test part that is taken, else its validation part, else all of it; --part chooses."
)
EXAMPLE = "cvit eval runs/photos photos/ --part validation"
PARTS = ("test", "validation", "train")
MOST_CLASSES = 30  # of a matrix that is printed


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "model", metavar="MODEL", help="what cvit.load takes: a file, a run's folder, or a name on the Hugging Face Hub"
    )
    parser.add_argument("data", metavar="PATH|digits", help="a folder, a CSV, an .npz, or scikit-learn's digits")
    parser.add_argument("--part", choices=PARTS, help="the part of the data (default the first of these that it has)")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write a row name,true,predicted,probability each"
    )
    parser.add_argument("--strict", action="store_true", help="stop at a picture that cannot be decoded")
    parser.add_argument("--decoders", type=whole(1, MOST_THREADS), default=1, metavar="INT", help="threads that decode")
    option(parser, "--batch-size", 256, whole(1, MOST_IMAGES), "pictures in a pass")
    precision_option(parser)
    threads_option(parser)


def run(args) -> None:
    """Evaluate and print."""
    use_threads(args.threads)

    from ..data.feed import Feed
    from ..data.found import find
    from ..formats.load import load
    from ..model.recognition import probabilities
    from ..pictures.preprocessing import Preprocessing
    from ..train.evaluation import confusion_matrix, cross_entropy, logits_of

    model = load(args.model, precision=args.precision, mmap=True).freeze()
    with quiet_decoders():
        found = find(args.data, validation=0.0, strict=args.strict)
        for remark in found.remarks:
            print(one_line(remark))
        name, pictures = _part(found, args.part)
        how = model.preprocessing or Preprocessing.default(model.config.image_size, model.config.channels)
        feed = Feed(pictures, how, args.batch_size, decoders=args.decoders)
        numbers = _numbers(found.class_names, model)
        logits, labels = logits_of(model, feed, args.batch_size)
    labels = numbers[labels]
    predictions = logits.argmax(axis=1)
    names = model.class_names or tuple(map(str, range(model.config.classes)))
    right = int((predictions == labels).sum())
    print(
        f"accuracy {right / len(labels):.2%} of {len(labels)} {name} pictures, "
        f"cross-entropy {cross_entropy(logits, labels):.4f}"
    )
    matrix = confusion_matrix(labels, predictions, model.config.classes)
    _print_classes(matrix, names)
    if len(matrix) <= MOST_CLASSES:
        _print_matrix(matrix, names)
    if args.csv is not None:
        _write(args.csv, pictures.names, labels, predictions, probabilities(logits), names)
        print(f"wrote {one_line(str(args.csv))}")


def _part(found, wanted: str | None):
    """The name and the pictures of the part to evaluate."""
    parts = {"test": found.test, "validation": found.validation, "train": found.train}
    if wanted is None:
        wanted = next(name for name in PARTS if parts[name] is not None)
    if parts[wanted] is None:
        has = ", ".join(name for name in PARTS if parts[name] is not None)
        raise ValueError(f"{found.name} has no {wanted} part; it has {has}")
    return wanted, parts[wanted]


def _numbers(class_names, model):
    """For each class of the data its number in the model: by its name, or as it stands where the model has no names."""
    import numpy as np

    known = model.class_names
    if known is None:
        if len(class_names) > model.config.classes:
            raise ValueError(f"the data has {len(class_names)} classes, the model {model.config.classes}")
        return np.arange(len(class_names))
    unknown = [name for name in class_names if name not in known]
    if unknown:
        raise ValueError(f"the model has no class {', '.join(unknown[:5])}; it has {', '.join(known[:10])}")
    return np.array([known.index(name) for name in class_names])


def _print_classes(matrix, names) -> None:
    """A line for each class that has pictures, the worst first."""
    rows = [(row[number] / row.sum(), number) for number, row in enumerate(matrix) if row.sum()]
    print("\naccuracy by class")
    for share, number in sorted(rows):
        print(f"  {share:8.2%}  {matrix[number].sum():6,d}  {one_line(names[number])}")


def _print_matrix(matrix, names) -> None:
    print("\nconfusion matrix: rows are true classes, columns predicted ones")
    print("     " + "".join(f"{label:5d}" for label in range(len(matrix))))
    for label, row in enumerate(matrix):
        cells = "".join(f"{count:5d}" if count else "    ." for count in row)
        print(f"{label:5d}{cells}" + (f"  {one_line(names[label])}" if names[label] != str(label) else ""))


def _write(path: Path, names, labels, predictions, probabilities, class_names) -> None:
    from ..base.files import replacing

    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,  # names that are no text
    ):
        rows = csv.writer(file)
        rows.writerow(["name", "true", "predicted", "probability"])
        for name, label, guess, row in zip(names, labels, predictions, probabilities):
            rows.writerow([name, class_names[label], class_names[guess], f"{row[guess]:.6f}"])
