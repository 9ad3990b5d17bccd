"""Messages under way between ranks, and what follows when each is done: for exchanges that go on as messages come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .alone import RankError, Ranks
from .patience import Patience

# While nothing moves: look without a pause for so long, since a large message moves in many small steps, each when
# somebody looks; then sleep, at first briefly.
EAGER_SECONDS, SHORTEST_SLEEP, LONGEST_SLEEP = 0.002, 5e-5, 1e-3
LOOK_SECONDS = 0.05  # between two looks for the failure of another rank
WEIGHTS_TAG = 0  # all others are an exchange's

Then = Callable[[], None]


class _About(NamedTuple):
    """What belongs to a request."""

    rank: int  # the other one
    then: Then | None
    unasked: bool = False  # whether that one sends without having to wait for a third


class Transfers:
    """What this rank sends and receives without waiting; from one thread at a time.

    Parameters
    ----------
    ranks : Ranks
    what : str
        What is waited for, for errors.
    """

    def __init__(self, ranks: Ranks, what: str):
        self._ranks, self._what = ranks, what
        self._requests: list = []
        self._about: list[_About] = []  # of each request

    def send(self, values: np.ndarray, to: int, tag: int, then: Then | None = None) -> None:
        """Send a contiguous array, which must stay as it is until `then` is called."""
        self._requests.append(self._ranks.send(values, to, tag))
        self._about.append(_About(to, then))

    def receive(self, values: np.ndarray, of: int, tag: int, then: Then | None = None, unasked: bool = False) -> None:
        """Receive into a contiguous array, which is full when `then` is called.

        `unasked`: the other rank sends this whatever comes from others, so that it is to blame where it is late.
        """
        self._requests.append(self._ranks.receive(values, of, tag))
        self._about.append(_About(of, then, unasked))

    def advance(self) -> bool:
        """Let messages move, and do what follows on those that are done; whether there were any."""
        done = set(self._ranks.completed(self._requests, self._what)) if self._requests else set()
        if not done:
            return False
        following = [self._about[i].then for i in sorted(done)]
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
        patience, pause, looked = Patience(ranks), SHORTEST_SLEEP, time.monotonic()
        while True:
            if advance():
                patience.anew()
                pause = SHORTEST_SLEEP
            if not self._requests:
                return
            over, now = patience.over(), time.monotonic()
            if now - looked > LOOK_SECONDS:
                ranks.look()
                looked = now
            if over:
                raise self._late()
            if patience.waited > EAGER_SECONDS:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_SLEEP)
            else:
                time.sleep(0)

    def _late(self) -> RankError:
        """The error where nothing has come: it names who is to blame, and all that are waited for if nobody is."""
        pairs = list(zip(self._requests, self._about))
        pairs = [(request, about) for request, about in pairs if about.unasked] or pairs
        return self._ranks.late([request for request, _ in pairs], self._what, [about.rank for _, about in pairs])


def allgather_weights(ranks: Ranks, vector: np.ndarray, slices: list[slice]) -> None:
    """Every rank's share of a contiguous vector to all others, in place: `slices[r]` is what rank r has."""
    transfers, own = Transfers(ranks, "every rank's share of the weights"), slices[ranks.rank]
    for distance in range(1, ranks.size):
        of, to = (ranks.rank - distance) % ranks.size, (ranks.rank + distance) % ranks.size
        if slices[of].start < slices[of].stop:
            transfers.receive(vector[slices[of]], of, WEIGHTS_TAG, unasked=True)
        if own.start < own.stop:
            transfers.send(vector[own], to, WEIGHTS_TAG)
    transfers.finish()
