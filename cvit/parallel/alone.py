"""What a run knows of its ranks, for a process alone: rank 0 of 1, to whom nobody sends anything.

`Ranks` is the interface, and the trivial case of it; processes.py has the other one. So training has one way through,
whether it runs in one process or in several.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..engine.runtime import get_num_threads
from . import cores


class RankError(RuntimeError):
    """Another rank has failed, has been waited for too long, or cannot be reached: the text names it, its host and why.

    `told` says that this rank has learnt it from another one, which reports it.
    """

    def __init__(self, message: str, *, told: bool = False):
        super().__init__(message)
        self.told = told


class Ranks:
    """The processes of one run, from inside one of them; of this class, a process alone.

    What every rank calls (`agree`, `broadcast`, `allgather`, `any`, `barrier`, `share_cores`, `close`), all call in the
    same order, from one thread at a time. `send`, `receive` and `wait` may meanwhile be called from another one.

    Each of them raises `RankError` where another rank has failed, or has been waited for too long. `what` is the words
    with which that error says what was waited for.
    """

    rank, size = 0, 1
    local_rank, local_size = 0, 1  # among the ranks of this machine
    host = ""  # this machine's name
    timeout = float("inf")  # seconds without a word after which a rank counts as lost

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes files and speaks."""
        return self.rank == 0

    def share_cores(self) -> str:
        """Let the ranks of a machine share its CPUs: "2 ranks of 1 thread on 2 cores of one machine" is what comes out.

        Ranks that may run on the same CPUs divide them among themselves; where the launcher has given each its own,
        each uses these. Of a cgroup's quota each rank in it has its part. What the user has said counts as ever:
        `set_num_threads`, before or afterwards, and `OMP_NUM_THREADS`.
        """
        return cores.line([cores.own()], [get_num_threads()])

    def agree(self, facts: dict[str, str | int | float | None]) -> None:
        """Raise the same `ValueError` on every rank unless all have the same facts; it tells the first that differs."""

    def broadcast(self, value: Any, what: str = "rank 0's word") -> Any:
        """Rank 0's value, on every rank; the others' own is not looked at.

        It consists of None, bools, numbers, strings, arrays of numbers or strings, and lists and dicts of these with
        strings as keys. Nothing is pickled. A tuple comes out as a list; on rank 0 the arrays are those of `value`.
        """
        return value

    def allgather(self, array: np.ndarray, what: str = "every rank's array") -> list[np.ndarray]:
        """Every rank's array, in the order of ranks; this rank's is `array` itself where it is contiguous.

        All are of one element type, and their shapes differ in axis 0 at most, else every rank raises `ValueError`.
        """
        return [array]

    def any(self, flag: bool, what: str = "every rank's flag") -> bool:
        """Whether the flag is set on at least one rank."""
        return bool(flag)

    def barrier(self, what: str = "all ranks to arrive") -> None:
        """Wait until every rank is here."""

    def send(self, array: np.ndarray, to: int, tag: int = 0) -> Any:
        """Begin to send a contiguous array to another rank: a request for `wait`. Until then the array stays as it is.

        Messages of one sender with one tag (0 to 30000) arrive in the order in which they were sent.
        """
        raise ValueError(f"to must be another rank, and there is none beside rank 0, got {to}")

    def receive(self, array: np.ndarray, of: int, tag: int = 0) -> Any:
        """Begin to receive another rank's array into this contiguous one of the same size: a request for `wait`."""
        raise ValueError(f"of must be another rank, and there is none beside rank 0, got {of}")

    def wait(self, requests: Iterable[Any], what: str, whose: Sequence[int] | None = None) -> None:
        """Wait, asleep, until all requests are done. `whose`: of each request the other rank, for the error to name.

        The time that counts as too long begins anew with every request that is done.
        """

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """A context around a run: an exception that leaves it is told to all other ranks, whose waits then end.

        They raise a `RankError` with its text. Nobody knows what which rank has still got to do then, so whoever leaves
        with an exception exchanges nothing more: the program ends, by `end`, or goes on with new ranks. What all ranks
        raise together, as after a stop that they agreed on, is best raised after their last exchange.
        """
        return contextlib.nullcontext()

    def speaks(self) -> bool:
        """After a failure, whether this rank is the one to report it: the lowest of those that failed by themselves."""
        return True

    def end(self, status: int) -> None:
        """After a failure, end all processes of the run, also those that do not answer, with this exit status.

        Of a process alone nothing happens: it ends by itself.
        """

    def close(self) -> None:
        """After a run that went well, give back what MPI keeps for it."""


ALONE = Ranks()
