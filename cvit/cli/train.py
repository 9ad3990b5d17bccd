"""`cvit train PATH`: train a ViT on pictures, and leave everything in a folder."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import check
from ..model.variants import MOST
from .options import MOST_THREADS, flag_of, number, precision_option, quiet_decoders, threads_option, use_threads, whole
from .output import expendable, one_line
from .progress import progress
from .signals import recorded

DESCRIPTION = """\
Train a Vision Transformer on pictures: a folder with one folder per class (with train/, val/ and test/ above, or
without), a CSV of path,label, an .npz of x and y, or scikit-learn's digits. Without --init a new model is made, whose
size fits the pictures; with it a trained one goes on, with a head for these classes.

The folder (--out, by default runs/NAME, then runs/NAME-2, …) then holds model.safetensors, the best model, and
last.safetensors, history.csv, predictions.csv, run.json, checkpoint/, the plots and report.html. Ctrl-C, SIGTERM and
SIGHUP stop early: what was learnt is saved, --resume goes on, and the exit status is 128 + the signal's number.

Started by an MPI launcher, mpiexec -n 4 cvit train photos/, the processes share every batch out; a batch stays as large
as --batch-size says."""
EXAMPLE = "cvit train photos/ --init vit_small.safetensors --epochs 20"
EXACT_PARTS = 8
SETTINGS = (  # flag, kind, help: what is given replaces the preset's
    ("--epochs", whole(1, 10**9), "passes over the training pictures"),
    ("--batch-size", whole(1, 2**31 - 1), "pictures in a step"),
    ("--accumulate", whole(1, 2**20), "parts in which a batch goes through the model: less memory"),
    ("--lr", number(0, 1e6), "highest learning rate"),
    ("--final-lr", number(0, 1e6), "learning rate of the last step"),
    ("--warmup", number(0, 1, below=True), "share of the steps in which the learning rate rises"),
    ("--weight-decay", number(0, 1e6), "weight decay"),
    ("--layer-decay", number(0, 1, above=True), "a block's learning rate by that of the block behind it"),
    ("--label-smoothing", number(0, 1, below=True), "share of the target spread over all classes"),
    ("--clip-norm", number(0, 1e30, above=True), "largest norm of the gradient"),
    ("--mixup", number(0, 1e6), "mixup's alpha, 0 for none"),
    ("--cutmix", number(0, 1e6), "cutmix's alpha, 0 for none"),
    ("--mix-prob", number(0, 1), "share of the batches that are mixed"),
    ("--drop-path", number(0, 1, below=True), "stochastic depth of the last block"),
    ("--dropout", number(0, 1, below=True), "dropout"),
    ("--ema", number(0, 1, below=True), "decay of a moving average of the weights"),
    ("--train-blocks", whole(0, 2**12), "train only so many last blocks, and what follows them"),
    ("--patience", whole(1, 10**9), "stop after so many epochs without a better validation"),
    ("--seed", whole(0, 2**32 - 1), "of first weights, order, augmentation and everything else that is drawn"),
)
PICTURES = (
    ("--flip", number(0, 1), "share of the pictures that are mirrored; 0 for letters, digits and signs"),
    ("--rand-augment", str, 'RandAugment as timm writes it, "rand-m9-mstd0.5-inc1"'),
    ("--color-jitter", number(0, 10), "strength of random brightness, contrast and saturation"),
    ("--erasing", number(0, 1), "share of the pictures of which a part is erased"),
)
SHAPE = (
    ("--image-size", whole(1, MOST["image_size"]), "edge in pixels at which the model sees pictures"),
    ("--patch-size", whole(1, MOST["patch_size"]), "side of a patch in pixels"),
    ("--width", whole(1, MOST["width"]), "token width"),
    ("--depth", whole(0, MOST["depth"]), "number of blocks"),
    ("--heads", whole(1, MOST["heads"]), "attention heads"),
    ("--hidden", whole(1, MOST["hidden"]), "width of the MLP's hidden layer"),
)


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument("data", metavar="PATH|digits", nargs="?", help="the pictures; --resume knows its own")
    parser.add_argument("--init", metavar="MODEL", help="what cvit.load takes: a model to go on from")
    parser.add_argument(
        "--preset",
        choices=("scratch", "finetune", "probe"),
        help="settings (default finetune with --init, else scratch)",
    )
    parser.add_argument("--model", dest="variant", metavar="SIZE/PATCH", help="size of a new model: Ti/16, S/16, …")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument("--overwrite", action="store_true", help="begin anew in a folder that holds a run")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen, and how long it would take")
    parser.add_argument(
        "--validation", type=number(0, 1, below=True), metavar="SHARE",
        help="share of the training pictures held out where the data has no validation part",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="stop at a picture that cannot be decoded")
    for title, rows in (("settings", SETTINGS), ("augmentation", PICTURES), ("a new model's shape", SHAPE)):
        group = parser.add_argument_group(title, "by default the preset's" if rows is not SHAPE else None)
        for flag, kind, text in rows:
            group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=text)
        if rows is SETTINGS:
            group.add_argument("--optimizer", choices=("adamw", "sgd"), help="AdamW, or SGD with momentum")
            group.add_argument("--freeze", action="append", metavar="PATTERN", help="tensors that stay: patch_embed.*")
            precision_option(group, "that of --init, else f32")
            group.add_argument(
                "--class-weight", choices=("balanced",), help="rare classes count as much as common ones"
            )
            group.add_argument(
                "--exact-reduction", type=whole(1, 2**16), nargs="?", const=EXACT_PARTS, metavar="INT",
                help="the same bits on any number of processes: gradients are added in so many parts of a batch "
                f"(without a number {EXACT_PARTS}; else in as many as there are processes)",
            )  # fmt: skip
    group = parser.add_argument_group("the machine; no bit depends on these")
    group.add_argument(
        "--checkpoint", choices=("block",), help="less memory: blocks are computed again in the backward"
    )
    group.add_argument("--decoders", type=whole(1, MOST_THREADS), default=1, metavar="INT", help="threads that decode")
    group.add_argument(
        "--cache-mb",
        type=number(0, 1e9),
        default=1024,
        metavar="FLOAT",
        help="room for decoded pictures (default 1024)",
    )
    group.add_argument(
        "--save-minutes", type=number(0, 1e6), default=10, metavar="FLOAT",
        help="minutes between checkpoints within an epoch (default 10)",
    )  # fmt: skip
    group.add_argument(
        "--split-optimizer",
        action="store_true",
        help="each process keeps but a share of the optimizer's state",
    )
    group.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's event files")
    group.add_argument("--no-pictures", action="store_true", help="draw no plots and no report")
    threads_option(parser)


def run(args) -> int:
    """Train and save; the exit status, 128 + a signal's number if one ended the training."""
    use_threads(args.threads)
    check(args.data is not None or args.resume, "the following arguments are required: PATH, or --resume with --out")
    check(args.out is None or args.out.suffix != ".safetensors", f"--out names a folder, got {args.out}")
    if args.data is None and args.out is None:
        raise ValueError("--resume needs PATH, or --out with the run's folder")
    check(not (args.resume and args.overwrite), "--resume goes on with a run, --overwrite begins anew: choose one")

    import numpy as np

    from ..runs.training import opened, run_job

    ranks = args.ranks
    check(ranks.size == 1 or not args.dry_run, "--dry-run runs in one process: start it without a launcher")
    cores = ranks.share_cores()
    arguments = {name: getattr(args, name) for name in _names()}
    with quiet_decoders(), expendable() as output, recorded() as stop:
        say = lambda text: print(one_line(text), flush=True)
        job, folder = opened(
            args.data, out=args.out, resume=args.resume, overwrite=args.overwrite, say=say, ranks=ranks,
            decoders=args.decoders, cache_mb=args.cache_mb, **arguments,
        )  # fmt: skip
        stop.check()
        if args.dry_run:
            from ..runs.forecast import LABEL, forecast

            for line in forecast(job, folder):
                print(line[:LABEL] + one_line(line[LABEL:]), flush=True)
            return 0
        _print_start(job, folder)
        if ranks.size > 1:
            print(cores, flush=True)
        with progress(job.recipe.epochs, job.feed.images) as shown:

            def on_step(step):
                shown.on_step(step)
                stop.check()

            done = run_job(
                job, folder, resume=args.resume, save_minutes=args.save_minutes, on_step=on_step,
                on_epoch=shown.on_epoch, on_end=shown.close, say=say, pictures=not args.no_pictures,
                tensorboard=args.tensorboard, ranks=ranks, split_optimizer=args.split_optimizer,
            )  # fmt: skip
        if ranks.first:
            _print_end(job, folder, done)
        number = max(ranks.allgather(np.array([stop.number]), "every rank's signal")).item()
    if number:
        return 128 + number
    output.raise_error()
    return 0


def _names() -> list[str]:
    """The arguments of `cvit.runs.prepare` that options give."""
    rows = [flag_of(flag) for flag, _, _ in (*SETTINGS, *PICTURES, *SHAPE)]
    return [
        *rows, "optimizer", "freeze", "class_weight", "init", "preset", "variant", "validation", "strict", "checkpoint",
        "precision", "exact_reduction",
    ]  # fmt: skip


def _print_start(job, folder) -> None:
    parts = (("training", job.found.train), ("validation", job.found.validation), ("test", job.found.test))
    counts = ", ".join(f"{len(pictures):,} {name}" for name, pictures in parts if pictures is not None)
    print(f"{one_line(job.found.name)}: {counts} pictures of {len(job.found.class_names)} classes")
    for remark in job.found.remarks:
        print(one_line(remark))
    config = job.model.config
    size = "x".join(map(str, config.image_size))
    print(
        f"ViT with {job.model.layout.size:,} weights, {config.tokens} tokens of {size} pixels; preset {job.preset}, "
        f"{job.recipe.epochs} epochs; mirrored pictures {'on' if job.recipe.augmentation.flip else 'off'}"
    )
    print(f"folder {one_line(str(folder.path))}", flush=True)


def _print_end(job, folder, done) -> None:
    results, history = done.results, done.history
    if history.interrupted:
        print(
            f"interrupted after {len(history.epochs)} of {job.recipe.epochs} epochs; what was learnt is saved, "
            "--resume goes on"
        )
    elif history.stopped_early:
        print(f"stopped after {len(history.epochs)} epochs: {job.recipe.patience} without a better validation")
    if results.best_epoch:
        print(
            f"validation accuracy {results.validation_accuracy:.2%} (best, epoch {results.best_epoch}), "
            f"{results.last_accuracy:.2%} (last)"
        )
    if results.test_accuracy == results.test_accuracy:  # not nan
        print(f"test accuracy {results.test_accuracy:.2%} (of the best model)")
    print(f"wrote {one_line(str(folder.path))}: {', '.join(sorted(path.name for path in folder.path.iterdir()))}")
