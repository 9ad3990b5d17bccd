"""`cvit info MODEL|VARIANT`: what a model is and what it needs, without running it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from .options import MOST_IMAGES, option, precision_option, threads_option, use_threads, whole
from .output import one_line

NAMES_SHOWN = 10  # of classes
VARIANT = re.compile(r"[A-Za-z0-9]+/[0-9]+")  # no repository on the Hub is called by a number
PLAIN = (  # the fields that every model's description has
    "image_size", "patch_size", "channels", "width", "depth", "heads", "hidden", "classes", "pool", "activation", "eps",
)  # fmt: skip
DESCRIPTION = (
    "Print a model's architecture and the options that differ from the plain one, what it does to pictures, the names\n"
    "of its classes, its tensors in the order of the weight vector, the number of weights, the floating-point\n"
    "operations of a forward pass, the precision and the kernels that compute in it, and the memory that a training\n"
    "step and inference take in this precision."
)
EXAMPLE = "cvit info digits.safetensors && cvit info S/16 --batch 8"


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "model", metavar="MODEL|VARIANT",
        help="what cvit.load takes (a file, a folder, a name on the Hub), or a variant with its patch size: Ti/16, …",
    )  # fmt: skip
    option(parser, "--batch", 1, whole(1, MOST_IMAGES), "images in a batch, for FLOPs and memory")
    parser.add_argument("--program", action="store_true", help="print the steps of a block instead")
    precision_option(parser)
    threads_option(parser)


def run(args) -> None:
    """Print what the options ask for."""
    use_threads(args.threads)
    from ..model.precision import kernels_of

    model, notes = _model(args.model, args.precision)
    if args.program:
        print(model.program())
        return
    config = model.config
    print("configuration")
    for name in PLAIN:
        print(f"  {name:<16}{getattr(config, name)}")
    for name, value in _options(config):
        print(f"  {name:<16}{value}  (option)")
    if model.origin is not None:
        style = f" ({', '.join(map(one_line, model.origin.style))})" if model.origin.style else ""
        print(f"  {'names':<16}{one_line(model.origin.family)}{style}")
    for key, value in notes.items():
        print(f"  {one_line(key):<16}{one_line(value)}  (note in the file)")
    print("\npreprocessing of pictures" + ("" if model.preprocessing else ", not in the file: the default"))
    _print_preprocessing(model)
    if model.class_names is not None:
        print(f"\nclasses\n  {_enumerated(model.class_names)}")
    print("\ntensors")
    _print_tensors(list(model.layout.entries.values()))
    flops = config.forward_flops(args.batch)
    print(f"\n{model.layout.size:,} weights, {model.dtype}, {model.weights.nbytes / 1e6:,.3f} MB")
    print(f"{flops / 1e9:,.3f} GFLOPs in a forward pass, batch {args.batch}")
    print(f"precision {model.precision}, by the kernels for {kernels_of(model.precision)}\n")
    print(model.plan(args.batch, "train"))
    print(model.plan(args.batch, "infer"))


def _model(name: str, precision: str | None):
    """The model of a file or a variant, and the notes in the file.

    A variant's weights are zeros: nothing here reads them.
    """
    import numpy as np

    from ..formats import checkpoint
    from ..formats.load import load
    from ..model.config import ViTConfig
    from ..model.layout import Layout
    from ..model.precision import dtype_of
    from ..model.vit import ViT

    if VARIANT.fullmatch(name) and not Path(name).exists():
        config = ViTConfig.variant(name)
        dtype = np.float32 if precision is None else dtype_of(precision)
        return ViT(config, np.zeros(Layout.of(config).size, dtype), precision=precision), {}
    own = Path(name).is_file() and checkpoint.is_own(name)
    return load(name, precision=precision), checkpoint.read_metadata(name) if own else {}


def _options(config):
    """Names and values of the options that are not those of a plain model."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in PLAIN and value != field.default:
            yield field.name, value


def _print_preprocessing(model) -> None:
    """One line a setting; a model without any gets the default, where its channels are those of a picture."""
    from ..pictures.preprocessing import Preprocessing

    how = model.preprocessing
    if how is None:
        try:
            how = Preprocessing.default(model.config.image_size, model.config.channels)
        except ValueError as error:
            print(f"  none: {one_line(str(error))}")
            return
    for field in dataclasses.fields(how):
        print(f"  {field.name:<16}{getattr(how, field.name)}")
    print(f"  {'crop_fraction':<16}{how.crop_fraction}")


def _enumerated(names) -> str:
    """The names of classes with their numbers, the first few of them."""
    shown = ", ".join(f"{number} {one_line(name)}" for number, name in enumerate(names[:NAMES_SHOWN]))
    return shown + (f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else "")


def _print_tensors(entries) -> None:
    """One line a tensor: name, shape, role, and whether weight decay applies."""
    rows = [(e.name, "×".join(map(str, e.shape)), e.role.value, "decay" if e.decay else "") for e in entries]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths) if width).rstrip())
