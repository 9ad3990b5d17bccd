"""Standard output as a command sees it: it may be closed, full, or read by nobody, and that must never cost a
result."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

LONGEST_LINE = 1000  # characters of an error: a message can hold what a hostile file or argument brought


class Output:
    """The text stream `stream`; an error of it names standard output, and what is written after the first error is
    dropped.

    With `expendable` the error is kept in `error` and not raised: the command goes on to save its result, and raises it
    then.
    """

    def __init__(self, stream: TextIO, expendable: bool = False):
        self._stream = stream
        self._expendable = expendable
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def raise_error(self) -> None:
        """Raise the error that was kept, if there was one."""
        if self.error is not None:
            raise self.error

    def _do(self, call) -> None:
        if self.error is not None:
            return
        try:
            call()
        except OSError as error:
            silence(self._stream)
            self.error = OSError(error.errno, error.strerror, "standard output")
            if not self._expendable:
                raise self.error from None

    def __getattr__(self, name):  # isatty, fileno, encoding, …
        return getattr(self._stream, name)


@contextlib.contextmanager
def expendable() -> Iterator[Output]:
    """Standard output without errors while the block runs.

    Call `raise_error()` of what it gives when the work is saved.
    """
    with contextlib.redirect_stdout(Output(sys.stdout, expendable=True)) as output:
        yield output
        output.flush()


def silence(stream: TextIO) -> None:
    """Send what is still in `stream`'s buffer, and all that follows, nowhere: Python flushes it once more at its
    end."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, as tests have
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def open_standard_streams() -> None:
    """Give the process the standard streams that it was started without (`>&-`), and let none fail on a character.

    Else the next file that is opened gets the free descriptor, and whatever prints there writes into it. A closed
    standard output becomes one that cannot be written to, so that printing is the usual error; a closed standard error
    drops its lines.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free descriptor, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # it lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)  # as Python starts
        stream.reconfigure(errors="backslashreplace")  # a file's name need not be text


def one_line(message: str) -> str:
    """`message` on one line of bounded length, control characters written as escapes."""
    text = " ".join(message.split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 4 :]}"
