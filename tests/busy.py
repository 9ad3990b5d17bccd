"""A process that trains while others keep it from its cores, and what they do to it: for test_busy.py and long/.

As a program it takes the same training steps from the same start, again and again, and compares the bits each time,
until its standard input ends.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import hashlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import cvit
from cvit import AdamW, ViT, ViTConfig
from cvit.engine import plan

MODELS = {  # images a step, configuration: images short enough for whole blocks as tasks, and longer ones
    "short": (24, ViTConfig(image_size=8, patch_size=2, channels=1, width=32, depth=3, heads=4, hidden=64, classes=10)),
    "long": (2, ViTConfig(image_size=24, patch_size=2, channels=1, width=32, depth=2, heads=2, hidden=96, classes=10)),
}
STEPS = 6
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000  # linux/ptrace.h, linux/wait.h


# -------------------------------------------------------------------------------------------------- the one that trains
def digest(name: str, precision: str) -> str:
    """Of weights, losses and logits of a few steps that clip, drop and evaluate."""
    count, config = MODELS[name]
    rng = np.random.default_rng(0)
    model = ViT(config, seed=0, precision=precision)
    optimizer, found = AdamW(model, lr=1e-2), hashlib.sha256()
    for step in range(STEPS):
        x = rng.standard_normal((count, config.channels, *config.image_size)).astype(np.float32)
        loss, grad = model.loss_and_grad(x, rng.integers(config.classes, size=count), drop=cvit.Drop(0.2, 0.1, step))
        optimizer.step(model.weights, grad, clip_norm=0.1)
        found.update(np.float64(loss).tobytes())
    found.update(model.weights.tobytes() + model.forward(x).tobytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("precision")
    parser.add_argument("threads", type=int)
    parser.add_argument("expected", help="the bits of `digest`")
    parser.add_argument("--timer", action="store_true", help="a signal every millisecond, to whichever thread")
    parser.add_argument("--fork", action="store_true", help="fork a child in every round, which computes them, too")
    args = parser.parse_args()
    plan.THREAD_FLOPS = 1e-3  # the models are small; share their passes out all the same
    cvit.set_num_threads(args.threads)
    if args.timer:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    rounds = 0
    while True:
        child = os.fork() if args.fork and rounds else None
        assert digest(args.model, args.precision) == args.expected, f"round {rounds} has other bits"
        if child == 0:
            os._exit(0)
        if child:
            assert os.waitpid(child, 0)[1] == 0, "a forked child has other bits"
        rounds += 1
        if rounds == 1:
            print("ready", flush=True)  # with all of its threads
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(rounds)


# ------------------------------------------------------------------------------------------------ what is done to it
@dataclasses.dataclass
class Trained:
    """The process, and how many rounds it has taken when it has ended."""

    process: subprocess.Popen
    rounds: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def each_thread(self, call: Callable[[int], object]) -> None:
        """`call` with the identifier of each of its threads; OpenMP ends some now and then, for a smaller team."""
        for name in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                call(int(name))


@contextlib.contextmanager
def training(model: str, precision: str, threads: int, *options: str, patience: float = 120) -> Iterator[Trained]:
    """The program, ready with its threads, while the block runs.

    Afterwards it is told to end, which takes a round at most: an `AssertionError` where it had other bits, or does not
    end within `patience` seconds.
    """
    command = [sys.executable, __file__, model, precision, str(threads), digest(model, precision), *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            trained = Trained(process)
            yield trained
            try:
                told, errors = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"it hangs, with {threads} threads") from None
            assert process.returncode == 0, errors
            trained.rounds = int(told)
        finally:
            process.kill()


@contextlib.contextmanager
def half_a_cpu(trained: Trained) -> Iterator[None]:
    """A control group with a quota of half a CPU: all threads stand still for half of every tenth of a second.

    An `OSError` where none can be made.
    """
    groups = dict(line.split(":")[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):  # version 2
        above, name, quota = Path("/sys/fs/cgroup" + groups[""]), "cpu.max", "50000 100000"
    else:
        above, name, quota = Path("/sys/fs/cgroup/cpu" + groups.get("cpu", "/")), "cpu.cfs_quota_us", "50000"
    group = above / f"cvit-{trained.pid}"
    group.mkdir()
    try:
        (group / name).write_text(quota)
        (group / "cgroup.procs").write_text(str(trained.pid))
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (above / "cgroup.procs").write_text(pid)
        group.rmdir()


def stop_one_thread(trained: Trained, seconds: float, draw: random.Random) -> None:
    """Stop one of its threads alone, which SIGSTOP cannot, as a debugger does; an `OSError` where that is forbidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    threads: list[int] = []
    trained.each_thread(threads.append)
    thread = draw.choice(threads)

    def ptrace(request):
        if libc.ptrace(request, thread, None, None) == -1:
            raise OSError(ctypes.get_errno(), f"ptrace: {os.strerror(ctypes.get_errno())}")

    with contextlib.suppress(ProcessLookupError):  # the thread has ended meanwhile
        ptrace(PTRACE_SEIZE)
        ptrace(PTRACE_INTERRUPT)
        os.waitpid(thread, WALL)
        time.sleep(seconds)
        ptrace(PTRACE_DETACH)


def stop_and_go(trained: Trained, seconds: float, draw: random.Random) -> None:
    """Stop the whole process and let it go on, many times."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            trained.process.send_signal(number)
            time.sleep(draw.uniform(0, 0.02))


def move(trained: Trained, seconds: float, draw: random.Random) -> None:
    """Bind its threads, each by itself, to other CPUs again and again; all on one of them, too."""
    cpus, end = sorted(os.sched_getaffinity(0)), time.monotonic() + seconds
    while time.monotonic() < end:
        trained.each_thread(
            lambda thread: os.sched_setaffinity(thread, draw.choice([cpus, draw.choices(cpus), cpus[:1]]))
        )
        time.sleep(0.01)


@contextlib.contextmanager
def crowded(trained: Trained) -> Iterator[None]:
    """Give way, by a low priority, to an endless loop on every CPU."""
    trained.each_thread(lambda thread: os.setpriority(os.PRIO_PROCESS, thread, 10))
    # Until their standard input ends, as it does when this process ends in whatever way.
    loop = "import select, sys\nwhile not select.select([sys.stdin], [], [], 0)[0]: pass"
    loops = [subprocess.Popen([sys.executable, "-c", loop], stdin=subprocess.PIPE) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in loops:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    main()
