"""Work done ahead on threads, handed out in order."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

DEPTH = 3  # results that are made or kept ahead: enough that one slow batch starves no step

Result = TypeVar("Result")


class Stopped(Exception):
    """Raised within a worker whose result nobody will ask for."""


def ahead(
    make: Callable[[int, threading.Event], Result], numbers: Iterable[int], threads: int, depth: int = DEPTH
) -> Generator[Result]:
    """Yield make(number, stop) for each of `numbers`, in their order, made on `threads` threads.

    At most max(depth, threads) results are made or wait at a time, besides the one that was given out last. What a
    worker raises is raised here, in the place of its result. When the generator is closed, or has raised, `stop` is
    set, at which `make` shall raise `Stopped` soon, and no thread goes on after that.
    """
    from concurrent.futures import Future, ThreadPoolExecutor  # some milliseconds, which `import cvit` need not take

    stop = threading.Event()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="cvit-decoder")
    waiting: collections.deque[Future[Result]] = collections.deque()
    remaining = iter(numbers)
    try:
        for number in itertools.islice(remaining, max(depth, threads)):
            waiting.append(pool.submit(make, number, stop))
        while waiting:
            result = waiting.popleft().result()
            for number in itertools.islice(remaining, 1):
                waiting.append(pool.submit(make, number, stop))
            yield result
            del result  # else it would be kept while the next one is waited for
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
