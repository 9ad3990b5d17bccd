"""The `cvit` command: one file a command, one row of `COMMANDS` for each.

A command's module has `DESCRIPTION` and `EXAMPLE` for its help, `add_arguments(parser)`, and `run(args)`, which returns
the exit status (None means 0). It is imported when its command is given, and what it needs beyond the standard library
when it runs, so that help and errors come at once.

__init__.py   errors and exit statuses      options.py    kinds of options       train.py  eval.py
output.py     streams that may fail         progress.py   bars and lines         info.py   bench.py
signals.py    what ends a command early     features.py   files of features   plot.py   predict.py  embed.py  convert.py
ranks.py      one of several processes

An error is one line on stderr and exit status 2. A command ended by a signal has the exit status that shells report,
128 + its number. Of several processes that an MPI launcher has started one prints the line, and all of them end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
from typing import TYPE_CHECKING

from .options import Parser, timeout_option
from .output import Output, one_line, open_standard_streams, silence
from .ranks import first, of_strangers, refuse_several, silent_unless_first, told_by_first
from .signals import raised

if TYPE_CHECKING:
    from ..parallel.ranks import Ranks

COMMANDS = {
    "train": "train a ViT on a data set and save it",
    "eval": "accuracy and confusion matrix of a saved model",
    "info": "configuration, tensors, FLOPs and memory of a model or a variant",
    "convert": "write a model in the names of timm, transformers or vit_jax, or as ONNX",
    "predict": "the most probable classes of pictures",
    "embed": "the features of pictures, in a file",
    "plot": "draw what a run has learnt, and where a model looks",
    "bench": "measure training and inference on this machine",
}
SEVERAL = ("train", "embed")  # what may run as several processes; of any other command each would do the whole work
FAILED, NOT_READ = 2, 128 + 13  # 13 is SIGPIPE, which Windows does not name
ERRORS = (ValueError, TypeError, ArithmeticError, ImportError, MemoryError)  # others are faults of cvit: a traceback


def start() -> int:
    """The whole process of a `cvit` command: streams and signals put in order, then `main`."""
    open_standard_streams()
    try:
        with raised():
            return main()
    except KeyboardInterrupt as stop:  # in the moment before `main` or after it
        return _ended(None, stop)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    ranks: Ranks | None = None  # from where they have met to where they have parted
    with silent_unless_first(), contextlib.redirect_stdout(Output(sys.stdout)) as output:
        try:
            try:
                with told_by_first():
                    args = parser_for(argv).parse_args(argv)
                    if argv[0] not in SEVERAL:
                        refuse_several(argv[0])
                ranks = args.ranks = _joined(argv[0], args)
                with ranks.guarded():
                    status = args.run(args) or 0
                ranks.close()
                ranks = None
            except SystemExit as stop:  # how argparse ends after --help, --version and a wrong option
                status = int(stop.code or 0)
            if status == 0:  # a status of the command's own tells more than an output that failed
                output.flush()
                output.raise_error()
            return status
        except (Exception, KeyboardInterrupt) as error:
            return _ended(ranks, error)
        finally:
            with contextlib.suppress(OSError):  # what was printed before an error
                output.flush()


def _joined(command: str, args: argparse.Namespace) -> Ranks:
    """The processes that a launcher has started, all of which come here, or this one alone."""
    from ..parallel.ranks import ALONE, world

    if command not in SEVERAL:
        return ALONE
    if told := of_strangers():
        _say(f"cvit: {told}")
    return world(args.timeout)


def parser_for(argv: list[str]) -> argparse.ArgumentParser:
    """The parser of the command line; of the commands only the one that `argv` begins with has its arguments."""
    from .. import __version__

    parser = Parser(
        prog="cvit",
        description="Train and run Vision Transformers on CPUs.",
        epilog="example: cvit train digits && cvit eval digits.safetensors digits\n\n"
        "Exit status: 0 done, 2 error, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.",
    )
    parser.add_argument("--version", action="version", version=f"cvit {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, help="`cvit COMMAND --help` tells more"
    )
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if argv[:1] == [name]:
            module = importlib.import_module(f".{name}", __package__)
            command.description, command.epilog = module.DESCRIPTION, f"example: {module.EXAMPLE}"
            module.add_arguments(command)
            if name in SEVERAL:
                timeout_option(command)
            command.set_defaults(run=module.run)
    return parser


def _ended(ranks: Ranks | None, error: BaseException) -> int:
    """The exit status after an error, of which one process prints a line; a fault of cvit itself is raised again."""
    status, line = _failure(error, ranks)
    if line and (first() if ranks is None else ranks.speaks()):
        _say(line)
    if ranks is not None:
        with contextlib.suppress(KeyboardInterrupt):  # the launcher ends those that wait for their end
            ranks.end(status)
    return status


def _failure(error: BaseException, ranks: Ranks | None) -> tuple[int, str]:
    """Exit status and line of an error. What only a later rank has met, as files that its machine lacks, is told with
    its place: on rank 0's machine all may be well."""
    if isinstance(error, KeyboardInterrupt):
        number = signal.Signals(error.args[0] if error.args else signal.SIGINT)
        stopped = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
        return 128 + number, f"cvit: {stopped}"
    if isinstance(error, BrokenPipeError):  # whoever reads has enough, as `| head` does
        return NOT_READ, ""
    where = "" if ranks is None or ranks.first else f"rank {ranks.rank} (host {ranks.host}): "
    if isinstance(error, OSError) and error.filename and error.strerror:
        return FAILED, f"cvit: error: {where}{one_line(f'{error.filename}: {error.strerror}')}"
    if not isinstance(error, (OSError, *ERRORS)):
        from ..parallel.ranks import RankError

        if not isinstance(error, RankError):
            raise error
        where = ""  # the error tells it
    return FAILED, f"cvit: error: {where}{one_line(str(error) or type(error).__name__)}"


def _say(line: str) -> None:
    """Print to stderr, which may be gone, too."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)
