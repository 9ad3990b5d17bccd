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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cvit.parallel.reduction import Reduction
from cvit.parallel.shares import own_pictures

import cvit
from cvit.bench import machine, names
from cvit.bench.cases import CASES, Case
from cvit.engine.plan import Progress
from cvit.parallel.ranks import ALONE, Ranks, launched, world

KINDS = ("ranks", "ranks without the sum", "threads")
CLOSE = 1e-5  # of the summed gradient to the whole batch's, relative to the largest value


class Trainer:
    """A rank's model and its share of the batch."""

    def __init__(self, ranks: Ranks, case: Case):
        rng = np.random.default_rng(0)
        self.model = cvit.ViT(case.config, seed=0)
        self.model.weights += rng.normal(
            0, 0.02, self.model.layout.size
        )  # a head of zeros would have no gradient below
        images = rng.normal(size=(case.batch, case.config.channels, *case.config.image_size)).astype(np.float32)
        labels = rng.integers(case.config.classes, size=case.batch)
        own = own_pictures(case.batch, ranks.rank, ranks.size)
        self.images, self.labels = images[own], labels[own]
        self.shares = np.full(len(self.labels), 1 / case.batch)  # of a picture's loss in the batch's
        self.optimizer = cvit.AdamW(self.model, lr=1e-6)
        self.grad = np.zeros_like(self.model.weights)
        pieces = self.model.layout.pieces()
        self.reduction = Reduction(ranks, pieces, self.model.layout.size, self.grad.dtype, ranks.size)

    def gradient(self, summed: bool) -> None:
        """Of this rank's pictures, or with `summed` of all."""
        progress = Progress()
        if summed:
            self.reduction.start(self.grad, progress)
        self.model.loss_and_grad(
            self.images, self.labels, sample_weight=self.shares, out=self.grad, progress=progress
        )  # fmt: skip
        if summed:
            self.reduction.wait()

    def step(self, summed: bool) -> None:
        """A training step; the weights stay nearly what they are."""
        self.gradient(summed)
        self.optimizer.step(self.model.weights, self.grad)


# ------------------------------------------------------------------------------------------------------------ a rank
def timed(ranks: Ranks, case: Case, rounds: int, seconds: float) -> dict:
    """The figures of a case; they are rank 0's."""
    threads = cvit.get_num_threads()
    of_machine = threads * ranks.local_size
    trainer = Trainer(ranks, case)
    alone = Trainer(ALONE, case) if ranks.first else None
    error = _error(ranks, trainer, alone, threads, of_machine)
    steps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            if kind != "threads":
                spent = turn(ranks, lambda: trainer.step(kind == KINDS[0]), seconds)  # noqa: B023  # called at once
            else:
                spent = 0.0
                if alone is not None:
                    cvit.set_num_threads(of_machine)
                    spent = turn(ALONE, lambda: alone.step(False), seconds)
                    cvit.set_num_threads(threads)
                ranks.barrier()
            steps[kind].append(max(float(rank[0]) for rank in ranks.allgather(np.array([spent]))))
    return {
        "case": case.name, "batch": case.batch, "ranks": ranks.size, "threads": threads,
        "threads of one process": of_machine, "error": error, "steps": steps,
        "gradient bytes": trainer.grad.nbytes, "sums": sums(ranks, trainer, rounds, seconds),
    }  # fmt: skip


def _error(ranks: Ranks, trainer: Trainer, alone: Trainer | None, threads: int, of_machine: int) -> float:
    """How far the summed gradient is from the whole batch's, in its largest value; raises where that is too far."""
    trainer.gradient(summed=True)
    error = 0.0
    if alone is not None:
        cvit.set_num_threads(of_machine)
        alone.gradient(summed=False)
        cvit.set_num_threads(threads)
        error = float(np.abs(alone.grad - trainer.grad).max() / np.abs(alone.grad).max())
    error = max(float(rank[0]) for rank in ranks.allgather(np.array([error])))
    if not error <= CLOSE:
        raise SystemExit(f"the summed gradient is {error:.1e} from the whole batch's, at most {CLOSE:.0e} is right")
    return error


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

    grad, everything = trainer.grad, len(trainer.model.layout.pieces())

    def own() -> None:
        trainer.reduction.start(grad, lambda: everything)
        trainer.reduction.wait()

    ways = {"cvit": own, "MPI.Allreduce": lambda: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, grad)}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            grad[:] = 1e-3
            spent = turn(ranks, call, seconds / 4)
            found[way].append(max(float(rank[0]) for rank in ranks.allgather(np.array([spent]))))
    return found


def memory(ranks: Ranks, case: Case) -> list[int]:
    """The most bytes that each rank had resident, after two steps."""
    trainer = Trainer(ranks, case)
    for _ in range(2):
        trainer.step(summed=ranks.size > 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return [int(rank[0]) for rank in ranks.allgather(np.array([peak]))]


def work(args, ranks: Ranks) -> dict:
    """All figures that this process takes part in."""
    shared = ranks.share_cores()
    if args.part == "memory":
        cvit.set_num_threads(args.threads)
        return {case.name: memory(ranks, case) for case in args.found}
    figures = [timed(ranks, case, args.rounds, args.seconds) for case in args.found]
    return {"shared": shared, "figures": figures}


# ----------------------------------------------------------------------------------------------------------- the whole
def started(args, count: int, part: str, threads: int = 1) -> dict:
    """What `count` ranks of this program print as the part named; one rank is a process without a launcher."""
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
    ratio = statistics.median(one / all_ for one, all_ in zip(steps["threads"], steps["ranks"]))
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
    add("--launcher", default="mpiexec --bind-to none", help="what starts ranks (default: mpiexec --bind-to none)")
    add("--json", type=Path, metavar="FILE", help="keep everything")
    add("--threads", type=int, default=1, help=argparse.SUPPRESS)  # of a rank of the part "memory"
    add("--part", choices=("times", "memory"), help=argparse.SUPPRESS)  # what a process that this one starts does
    args = parser.parse_args()
    changes = {} if args.batch is None else {"batch": args.batch}
    args.found = [dataclasses.replace(Case.named(name, **changes), name=name) for name in args.cases]
    if args.part or launched():
        ranks = world(600.0)
        found = work(args, ranks)
        if ranks.first and args.part:
            args.json.write_text(json.dumps(found))
            return
        figures = found["figures"] if ranks.first else []
    elif args.ranks < 2:
        parser.error("--ranks must be at least 2: there is nothing to share out")
    else:
        figures = started(args, args.ranks, "times")["figures"]
        several, one = started(args, args.ranks, "memory"), started(args, 1, "memory", args.ranks)
        for row in figures:
            row["memory"] = {"ranks": several[row["case"]], "threads": one[row["case"]]}
    for row in figures:
        print(shown(row), flush=True)
    if figures and args.json:
        about = {"machine": machine.describe(args.ranks), "date": time.strftime("%Y-%m-%d"), "command": sys.argv}
        args.json.write_text(json.dumps({**about, "cases": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
