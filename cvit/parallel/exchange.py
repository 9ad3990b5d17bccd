"""One sum over all ranks under way: which messages have come, what has been added, and what goes out next.

Every rank takes the pieces in the same order and a few at a time, so that none waits for a message that is never sent,
and room for the segments of so many pieces is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ..engine.team import in_own_mode
from .alone import Ranks
from .shares import part_slices
from .transfers import Then, Transfers
from .tree import Node, Tree

# Pieces at a time. What announces a piece waits behind the bytes of those before it: with 4 a TCP line of 50 or 100
# Mbit/s between two hosts was busy for 60 % of the time, with 8 for 68 to 70 %, with 16 no longer.
IN_FLIGHT = 8
PIECE_TAGS = 512  # two ranks are never so many pieces apart
KINDS = 29  # of messages of a piece: the sum, and the nodes of a rank, at most two for each level of the tree
MOST_PARTS = 1 << (KINDS - 1) // 2


class Terms(NamedTuple):
    """Who adds up what: the tree of a batch, and the nodes that each rank has, from left to right."""

    tree: Tree
    nodes_of: list[list[Node]]


def segments_of(piece: slice, size: int) -> list[slice]:
    """Each rank's segment of a piece; some are empty where the piece has fewer values than there are ranks."""
    parts = part_slices(length_of(piece), size)
    return [slice(piece.start + part.start, piece.start + part.stop) for part in parts]


def length_of(piece: slice) -> int:
    return piece.stop - piece.start


def add(left: np.ndarray, right: np.ndarray, into: np.ndarray) -> None:
    """into = left + right, whatever floating-point mode and warnings the caller has: what is not finite is found
    later, by who takes the step."""
    with np.errstate(all="ignore"):
        in_own_mode(partial(np.add, left, right), into)


class _Piece:
    """A piece under way on this rank."""

    def __init__(self, number: int, segments: list[slice]):
        self.number, self.segments = number, segments
        self.held: dict[Node, np.ndarray] = {}  # of this rank's segment: nodes that wait for the other term
        self.untaken = [0] * len(segments)  # of our nodes' segments: how many an owner has not taken yet
        self.under_way = 0  # messages


class Exchange:
    """Brings together the nodes of all ranks, piece by piece; `out` then holds the sum on every rank.

    Parameters
    ----------
    ranks : Ranks
    terms : Terms
    pieces : list of (int, slice)
        See `grouped` in reduction.py.
    rooms : array (IN_FLIGHT, values)
        For the segments of the other ranks' nodes.
    nodes : dict of Node to array (size,)
        What this rank has; used up.
    out : array (size,)
        May be one of them.
    step : int
        Neighbouring steps have messages of other tags.
    """

    def __init__(
        self, ranks: Ranks, terms: Terms, pieces: list[tuple[int, slice]], rooms: np.ndarray,
        nodes: dict[Node, np.ndarray], out: np.ndarray, step: int,
    ):  # fmt: skip
        self._ranks, self._tree, self._nodes_of = ranks, terms.tree, terms.nodes_of
        self._pieces, self._rooms, self._nodes, self._out = pieces, rooms, nodes, out
        self._transfers = Transfers(ranks, "the gradient")
        self._others = [(ranks.rank + distance) % ranks.size for distance in range(1, ranks.size)]
        self._step = step % 2
        self._begun = 0
        self._active: dict[int, _Piece] = {}

    def advance(self, ready: int) -> bool:
        """Go on, with so many of the given pieces being final; whether anything has happened."""
        moved = self._transfers.advance()
        while self._begun < min(len(self._pieces), min(self._active, default=self._begun) + IN_FLIGHT):
            needed, piece = self._pieces[self._begun]
            if needed > ready:
                break
            self._begin(piece)
            moved = True
        return moved

    def finish(self) -> None:
        """Wait for all of it, when everything is final. Raises RankError as `Transfers.finish` does."""
        everything = self._pieces[-1][0] if self._pieces else 0
        self._transfers.finish(partial(self.advance, everything))

    # --------------------------------------------------------------------------------------------------- one piece
    def _begin(self, whole: slice) -> None:
        rank, size = self._ranks.rank, self._ranks.size
        piece = _Piece(self._begun, segments_of(whole, size))
        own = piece.segments[rank]
        self._active[piece.number] = piece
        self._begun += 1
        if length_of(own):
            room = self._rooms[piece.number % IN_FLIGHT]
            for source in self._others:
                for i, node in enumerate(self._nodes_of[source]):
                    values, room = room[: length_of(own)], room[length_of(own) :]
                    put = partial(self._put, piece, node, values)
                    self._post(partial(self._transfers.receive, unasked=True), piece, values, source, 1 + i, put)
        for to in self._others:
            if length_of(piece.segments[to]):
                piece.untaken[to] = len(self._nodes)
                for i, node in enumerate(self._nodes_of[rank]):
                    values = self._nodes[node][piece.segments[to]]
                    self._post(self._transfers.send, piece, values, to, 1 + i, partial(self._taken, piece, to))
                if not self._nodes:
                    self._await(piece, to)
        if length_of(own):
            for node, vector in self._nodes.items():
                self._put(piece, node, vector[own])
        self._leave(piece)

    def _put(self, piece: _Piece, node: Node, values: np.ndarray) -> None:
        """A node of this rank's segment is there: add what can be added, and send the sum."""
        target = self._out[piece.segments[self._ranks.rank]]

        def added(above: Node, left: np.ndarray, right: np.ndarray) -> np.ndarray:
            into = target if above == self._tree.root else left
            add(left, right, into)
            return into

        piece.held[node] = values
        self._tree.put(piece.held, node, added)
        if self._tree.root not in piece.held:
            return
        total = piece.held.pop(self._tree.root)
        if total is not target and self._nodes.get(node) is not self._out:  # one node alone
            target[...] = total
        for to in self._others:
            self._post(self._transfers.send, piece, target, to, 0)

    def _taken(self, piece: _Piece, to: int) -> None:
        """An owner has taken one of our nodes' segments."""
        piece.untaken[to] -= 1
        if not piece.untaken[to]:
            self._await(piece, to)

    def _await(self, piece: _Piece, source: int) -> None:
        """The sum of an owner's segment goes where our nodes' may have been: only when those are on their way."""
        self._post(self._transfers.receive, piece, self._out[piece.segments[source]], source, 0)

    # --------------------------------------------------------------------------------------------------- messages
    def _post(
        self, how: Callable[..., None], piece: _Piece, values: np.ndarray, peer: int, kind: int,
        then: Then | None = None,
    ) -> None:  # fmt: skip
        """Send or receive something of a piece, then do `then`. Tag 0 is the weights'."""
        piece.under_way += 1
        number = self._step * PIECE_TAGS + piece.number % PIECE_TAGS

        def done() -> None:
            piece.under_way -= 1
            if then is not None:
                then()
            self._leave(piece)

        how(values, peer, 1 + number * KINDS + kind, done)

    def _leave(self, piece: _Piece) -> None:
        if not piece.under_way:
            self._active.pop(piece.number, None)
