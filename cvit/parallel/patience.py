"""How long a rank has waited without a word, for those that wait asleep and those that go on with what comes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .alone import Ranks

LONGEST_TURN = 1.0  # seconds: between two looks that lie further apart this process itself was stopped (Ctrl-Z)


class Patience:
    """The time that counts as too long is `ranks.timeout`, and for later ranks a little more: the first of those that
    wait for the same rank tells the others.

    Attributes
    ----------
    waited : float
        Seconds without a word, as `over` has counted them.
    """

    def __init__(self, ranks: Ranks):
        self._most = ranks.timeout + ranks.rank / ranks.size
        self.anew()

    def anew(self) -> None:
        """Something has come."""
        self.waited, self._looked = 0.0, time.monotonic()

    def over(self) -> bool:
        """Nothing has come: whether that has been so for too long."""
        now = time.monotonic()
        self.waited += min(now - self._looked, LONGEST_TURN)
        self._looked = now
        return self.waited > self._most
