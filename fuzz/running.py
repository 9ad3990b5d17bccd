"""One case of a target under limits of time and memory, and a process that runs many of them.

A case is all that follows from a target's name and a number: the random numbers by which its files are made and read.
So a finding is repeated by its number, and nothing but code is kept. A case passes where the reader returns, or raises
what it documents with a message of bounded length; it fails by any other exception, by `SECONDS` of work, and
by more memory than `ROOM` beside that of its files.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECONDS, WAIT = 5, 30  # of work, and of the clock on a machine that has other work
ROOM = 200 << 20  # bytes
LONGEST = 5000  # characters of a message: no text of a file stands in it at full length
LIMITED_EVERY = 64  # cases between two looks at how much memory the process has anyway
REPEATS = 3  # findings of one kind and place that are told
_memory = [resource.RLIM_INFINITY]  # bytes of addresses that a reader may have in all, see `limit_memory`


class Target(NamedTuple):
    """One kind of input."""

    make: Callable[[random.Random, Path], None]  # writes a case's files into an empty folder
    read: Callable[[random.Random, Path], None]  # reads them
    documented: tuple[type[Exception], ...]  # what the reader says that it raises


class Finding(NamedTuple):
    """A case that failed."""

    kind: str  # the exception's name, "hang", "message", or the signal that ended the process
    where: str  # the line of cvit that it came from
    text: str
    case: int

    @property
    def signature(self) -> tuple[str, str]:
        """Equal of two findings that have, most likely, one cause."""
        return self.kind, self.where


class Hang(BaseException):
    """No answer within `SECONDS`, or `WAIT`. Not an `Exception`, so that no reader takes it for damage of a file."""


def choices(name: str, number: int) -> random.Random:
    """The random numbers of a case."""
    return random.Random(f"{name} {number}")


def failure(target: Target, rng: random.Random, folder: Path) -> tuple[str, str, str] | None:
    """Make and read one case in `folder`, which is empty then and afterwards: (kind, where, text) of its failure."""
    here = os.getcwd()
    try:
        target.make(rng, folder)
        _allow(_memory[0])
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAIT)
        try:
            target.read(rng, folder)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _allow(resource.RLIM_INFINITY)
    except target.documented as error:
        text = str(error).replace(str(getattr(error, "filename", None) or "\0"), "")  # a path is the caller's
        return ("message", _where(error), f"{len(text)} characters: {text[:200]}") if len(text) > LONGEST else None
    except (Exception, Hang) as error:
        text = "".join(traceback.format_exception(error))
        return "hang" if isinstance(error, Hang) else type(error).__name__, _where(error), text[-3000:]
    finally:
        os.chdir(here)
        empty(folder)
    return None


def _where(error: BaseException) -> str:
    """The innermost line of cvit on the way to an error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}cvit{os.sep}" in frame.filename]
    if not frames:
        return ""
    name = frames[-1].filename.rpartition(f"{os.sep}cvit{os.sep}")[2]
    return f"cvit/{name}:{frames[-1].lineno}"


def empty(folder: Path) -> None:
    """Remove what is in a folder."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def scratch() -> tempfile.TemporaryDirectory:
    """A folder for cases, in memory where the system has such a place."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(prefix="cvit-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)


def limit_memory() -> None:
    """Let readers have `ROOM` more than this process has now; what asks for more gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _memory[0] = pages * resource.getpagesize() + ROOM


def _allow(most: int) -> None:
    """Let this process have so many bytes of addresses."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def prepare_process() -> None:
    """One thread, no warnings, and alarms that raise."""
    import cvit

    cvit.set_num_threads(1)
    warnings.simplefilter("ignore")

    def raise_hang(number, frame):
        raise Hang

    signal.signal(signal.SIGALRM, raise_hang)
    signal.signal(signal.SIGPROF, raise_hang)


def run_many(name: str, target: Target, first: int, end: float, progress: int) -> None:
    """Run cases from number `first` on until the time `end` (of `time.time()`), in this process.

    Each case's number goes to the file descriptor `progress` before it runs, so that it is known if the process dies;
    findings go to standard output, a JSON list each.
    """
    prepare_process()
    told: dict[tuple[str, str], int] = {}
    with scratch() as place:
        folder = Path(place, "a", "b")  # so that "../.." does not lead to anything of others
        folder.mkdir(parents=True)
        for number in itertools.count(first):
            if time.time() >= end:
                os.pwrite(progress, number.to_bytes(8, "little"), 0)
                return
            os.pwrite(progress, number.to_bytes(8, "little"), 0)
            if number % LIMITED_EVERY == 0 or number == first:
                limit_memory()
            failed = failure(target, choices(name, number), folder)
            if failed is None:
                continue
            finding = Finding(*failed, number)
            told[finding.signature] = told.get(finding.signature, 0) + 1
            if told[finding.signature] <= REPEATS:
                print(json.dumps(finding), file=sys.__stdout__, flush=True)
