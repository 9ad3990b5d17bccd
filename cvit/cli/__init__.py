"""The `cvit` command: `cvit train digits`, `cvit eval FILE digits`, `cvit bench`.

Imports stay inside the commands, so that help and errors come at once. An error is one line and exit status 2; a
Ctrl-C is exit status 130, after `train` has saved what was learnt.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import os
import shutil
import sys
import time
from pathlib import Path

from ..base.errors import check

INTERRUPTED, NOT_READ = 128 + 2, 128 + 13  # what a shell reports for a program ended by SIGINT and by SIGPIPE
DEMO_MODULES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm", "safetensors": "safetensors"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(argv).parse_args(argv)
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("cvit: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has enough, as `| head` does; what is left to print goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_READ
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (ValueError, TypeError, ArithmeticError, ImportError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__)


def _fail(message: str) -> int:
    print("cvit: error:", message, file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        self.exit(2, f"cvit: error: {message} (see {self.prog} --help)\n")


def _parser(argv) -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = _Parser(
        prog="cvit",
        description="Train and run Vision Transformers on CPUs.",
        epilog="example: cvit train digits && cvit eval digits.safetensors digits\n\n"
        "Exit status: 0 done, 2 error, 130 stopped by Ctrl-C.",
    )
    parser.add_argument("--version", action="version", version=f"cvit {version('cvit-cpu')}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, help="`cvit COMMAND --help` tells more"
    )
    _add_train(commands)
    _add_eval(commands)
    bench = commands.add_parser(
        "bench",
        help="measure training and inference on this machine",
        description="Measure training steps and forward passes on this machine, alone or against other frameworks.\n"
        "Everything is checked before it is timed.",
        epilog="example: cvit bench --cases digits,ti16 --vs torch,openvino --json result.json",
    )
    if argv[:1] == ["bench"]:  # its module is imported for this command only
        from .. import bench as module

        module.add_arguments(bench)
        bench.set_defaults(run=module.run)
    return parser


def _option(parser, flag, default, text, type=None) -> None:
    type = type or default.__class__
    metavar = type.__name__.upper()
    parser.add_argument(flag, default=default, type=type, metavar=metavar, help=f"{text} (default {default})")


def _threads_option(parser) -> None:
    help = "threads to use (default every CPU this process may use)"
    parser.add_argument("--threads", type=int, metavar="INT", help=help)


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a ViT on a data set and save it",
        description="Train a Vision Transformer with AdamW, warm-up + cosine schedule and small random affine maps.\n"
        "Writes the model to --out, and history.csv and history.png beside it. Ctrl-C stops early: what was\n"
        "learnt is saved, and the exit status is 130.",
        epilog="example: cvit train digits --epochs 20 --out runs/small.safetensors",
    )
    parser.add_argument("dataset", choices=["digits"], help="scikit-learn's 1,797 handwritten digits, 8x8 pixels")
    option = functools.partial(_option, parser)
    option("--epochs", 40, "passes over the training images")
    option("--batch-size", 32, "images in a step")
    option("--lr", 2e-3, "highest learning rate")
    option("--weight-decay", 0.05, "AdamW's weight decay")
    option("--label-smoothing", 0.1, "share of the target spread over all classes")
    option("--clip-norm", 1.0, "largest norm of the gradient")
    option("--width", 64, "token width")
    option("--depth", 4, "number of blocks")
    option("--heads", 4, "attention heads")
    option("--hidden", 128, "width of the MLP's hidden layer")
    option("--patch-size", 2, "side of a patch in pixels")
    option("--seed", 0, "of the first weights, the shuffling and the random maps")
    option("--out", "digits.safetensors", "file for weights and configuration", type=Path)
    _threads_option(parser)
    parser.set_defaults(run=_train)


def _add_eval(commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="accuracy and confusion matrix of a saved model",
        description="Print accuracy and confusion matrix of a saved model on the data set's test images.",
        epilog="example: cvit eval digits.safetensors digits",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a model that `cvit train` wrote")
    parser.add_argument("dataset", choices=["digits"], help="scikit-learn's handwritten digits, the test part")
    _option(parser, "--batch-size", 256, "images in a pass")
    _threads_option(parser)
    parser.set_defaults(run=_eval)


def _train(args) -> int:
    _need_demo_extra(DEMO_MODULES)
    out, folder = args.out, args.out.parent
    csv_path, png_path = folder / "history.csv", folder / "history.png"
    check(not out.is_dir() and out not in (csv_path, png_path), f"--out must name a file for the model, got {out}")
    check(
        folder.is_dir() and os.access(folder, os.W_OK), f"--out must lie in a folder that can be written to, got {out}"
    )
    _use_threads(args.threads)

    from .. import data
    from ..base.numbers import as_int
    from ..formats import checkpoint
    from ..model.config import ViTConfig
    from ..model.vit import ViT
    from ..train import plots
    from ..train.loop import evaluate, fit
    from ..train.optim import AdamW, warmup_cosine

    train, test = data.digits()
    config = ViTConfig(
        image_size=train.images.shape[2:], channels=train.images.shape[1], classes=int(train.labels.max()) + 1,
        patch_size=args.patch_size, width=args.width, depth=args.depth, heads=args.heads, hidden=args.hidden,
    )  # fmt: skip
    model = ViT(config, seed=args.seed)
    # The usual positions, 50 times smaller than the embedded patches, leave the model blind to where a patch lies for the
    # first ten epochs; as large as the patches they are seen at once.
    model.layout.views(model.weights)["pos_embed"][...] *= 50
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)
    epochs = as_int("epochs", args.epochs)
    steps_per_epoch = math.ceil(len(train.images) / as_int("batch_size", args.batch_size))
    schedule = functools.partial(
        warmup_cosine, total=epochs * steps_per_epoch, warmup=min(2, epochs) * steps_per_epoch, base_lr=args.lr
    )
    print(
        f"{args.dataset}: {len(train.images)} training and {len(test.images)} test images; "
        f"ViT with {model.layout.size:,} weights, {config.tokens} tokens",
        flush=True,
    )
    with (_Bar if sys.stdout.isatty() else _Lines)(epochs, len(train.images)) as progress:
        history = fit(
            model, train, test, epochs=epochs, batch_size=args.batch_size, optimizer=optimizer, schedule=schedule,
            clip_norm=args.clip_norm, label_smoothing=args.label_smoothing, augment=data.random_affine, seed=args.seed,
            on_step=progress.on_step, on_epoch=progress.on_epoch,
        )  # fmt: skip
    if history.interrupted:
        print(f"interrupted after {len(history.epochs)} of {epochs} epochs; saving what was learnt", flush=True)
    result = evaluate(model, *test)
    checkpoint.save(out, model, metadata={"dataset": args.dataset, "test_accuracy": f"{result.accuracy:.4f}"})
    history.write_csv(csv_path)
    plots.curves(history, png_path)
    print(f"test accuracy {result.accuracy:.2%}")
    print(f"wrote {out} (weights and configuration), {csv_path}, {png_path} (curves)")
    return INTERRUPTED if history.interrupted else 0


def _eval(args) -> None:
    _need_demo_extra(["sklearn", "safetensors"])
    _use_threads(args.threads)

    from .. import data
    from ..formats import checkpoint
    from ..train.loop import confusion_matrix, evaluate

    model = checkpoint.load(args.file)
    _, test = data.digits()
    result = evaluate(model, *test, batch_size=args.batch_size)
    print(f"accuracy {result.accuracy:.2%} of {len(test.images)} test images, cross-entropy {result.loss:.4f}\n")
    print("confusion matrix: rows are true classes, columns predicted ones")
    matrix = confusion_matrix(test.labels, result.predictions, model.config.classes)
    print("     " + "".join(f"{label:5d}" for label in range(len(matrix))))
    for label, row in enumerate(matrix):
        print(f"{label:5d}" + "".join(f"{count:5d}" if count else "    ." for count in row))


def _need_demo_extra(modules) -> None:
    """Raise for packages that are missing before any work is done, rather than at its end."""
    missing = [DEMO_MODULES[module] for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(f'{", ".join(missing)} missing: pip install "cvit-cpu[demo]"')


def _use_threads(threads) -> None:
    if threads is not None:
        import cvit

        cvit.set_num_threads(threads)


class _Lines:
    """Progress as one line an epoch, for files and pipes."""

    def __init__(self, epochs, images):
        self.epochs = epochs
        self.start = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def on_step(self, step):
        pass

    def on_epoch(self, epoch):
        eta = (time.perf_counter() - self.start) / epoch.epoch * (self.epochs - epoch.epoch)
        print(
            f"epoch {epoch.epoch}/{self.epochs}  loss {epoch.train_loss:.3f}  accuracy {epoch.train_accuracy:.1%}  "
            f"test {epoch.test_accuracy:.1%}  {epoch.images_per_second:,.0f} images/s  ETA {eta:.0f} s",
            flush=True,
        )


class _Bar:
    """Progress as a bar that moves with every step, for a terminal."""

    def __init__(self, epochs, images):
        from tqdm import tqdm

        self.epochs, self.images = epochs, images
        self.test = ""
        self.bar = tqdm(
            total=epochs * images, unit=" images", unit_scale=True, file=sys.stdout,
            ncols=shutil.get_terminal_size().columns, nrows=2,  # else tqdm shows nothing where a terminal says 0 x 0
            bar_format="{desc} {bar} {percentage:3.0f}%  {rate_fmt}  ETA {remaining}",
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def on_step(self, step):
        text = f"epoch {step.epoch}/{self.epochs}  loss {step.loss:.3f}  accuracy {step.accuracy:.1%}{self.test}"
        self.bar.set_description_str(text, refresh=False)
        self.bar.update((step.epoch - 1) * self.images + step.images - self.bar.n)

    def on_epoch(self, epoch):
        self.test = f"  test {epoch.test_accuracy:.1%}"


if __name__ == "__main__":
    sys.exit(main())
