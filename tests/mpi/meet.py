"""What ranks tell each other, each checked by every rank. Prints what share_cores says."""

import threading
import time

import numpy as np
from mpi4py import MPI

from cvit.parallel import messages, ranks

messages.PIECE = 10_000  # so that a small array is cut as a large one is

every = ranks.world(timeout=30)
size, rank = every.size, every.rank
assert (size, rank) == (MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()) and every.first == (rank == 0)
assert (every.local_size, every.local_rank) == (size, rank) and every.host == MPI.Get_processor_name()
assert ranks.of(MPI.COMM_SELF) is ranks.ALONE
for wrong in (MPI.COMM_NULL, MPI.COMM_WORLD.Get_group(), 3, "MPI.COMM_WORLD"):
    try:
        ranks.of(wrong)
        raise AssertionError(f"{wrong} passed for a communicator")
    except TypeError as error:
        assert "comm must be a communicator of mpi4py" in str(error)


def array_of(rank, dtype="f4", length=3):
    return (np.arange(length * (rank + 1)) + 7 * rank).astype(dtype)


# Every rank's array: of every kind, short and long, of no rows, not contiguous, of no more than one number.
for dtype in ("f4", "f8", ">f8", "i8", "u2", "?", "c16", "U5"):
    for length in (0, 1, 40, 3000) if dtype in ("f4", "U5") else (40,):
        found = every.allgather(array_of(rank, dtype, length))
        assert len(found) == size
        for other, array in enumerate(found):
            wanted = array_of(other, dtype, length)
            assert array.dtype == wanted.dtype and np.array_equal(array, wanted), (dtype, length, other)
wide = np.arange(2000.0).reshape(20, 100)[:, :: rank + 1][:, :10].T
found = every.allgather(wide[: 2 * rank])
assert [each.shape for each in found] == [(2 * other, 20) for other in range(size)]
assert np.array_equal(found[size - 1], np.arange(2000.0).reshape(20, 100)[:, ::size][:, :10].T[: 2 * (size - 1)])

# Rank 0's value.
value = {
    "none": None, "numbers": [True, -3, 0.1, 1e300, float("inf"), 10**30], "text": "größer \U0001f600 " * 90,
    "arrays": [np.arange(5000.0), np.zeros((0, 3), "i4"), np.array(3, "f4"), {"deep": np.array(["a", "bcd"])}],
    "array": {"array": "a key that is ours, too", "dict": {}}, "empty": [[], {}, ""],
}  # fmt: skip


def same(a, b):
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) and a.flags.writeable
    return type(a) is type(b) and a == b


for what in (value, None, 1.5, [], "short", np.arange(3)):
    assert same(every.broadcast(what if rank == 0 else object()), what), what
assert every.broadcast((1, (2,))) == [1, [2]]

# A flag, a barrier, and what all agree on.
assert [every.any(rank == other) for other in range(-1, size)] == [False] + [True] * size
before = time.process_time()
if rank == 0:
    time.sleep(0.5)
every.barrier()
assert time.process_time() - before < 0.25, "waiting takes the time of those that are waited for"
every.agree({"version": "1.0", "seed": 3, "rate": 0.1, "init": None, "text": "x" * 5000})
told = ""
for facts in ({"a": 1, "data": f"/data/{min(rank, 1)}"}, {"a": 1, "b": 2} if rank else {"a": 1}, {"x": float(rank)}):
    try:
        every.agree(facts)
    except ValueError as error:
        told += f"{error}\n"
try:
    every.allgather(np.zeros((2, 3 + (rank > 0)), "f4" if rank else "f8"))
except ValueError as error:
    told += f"{error}\n"
texts = every.allgather(np.array([told]))
assert all(text == texts[0] for text in texts), "not the same error everywhere"

# Another thread's messages run beside the meetings of this one.
received = {other: np.empty(5000, "f4") for other in range(size) if other != rank}
short = {other: np.empty(2, "i8") for other in received}


def behind():
    sent = [every.send(np.full(5000, rank, "f4"), other, tag=5) for other in received]
    sent += [every.send(np.array([rank, other]), other) for other in received]
    requests = [every.receive(array, other) for other, array in short.items()]
    requests += [every.receive(array, other, tag=5) for other, array in received.items()]
    every.wait(sent + requests, "messages beside others", [*received] * 4)


thread = threading.Thread(target=behind)
thread.start()
for turn in range(50):
    assert [int(each[0]) for each in every.allgather(np.array([rank * turn]))] == [r * turn for r in range(size)]
thread.join()
assert all((array == other).all() for other, array in received.items())
assert all(array.tolist() == [other, rank] for other, array in short.items())
every.wait([], "nothing")
assert not every._open, "requests that are done are not kept"

with every.guarded():
    line = every.share_cores()
every.close()
again = ranks.of(MPI.COMM_WORLD)  # as a second run in one program
again.barrier()
print(told, end="")
print(line)
