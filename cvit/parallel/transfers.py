"""Messages under way between ranks, and what follows when each is done: for exchanges that go on as messages come."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

# While nothing moves: look without a pause for so long, since a large message moves in many small steps, each when
# somebody looks; then sleep, at first briefly.
EAGER_SECONDS, SHORTEST_SLEEP, LONGEST_SLEEP = 0.002, 5e-5, 1e-3
LOOK_SECONDS = 0.05  # between two looks for the failure of another rank
WEIGHTS_TAG = 0  # all others are an exchange's

Then = Callable[[], None]


class Transfers:
    """What this rank sends and receives without waiting; from one thread at a time.

    Parameters
    ----------
    ranks : Ranks
    what : str
        What is waited for, for errors.
    """

    def __init__(self, ranks, what: str):
        self._ranks, self._what = ranks, what
        self._requests: list = []
        self._about: list[tuple[int, Then | None]] = []  # of each request the other rank, and what follows

    def send(self, values: np.ndarray, to: int, tag: int, then: Then | None = None) -> None:
        """Send a contiguous array, which must stay as it is until `then` is called."""
        self._requests.append(self._ranks.send(values, to, tag))
        self._about.append((to, then))

    def receive(self, values: np.ndarray, of: int, tag: int, then: Then | None = None) -> None:
        """Receive into a contiguous array, which is full when `then` is called."""
        self._requests.append(self._ranks.receive(values, of, tag))
        self._about.append((of, then))

    def advance(self) -> bool:
        """Let messages move, and do what follows on those that are done; whether there were any."""
        done = set(self._ranks.completed(self._requests, self._what)) if self._requests else set()
        if not done:
            return False
        following = [self._about[i][1] for i in sorted(done)]
        self._requests = [request for i, request in enumerate(self._requests) if i not in done]
        self._about = [about for i, about in enumerate(self._about) if i not in done]
        for then in following:
            if then is not None:
                then()
        return True

    def finish(self, advance: Callable[[], bool] | None = None) -> None:
        """Wait until nothing is under way, by `advance`, which may send more.

        Raises
        ------
        RankError
            Another rank has failed, or nothing has come for `ranks.timeout` seconds.
        """
        ranks, advance = self._ranks, advance or self.advance
        moved = looked = time.monotonic()
        pause = SHORTEST_SLEEP
        while True:
            if advance():
                moved, pause = time.monotonic(), SHORTEST_SLEEP
            if not self._requests:
                return
            now = time.monotonic()
            if now - looked > LOOK_SECONDS:
                ranks.look()
                looked = now
            if now - moved > ranks.timeout + ranks.rank / ranks.size:  # the lowest first: it tells the others
                raise ranks.late(self._requests, self._what, [rank for rank, _ in self._about])
            if now - moved > EAGER_SECONDS:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_SLEEP)
            else:
                time.sleep(0)


def allgather_weights(ranks, vector: np.ndarray, slices: list[slice]) -> None:
    """Every rank's share of a contiguous vector to all others, in place: `slices[r]` is what rank r has."""
    transfers, own = Transfers(ranks, "every rank's share of the weights"), slices[ranks.rank]
    for distance in range(1, ranks.size):
        of, to = (ranks.rank - distance) % ranks.size, (ranks.rank + distance) % ranks.size
        if slices[of].start < slices[of].stop:
            transfers.receive(vector[slices[of]], of, WEIGHTS_TAG)
        if own.start < own.stop:
            transfers.send(vector[own], to, WEIGHTS_TAG)
    transfers.finish()
