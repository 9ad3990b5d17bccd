"""Ctrl-C while a step is taken: held back until weights, optimizer and the place in the data belong together again."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """A Ctrl-C that comes while the block runs takes effect at its end.

    Python's own answer to SIGINT raises `KeyboardInterrupt` between any two instructions, between the update of the
    weights and the count of the steps for instance. The state that is then saved would be of no step, and a run that
    goes on from it would take one step twice. Only the main thread is interrupted, elsewhere there is nothing to do.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])
