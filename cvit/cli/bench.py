"""`cvit bench`: how fast this machine runs cvit; the measuring itself is `cvit.bench`."""

from __future__ import annotations

from ..bench import add_arguments
from ..bench import run as measure
from .output import expendable

__all__ = ["DESCRIPTION", "EXAMPLE", "add_arguments", "run"]

DESCRIPTION = (
    "Measure training steps and forward passes on this machine, alone or against other frameworks.\n"
    "Everything is checked before it is timed."
)
EXAMPLE = "cvit bench --cases digits,ti16 --vs torch,openvino --json result.json"


def run(args) -> int:
    """Measure; with --json to the end, whoever reads what is printed, for the file holds everything."""
    if not args.json:
        return measure(args)
    with expendable() as output:
        status = measure(args)
    output.raise_error()
    return status
