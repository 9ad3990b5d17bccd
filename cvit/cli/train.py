"""`cvit train DATASET`: train a ViT, then write the model, its history and its curves."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

from ..base.errors import check
from .options import DEMO_MODULES, need_demo_extra, number, option, threads_option, use_threads, whole
from .output import expendable
from .progress import progress
from .signals import recorded

DESCRIPTION = (
    "Train a Vision Transformer with AdamW, warm-up + cosine schedule and small random affine maps.\n"
    "Writes the model to --out, and history.csv and history.png beside it. Ctrl-C, SIGTERM and SIGHUP stop\n"
    "early: what was learnt is saved, and the exit status is 128 + the signal's number, 130 for Ctrl-C."
)
EXAMPLE = "cvit train digits --epochs 20 --out runs/small.safetensors"
OPTIONS = (  # flag, default, kind, help
    ("--epochs", 40, whole(1, 10**9), "passes over the training images"),
    ("--batch-size", 32, whole(1, 2**31 - 1), "images in a step"),
    ("--lr", 2e-3, number(0, 1e6), "highest learning rate"),
    ("--weight-decay", 0.05, number(0, 1e6), "AdamW's weight decay"),
    ("--label-smoothing", 0.1, number(0, 1, below=True), "share of the target spread over all classes"),
    ("--clip-norm", 1.0, number(0, 1e30, above=True), "largest norm of the gradient"),
    ("--width", 64, whole(1, 2**16), "token width"),
    ("--depth", 4, whole(0, 2**12), "number of blocks"),
    ("--heads", 4, whole(1, 2**16), "attention heads"),
    ("--hidden", 128, whole(1, 2**18), "width of the MLP's hidden layer"),
    ("--patch-size", 2, whole(1, 2**16), "side of a patch in pixels"),
    ("--seed", 0, whole(0, 2**32 - 1), "of the first weights, the shuffling and the random maps"),
    ("--out", Path("digits.safetensors"), Path, "file for weights and configuration"),
)


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument("dataset", choices=["digits"], help="scikit-learn's 1,797 handwritten digits, 8x8 pixels")
    for row in OPTIONS:
        option(parser, *row)
    threads_option(parser)


def run(args) -> int:
    """Train and save; the exit status, 128 + a signal's number if one ended the training."""
    need_demo_extra(DEMO_MODULES)
    use_threads(args.threads)

    from ..data import digits, random_affine
    from ..formats import checkpoint
    from ..model.config import ViTConfig
    from ..model.vit import ViT
    from ..plots import curves
    from ..train.evaluation import evaluate
    from ..train.loop import fit
    from ..train.optim import AdamW, warmup_cosine

    train, test = digits()
    config = ViTConfig(
        image_size=train.images.shape[2:], channels=train.images.shape[1], classes=int(train.labels.max()) + 1,
        patch_size=args.patch_size, width=args.width, depth=args.depth, heads=args.heads, hidden=args.hidden,
    )  # fmt: skip
    model = ViT(config, seed=args.seed)
    # The usual positions, 50 times smaller than the embedded patches, leave the model blind to where a patch lies for
    # the first ten epochs; as large as the patches they are seen at once.
    model.layout.views(model.weights)["pos_embed"][...] *= 50
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)
    steps_per_epoch = math.ceil(len(train.images) / args.batch_size)
    schedule = functools.partial(
        warmup_cosine,
        total=args.epochs * steps_per_epoch,
        warmup=min(2, args.epochs) * steps_per_epoch,
        base_lr=args.lr,
    )
    csv_path, png_path = _check_files(args.out, model.weights.nbytes)

    with expendable() as output, recorded() as stop:
        print(
            f"{args.dataset}: {len(train.images)} training and {len(test.images)} test images; "
            f"ViT with {model.layout.size:,} weights, {config.tokens} tokens",
            flush=True,
        )
        with progress(args.epochs, len(train.images)) as shown:

            def on_step(step):
                shown.on_step(step)
                stop.check()

            history = fit(
                model, train, test, epochs=args.epochs, batch_size=args.batch_size, optimizer=optimizer,
                schedule=schedule, clip_norm=args.clip_norm, label_smoothing=args.label_smoothing,
                augment=random_affine, seed=args.seed, on_step=on_step, on_epoch=shown.on_epoch,
            )  # fmt: skip
        # From here to the last file nothing is printed and no signal raises: what was learnt is saved first.
        result = evaluate(model, *test)
        checkpoint.save(args.out, model, metadata={"dataset": args.dataset, "test_accuracy": f"{result.accuracy:.4f}"})
        history.write_csv(csv_path)
        curves.curves(history, png_path)
        if history.interrupted:
            print(f"interrupted after {len(history.epochs)} of {args.epochs} epochs; what was learnt is saved")
        print(f"test accuracy {result.accuracy:.2%}")
        print(f"wrote {args.out} (weights and configuration), {csv_path}, {png_path} (curves)")
    if stop.number:
        return 128 + stop.number
    output.raise_error()
    return 0


def _check_files(out: Path, size: int) -> tuple[Path, Path]:
    """The paths of history.csv and history.png, after all three files were found to be writable and not someone
    else's."""
    from ..base.files import check_writable
    from ..plots.curves import is_curves
    from ..train.history import is_history

    csv_path, png_path = out.parent / "history.csv", out.parent / "history.png"
    others = {os.path.realpath(csv_path), os.path.realpath(png_path)}
    check(os.path.realpath(out) not in others, f"--out must name a file for the model, got {out}")
    for name, path, room in (("--out ", out, size), ("", csv_path, 0), ("", png_path, 0)):
        try:
            check_writable(path, room)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{name}{path}") from None
    own = _free(csv_path) or is_history(csv_path)
    check(own, f"{csv_path} was not written by cvit and would be overwritten: move it, or give --out another folder")
    # Curves of earlier versions have no mark of their own: a history of cvit's beside them tells whose they are.
    own = _free(png_path) or is_curves(png_path) or (not _free(csv_path) and is_history(csv_path))
    check(own, f"{png_path} was not written by cvit and would be overwritten: move it, or give --out another folder")
    return csv_path, png_path


def _free(path: Path) -> bool:
    """Whether there is nothing that a new file could destroy."""
    return not path.exists() or path.stat().st_size == 0
