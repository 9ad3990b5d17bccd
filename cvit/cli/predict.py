"""`cvit predict MODEL IMAGE…`: the most probable classes of pictures."""

from __future__ import annotations

from .options import MOST_IMAGES, option, quiet_decoders, threads_option, use_threads, whole
from .output import one_line

DESCRIPTION = "Print the most probable classes of each picture, by the names that the model has for them."
EXAMPLE = "cvit predict vit.safetensors cat.jpg dog.jpg --top 3"

BATCH = 16  # pictures in a pass


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "model", metavar="MODEL", help="what cvit.load takes: a file, a folder, or a name on the Hugging Face Hub"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures: JPEG, PNG, WebP and other files")
    option(parser, "--top", 5, whole(1, MOST_IMAGES), "classes to print for each picture")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object for each picture")
    threads_option(parser)


def run(args) -> None:
    """Predict and print. A picture that cannot be decoded is an error before anything is printed of its batch."""
    use_threads(args.threads)
    import json

    from .. import load

    model = load(args.model)
    results = []
    for start in range(0, len(args.images), BATCH):
        with quiet_decoders():
            batch = _results(model, args.images[start : start + BATCH], args.top)
        for result in batch:
            if args.json:
                results.append(result)
            else:
                _print(result)
    if args.json:
        print(json.dumps(results, indent=2))


def _results(model, images, top: int) -> list[dict]:
    """For each picture its file and its `top` classes: number, name where the model has names, probability."""
    import numpy as np

    logits = model.forward(model.preprocess(images)).astype(np.float64)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"the model predicts no class of a picture: its output has the shape {logits.shape}")
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    names = model.class_names
    results = []
    for image, row in zip(images, probabilities):
        classes = []
        for number in map(int, np.argsort(-row, kind="stable")[:top]):
            named = {} if names is None else {"name": names[number]}
            classes.append({"class": number, **named, "probability": float(row[number])})
        results.append({"image": image, "classes": classes})
    return results


def _print(result: dict) -> None:
    print(one_line(result["image"]))
    for entry in result["classes"]:
        name = one_line(entry["name"]) if "name" in entry else f"class {entry['class']}"
        print(f"  {entry['probability']:7.2%}  {name}")
