"""What ranks gain and cost: training steps of N ranks of one thread beside one process of N threads, in turns.

    python bench/ranks.py --cases s16,b16 --batch 16 --rounds 5 --json ranks.json                all cores of a machine
    mpiexec -n 8 --map-by ppr:1:node --bind-to none python bench/ranks.py --cases b16 --batch 64       a cluster

Without a launcher it starts itself with mpiexec, once for the times and once for the memory. The whole batch is the
same for everyone. In a round each takes one turn after a step that is not timed: all ranks with their gradients summed;
the same without the sum, which tells what that costs; and rank 0 alone with all threads and the whole batch, while the
others sleep. Then the sum alone beside MPI's Allreduce of a vector as long as the gradient, in turns, too.

Before anything is timed, the summed gradient is compared with the whole batch's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cvit
from cvit.bench import machine, names
from cvit.bench.cases import CASES, Case
from cvit.data.feed import Batch
from cvit.parallel.ranks import ALONE, Ranks, launched, world
from cvit.train.front import Front
from cvit.train.step import NO_CLIPPING, Stepper

KINDS = ("ranks", "ranks without the sum", "one process")
MPIEXEC = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or "mpiexec"  # this environment's first
CLOSE = 1e-5  # of the summed gradient to the whole batch's, relative to the largest value


class Trainer:
    """A rank's model, and its share of the batch."""

    def __init__(self, ranks: Ranks, case: Case):
        rng = np.random.default_rng(0)
        self.model = model = cvit.ViT(case.config, seed=0)
        model.weights += rng.normal(0, 0.02, model.layout.size)  # below a head of zeros the gradient would be zero
        images = rng.normal(size=(case.batch, case.config.channels, *case.config.image_size)).astype(np.float32)
        labels = rng.integers(case.config.classes, size=case.batch)
        self.optimizer = cvit.AdamW(model, lr=1e-6)
        self.stepper = Stepper(
            model, self.optimizer, Front(model, None, keep=False, most_bytes=0, ranks=ranks), label_smoothing=0.0,
            clip_norm=None, accumulate=1, class_weight=None, drop_path=0.0, dropout=0.0, ema=None, seed=0, ranks=ranks,
            parts=ranks.size,
        )  # fmt: skip
        own = self.stepper.share(case.batch)
        self.batch = Batch(images[own], labels[own], np.arange(case.batch)[own], whole=case.batch)
        self.shares = np.full(len(self.batch.images), 1 / case.batch)  # of a picture's loss in the batch's

    @property
    def grad(self) -> np.ndarray:
        return self.stepper.grad

    def step(self) -> None:
        """A training step as `fit` takes it; the weights stay nearly what they are."""
        self.stepper(self.batch, 1e-6, 0)

    def step_without_the_sum(self) -> None:
        """The same with the gradient of this rank's pictures alone."""
        self.model.loss_and_grad(self.batch.images, self.batch.targets, sample_weight=self.shares, out=self.grad)
        self.optimizer.step(self.model.weights, self.grad, clip_norm=NO_CLIPPING)


# ------------------------------------------------------------------------------------------------------------ a rank
def timed(ranks: Ranks, case: Case, rounds: int, seconds: float) -> dict:
    """The figures of a case."""
    threads = cvit.get_num_threads()
    of_machine = threads * ranks.local_size
    trainer = Trainer(ranks, case)
    alone = Trainer(ALONE, case) if ranks.first else None

    def of_one_process(call: Callable[[], float]) -> float:
        cvit.set_num_threads(of_machine)
        try:
            return call()
        finally:
            cvit.set_num_threads(threads)

    def error() -> float:
        alone.step()
        return float(np.abs(alone.grad - trainer.grad).max() / np.abs(alone.grad).max())

    trainer.step()
    wrong = told_by_all(ranks, 0.0 if alone is None else of_one_process(error))
    if not wrong <= CLOSE:
        raise SystemExit(f"the summed gradient is {wrong:.1e} from the whole batch's, right is at most {CLOSE:.0e}")
    steps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, step in zip(KINDS, (trainer.step, trainer.step_without_the_sum)):
            steps[kind].append(told_by_all(ranks, turn(ranks, step, seconds)))
        spent = 0.0 if alone is None else of_one_process(lambda: turn(ALONE, alone.step, seconds))
        steps[KINDS[2]].append(told_by_all(ranks, spent))  # the others wait for it, asleep
    return {
        "case": case.name, "batch": case.batch, "ranks": ranks.size, "threads": threads,
        "threads of one process": of_machine, "error": wrong, "steps": steps, "gradient bytes": trainer.grad.nbytes,
        "sums": sums(ranks, trainer, rounds, seconds),
    }  # fmt: skip


def told_by_all(ranks: Ranks, value: float) -> float:
    """The largest of all ranks' values."""
    return max(float(rank[0]) for rank in ranks.allgather(np.array([value])))


def turn(ranks: Ranks, step: Callable[[], None], seconds: float) -> float:
    """Seconds of a step: the mean of as many as fit into `seconds`, after one that is not timed but by rank 0, so that
    all ranks make as many."""
    ranks.barrier()
    start = time.perf_counter()
    step()
    count = ranks.broadcast(max(1, round(seconds / (time.perf_counter() - start))))
    ranks.barrier()
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def sums(ranks: Ranks, trainer: Trainer, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds in which a gradient is summed whose pieces are all final at the start, and those of MPI's Allreduce."""
    from mpi4py import MPI

    grad, reduction = trainer.grad, trainer.stepper.reduction
    everything = len(trainer.model.layout.pieces())

    def own() -> None:
        reduction.start(grad, lambda: everything)
        reduction.wait()

    ways = {"cvit": own, "MPI.Allreduce": lambda: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, grad)}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            grad[:] = 1e-3
            found[way].append(told_by_all(ranks, turn(ranks, call, seconds / 4)))
    return found


def memory(ranks: Ranks, case: Case) -> list[int]:
    """The most bytes that each rank had resident, after two steps."""
    trainer = Trainer(ranks, case)
    for _ in range(2):
        trainer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return [int(rank[0]) for rank in ranks.allgather(np.array([peak]))]


def work(args, ranks: Ranks) -> list | dict:
    """The figures of a part, of each case."""
    shared = ranks.share_cores()
    if args.part == "memory":
        cvit.set_num_threads(args.threads)
        return {case.name: memory(ranks, case) for case in args.found}
    if ranks.first:
        print(shared, flush=True)
    return [timed(ranks, case, args.rounds, args.seconds) for case in args.found]


# ----------------------------------------------------------------------------------------------------------- the whole
def started(args, count: int, part: str, threads: int = 1) -> Any:
    """What `work` gives in `count` ranks of this program; one rank is a process without a launcher."""
    with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder:
        out = Path(folder) / "part.json"
        command = [sys.executable, __file__, "--part", part, "--json", str(out), "--threads", str(threads)]
        command += ["--cases", ",".join(args.cases), "--rounds", str(args.rounds), "--seconds", str(args.seconds)]
        command += [] if args.batch is None else ["--batch", str(args.batch)]
        if count > 1:
            command = [*shlex.split(args.launcher), "-n", str(count), *command]
        # Open MPI refuses to run for root, as in a container, unless it is told twice.
        environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        status = subprocess.run(command, env=environment).returncode
        if status:
            raise SystemExit(f"{shlex.join(command)} ended with status {status}")
        return json.loads(out.read_text())


def shown(row: dict) -> str:
    """A case's figures in words: medians of the rounds, and ratios of neighbouring turns."""
    steps = row["steps"]
    ranks, bare, threads = (statistics.median(steps[kind]) for kind in KINDS)
    ratio = statistics.median(one / all_ for one, all_ in zip(steps["one process"], steps["ranks"]))
    cost = statistics.median(with_ / without for with_, without in zip(steps["ranks"], steps[KINDS[1]])) - 1
    moved = 2 * (row["ranks"] - 1) / row["ranks"] * row["gradient bytes"]  # by each rank, out as well as in
    rates = {way: moved / statistics.median(times) / 1e9 for way, times in row["sums"].items()}
    several = f"{row['ranks']} ranks, each with threads: {row['threads']}"
    alone = f"1 process with threads: {row['threads of one process']}"
    lines = [
        f"{row['case']}, batch {row['batch']}, gradient {row['gradient bytes'] / 1e6:.0f} MB, error {row['error']:.0e}",
        f"  {several:36} {1e3 * ranks:9.1f} ms  {row['batch'] / ranks:8.1f} images/s",
        f"  {'the same without the sum':36} {1e3 * bare:9.1f} ms  the sum costs {cost:.1%}",
        f"  {alone:36} {1e3 * threads:9.1f} ms  "
        f"{row['batch'] / threads:8.1f} images/s  ranks are {ratio:.3f} times as fast",
        "  the sum alone: " + ", ".join(f"{way} {rate:.2f} GB/s" for way, rate in rates.items()),
    ]
    if "memory" in row:
        several_mb = ", ".join(f"{peak / 1e6:.0f}" for peak in row["memory"]["ranks"])
        lines.append(
            f"  memory: {several_mb} MB of the ranks, {row['memory']['threads'][0] / 1e6:.0f} MB of the process"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cases", type=names(CASES), default=("s16", "b16"), metavar="NAMES", help=f"of {','.join(CASES)}")
    add("--batch", type=int, metavar="INT", help="pictures of a step, of all ranks together (default: the case's)")
    add("--rounds", type=int, default=5, metavar="INT", help="default: 5")
    add("--seconds", type=float, default=1.0, metavar="FLOAT", help="of a turn, one step at least (default: 1)")
    add("--ranks", type=int, default=len(machine.usable_cpus()), metavar="INT", help="default: one for each core")
    start = f"{shlex.quote(MPIEXEC)} --bind-to none"
    add("--launcher", default=start, help="what starts ranks (default: mpiexec --bind-to none)")
    add("--json", type=Path, metavar="FILE", help="keep everything")
    add("--threads", type=int, default=1, help=argparse.SUPPRESS)  # of a rank of the part "memory"
    add("--part", choices=("times", "memory"), help=argparse.SUPPRESS)  # what a process that this one starts does
    args = parser.parse_args()
    changes = {} if args.batch is None else {"batch": args.batch}
    args.found = [dataclasses.replace(Case.named(name, **changes), name=name) for name in args.cases]
    if args.part or launched():
        ranks = world(600.0)
        with ranks.guarded():
            figures = work(args, ranks)
        if ranks.first and args.part:
            args.json.write_text(json.dumps(figures))
        if args.part or not ranks.first:
            return
    elif args.ranks < 2:
        parser.error("--ranks must be at least 2: there is nothing to share out")
    else:
        figures = started(args, args.ranks, "times")
        several, one = started(args, args.ranks, "memory"), started(args, 1, "memory", args.ranks)
        for row in figures:
            row["memory"] = {"ranks": several[row["case"]], "threads": one[row["case"]]}
    for row in figures:
        print(shown(row), flush=True)
    if args.json:
        about = {"machine": machine.describe(args.ranks), "date": time.strftime("%Y-%m-%d"), "command": sys.argv}
        args.json.write_text(json.dumps({**about, "cases": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
