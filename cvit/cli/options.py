"""What commands share in reading their command line: the parser, kinds of options, and checks before any work."""

from __future__ import annotations

import argparse
import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

from .output import one_line

MOST_THREADS = 4096
MOST_IMAGES = 2**31 - 1  # in a batch
MOST_EDGE = 1 << 15  # pixels of an image's edge
PRECISIONS = ("f32", "f64", "bf16", "bf16-fast", "auto")  # those of model/precision.py, which takes its time to import


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        self.exit(2, f"cvit: error: {one_line(message)} (see {self.prog} --help)\n")


def whole(minimum: int, maximum: int):
    """The type of an option that is a whole number from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not minimum <= number <= maximum:
            wanted = f"must be a whole number from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"{wanted}, got {text!r}")
        return number

    parse.__name__ = "int"
    return parse


def number(minimum: float, maximum: float, *, above: bool = False, below: bool = False):
    """The type of an option that is a number from `minimum` to `maximum`; `above` and `below` leave that end out."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        low = minimum < value if above else minimum <= value
        high = value < maximum if below else value <= maximum
        if not (low and high):  # nan is neither
            wanted = f"{'above' if above else 'at least'} {minimum:g} and {'below' if below else 'at most'} {maximum:g}"
            raise argparse.ArgumentTypeError(f"must be a number, {wanted}, got {text!r}")
        return value

    parse.__name__ = "float"
    return parse


def option(parser: argparse.ArgumentParser, flag: str, default, kind, text: str) -> None:
    """Add an option with its default in the help. `kind` is made by `whole` or `number`, or is a type."""
    parser.add_argument(
        flag, default=default, type=kind, metavar=kind.__name__.upper(), help=f"{text} (default {default})"
    )


def flag_of(flag: str) -> str:
    """The name under which argparse keeps an option: "--batch-size" is `batch_size`."""
    return flag.removeprefix("--").replace("-", "_")


def threads_option(parser: argparse.ArgumentParser) -> None:
    """Add --threads; `use_threads(args.threads)` sets them."""
    help = "threads to use (default every CPU this process may use)"
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), metavar="INT", help=help)


def use_threads(threads: int | None) -> None:
    """Use that many threads, None for the default."""
    if threads is not None:
        from ..engine.runtime import set_num_threads

        set_num_threads(threads)


def timeout_option(parser: argparse.ArgumentParser) -> None:
    """Add --timeout, which counts where a launcher has started several processes."""
    text = "of several processes (mpiexec): seconds without a word from one, after which the run ends"
    option(parser, "--timeout", 600.0, number(0, 1e6, above=True), text)


def precision_option(parser: argparse.ArgumentParser, default: str = "the model file's, else f32") -> None:
    """Add --precision, for `cvit.load(…, precision=args.precision)`."""
    parser.add_argument(
        "--precision", choices=PRECISIONS,
        help="what to compute in: bf16 has bfloat16 products and float32 for all else, the same bits on every machine; "
        f"auto is bf16 where that is faster (default {default})",
    )  # fmt: skip


def listed_pictures(paths: list[str]) -> Iterator[tuple[str, Path, bool]]:
    """The pictures that pictures and folders stand for, as name, file, and whether it was given by its name.

    Of a folder they come sorted. Of a single folder the names are relative to it, else they are paths as given.
    """
    from ..base.files import open_regular
    from ..pictures.listing import pictures_in

    for path in map(Path, paths):
        if path.is_dir():
            for name in pictures_in(path):
                yield str(name if len(paths) == 1 else path / name), path / name, False
        else:
            open_regular(path).close()  # a missing file is an error now, and not one picture less
            yield str(path), path, True


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Leave out what Pillow warns of, on its way through files with odd metadata: a picture is decoded, or an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
