"""One gradient out of every rank's: the sum over the parts of a batch, exchanged while the backward still runs.

The vector is cut into pieces, which become final one after another in a backward. Each piece is cut into as many
segments as there are ranks, and a segment is one rank's to add up:

    every rank sends its nodes' segments to their owners     (a reduce-scatter)
    an owner adds them in the order of the tree (tree.py), then sends the sum to all     (an allgather)

all of it by messages from rank to rank (exchange.py), so that the order of the additions is ours, whatever MPI library
there is, and a wait knows for whom. A rank has one node where it has one part, else the sums of its parts as far as the
tree goes.

With one part a rank, a thread of its own follows the backward: as soon as a block's gradients are final, their piece
is on its way. The last pieces, the embedding's and the head's, follow when the pass is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ..base.errors import check
from ..engine.memory import allocate
from ..engine.team import num_threads
from .alone import Ranks
from .exchange import IN_FLIGHT, MOST_PARTS, Exchange, Terms, add, length_of, segments_of
from .shares import own_parts
from .tree import Node, Tree

# Between two looks at how far the backward is. A look takes some 50 µs of a core, which a rank of one thread loses:
# with 0.5 ms between two its steps are 7 % longer, with 10 ms 1 to 2 % (bench/ranks.py).
POLL_SECONDS, ALONE_SECONDS = 5e-4, 1e-2  # at least, and on one thread
LEAST_VALUES = 1 << 18  # of a piece: with fewer, messages take longer than what they carry
MOST_VALUES = 1 << 21  # of a piece: with more, sums wait for all of it
SEGMENT = 1 << 13  # of a rank's segment of a piece, at least: with hundreds of ranks messages would be tiny and many


def grouped(pieces: list[slice], least: int, most: int) -> list[tuple[int, slice]]:
    """The pieces in handy sizes: (how many of `pieces` must be final, slice) of each.

    Neighbours are joined until they have `least` values; what has more than `most` is cut evenly.
    """
    joined: list[tuple[int, slice]] = []
    for number, piece in enumerate(pieces, 1):
        if joined and joined[-1][1].start == piece.stop and length_of(joined[-1][1]) < least:
            piece = slice(piece.start, joined.pop()[1].stop)
        joined.append((number, piece))
    return [(number, part) for number, piece in joined for part in segments_of(piece, -(-length_of(piece) // most))]


def sized(pieces: list[slice], ranks: int) -> list[tuple[int, slice]]:
    """The pieces as so many ranks exchange them, see `grouped`: the more there are, the larger."""
    least = SEGMENT * ranks
    return grouped(pieces, max(LEAST_VALUES, least), max(MOST_VALUES, least))


class Reduction:
    """Sums gradients over the parts of a batch and over all ranks, step after step.

    One part a rank: `start`, the backward, `wait`. Several: for each of `own` a backward, then `finish`. Both give the
    same bits, which depend on the number of parts and not on that of ranks or threads. Every rank calls the same.

    Parameters
    ----------
    ranks : Ranks
    pieces : list of slice
        What of the vector is summed, in the order in which it becomes final: `Layout.pieces`.
    size : int
        Length of the vector.
    dtype : float32 or float64
    parts : int
        Of a batch, at least the number of ranks and at most `MOST_PARTS`.

    Raises
    ------
    RankError
        From `wait`, `finish` and `reduce`: another rank has failed, or nothing has come from it for `ranks.timeout`
        seconds.
    """

    def __init__(self, ranks: Ranks, pieces: list[slice], size: int, dtype, parts: int):
        self._ranks, self._parts, self._size, self._dtype = ranks, parts, size, np.dtype(dtype)
        check(parts <= MOST_PARTS, f"parts must be at most {MOST_PARTS}, got {parts}")
        self._own = own_parts(ranks.rank, ranks.size, parts)
        self._given = len(pieces)
        self._pieces = sized(pieces, ranks.size)
        self._plans: dict[int, Terms] = {}
        segment = max([length_of(segments_of(piece, ranks.size)[ranks.rank]) for _, piece in self._pieces], default=0)
        nodes = sum(map(len, self._terms(None).nodes_of)) - len(self._terms(None).nodes_of[ranks.rank])
        self._rooms = allocate(IN_FLIGHT * nodes * segment, self._dtype)[: IN_FLIGHT * nodes * segment]
        self._rooms = self._rooms.reshape(IN_FLIGHT, -1)
        self._vectors: list[np.ndarray] = []
        self._nodes: dict[Node, np.ndarray] = {}
        self._step = 0
        self._exchange: Exchange | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._error: BaseException | None = None

    @property
    def overlaps(self) -> bool:
        """Whether each rank has one part, so that its sum can begin while its backward runs."""
        return self._parts == self._ranks.size

    # ------------------------------------------------------------------------------------------------ one part a rank
    def start(self, grad: np.ndarray, finished: Callable[[], int], images: int | None = None) -> None:
        """Follow the backward that is about to write this rank's part of the gradient into `grad`.

        Parameters
        ----------
        grad : array (size,)
        finished : function
            How many of the pieces are final, called from another thread: a new `Progress` of the engine.
        images : int, optional
            Of the whole batch. A rank whose part has none calls this and `wait` all the same, with no pass between.
        """
        size = self._ranks.size
        check(self.overlaps, f"start is for one part a rank: {self._parts} parts on {size} ranks take own()")
        if size == 1:  # the part is the whole
            return
        terms = self._terms(images)
        own = dict.fromkeys(terms.nodes_of[self._ranks.rank], grad)
        self._exchange, self._error = self._new(terms, own, grad), None
        self._over.clear()
        if not own:  # nothing to wait for
            finished = partial(int, self._given)
        self._thread = threading.Thread(target=self._follow, args=(self._exchange, finished), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """When the backward is over: `grad` then holds the sum over all parts, the same bits on every rank."""
        self.stop()
        if self._error is not None:
            raise self._error
        if self._exchange is not None:
            self._exchange.finish()
            self._exchange = None

    def stop(self) -> None:
        """Follow no more, where the backward has failed. The other ranks wait in vain then: leaving is all that is
        left."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _follow(self, exchange: Exchange, finished: Callable[[], int]) -> None:
        try:
            moved, pause = False, max(POLL_SECONDS, ALONE_SECONDS / num_threads())
            while not self._over.wait(0 if moved else pause):
                moved = exchange.advance(finished())
        except BaseException as error:
            self._error = error

    # ------------------------------------------------------------------------------------------------- several parts
    def own(self, images: int | None, out: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """This rank's parts that have images, in order, each with a vector (size,) that its gradient is to be written
        to before the next one is asked for. Vectors beside `out` are made once; few are, as parts are added up early.
        """
        tree = self._terms(images).tree
        free = [*self._vectors, out]
        self._nodes = {}

        def added(node: Node, left: np.ndarray, right: np.ndarray) -> np.ndarray:
            for _, piece in self._pieces:
                add(left[piece], right[piece], left[piece])
            free.append(right)
            return left

        for part in tree.filled(self._own):
            if not free:
                self._vectors.append(allocate(self._size, self._dtype)[: self._size])
                free.append(self._vectors[-1])
            room = free.pop()
            yield part, room
            self._nodes[part, part + 1] = room
            tree.put(self._nodes, (part, part + 1), added)

    def finish(self, images: int | None, out: np.ndarray) -> None:
        """After all of `own`: `out` then holds the sum over all parts, the same bits on every rank."""
        self.reduce(self._nodes, out, images)

    def reduce(self, nodes: dict[Node, np.ndarray], out: np.ndarray, images: int | None = None) -> None:
        """Sum nodes (lo, hi) of the tree, this rank's largest ones, into `out`; they are used up."""
        terms = self._terms(images)
        expected = terms.nodes_of[self._ranks.rank]
        check(set(nodes) == set(expected), f"nodes must be {expected} on rank {self._ranks.rank}, got {sorted(nodes)}")
        self._new(terms, nodes, out).finish()

    # --------------------------------------------------------------------------------------------------------- inside
    def _terms(self, images: int | None) -> Terms:
        """The tree of a batch of so many images, and every rank's nodes."""
        filled = self._parts if images is None else min(images, self._parts)
        if filled not in self._plans:
            tree, size = Tree(self._parts, filled), self._ranks.size
            self._plans[filled] = Terms(tree, [tree.nodes_of(own_parts(r, size, self._parts)) for r in range(size)])
        return self._plans[filled]

    def _new(self, terms: Terms, nodes: dict[Node, np.ndarray], out: np.ndarray) -> Exchange:
        self._step += 1
        return Exchange(self._ranks, terms, self._pieces, self._rooms, nodes, out, self._step)
