"""Results that rank 0 takes in order, and how far ahead of it the others work where it takes them late."""

import time

import numpy as np

from cvit.parallel import dealing, messages, ranks

COUNT, PAUSE = 23, 0.5

messages.PIECE = 1000  # so that a small array is cut as a large one is
every = ranks.world(timeout=30)
made = []  # when this rank's results were made


def result(piece):
    """Short ones, which MPI sends though nobody receives them yet, and long ones; of some pieces no array."""
    array = np.full((piece % 3, 500), piece, np.float32) if piece % 4 else None
    return {"piece": piece, "text": "ä" * 300 * (piece % 2), "array": array}


def results():
    for piece in range(every.rank, COUNT, every.size):
        made.append(time.time())
        yield result(piece)


with every.guarded():
    woken = 0.0
    if every.first:
        found = []
        for got in dealing.taken(every, COUNT, results()):
            if not found:
                time.sleep(PAUSE)
                woken = time.time()
            found.append(got)
        assert len(found) == COUNT
        for piece, got in enumerate(found):
            want = result(piece)
            assert list(got) == list(want) and (got["piece"], got["text"]) == (want["piece"], want["text"])
            assert (got["array"] is None) == (want["array"] is None)
            if got["array"] is not None:
                assert got["array"].dtype == np.float32 and np.array_equal(got["array"], want["array"])
    else:
        dealing.handed_over(every, results())
    woken = every.broadcast(woken)
    before = sum(moment < woken for moment in made)
    assert before == (1 if every.first else dealing.AHEAD + 1), f"rank {every.rank} was {before} results ahead"
every.close()
