"""Checkpoints of a run: killed at any moment, on a full disk, damaged bit by bit."""

import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from checks import same_bits
from safetensors import numpy as safetensors_numpy
from safetensors import safe_open
from test_files import room

from cvit.base.locks import locked
from cvit.formats.checksum import KEY, write_checked
from cvit.train.state import BEFORE, FACTS_KEY, NEWEST, WRITING, read, write

FORK = multiprocessing.get_context("fork")


def arrays_of(n, size=3):
    return {"weights": np.full(size, n, np.float32), "m": np.full((size, 2), -n, np.float64)}


def put(folder, n, size=3):
    write(folder, arrays_of(n, size), {"n": n})


def number(folder, size=3):
    """The number of the checkpoint that is read, whose arrays must be its own, and the warning."""
    arrays, facts, warning = read(folder)
    wanted = arrays_of(facts["n"], size)
    assert arrays.keys() == wanted.keys() and all(same_bits(arrays[name], wanted[name]) for name in wanted)
    return facts["n"], warning


def test_what_is_written_comes_back(tmp_path):
    kinds = (np.float64, np.float32, np.float16, np.bool_, np.int8, np.uint32, np.int64)
    arrays = {np.dtype(kind).name: np.arange(6).astype(kind).reshape(2, 3) for kind in kinds}
    arrays |= {"number": np.array(1.5), "empty": np.empty((0, 4)), "ä/[": np.array([np.nan, -0.0, np.inf])}
    facts = {"text": 'größer [{\\" \ud800', "list": [[1], [[]], {"a": None}], "numbers": [0.1, 2**60, True, -0.0]}
    write(tmp_path / "run" / "checkpoint", arrays, {**facts, "pair": (1, 2), "nan": float("nan")})
    found, told, warning = read(tmp_path / "run" / "checkpoint")
    assert warning is None and told.pop("pair") == [1, 2] and np.isnan(told.pop("nan")) and told == facts
    assert found.keys() == arrays.keys() and all(same_bits(found[name], arrays[name]) for name in arrays)
    found["float32"] += 1  # in memory of its own
    assert os.listdir(tmp_path / "run" / "checkpoint") == [NEWEST]


def test_the_one_before_is_kept(tmp_path):
    for n in range(4):
        put(tmp_path, n)
    assert sorted(os.listdir(tmp_path)) == sorted([NEWEST, BEFORE]) and number(tmp_path) == (3, None)
    os.remove(tmp_path / NEWEST)
    n, warning = number(tmp_path)
    assert n == 2 and re.search(rf"{NEWEST} is missing; {BEFORE}, the checkpoint before it, is used", warning)
    put(tmp_path, 7)
    assert number(tmp_path) == (7, None)


# -------------------------------------------------------------------------------------------------------- interrupted
def test_killed_at_random_moments(tmp_path):
    """SIGKILL, 40 times: the last checkpoint that was finished is read, or the next one, and nothing else is left."""

    def child(done):
        n = done.value
        while True:
            n += 1
            put(tmp_path, n, 20_000)
            done.value = n

    done, seen, rng = FORK.Value("q", 0, lock=False), 0, random.Random(1)
    for _ in range(40):
        process = FORK.Process(target=child, args=(done,))
        begun = done.value
        process.start()
        while done.value == begun:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.join()
        n, warning = number(tmp_path, 20_000)
        assert warning is None and done.value <= n <= done.value + 1
        assert sorted(os.listdir(tmp_path)) in (sorted([NEWEST, BEFORE]), [NEWEST])
        seen, done.value = max(seen, n), n
    assert seen >= 40


@pytest.mark.parametrize("damage", [False, True], ids=["whole", "newest damaged"])
def test_killed_before_every_step(tmp_path, monkeypatch, damage):
    """Before each call to the system that changes something; also where the newest was damaged before."""
    steps = ["fsync", "replace", "unlink"]

    def killed_at(step):
        left = [step]

        def wrapped(call):
            def stop(*args, **options):
                if left[0] == 0:
                    os._exit(1)
                left[0] -= 1
                return call(*args, **options)

            return stop

        for name in steps:
            setattr(os, name, wrapped(getattr(os, name)))
        put(tmp_path, 3)

    found = []
    for step in range(20):
        shutil.rmtree(tmp_path), tmp_path.mkdir()
        put(tmp_path, 1), put(tmp_path, 2)
        if damage:
            (tmp_path / NEWEST).write_bytes((tmp_path / NEWEST).read_bytes()[:-1])
        process = FORK.Process(target=killed_at, args=(step,))
        process.start()
        process.join()
        n, warning = number(tmp_path)
        assert (warning is None) == (n > 1) and not (tmp_path / WRITING).exists()
        found.append(n)
        if process.exitcode == 0:
            break
    assert process.exitcode == 0 and step >= 4 and found[0] == 3  # a whole file counts before it is renamed


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_half_a_file_is_removed_by_the_next_write_or_read(tmp_path, content):
    put(tmp_path, 1)
    content = (tmp_path / NEWEST).read_bytes()[:-5] if content is None else content
    (tmp_path / WRITING).write_bytes(content)
    assert number(tmp_path) == (1, None) and os.listdir(tmp_path) == [NEWEST]
    (tmp_path / WRITING).write_bytes(content)
    put(tmp_path, 2)
    assert number(tmp_path) == (2, None) and sorted(os.listdir(tmp_path)) == sorted([NEWEST, BEFORE])


def test_a_file_that_another_process_writes_is_left_alone(tmp_path):
    put(tmp_path, 1)
    with locked(tmp_path / WRITING, "busy", create=True):
        assert number(tmp_path) == (1, None) and (tmp_path / WRITING).exists()
        with pytest.raises(BlockingIOError, match="Another process is writing a checkpoint"):
            put(tmp_path, 2)
    put(tmp_path, 2)
    assert number(tmp_path) == (2, None)


@pytest.mark.parametrize("size", [0, 100, 1000, 100_000])
def test_no_room_leaves_what_was_there(tmp_path, size):
    put(tmp_path, 1, 10_000), put(tmp_path, 2, 10_000)
    with pytest.raises(OSError, match="File too large") as caught, room(size):
        put(tmp_path, 3, 10_000)
    assert caught.value.filename == str(tmp_path / NEWEST)
    assert number(tmp_path, 10_000) == (2, None) and sorted(os.listdir(tmp_path)) == sorted([NEWEST, BEFORE])


def test_a_full_disk(tmp_path):
    """A file system of 1 MB, where one may be mounted."""
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("no file system may be mounted here")
    try:
        put(tmp_path, 1, 15_000), put(tmp_path, 2, 15_000)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left on device"):
                put(tmp_path, 3, 30_000)
            assert number(tmp_path, 15_000) == (2, None)
        put(tmp_path, 4, 15_000)
        assert number(tmp_path, 15_000) == (4, None)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# ------------------------------------------------------------------------------------------------------------ damaged
def test_every_flipped_bit_is_refused(tmp_path):
    """All bits of the header and of the data: the one before is used, and the warning names the file."""
    put(tmp_path, 1), put(tmp_path, 2)
    content = (tmp_path / NEWEST).read_bytes()
    with open(tmp_path / NEWEST, "r+b", buffering=0) as file:
        for bit in range(8 * len(content)):
            byte = content[bit // 8]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            n, warning = number(tmp_path)
            assert n == 1 and NEWEST in warning and BEFORE in warning
            os.pwrite(file.fileno(), bytes([byte]), bit // 8)
        os.pwrite(file.fileno(), b"\1", len(content) - 1)
    assert f"{NEWEST} is damaged: its contents are not those that its checksum" in number(tmp_path)[1]


def test_every_truncation_is_refused(tmp_path):
    put(tmp_path, 1), put(tmp_path, 2)
    content = (tmp_path / NEWEST).read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / NEWEST).write_bytes(content[:length])
        n, warning = number(tmp_path)
        assert n == 1 and f"{NEWEST}" in warning


def test_both_damaged(tmp_path):
    put(tmp_path, 1), put(tmp_path, 2)
    (tmp_path / NEWEST).write_bytes(b"\x80\x04\x95 a pickle")
    (tmp_path / BEFORE).write_bytes((tmp_path / BEFORE).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"no checkpoint that is whole: .*{NEWEST} is not .*; .*{BEFORE}.* cut off"):
        read(tmp_path)
    put(tmp_path, 3)
    assert number(tmp_path) == (3, None)


def test_no_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            read(folder)


HOSTILE = {
    "no checksum": (lambda path: safetensors_numpy.save_file({}, path, {FACTS_KEY: "{}"}), "it has no checksum"),
    "no facts": (lambda path: write_checked(path, {}, {}), "it has no 'cvit.facts'"),
    "facts that are a list": (lambda path: write_checked(path, {}, {FACTS_KEY: "[]"}), "must be a JSON object"),
    "facts nested deeply": (lambda path: write_checked(path, {}, {FACTS_KEY: "[" * 10**5}), "nested too deeply"),
    "a key twice": (lambda path: write_checked(path, {}, {FACTS_KEY: '{"a": 1, "a": 2}'}), "occurs twice"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "a checksum of another's": (lambda path: safetensors_numpy.save_file({}, path, {KEY: "0" * 32}), "is damaged"),
}


@pytest.mark.parametrize("make, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path, make, message):
    make(tmp_path / NEWEST)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(tmp_path)
    assert NEWEST in str(caught.value) and f"{BEFORE} is missing" in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "arrays, facts, error, message",
    [
        ({}, [], TypeError, "facts must be a dict, got list"),
        ({}, {"a": np.float32(1)}, TypeError, "facts must be of what JSON has"),
        ({"a": np.array([None])}, {}, TypeError, "a must be of floats, bool or integers"),
        ({}, {"a": "x" * 5_000_000}, ValueError, "names and metadata must take at most"),
    ],
)
def test_what_can_not_be_written_changes_nothing(tmp_path, arrays, facts, error, message):
    put(tmp_path, 1)
    with pytest.raises(error, match=message):
        write(tmp_path, arrays, facts)
    assert number(tmp_path) == (1, None) and os.listdir(tmp_path) == [NEWEST]


def test_facts_are_in_the_metadata(tmp_path):
    """Readable by any library of the format."""
    put(tmp_path, 5)
    with safe_open(tmp_path / NEWEST, framework="numpy") as file:
        assert json.loads(file.metadata()[FACTS_KEY]) == {"n": 5}
