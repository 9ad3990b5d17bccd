"""The parts of `cvit bench`: each times something, prints its table and keeps its numbers for the JSON file."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..model.layout import Layout
from .cases import Case
from .lineup import Disagreement, Lineup, Settings, Timing, load, start, steps_for, take_turn
from .machine import pick_cpus
from .peers import HERE, OWN, NotInstalled, Peer, WorkerError, environment
from .report import Report, megabytes, milliseconds, percent, times

LONG_SIZES = (224, 384, 512, 768, 1024)  # pixels
MEMORY_PEERS = (*OWN, "torch", "torch-compile", "torch-bf16", "torch-compile-bf16")  # those that people train with
UPDATES = {"sgd": "SGD", "adamw": "AdamW"}


class Limits:
    """What the machine can do, by number of threads; the peak is the best of all times that it was measured."""

    def __init__(self, report: Report, seconds: float):
        self.report, self.seconds = report, seconds
        self.peak: dict[int, float] = {}  # FLOP/s of cvit's precision
        self.bandwidth: dict[int, float] = {}  # bytes/s
        self.isa = self.peak_of = ""  # the instruction set, and what the precision's products are made of

    def measure_peak(self, peer: Peer, threads: int) -> None:
        """Have a cvit worker with `threads` threads measure the peak."""
        found = peer.ask("peak", seconds=self.seconds)
        self.isa, self.peak_of = found["isa"], found["of"]
        self.peak[threads] = max(found["peak"], self.peak.get(threads, 0))
        self.report.add("peaks", threads=threads, peak=found["peak"])

    def measure_bandwidth(self, peer: Peer, threads: int) -> None:
        """The same for the memory; it takes 256 MiB there."""
        self.bandwidth[threads] = peer.ask("bandwidth", seconds=self.seconds)["bandwidth"]


@dataclasses.dataclass
class Bench:
    """What every section needs."""

    settings: Settings
    report: Report
    limits: Limits

    @contextlib.contextmanager
    def lineup(self, case: Case, tasks, threads=None):
        """A `Lineup` of cvit and the peers, one of each for every number in `threads`; its faults end up in the report.

        Yields None, after saying why, if cvit itself cannot be timed.
        """
        counts = threads or (self.settings.threads,)
        entrants = [(name, count) for name in ("cvit", *self.settings.peers) for count in counts]
        try:
            lineup = Lineup(case, tasks, entrants, self.settings, self.report)
        except (Disagreement, WorkerError, NotInstalled) as error:
            self.report.fault(f"{case.name}: {error}")
            yield None
            return
        with lineup:
            for peer in lineup.peers:
                if peer.name == "cvit":
                    self.limits.measure_peak(peer, peer.threads)
            try:
                yield lineup
            except WorkerError as error:
                self.report.fault(f"{case.name}: {error}")

    def race(self, lineup: Lineup, task: str, seconds: float | None = None) -> dict:
        """`lineup.race`, and after it the peak once more: another program may have run the first time."""
        rounds = lineup.race(task, seconds=seconds)
        for peer in lineup.peers:
            if peer.name == "cvit":
                self.limits.measure_peak(peer, peer.threads)
        return rounds

    def speed(self, case: Case, task: str, seconds: float, threads: int | None = None) -> dict:
        """What a step of `seconds` means: images/s, FLOP/s and share of the peak, which this many threads reach."""
        flops = case.flops(task) / seconds
        return {
            "seconds": seconds,
            "images_per_s": case.batch / seconds,
            "flops_per_s": flops,
            "share": flops / self.limits.peak[threads or self.settings.threads],
        }


def _identity(case: Case, task: str, peer: Peer) -> dict:
    """The fields of a JSON entry that say what was measured."""
    config = dataclasses.asdict(case.config)
    who = {"who": peer.name, "version": peer.version, "threads": peer.threads, "precision": peer.precision}
    return {"case": case.name, "batch": case.batch, "config": config, "task": task, "flops": case.flops(task), **who}


def cases(bench: Bench, chosen: list[Case]) -> None:
    """Training step and forward pass of each case, and at the end cvit against the fastest peer of each."""
    update = UPDATES[bench.settings.optimizer]
    table = bench.report.table(
        f"Training step (forward, backward, {update} update) and forward pass (frozen weights); times of the median "
        "round; error: of the logits, relative to the largest",
        ("case", -9), ("task", -7), ("who", -18), ("ms", 8), ("min - max", 15), ("images/s", 9), ("GFLOP/s", 8),
        ("peak", 5), ("vs cvit", 7), ("error", 7),
    )  # fmt: skip
    best = []
    for case in chosen:
        with bench.lineup(case, bench.settings.tasks) as lineup:
            for task in bench.settings.tasks if lineup else ():
                bench.report.status(f"{case.name}: timing {task}")
                timings = {peer: Timing.of(rounds) for peer, rounds in bench.race(lineup, task).items()}
                ratios = {peer: timing.ratio(timings[lineup.cvit]) for peer, timing in timings.items()}
                fastest = min((peer for peer in timings if peer.name not in OWN), key=ratios.__getitem__, default=None)
                table.gap()
                for peer, timing in timings.items():
                    speed = bench.speed(case, task, timing.median)
                    mine = peer is lineup.cvit
                    ratio, error = None if mine else ratios[peer], lineup.errors[peer]
                    table.row(
                        case.name, task, peer.name, milliseconds(timing.median),
                        f"{milliseconds(min(timing.rounds))} - {milliseconds(max(timing.rounds))}",
                        f"{speed['images_per_s']:.0f}", f"{speed['flops_per_s'] / 1e9:.1f}", percent(speed["share"]),
                        times(ratio), None if error is None else f"{error:.1e}",
                    )  # fmt: skip
                    entry = {**_identity(case, task, peer), "rounds": timing.rounds, **speed, "ratio": ratio}
                    if mine and fastest:
                        entry["fastest_peer"] = {"who": fastest.name, "ratio": ratios[fastest]}
                        best.append((case.name, task, speed, fastest.name, ratios[fastest]))
                    bench.report.add("cases", **entry, error=error)
    if bench.settings.peers:
        _against_the_fastest(bench, best)


def _against_the_fastest(bench: Bench, best) -> None:
    """What the cases' table comes to, from (case, task, speed, the fastest peer and its ratio)."""
    limits, precision = bench.limits, bench.settings.precision
    table = bench.report.table(
        f"cvit in {precision} against the fastest peer in any precision, times as fast; peak: share of the "
        f"{limits.peak_of} peak",
        ("case", -9), ("task", -7), ("GFLOP/s", 8), ("peak", 5), ("ratio", 7), ("peer", -18),
    )  # fmt: skip
    for case, task, speed, who, ratio in best:
        share = speed["flops_per_s"] / limits.peak[bench.settings.threads]
        table.row(case, task, f"{speed['flops_per_s'] / 1e9:.1f}", percent(share), times(ratio), who)


def latency(bench: Bench, chosen: list[Case]) -> None:
    """Forward pass of a single image on one and two threads: median and 99th percentile of all steps."""
    table = bench.report.table(
        "Latency: forward pass of one image",
        ("case", -9), ("threads", 7), ("who", -18), ("p50 ms", 8), ("p99 ms", 8), ("GFLOP/s", 8), ("peak", 5),
        ("vs cvit", 7),
    )  # fmt: skip
    counts = [count for count in (1, 2) if count <= bench.settings.threads]
    window = 4 * bench.settings.seconds  # a 99th percentile wants many steps
    for case in (dataclasses.replace(case, batch=1) for case in chosen):
        for count in counts:
            with bench.lineup(case, ["forward"], threads=[count]) as lineup:
                if not lineup:
                    continue
                bench.report.status(f"{case.name}: latency on {count} threads")
                rounds = bench.race(lineup, "forward", seconds=window)
                steps = {peer: np.concatenate(turns) for peer, turns in rounds.items()}
                for peer, seconds in steps.items():
                    p50, p99 = (float(np.percentile(seconds, rank)) for rank in (50, 99))
                    speed = bench.speed(case, "forward", p50, count)
                    ratio = None if peer is lineup.cvit else p50 / float(np.median(steps[lineup.cvit]))
                    table.row(
                        case.name, count, peer.name, milliseconds(p50), milliseconds(p99),
                        f"{speed['flops_per_s'] / 1e9:.1f}", percent(speed["share"]), times(ratio),
                    )  # fmt: skip
                    identity = _identity(case, "forward", peer)
                    bench.report.add("latency", **identity, p50=p50, p99=p99, steps=len(seconds), **speed, ratio=ratio)


def long_sequences(bench: Bench, chosen: list[Case]) -> None:
    """One image of growing size: the time should grow as the FLOPs do, the planned memory as the tokens."""
    table = bench.report.table(
        "Long sequences: one image of growing size; MB: what ViT.plan gives for activations and scratch",
        ("case", -9), ("pixels", 6), ("tokens", 6), ("task", -7), ("who", -18), ("ms", 8), ("GFLOP/s", 8), ("peak", 5),
        ("MB", 7), ("kB/token", 8), ("vs cvit", 7),
    )  # fmt: skip
    for case in chosen:
        for size in LONG_SIZES:
            config = dataclasses.replace(case.config, image_size=(size, size))
            larger = Case(case.name, config, 1)
            with bench.lineup(larger, bench.settings.tasks) as lineup:
                if not lineup:
                    continue
                planned = lineup.cvit.ask("plan", batch=1)
                for task in bench.settings.tasks:
                    bench.report.status(f"{case.name} at {size} pixels: timing {task}")
                    timings = {peer: Timing.of(rounds) for peer, rounds in bench.race(lineup, task).items()}
                    for peer, timing in timings.items():
                        speed = bench.speed(larger, task, timing.median)
                        mine = peer is lineup.cvit
                        ratio = None if mine else timing.ratio(timings[lineup.cvit])
                        size_planned: float | None = planned[task] if mine else None
                        table.row(
                            case.name, size, config.tokens, task, peer.name, milliseconds(timing.median),
                            f"{speed['flops_per_s'] / 1e9:.1f}", percent(speed["share"]),
                            None if size_planned is None else megabytes(size_planned),
                            None if size_planned is None else f"{size_planned / config.tokens / 1e3:.1f}",
                            times(ratio),
                        )  # fmt: skip
                        identity = _identity(larger, task, peer)
                        extra = dict(pixels=size, tokens=config.tokens, planned=size_planned, ratio=ratio)
                        bench.report.add("long", **identity, rounds=timing.rounds, **speed, **extra)


def scaling(bench: Bench, chosen: list[Case]) -> None:
    """The same work on 1, 2, … threads, taking turns."""
    most = bench.settings.threads
    counts = list(range(1, most + 1)) if most <= 8 else sorted({2**i for i in range(most.bit_length())} | {most})
    table = bench.report.table(
        "Scaling: speed against one thread; peak: share of what that many threads reach",
        ("case", -9), ("task", -7), ("who", -18), ("threads", 7), ("ms", 8), ("GFLOP/s", 8), ("peak", 5),
        ("speed-up", 8),
    )  # fmt: skip
    for case in chosen:
        with bench.lineup(case, bench.settings.tasks, threads=counts) as lineup:
            for task in bench.settings.tasks if lineup else ():
                bench.report.status(f"{case.name}: timing {task} on 1 to {most} threads")
                timings = {peer: Timing.of(rounds) for peer, rounds in bench.race(lineup, task).items()}
                table.gap()
                alone = {peer.name: timing for peer, timing in timings.items() if peer.threads == 1}
                for peer, timing in timings.items():
                    speed = bench.speed(case, task, timing.median, peer.threads)
                    speed_up = alone[peer.name].ratio(timing) if peer.name in alone else None
                    table.row(
                        case.name, task, peer.name, peer.threads, milliseconds(timing.median),
                        f"{speed['flops_per_s'] / 1e9:.1f}", percent(speed["share"]), times(speed_up),
                    )  # fmt: skip
                    identity = _identity(case, task, peer)
                    bench.report.add("scaling", **identity, rounds=timing.rounds, **speed, speed_up=speed_up)


class BusyLoops:
    """One endless loop for each thread that is measured, on the same CPUs, running only inside `running()`."""

    def __init__(self, threads: int):
        cpus = ",".join(map(str, pick_cpus(threads)))
        command = [sys.executable, str(HERE / "busy_worker.py"), f"--cpus={cpus}"]
        begin = lambda: subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
        self._processes = [begin() for _ in range(threads)]
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()  # it says when it is ready
        self._send(signal.SIGSTOP)

    def _send(self, number):
        for process in self._processes:
            process.send_signal(number)

    @contextlib.contextmanager
    def running(self):
        self._send(signal.SIGCONT)
        try:
            yield
        finally:
            self._send(signal.SIGSTOP)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def busy(bench: Bench, chosen: list[Case]) -> None:
    """The training step beside another program that keeps every core busy, against its quiet time of the same round.

    A fair share of the cores would make it 2.
    """
    if not hasattr(signal, "SIGSTOP"):
        bench.report.fault("--busy needs a system that can stop and continue processes")
        return
    table = bench.report.table(
        "A busy machine: the training step beside one endless loop per thread",
        ("case", -9), ("who", -18), ("quiet ms", 8), ("busy ms", 8), ("slow-down", 9),
    )  # fmt: skip
    seconds = 2 * bench.settings.seconds  # long against a time slice
    for case in chosen:
        with bench.lineup(case, ["train"]) as lineup, BusyLoops(bench.settings.threads) as loops:
            if not lineup:
                continue
            bench.report.status(f"{case.name}: training steps on a quiet and a busy machine")
            runners = [peer for peer in lineup.peers if "train" in peer.tasks]
            counts = {peer: steps_for(peer, "train", seconds) for peer in runners}
            quiet: dict[Peer, list[list[float]]] = {peer: [] for peer in runners}
            loaded: dict[Peer, list[list[float]]] = {peer: [] for peer in runners}
            for _ in range(bench.settings.rounds):
                for peer in runners:
                    quiet[peer].append(take_turn(peer, "train", counts[peer]))
                    with loops.running():
                        loaded[peer].append(take_turn(peer, "train", counts[peer]))
            for peer in runners:
                before, after = Timing.of(quiet[peer]), Timing.of(loaded[peer])
                slow_down = after.ratio(before)
                table.row(
                    case.name, peer.name, milliseconds(before.median), milliseconds(after.median), times(slow_down)
                )
                identity = _identity(case, "train", peer)
                bench.report.add("busy", **identity, quiet=before.rounds, busy=after.rounds, slow_down=slow_down)


def memory(bench: Bench, chosen: list[Case]) -> None:
    """Resident memory of a fresh process that trains with AdamW, and what is left of it for activations and scratch."""
    table = bench.report.table(
        "Memory of a training process, MB; "
        "activations: peak less import, and less weights, gradients, AdamW's moments, batch",
        ("case", -9), ("who", -18), ("peak", 8), ("import", 8), ("weights+", 8), ("activations", 11), ("planned", 8),
        ("vs cvit", 7),
    )  # fmt: skip
    names = [name for name in ("cvit", *bench.settings.peers) if name in MEMORY_PEERS]
    for case in chosen:
        own = None
        for name in names:
            bench.report.status(f"{case.name}: memory of {name}")
            try:
                with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder:
                    file = Path(folder) / "case.npz"
                    case.write_arrays(file)
                    with start(name, bench.settings.threads, bench.settings) as peer:
                        load(peer, case, file, ["train"], optimizer="adamw")
                        peer.ask("steps", task="train", count=3, warmup=0)
                        found = peer.ask("memory")
                        planned = peer.ask("plan", batch=case.batch)["train"] if name in OWN else None
            except NotInstalled as error:
                bench.report.note(f"left out: {error}")
                continue
            except WorkerError as error:
                bench.report.fault(str(error))
                continue
            config = case.config
            fixed = 4 * 4 * Layout.of(config).size  # weights, gradients and AdamW's two moments, float32
            fixed += case.batch * (
                4 * config.channels * config.image_size[0] * config.image_size[1] + 8
            )  # images and labels
            activations = found["peak"] - found["imported"] - fixed
            own = activations if name == "cvit" else own
            ratio = activations / own if own and name != "cvit" else None
            table.row(
                case.name, name, megabytes(found["peak"]), megabytes(found["imported"]), megabytes(fixed),
                megabytes(activations), megabytes(planned) if planned else None, times(ratio),
            )  # fmt: skip
            identity = _identity(case, "train", peer)
            found = dict(peak=found["peak"], imported=found["imported"], fixed=fixed, activations=activations)
            bench.report.add("memory", **identity, **found, planned=planned, ratio=ratio)


def overhead(bench: Bench, chosen: list[Case]) -> None:
    """A training step whose tasks are all taken and not done: Python, planning, threads, barriers; no kernel."""
    table = bench.report.table(
        "Overhead: a training step and an SGD step without their kernels, microseconds",
        ("case", -9), ("threads", 7), ("p10", 6), ("p50", 6), ("p90", 6),
    )  # fmt: skip
    for case in chosen:
        with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder:
            file = Path(folder) / "case.npz"
            case.write_arrays(file)
            for count in [count for count in (1, 2) if count <= bench.settings.threads]:
                bench.report.status(f"{case.name}: overhead on {count} threads")
                try:
                    with start("cvit", count, bench.settings) as peer:
                        load(peer, case, file, ["train"])
                        seconds = peer.ask("idle", count=500 * bench.settings.rounds)["times"]
                except WorkerError as error:
                    bench.report.fault(str(error))
                    continue
                ranks = {f"p{rank}": float(np.percentile(seconds, rank)) for rank in (10, 50, 90)}
                table.row(case.name, count, *(f"{1e6 * value:.1f}" for value in ranks.values()))
                bench.report.add(
                    "overhead", case=case.name, batch=case.batch, threads=count, steps=len(seconds), **ranks
                )
