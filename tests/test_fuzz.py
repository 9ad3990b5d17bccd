"""The fuzzers of fuzz/: that each runs, that a case is the same twice, and that faults are found and told."""

import signal
import subprocess
import sys

import pytest
from checks import ROOT

sys.path.append(str(ROOT))  # behind whatever cvit is tested: fuzz is not installed

from fuzz import running
from fuzz.running import Hang, Target, choices, failure

# An array and not `bytes`: a Python without its lock has a gigabyte of addresses for its own objects from the start.
LIMITED = """
from pathlib import Path
import sys
import numpy as np
from fuzz.running import Hang, Target, choices, failure, limit_memory, prepare_process
prepare_process()
limit_memory()
target = Target(lambda rng, folder: None, lambda rng, folder: np.zeros(int(sys.argv[1]), np.uint8), ())
print(failure(target, choices("x", 0), Path(sys.argv[2])))
"""


def made(rng, folder):
    (folder / "x").write_bytes(rng.randbytes(8))


def test_every_target_runs():
    command = [sys.executable, "-m", "fuzz", "--seconds", "10", "--targets", "containers,configs,tables"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["containers", "configs", "tables"]


def test_a_case_is_the_same_twice(tmp_path):
    seen = []
    target = Target(made, lambda rng, folder: seen.append(((folder / "x").read_bytes(), rng.random())), ())
    for number in (5, 5, 6):
        assert failure(target, choices("x", number), tmp_path) is None
    assert seen[0] == seen[1] != seen[2] and not list(tmp_path.iterdir())


def raising(error):
    def read(rng, folder):
        raise error

    return read


@pytest.mark.parametrize(
    "error, kind",
    [
        (ValueError("x"), None), (FileNotFoundError(2, "x"), None), (KeyError("x"), "KeyError"),
        (RecursionError(), "RecursionError"), (MemoryError(), "MemoryError"), (ValueError("x" * 6000), "message"),
    ],
)  # fmt: skip
def test_what_is_not_documented_is_a_finding(tmp_path, error, kind):
    failed = failure(Target(made, raising(error), (ValueError, OSError)), choices("x", 0), tmp_path)
    assert (failed and failed[0]) == kind


def test_work_without_end_is_a_finding(tmp_path, monkeypatch):
    def endless(rng, folder):
        while True:
            pass

    def raise_hang(number, frame):
        raise Hang

    monkeypatch.setattr(running, "SECONDS", 0.05)
    before = signal.signal(signal.SIGPROF, raise_hang)
    try:
        failed = failure(Target(made, endless, (ValueError,)), choices("x", 0), tmp_path)
    finally:
        signal.signal(signal.SIGPROF, before)
    assert failed[0] == "hang"


@pytest.mark.parametrize("size, words", [(100 << 20, "None"), (300 << 20, "MemoryError")])
def test_memory_has_a_limit(tmp_path, size, words):
    command = [sys.executable, "-c", LIMITED, str(size), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert words in done.stdout, done.stdout + done.stderr
