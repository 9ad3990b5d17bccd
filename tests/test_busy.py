"""A busy machine: threads that are kept off their cores in every way give the same bits, and nobody waits for ever."""

import contextlib
import os
import random
import time

import pytest
from busy import crowded, half_a_cpu, move, stop_and_go, stop_one_thread, training

from cvit.engine import team

pytestmark = [
    pytest.mark.skipif(not team.has_openmp(), reason="built without OpenMP"),
    pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's /proc"),
]
SECONDS = 0.7


@contextlib.contextmanager
def permitted():
    """Skip the test where this user or container may not do that."""
    try:
        yield
    except OSError as error:
        pytest.skip(f"not permitted here: {error}")


@pytest.mark.parametrize("model, threads", [("short", 2), ("long", 4)])
def test_one_thread_is_stopped_for_a_second(model, threads):
    """The others wait for it, and go on with it."""
    with training(model, "f32", threads) as trained, permitted():
        stop_one_thread(trained, 1.0, random.Random(threads))
    assert trained.rounds >= 1


def test_half_a_cpu():
    with training("short", "f32", 4) as trained, permitted(), half_a_cpu(trained):
        time.sleep(SECONDS)
    assert trained.rounds >= 1


def test_more_threads_than_cores_behind_busy_loops():
    threads = 4 * len(os.sched_getaffinity(0)) + 1
    with training("short", "f32", threads) as trained, crowded(trained):
        time.sleep(SECONDS)
    assert trained.rounds >= 1


def test_threads_are_moved_and_the_process_is_stopped_and_goes_on():
    with training("long", "f32", 3) as trained:
        move(trained, SECONDS, random.Random(0))
        stop_and_go(trained, SECONDS, random.Random(0))
    assert trained.rounds >= 1


def test_signals_and_forks_in_the_middle():
    """A signal ends the sleep at a barrier early; a fork leaves the child without the threads."""
    with training("short", "f32", 3, "--timer", "--fork") as trained:
        time.sleep(SECONDS)
    assert trained.rounds >= 1
