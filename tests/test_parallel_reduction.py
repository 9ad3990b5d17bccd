"""The sum of all ranks' gradients: the bits of the tree in NumPy, whatever the ranks, their pace and their messages."""

import contextlib
import re
import threading
import time
from unittest import mock

import mpi_runs
import numpy as np
import pytest
from checks import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from reductions import World, followed, one_by_one, part_gradients, summed

from cvit.parallel import reduction as _reduction
from cvit.parallel.exchange import KINDS, MOST_PARTS, PIECE_TAGS
from cvit.parallel.ranks import ALONE, RankError
from cvit.parallel.reduction import Reduction, grouped
from cvit.parallel.shares import part_slices
from cvit.parallel.transfers import allgather_weights
from cvit.parallel.tree import Tree

WHOLE = [slice(0, 9)]


def drawn_pieces(rng, size, front):
    """What lies behind `front`, in pieces of any length as a backward is done with them: blocks from the last one on,
    then what lies before them, then what lies behind."""
    cuts = sorted(rng.choice(np.arange(front + 1, size), min(int(rng.integers(0, 7)), size - front - 1), replace=False))
    slices = [slice(int(a), int(b)) for a, b in zip([front, *cuts], [*cuts, size])]
    return [*slices[-2::-1], slices[-1]]


def sizes_of_pieces(least, most):
    return mock.patch.multiple(_reduction, LEAST_VALUES=least, MOST_VALUES=most)


@settings(max_examples=60)
@given(
    size=st.integers(1, 5), more=st.integers(0, 5), length=st.integers(1, 60), images=st.integers(1, 12),
    dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 2**16), least=st.sampled_from([1, 10]),
    most=st.sampled_from([1, 7, 100]),
)  # fmt: skip
def test_the_bits_are_those_of_the_tree(size, more, length, images, dtype, seed, least, most):
    """Three steps, the last one a batch of another size; part by part, and following a backward where that may be."""
    rng = np.random.default_rng(seed)
    front = int(rng.integers(0, min(length, 5)))
    pieces, parts = drawn_pieces(rng, length, front), size + more
    steps = [(part_gradients(parts, length, dtype, seed + i), [30, 30, images][i]) for i in range(3)]
    world = World(size, seed)

    def call(ranks):
        with sizes_of_pieces(least, most):
            reduction = Reduction(ranks, pieces, length, dtype, parts)
        results = []
        for gradients, count in steps:
            results.append(np.full(length, 7, dtype))
            one_by_one(reduction, pieces, gradients, count, results[-1])
            if parts == size:
                results.append(np.full(length, 7, dtype))
                pace = np.random.default_rng(seed + ranks.rank)
                followed(reduction, pieces, gradients, count, results[-1], ranks.rank, pace)
        return results

    found = world.run(call)
    for result in zip(*found):
        assert all(same_bits(result[0], other) for other in result)
    expected = [summed(gradients, count) for gradients, count in steps for _ in range(1 if parts > size else 2)]
    for out, total in zip(found[0], expected):
        for piece in pieces:
            assert same_bits(out[piece], total[piece])
        assert (out[:front] == 7).all()


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("images", [5, 100])
def test_the_bits_do_not_depend_on_the_number_of_ranks(parts, images, dtype):
    """One process included, which needs no MPI."""
    gradients, pieces = part_gradients(parts, 100, dtype), [slice(30, 90), slice(0, 30), slice(90, 100)]
    expected = summed(gradients, images)
    for size in range(1, min(parts, 5) + 1):

        def call(ranks):
            with sizes_of_pieces(10, 20):
                reduction = Reduction(ranks, pieces, 100, dtype, parts)
            out = np.empty(100, dtype)
            one_by_one(reduction, pieces, gradients, images, out)
            return out

        found = World(size).run(call) if size > 1 else [call(ALONE)]
        assert all(same_bits(out, expected) for out in found), size


def test_a_process_alone_gets_its_gradient_back():
    reduction, grad = Reduction(ALONE, [slice(0, 5)], 5, np.float32, 1), np.arange(5, dtype=np.float32)
    assert reduction.overlaps
    before = threading.active_count()
    reduction.start(grad, lambda: 0)
    assert threading.active_count() == before
    reduction.wait()
    assert grad.tolist() == [0, 1, 2, 3, 4]


def test_few_vectors_are_needed():
    """Of 64 parts on one rank at most seven sums wait at a time; and their vectors are made once."""
    reduction, out = Reduction(ALONE, WHOLE, 9, np.float64, 64), np.empty(9)
    for _ in range(2):
        one_by_one(reduction, WHOLE, part_gradients(64, 9, np.float64), 64, out)
        assert len(reduction._vectors) == 6


def test_pieces_are_joined_and_cut():
    def pieces(*bounds):
        return [slice(*pair) for pair in bounds]

    blocks = pieces((30, 40), (20, 30), (10, 20), (0, 10), (40, 43))
    assert grouped(blocks, 1, 100) == list(enumerate(blocks, 1))
    assert grouped(blocks, 11, 100) == [(2, slice(20, 40)), (4, slice(0, 20)), (5, slice(40, 43))]
    assert grouped(blocks, 100, 100) == [(4, slice(0, 40)), (5, slice(40, 43))]
    assert grouped(blocks, 11, 7)[:3] == [(2, slice(20, 26)), (2, slice(26, 33)), (2, slice(33, 40))]
    assert grouped([], 1, 1) == []


def test_what_is_not_finite_arrives_without_a_warning(recwarn):
    huge = np.full((4, 3), np.finfo(np.float32).max, np.float32)
    huge[:, 1] = [np.inf, -np.inf, 0, 0]

    def call(ranks):
        out, whole = np.empty(3, np.float32), [slice(0, 3)]
        one_by_one(Reduction(ranks, whole, 3, np.float32, 4), whole, huge, 4, out)
        return out

    for out in World(2).run(call):
        assert np.isinf(out[[0, 2]]).all() and np.isnan(out[1])
    assert not recwarn.list


# ------------------------------------------------------------------------------------------------------------ failures
def test_several_parts_cannot_be_followed():
    reduction = Reduction(ALONE, [slice(0, 3)], 3, np.float32, 2)
    assert not reduction.overlaps
    with pytest.raises(ValueError, match=r"start is for one part a rank: 2 parts on 1 ranks take own\(\)"):
        reduction.start(np.empty(3, np.float32), lambda: 0)


def test_too_many_parts_are_an_error():
    """So many that a rank's nodes have no more tags of their own."""
    with pytest.raises(ValueError, match="parts must be at most 16384, got 16385"):
        Reduction(ALONE, WHOLE, 9, np.float32, MOST_PARTS + 1)
    for lo, hi in ((1, MOST_PARTS - 1), (1, MOST_PARTS)):
        assert len(Tree(MOST_PARTS).nodes_of(range(lo, hi))) < KINDS
    assert 2 * PIECE_TAGS * KINDS <= 30_000, "tags that Ranks does not have"


def test_other_nodes_are_an_error():
    reduction, vector = Reduction(ALONE, [slice(0, 3)], 3, np.float32, 2), np.empty(3, np.float32)
    with pytest.raises(ValueError, match=r"nodes must be \[\(0, 2\)\] on rank 0, got \[\(0, 1\)\]"):
        reduction.reduce({(0, 1): vector}, vector)


@pytest.mark.parametrize("way", ["start", "own"])
def test_a_rank_that_does_not_come_is_named(way):
    def call(ranks):
        reduction, out = Reduction(ranks, WHOLE, 9, np.float32, 3), np.zeros(9, np.float32)
        if ranks.rank == 1:
            return None
        message = rf"no word from \[1\] for 0.2 s: rank {ranks.rank} waited for the gradient"
        with pytest.raises(RankError, match=message):
            if way == "start":
                reduction.start(out, lambda: 1)
                reduction.wait()
            else:
                one_by_one(reduction, WHOLE, np.zeros((3, 9), np.float32), 9, out)
        return True

    world = World(3, timeout=0.2)
    with contextlib.suppress(AssertionError):  # of the messages that rank 1 has not received
        world.run(call)
    assert world.failure is None


def test_a_failure_of_the_following_thread_comes_from_wait():
    def call(ranks):
        reduction = Reduction(ranks, WHOLE, 9, np.float32, 2)
        reduction.start(np.zeros(9, np.float32), lambda: 1 // 0)
        time.sleep(0.01)
        with pytest.raises(ZeroDivisionError):
            reduction.wait()

    World(2).run(call)


def test_the_failure_of_another_rank_ends_a_wait():
    def call(ranks):
        reduction = Reduction(ranks, WHOLE, 9, np.float32, 2)
        if ranks.rank == 1:
            raise MemoryError("no room")
        reduction.start(np.zeros(9, np.float32), lambda: 1)
        with pytest.raises(RankError, match="rank 1 failed: no room"):
            reduction.wait()
        return True

    with pytest.raises(MemoryError):
        World(2).run(call)


def test_following_can_be_given_up():
    def call(ranks):
        reduction = Reduction(ranks, WHOLE, 9, np.float32, 2)
        reduction.start(np.zeros(9, np.float32), lambda: 0)
        reduction.stop()

    before = threading.active_count()
    World(2).run(call)
    assert threading.active_count() == before


# ------------------------------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize("length", [1, 3, 40])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_rank_gets_all_shares(length, size, dtype):
    expected, slices = np.arange(length, dtype=dtype), part_slices(length, size)

    def call(ranks):
        vector = np.full(length, -1, dtype)
        vector[slices[ranks.rank]] = expected[slices[ranks.rank]]
        allgather_weights(ranks, vector, slices)
        return vector

    assert all(same_bits(vector, expected) for vector in World(size).run(call))


# ------------------------------------------------------------------------------------------------------- several ranks
def test_real_ranks_sum_to_the_same_bits():
    """The program checks every sum against the tree; of a model's gradient the bits are those of any number of ranks,
    and of threads."""
    told = {output for size in (1, 2, 3, 4) for output in mpi_runs.succeeds(size, "reduce.py", timeout=120)}
    assert len(told) == 1
    lines = told.pop().splitlines()
    assert len(lines) == 4 and len(set(lines)) == 2


@pytest.mark.parametrize("how, timeout, message", [
    ("raise", 60, r"RankError: rank 2 \(host .*\) failed: ValueError: nothing there"),
    ("stop", 2, r"RankError: no word from rank 2 \(host \S+\) for 2 s: rank [01] \(host \S+\) waited for the gradient"),
], ids=["raise", "stop"])  # fmt: skip
def test_a_real_rank_that_fails_ends_the_others(how, timeout, message):
    """All name the one that is to blame, and not those that wait for it as well."""
    finished = mpi_runs.run(3, "reduce_fails.py", how, timeout, timeout=40)
    assert finished.status != 0, finished
    for output in finished.outputs[:2]:
        error, seconds = output.splitlines()
        assert re.match(message, error) and float(seconds.split()[1]) < 20, finished
