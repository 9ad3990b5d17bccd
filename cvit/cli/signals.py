"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM (`kill`) and SIGHUP (a terminal that was closed).

A signal that the process was started to ignore, as `nohup` does with SIGHUP, stays ignored.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

# Windows has no SIGHUP.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """The first ending signal raises `KeyboardInterrupt(number)`, so that files and processes are cleaned up; a second
    one kills."""

    def handler(number, frame):
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt(number)

    with _handled_by(handler):
        yield


class Stop:
    """The ending signal that came while `recorded()` was in force: `number`, 0 for none."""

    number = 0

    def check(self, _=None) -> None:
        """Raise `KeyboardInterrupt` if a signal came: called where work may stop, after a step of training say."""
        if self.number:
            raise KeyboardInterrupt(self.number)


@contextlib.contextmanager
def recorded() -> Iterator[Stop]:
    """Ending signals are recorded and raise nothing by themselves, so none can come between training and saving."""
    stop = Stop()

    def handler(number, frame):
        stop.number = stop.number or number

    with _handled_by(handler):
        yield stop


@contextlib.contextmanager
def _handled_by(handler: Callable) -> Iterator[None]:
    """`handler` for the ending signals that are not ignored.

    Only the main thread may set one; elsewhere nothing changes.
    """
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
