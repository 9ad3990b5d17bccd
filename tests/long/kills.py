"""`cvit train` killed at 200 random moments, on a good disk and on one that is full, and resumed until it ends.

    make long                                   # with the other long runs
    python tests/long/kills.py --kills 200      # alone, with tests/ on the PYTHONPATH

After every kill, and after every error for want of room, the run's folder must hold whole files alone (but for one
under a temporary name, which the next start removes), a checkpoint no older than the one that was seen just before,
and a run that can be resumed, overwritten or begun. The run that was resumed to its end must have, byte for byte, the
files of one that was left alone.

A third of the runs are on a small file system of their own, filled up to a random rest (where one may be mounted), a
third may not make files beyond a random size (RLIMIT_FSIZE). Some draw plots and a report at the end, some overwrite
an earlier run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from test_runs import archive

import cvit
from cvit.runs.folder import HISTORY, LAST, MODEL, PREDICTIONS, TEMPORARY, Folder
from cvit.train import state

SHAPE = "--image-size 8 --patch-size 4 --width 8 --depth 2 --heads 2 --hidden 16"
OPTIONS = f"{SHAPE} --epochs 30 --batch-size 16 --ema 0.9 --mixup 0.2 --save-minutes 0.0002 --threads 1".split()
OURS, EARLIER = 0, 1  # seeds
SMALL = 1 << 20  # bytes of the small file system
TRIES = 12  # starts of a run that may be killed; then it is left alone
NO_ROOM = ("No space left on device", "File too large")


# ------------------------------------------------------------------------------------------------------ one run's files
def steps_done(out: Path) -> int:
    """Steps in the newest checkpoint as it lies there, 0 where there is none at this moment."""
    try:
        with safe_open(out / "checkpoint" / state.NEWEST, framework="numpy") as file:
            return json.loads(file.metadata()[state.FACTS_KEY])["position"]["total"]
    except FileNotFoundError:
        return 0


def whole(path: Path) -> None:
    """Raise where a file of a run is not whole."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        cvit.load(path)  # which compares its checksum
    elif path.suffix == ".json":
        json.loads(content)
    elif path.suffix == ".csv":
        rows = content.decode().splitlines(keepends=True)
        assert all(row.endswith("\n") and row.count(",") == rows[0].count(",") for row in rows), f"{path} is cut off"
    else:
        end = {".png": b"IEND\xaeB`\x82", ".html": b"</html>"}[path.suffix]
        assert content.rstrip().endswith(end), f"{path} is cut off"


def check_stopped(out: Path, before: int, killed: bool) -> int:
    """Check the folder of a run that was stopped, whose newest checkpoint had `before` steps; those it has now.

    Only a process that was killed may leave temporary files behind.
    """
    if not out.exists():
        return 0
    for path in out.iterdir():
        if TEMPORARY.fullmatch(path.name):
            assert killed, f"{path} was left behind"
        elif path.is_file():
            whole(path)
    checkpoint = out / "checkpoint"
    if checkpoint.exists():
        names = set(os.listdir(checkpoint))
        assert names <= {state.NEWEST, state.BEFORE, state.WRITING}, names
        assert killed or state.WRITING not in names
    assert Folder(out).is_run or Folder(out).is_free, f"nothing can be done with {out}"
    if how_to_go_on(out) != "resume":  # not begun yet, or the earlier run, of which some is removed
        return 0
    try:
        _, facts, warning = state.read(checkpoint)
    except FileNotFoundError:
        return before if before == 0 else _lost(before, 0)
    assert warning is None, warning
    steps = facts["position"]["total"]
    return steps if steps >= before else _lost(before, steps)


def _lost(before: int, steps: int) -> int:
    raise AssertionError(f"a checkpoint of {before} steps was there, one of {steps} is left")


def result(out: Path) -> dict[str, bytes]:
    """What a finished run leaves that does not depend on the time it took."""
    names = os.listdir(out) + os.listdir(out / "checkpoint")
    left = [name for name in names if TEMPORARY.fullmatch(name) or name == state.WRITING]
    assert not left, left
    found = {name: (out / name).read_bytes() for name in (MODEL, LAST, PREDICTIONS)}
    rows = (out / HISTORY).read_bytes().splitlines()
    return found | {HISTORY: b"\n".join(row.rpartition(b",")[0] for row in rows)}  # without images/s


# -------------------------------------------------------------------------------------------------------- places to be
@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A file system of `SMALL` bytes at `place`, None where it cannot be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, rest: int | None) -> None:
    """Leave so many bytes free on a small disk; None: all that there are."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    if rest is not None:
        free = os.statvfs(disk)
        with open(ballast, "wb") as file:
            file.write(bytes(max(0, free.f_bavail * free.f_frsize - rest)))


def start(data: Path, out: Path, how: str, seed: int = OURS, pictures: bool = False, largest: int | None = None):
    """The command on its way; `how` is "new", "resume" or "overwrite", `largest` the most bytes of a file."""
    command = [sys.executable, "-m", "cvit", "train", str(data), "--out", str(out), *OPTIONS, "--seed", str(seed)]
    command += [f"--{how}"] * (how != "new") + ["--no-pictures"] * (not pictures)

    def limit():
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, stdout=nowhere, stderr=pipe, text=True, preexec_fn=limit)


def how_to_go_on(out: Path) -> str:
    """What the next start is asked for: nobody knows how far the last one came."""
    folder = Folder(out)
    if not folder.is_run:
        return "new"
    return "resume" if folder.read_facts()["settings"]["recipe"]["seed"] == OURS else "overwrite"


# ----------------------------------------------------------------------------------------------------------- many runs
class Kills:
    """Runs that are killed, and what was seen of them."""

    def __init__(self, data: Path, disk: Path | None, expected: dict[str, bytes], seconds: float, draw: random.Random):
        self.data, self.disk, self.expected, self.seconds, self.draw = data, disk, expected, seconds, draw
        self.seen: collections.Counter[str] = collections.Counter()
        self.kinds = ["plain", "size"] + ["disk"] * (disk is not None)

    def run(self, number: int) -> None:
        """One run, killed a few times and resumed to its end."""
        draw, kind = self.draw, self.kinds[number % len(self.kinds)]
        out = (self.disk if kind == "disk" else self.data.parent) / f"run-{number}"
        if draw.random() < 0.25:
            assert start(self.data, out, "new", EARLIER).wait() == 0
        steps = 0
        for _ in range(draw.randint(1, TRIES)):
            done = self._start(out, kind, steps)
            if done is None:
                break
            steps = done
        if self.disk:
            fill(self.disk, None)
        process = start(self.data, out, how_to_go_on(out))
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert result(out) == self.expected, f"run {number} has other bits"
        self.seen["runs"] += 1
        subprocess.run(["rm", "-r", str(out)], check=True)

    def _start(self, out: Path, kind: str, steps: int) -> int | None:
        """Start a run whose checkpoint has `steps` steps, and kill it at a random moment.

        Returns the steps of its checkpoint then, or when it ended for want of room; None where it came to its end.
        """
        draw, largest, pictures = self.draw, None, self.draw.random() < 0.15
        limited = draw.random() < 0.6
        if kind == "size" and limited:
            largest = int(40_000 * draw.random())
        if kind == "disk":
            fill(self.disk, int(150_000 * draw.random()) if limited else None)
        how = how_to_go_on(out)
        process = start(self.data, out, how, pictures=pictures, largest=largest)
        try:
            process.wait(draw.uniform(0, self.seconds * (2 if pictures else 1)))
        except subprocess.TimeoutExpired:
            steps = max(steps, steps_done(out)) if how == "resume" else 0
            process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            return None
        if process.returncode == -signal.SIGKILL:
            steps = check_stopped(out, steps, killed=True)
            self.seen["kills"] += 1
            self.seen["kills with a checkpoint"] += steps > 0
            return steps
        one = process.returncode == 2 and errors.count("\n") == 1 and errors.startswith("cvit: error: ")
        assert one and any(reason in errors for reason in NO_ROOM) and kind != "plain", errors
        self.seen["errors for want of room"] += 1
        return check_stopped(out, steps if how == "resume" else 0, killed=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder, "small")) as disk:
        data = archive(Path(folder, "stripes.npz"))
        assert start(data, Path(folder, "warm"), "new").wait() == 0
        begun = time.monotonic()
        assert start(data, Path(folder, "alone"), "new").wait() == 0
        seconds = time.monotonic() - begun
        print(f"left alone a run takes {seconds:.1f} s; a small file system: {'yes' if disk else 'cannot be mounted'}")
        kills = Kills(data, disk, result(Path(folder, "alone")), seconds, random.Random(args.seed))
        while kills.seen["kills"] < args.kills:
            kills.run(kills.seen["runs"])
            print(", ".join(f"{count} {what}" for what, count in sorted(kills.seen.items())), flush=True)
    print("every run ended with the files of one that was left alone")


if __name__ == "__main__":
    main()
