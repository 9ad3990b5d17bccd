"""What tests of the reduction share: gradients, their sum as the tree's rule has it, and ranks that are threads.

These have messages as unkind as MPI allows: one is either copied when it is sent, or only when its receiver has begun
to receive and somebody looks. Until then what is sent must not change, and what is received must not be read.
"""

import random
import threading
import time
from collections import defaultdict, deque

import numpy as np

from cvit.parallel.ranks import RankError
from cvit.parallel.shares import part_slices


def part_gradients(parts, size, dtype, seed=0):
    """One vector a part, of values so unlike in size that every order of addition has its own bits."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((parts, size)) * 2.0 ** rng.integers(-20, 20, (parts, size))).astype(dtype)


def summed(gradients, images):
    """The tree as its rule says, on whole vectors."""
    filled = [piece.start < piece.stop for piece in part_slices(images, len(gradients))]

    def node(lo, hi):
        if hi - lo == 1:
            return gradients[lo] if filled[lo] else None
        mid = lo + max(2**i for i in range(hi - lo) if 2**i < hi - lo)
        left, right = node(lo, mid), node(mid, hi)
        return right if left is None else left if right is None else left + right

    return node(0, len(gradients))


def one_by_one(reduction, pieces, gradients, images, out):
    """The gradient of each part of this rank, then the sum."""
    for part, room in reduction.own(images, out):
        for piece in pieces:
            room[piece] = gradients[part][piece]
    reduction.finish(images, out)


def followed(reduction, pieces, gradients, images, out, rank, pace):
    """A backward that fills piece after piece, those of blocks counted, while the reduction follows it."""
    count = [0]
    own = part_slices(images, len(gradients))[rank]
    reduction.start(out, lambda: count[0], images)
    if own.start < own.stop:
        for number, piece in enumerate(pieces, 1):
            out[piece] = gradients[rank][piece]
            if number < len(pieces) - 1:
                count[0] = number
            time.sleep(pace.uniform(0, 1e-3))
    reduction.wait()


class _Request:
    def __init__(self, array):
        self.array, self.copy, self.done = array, None, False


class World:
    """What the ranks share."""

    def __init__(self, size, seed=0, timeout=30.0):
        self.size, self.timeout, self.failure = size, timeout, None
        self.lock, self.random = threading.Lock(), random.Random(seed)
        self.sent, self.awaited = defaultdict(deque), defaultdict(deque)

    def move(self, key):
        while self.sent[key] and self.awaited[key]:
            message, room = self.sent[key].popleft(), self.awaited[key].popleft()
            values = message.array if message.copy is None else message.copy
            assert (values.shape, values.dtype) == (room.array.shape, room.array.dtype), "a message of another place"
            room.array[...] = values
            message.done = room.done = True

    def run(self, call):
        """`call(ranks)` on every rank; the results in order, or the first error."""
        results, errors = [None] * self.size, []

        def one(rank):
            try:
                results[rank] = call(Ranks(self, rank))
            except BaseException as error:
                errors.append(error)
                self.failure = self.failure or f"rank {rank} failed: {error}"

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        assert not any(self.sent.values()) and not any(self.awaited.values()), "messages that nobody has received"
        return results


class Ranks:
    """One of them: what a reduction uses of `cvit.parallel.ranks.Ranks`."""

    def __init__(self, world, rank):
        self._world, self.rank, self.size, self.timeout = world, rank, world.size, world.timeout
        self._keys = {}

    def send(self, array, to, tag=0):
        request = _Request(array)
        with self._world.lock:
            if self._world.random.random() < 0.3:
                request.copy, request.done = array.copy(), True
            return self._begun(request, self._world.sent, (self.rank, to, tag))

    def receive(self, array, of, tag=0):
        with self._world.lock:
            return self._begun(_Request(array), self._world.awaited, (of, self.rank, tag))

    def _begun(self, request, queues, key):
        assert request.array.flags.c_contiguous and request.array.size
        queues[key].append(request)
        self._keys[id(request)] = key
        return request

    def completed(self, requests, what):
        with self._world.lock:
            for request in requests:
                if self._world.random.random() < 0.5:
                    self._world.move(self._keys[id(request)])
            return [i for i, request in enumerate(requests) if request.done]

    def look(self):
        if self._world.failure is not None:
            raise RankError(self._world.failure)

    def late(self, requests, what, whose):
        return RankError(
            f"no word from {sorted(set(whose))} for {self.timeout:g} s: rank {self.rank} waited for {what}"
        )
