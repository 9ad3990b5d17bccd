"""A long training: 200,000 steps with changing batch sizes, left alone, and interrupted and resumed again and again.

    make long                                              # with the other long runs
    python tests/long/steps.py --steps 200000 --stops 20   # alone, with tests/ on the PYTHONPATH

Ends with an error where the interrupted training has other bits than the one that was left alone, or where a process
needs more memory later than at first: resident memory is looked at after every epoch of 1,000 steps, and from the
third one of a process on it stays within 1 MB. Batches have 1 to 12 pictures, another number every fourth step: more
sizes than a model keeps plans for. Dropout, clipping, a moving average and evaluations are on.

The stops are SIGKILL and Ctrl-C in turn, at random moments, and every time the number of threads is another one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import cvit
from cvit import AdamW, ViT, ViTConfig
from cvit.engine import plan
from cvit.train import EMA, state
from cvit.train.loop import Loop

CONFIG = ViTConfig(image_size=4, patch_size=2, channels=1, width=8, depth=2, heads=2, hidden=16, classes=3)
EPOCH, SAVED_EVERY = 1000, 250  # steps
LARGEST, HELD = 12, 4  # pictures of a batch, and steps with the same number of them
WARM_UP = 2  # epochs of a process in which its memory may grow
FLAT = 1_000_000  # bytes
THREADS = (1, 2, 3)
PR_SET_THP_DISABLE = 41  # linux/prctl.h
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.standard_normal((500, 1, 4, 4)).astype(np.float32), RNG.integers(0, 3, 500)


# ------------------------------------------------------------------------------------------------- one process's part
def batches(epoch: int):
    """The batches of an epoch: sizes and pictures are a function of its number."""
    rng = np.random.default_rng(epoch)
    for size in np.repeat(rng.integers(1, LARGEST + 1, EPOCH // HELD), HELD):
        some = rng.integers(0, len(IMAGES), size)
        yield IMAGES[some], LABELS[some]


def resident() -> int:
    """Bytes of this process that are in memory, counted page by page (statm's counters lag behind).

    Without what the C library keeps of freed memory, half a megabyte to a few, another amount every time.
    """
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
    return 1024 * int(re.search(r"^Rss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)[1])


def work(folder: Path, steps: int, threads: int) -> None:
    """Train from the folder's checkpoint on; a line an epoch, and at the end one with the bits."""
    # Where a few kilobytes are touched the system gives a huge page of 2 MB, or not, as it has them: memory that the
    # program did not ask for, and that would hide what it did.
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in its background
    plan.THREAD_FLOPS = 1e-3  # share out the smallest passes, too
    cvit.set_num_threads(threads)
    model = ViT(CONFIG, seed=0)
    sizes = []

    def on_step(step):
        if loop.position.total % SAVED_EVERY == 0:
            state.write(folder, *loop.state())

    def on_epoch(epoch):
        sizes.append(resident())
        print(f"epoch {epoch.epoch} {sizes[-1]} bytes", flush=True)

    loop = Loop(
        model, batches, (IMAGES[:32], LABELS[:32]), epochs=steps // EPOCH, optimizer=AdamW(model, lr=1e-3),
        ema=EMA(model, 0.999), clip_norm=1.0, drop_path=0.1, dropout=0.1, on_step=on_step, on_epoch=on_epoch,
    )  # fmt: skip
    if folder.exists():
        arrays, facts, warning = state.read(folder)
        assert warning is None, warning
        loop.restore(arrays, facts)
    if loop.run().interrupted:
        state.write(folder, *loop.state())
        return
    arrays, facts = loop.state()
    found = hashlib.sha256(json.dumps([facts["position"], [row[:6] for row in facts["history"]]]).encode())
    for name in sorted(arrays):
        found.update(arrays[name].tobytes())
    print("bits", found.hexdigest(), flush=True)


# ------------------------------------------------------------------------------------------------------ what is checked
def training(folder: Path, steps: int, threads: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--folder", folder, "--steps", steps, "--threads", threads]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


def growth(output: str) -> int | None:
    """Bytes between the least and the most memory of a process after its first epochs; None where it had no others."""
    sizes = [int(size) for size in re.findall(r"^epoch \d+ (\d+) bytes$", output, re.M)][WARM_UP:]
    assert not sizes or max(sizes) - min(sizes) <= FLAT, f"memory is not flat: {sizes}"
    return max(sizes) - min(sizes) if sizes else None


def bits(output: str) -> str | None:
    found = re.search(r"^bits (\w+)$", output, re.M)
    return found and found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000, help=f"a multiple of {EPOCH}")
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        work(args.folder, args.steps, args.threads)
        return
    with tempfile.TemporaryDirectory() as place:
        compare(Path(place), args.steps, args.stops, random.Random(args.seed))


def compare(place: Path, steps: int, stops: int, draw: random.Random) -> None:
    """The training left alone and the one that is stopped; both in folders of `place`."""
    begun = time.monotonic()
    process = training(place / "alone", steps, 1)
    output, _ = process.communicate()
    seconds, expected = time.monotonic() - begun, bits(output)
    assert process.returncode == 0 and expected
    print(f"left alone: {steps:,} steps in {seconds:.0f} s, memory within {growth(output):,} bytes", flush=True)
    stopped = growths = 0
    for attempt in range(stops + 1):
        process = training(place / "stopped", steps, THREADS[attempt % len(THREADS)])
        try:
            if attempt < stops:
                process.wait(draw.uniform(0, 1.5 * seconds / stops))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if attempt % 2 else signal.SIGINT)
            stopped += 1
        output, _ = process.communicate()
        growths = max(growths, growth(output) or 0)
        if bits(output):
            break
    assert bits(output) == expected, "the interrupted training has other bits"
    print(f"stopped {stopped} times and resumed: the same bits, memory within {growths:,} bytes")


if __name__ == "__main__":
    main()
