"""Ranks that are processes of an MPI program, by mpi4py.

Every message goes from one rank to one other, also where all ranks meet: so whoever waits knows for whom. (MPI's own
collectives do not tell.) The messages in which ranks meet are small, and few beside those of a gradient.

Waiting is asleep. MPI's own waiting spins: where ranks have all cores of a machine busy it would take the time of those
that are waited for. A wait also looks for a notice that another rank has failed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..base.errors import check, short
from ..engine.runtime import get_num_threads
from . import cores
from .alone import RankError, Ranks
from .messages import (
    FRAME,
    as_sendable,
    bytes_of,
    framed,
    incoming,
    outgoing,
    pieces,
    put_together,
    taken_apart,
    unframed,
)
from .patience import Patience

TESTS_AT_ONCE = 20  # of requests, before a wait sleeps
SHORTEST, LONGEST = 1e-4, 2e-3  # seconds that it sleeps
NOTICE = 400  # characters of a notice at most
GRACE = 1.0  # seconds in which the other ranks may leave by themselves before all processes are ended
HEARING = 0.3  # seconds in which ranks that fail together hear of each other, and finish what they had begun together
OWN_TAG, FIRST_TAG, TAGS = 0, 1, 30001  # of the messages made here; of the caller's first tag; how many it has


class Processes(Ranks):
    """The ranks of a communicator, over two copies of it: one for messages, one for notices of a failure."""

    def __init__(self, MPI: Any, comm: Any, timeout: float):
        self._MPI = MPI
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.timeout = timeout
        self._lock = threading.Lock()  # one thread at a time calls MPI
        self._hosts = [""] * self.size
        self._others = [rank for rank in range(self.size) if rank != self.rank]
        self._met = 0  # how often all ranks have met
        self._open: list[Any] = []  # requests: MPI writes to their arrays even when nobody waits any more
        self._failed: dict[int, str] = {}  # what ranks say of their own failures
        self._told_at = math.inf  # when this one heard the first of them
        self._comm: Any = comm  # until the copies are there
        self._notices: Any = None
        self._comm, self._notices = self._copied(comm), self._copied(comm)
        self._places = self._gathered({"host": MPI.Get_processor_name(), **cores.own()}, "all ranks to begin")
        self._hosts = [place["host"] for place in self._places]
        self.host = self._hosts[self.rank]
        here = self._places[self.rank]["machine"]
        self._neighbours = [rank for rank in range(self.size) if self._places[rank]["machine"] == here]
        self.local_rank, self.local_size = self._neighbours.index(self.rank), len(self._neighbours)

    def _copied(self, comm: Any) -> Any:
        with self._lock:
            copy, request = comm.Idup()
        self.wait([request], "all ranks to begin")
        copy.Set_errhandler(self._MPI.ERRORS_RETURN)
        return copy

    def _named(self, rank: int) -> str:
        return f"rank {rank} (host {self._hosts[rank]})" if self._hosts[rank] else f"rank {rank}"

    # ------------------------------------------------------------------------------------------------ what all ranks do

    def share_cores(self) -> str:
        share = cores.shares([self._places[rank] for rank in self._neighbours])[self.local_rank]
        cores.use(share)
        return cores.line(self._places, self._gathered(get_num_threads(), "all ranks to share the cores"))

    def agree(self, facts: dict[str, str | int | float | None]) -> None:
        every = self._gathered(facts, "all ranks to agree")
        for key in dict.fromkeys(key for each in every for key in each):
            differing = self._differing([json.dumps(each[key]) if key in each else "nothing" for each in every])
            check(not differing, f"ranks differ in {key}: {differing}")

    def _differing(self, values: list[str]) -> str:
        """Which ranks have which value, where not all have the same; else ""."""
        owners = defaultdict(list)
        for rank, value in enumerate(values):
            owners[value].append(rank)
        if len(owners) == 1:
            return ""
        told = [f"{self._listed(o)} {'has' if len(o) == 1 else 'have'} {short(v, 200)}" for v, o in owners.items()]
        return ", ".join([*told[:4], *([f"and {len(told) - 4} more values"] if len(told) > 4 else [])])

    def _listed(self, ranks: Sequence[int]) -> str:
        names = [self._named(rank) for rank in ranks]
        if len(names) > 4:
            names = [*names[:3], f"{len(names) - 3} more"]
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

    def broadcast(self, value: Any, what: str = "rank 0's word") -> Any:
        self._met += 1
        head = {"met": self._met, "for": short(what)}
        if self.first:
            text, arrays = taken_apart(value)
            parts = outgoing(head, text, arrays)
            self._exchange([(rank, part) for rank in self._others for part in parts], [], what)
            return put_together(text, arrays)[0]
        return incoming(
            lambda parts: self._exchange([], [(0, part) for part in parts], what),
            lambda head_of_first: self._check_together(head, {0: head_of_first}),
        )

    def allgather(self, array: np.ndarray, what: str = "every rank's array") -> list[np.ndarray]:
        array = as_sendable("array", array)
        check(array.ndim > 0, "array must have at least one axis, got none")
        kinds, bodies = self._all({"dtype": array.dtype.str, "shape": array.shape}, bytes_of(array), what)
        differing = self._differing([_shown(**kind) for kind in kinds])
        check(not differing, f"arrays must be alike but for axis 0, for {what}: {differing}")
        return [
            array if rank == self.rank else body.view(kind["dtype"]).reshape(kind["shape"])
            for rank, (kind, body) in enumerate(zip(kinds, bodies))
        ]

    def any(self, flag: bool, what: str = "every rank's flag") -> bool:
        return any(each[0] for each in self._all({}, np.array([bool(flag)], np.uint8), what)[1])

    def barrier(self, what: str = "all ranks to arrive") -> None:
        self._all({}, np.empty(0, np.uint8), what)

    def _gathered(self, value: Any, what: str) -> list[Any]:
        """Every rank's JSON value."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        return [json.loads(each.tobytes()) for each in self._all({}, text, what)[1]]

    def _all(self, head: dict, body: np.ndarray, what: str) -> tuple[list[dict], list[np.ndarray]]:
        """Every rank's head and bytes."""
        self._met += 1
        head = {"met": self._met, "for": short(what), **head}
        frames = np.empty((self.size, FRAME), np.uint8)
        frames[self.rank] = framed(head, body)
        send = [(rank, frames[self.rank]) for rank in self._others]
        self._exchange(send, [(rank, frames[rank]) for rank in self._others], what)
        heads, bodies, whole = zip(*map(unframed, frames))
        self._check_together(head, {rank: heads[rank] for rank in self._others})
        send = [(rank, part) for rank in self._others if not whole[self.rank] for part in pieces(body)]
        receive = [(rank, part) for rank in self._others if not whole[rank] for part in pieces(bodies[rank])]
        self._exchange(send, receive, what)
        return list(heads), [body if rank == self.rank else bodies[rank] for rank in range(self.size)]

    def _check_together(self, head: dict, heads: dict[int, dict]) -> None:
        """Ranks that have gone different ways must not take one thing for another."""
        for rank, other in heads.items():
            if (other["met"], other["for"]) != (head["met"], head["for"]):
                raise RankError(
                    f"ranks have gone different ways: {self._named(self.rank)} waits for {head['for']}, "
                    f"{self._named(rank)} for {other['for']}"
                )

    def _exchange(self, send: list[tuple[int, np.ndarray]], receive: list[tuple[int, np.ndarray]], what: str) -> None:
        requests = [self._begun("Irecv", array, rank, OWN_TAG) for rank, array in receive]
        requests += [self._begun("Isend", array, rank, OWN_TAG) for rank, array in send]
        self.wait(requests, what, [rank for rank, _ in receive + send])

    # ------------------------------------------------------------------------------------------------ from rank to rank

    def send(self, array: np.ndarray, to: int, tag: int = 0) -> Any:
        check(0 <= to < self.size and to != self.rank, f"to must be another rank of {self.size}, got {to}")
        return self._begun("Isend", array, to, self._tag(tag))

    def receive(self, array: np.ndarray, of: int, tag: int = 0) -> Any:
        check(0 <= of < self.size and of != self.rank, f"of must be another rank of {self.size}, got {of}")
        return self._begun("Irecv", array, of, self._tag(tag))

    @staticmethod
    def _tag(tag: int) -> int:
        check(0 <= tag < TAGS, f"tag must lie in 0 to {TAGS - 1}, got {tag}")
        return FIRST_TAG + tag

    def _begun(self, call: str, array: np.ndarray, rank: int, tag: int) -> Any:
        with self._lock:
            request = getattr(self._comm, call)(array, rank, tag)
            self._open.append(request)
        return request

    def wait(self, requests: Iterable[Any], what: str, whose: Sequence[int] | None = None) -> None:
        requests = list(requests)
        patience, tests, pause = Patience(self), 0, SHORTEST
        while (done := self._tested(requests, what)) is not None:
            self.look()
            if done:
                patience.anew()
                tests, pause = 0, SHORTEST
            elif patience.over():
                raise self.late(requests, what, whose)
            tests += 1
            if tests > TESTS_AT_ONCE:
                time.sleep(pause)
                pause = min(LONGEST, 1.1 * pause)
        with self._lock:
            self._open = [request for request in self._open if request]

    def completed(self, requests: list[Any], what: str) -> list[int]:
        done = self._tested(requests, what) or []
        if done:
            with self._lock:
                self._open = [request for request in self._open if request]
        return done

    def look(self) -> None:
        self._read_notices()
        # All may have failed in one place, each by itself, and some not have got there: they have a moment for it.
        if time.monotonic() - self._told_at > HEARING:
            raise RankError(self._failed[min(self._failed)], told=self.rank not in self._failed)

    def late(self, requests: Iterable[Any], what: str, whose: Sequence[int] | None = None) -> RankError:
        atexit.register(self.end, 1)  # MPI's own end would wait for the rank that does not answer
        return RankError(self._lost(requests, what, whose))

    def _tested(self, requests: list[Any], what: str) -> list[int] | None:
        """The requests that are newly done, None when all have been for some time."""
        try:
            with self._lock:
                return self._MPI.Request.Testsome(requests)
        except self._MPI.Exception as error:
            raise RankError(f"MPI failed while {self._named(self.rank)} waited for {what}: {error}") from None

    def _lost(self, requests: Iterable[Any], what: str, whose: Sequence[int] | None) -> str:
        missing = sorted({rank for request, rank in zip(requests, whose or []) if request})
        names = self._listed(missing) if missing else "another rank"
        return f"no word from {names} for {self.timeout:g} s: {self._named(self.rank)} waited for {what}"

    # --------------------------------------------------------------------------------------------------------- failures

    def _read_notices(self) -> None:
        """Take note of the ranks that have failed."""
        if self._notices is None:  # ranks have not met yet
            return
        MPI = self._MPI
        try:
            with self._lock:
                status = MPI.Status()
                while self._notices.Iprobe(status=status):
                    text, rank = bytearray(status.Get_count(MPI.BYTE)), status.Get_source()
                    self._notices.Recv([text, MPI.BYTE], rank)
                    self._failed[rank] = text.decode(errors="replace")
                    self._told_at = min(self._told_at, time.monotonic())
        except MPI.Exception as error:
            raise RankError(f"MPI failed on {self._named(self.rank)}, which looked for failures: {error}") from None

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except SystemExit as error:
            if error.code:
                self._tell(error)
            raise
        except BaseException as error:
            self._tell(error)
            raise

    def _tell(self, error: BaseException) -> None:
        """Tell all other ranks of an exception of this one, unless it has come from one of them."""
        if self.rank in self._failed or (isinstance(error, RankError) and error.told):
            return
        text = " ".join(str(error).split())
        if not isinstance(error, RankError):  # which tells of another rank
            text = f"{self._named(self.rank)} failed: {type(error).__name__}{text and f': {text}'}"
        text = short(text, NOTICE)
        data = np.frombuffer(text.encode(errors="replace"), np.uint8)
        requests = []
        with self._lock:
            self._failed[self.rank], self._told_at = text, -math.inf
            for rank in self._others:
                with contextlib.suppress(self._MPI.Exception):  # an MPI that outlives a rank does not send to it
                    requests.append(self._notices.Isend(data, rank))
            self._open += requests
        until = time.monotonic() + HEARING
        while time.monotonic() < until:
            with contextlib.suppress(RankError):  # the same: the others are still to be told
                if self._tested(requests, "notices to be sent") is None:
                    break
            time.sleep(SHORTEST)

    def speaks(self) -> bool:
        if self.rank not in self._failed:
            return not self._failed
        until = time.monotonic() + HEARING
        while min(self._failed) == self.rank > 0 and time.monotonic() < until:
            time.sleep(LONGEST)
            with contextlib.suppress(RankError):
                self._read_notices()
        return min(self._failed) == self.rank

    def end(self, status: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        time.sleep(GRACE if self.rank in self._failed else 3 * GRACE)  # whoever has failed by itself ends all
        self._comm.Abort(status)

    def close(self) -> None:
        with self._lock:
            self._comm.Free()
            self._notices.Free()


def _shown(dtype: str, shape: list[int], **_) -> str:
    return f"{np.dtype(dtype)} of shape ({', '.join(['n', *map(str, shape[1:])])})"
