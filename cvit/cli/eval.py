"""`cvit eval MODEL DATASET`: accuracy and confusion matrix of a saved model."""

from __future__ import annotations

from .options import MOST_IMAGES, need_demo_extra, option, threads_option, use_threads, whole

DESCRIPTION = "Print accuracy and confusion matrix of a saved model on the data set's test images."
EXAMPLE = "cvit eval digits.safetensors digits"


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "model", metavar="MODEL", help="what cvit.load takes, a model that `cvit train` wrote for instance"
    )
    parser.add_argument("dataset", choices=["digits"], help="scikit-learn's handwritten digits, the test part")
    option(parser, "--batch-size", 256, whole(1, MOST_IMAGES), "images in a pass")
    threads_option(parser)


def run(args) -> None:
    """Evaluate and print."""
    need_demo_extra(["sklearn"])
    use_threads(args.threads)

    from ..data import digits
    from ..formats.load import load
    from ..train.evaluation import confusion_matrix, evaluate

    model = load(args.model)
    _, test = digits()
    result = evaluate(model, *test, batch_size=args.batch_size)
    print(f"accuracy {result.accuracy:.2%} of {len(test.images)} test images, cross-entropy {result.loss:.4f}\n")
    print("confusion matrix: rows are true classes, columns predicted ones")
    matrix = confusion_matrix(test.labels, result.predictions, model.config.classes)
    print("     " + "".join(f"{label:5d}" for label in range(len(matrix))))
    for label, row in enumerate(matrix):
        print(f"{label:5d}" + "".join(f"{count:5d}" if count else "    ." for count in row))
