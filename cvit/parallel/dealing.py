"""Work in numbered pieces, dealt out to the ranks in turn, whose results rank 0 takes in the order of their numbers.

Piece i is rank i % size's. A rank sends a result from a thread of its own, so that the next piece is worked on
meanwhile, and is told when rank 0 has taken it: what rank 0 has not taken stays in the memory of the rank that made it,
and is never more than `AHEAD` results and the one at hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from .messages import incoming, outgoing, taken_apart
from .ranks import Ranks

AHEAD = 2  # results of a rank that rank 0 has not taken
RESULT, TAKEN = 0, 1  # tags


def taken(ranks: Ranks, count: int, results: Iterator[Any]) -> Iterator[Any]:
    """On rank 0 the results of pieces 0 to count - 1, in order: its own out of `results`, each worked on when it is
    due, and the others'."""
    for piece in range(count):
        owner = piece % ranks.size
        yield next(results) if owner == 0 else _receive(ranks, owner)


def handed_over(ranks: Ranks, results: Iterator[Any]) -> None:
    """On the other ranks: send the results of this rank's pieces, in order, each one what `Ranks.broadcast` sends."""
    pool = ThreadPoolExecutor(1, "hand over")
    try:
        sending: deque[Future] = deque()
        for result in results:
            sending.append(pool.submit(_send, ranks, result))
            if len(sending) > AHEAD:
                sending.popleft().result()
        for future in sending:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _send(ranks: Ranks, result: Any) -> None:
    answer = np.empty(1, np.uint8)
    requests = [ranks.send(part, 0, RESULT) for part in outgoing({}, *taken_apart(result))]
    requests.append(ranks.receive(answer, 0, TAKEN))
    ranks.wait(requests, "its result to be taken", [0] * len(requests))


def _receive(ranks: Ranks, owner: int) -> Any:
    def read(parts: list[np.ndarray]) -> None:
        ranks.wait([ranks.receive(part, owner, RESULT) for part in parts], "a result", [owner] * len(parts))

    result = incoming(read)
    ranks.wait([ranks.send(np.zeros(1, np.uint8), owner, TAKEN)], "word that a result is taken", [owner])
    return result
