"""One case, loaded by cvit and its peers, checked for agreement, then timed turn by turn."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np

from .cases import TASKS, Case
from .peers import NotInstalled, Peer, WorkerError
from .report import Report

LEARNING_RATE = 1e-3  # small enough for thousands of steps on one batch, large enough for the check to see the update
CHECK_STEPS = 2
MAX_STEPS = 5000  # of one worker in one round

# float32 models of a dozen blocks agree to a few 1e-6; a product in bfloat16 or TF32 is off by 1e-3 and more.
LOGIT_TOLERANCE = 2e-4
LOSS_TOLERANCE = 2e-4
GRADIENT_TOLERANCE = 1e-3

# The NumPy reference keeps all attention weights of a training step; beyond this many bytes it runs forward only.
REFERENCE_LIMIT = 2**30


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure: threads, whom to compare with, how long."""

    threads: int
    peers: tuple[str, ...] = ()
    peer_python: str | None = None
    tasks: tuple[str, ...] = TASKS
    rounds: int = 7
    seconds: float = 0.5  # of one worker in one round


class Disagreement(Exception):
    """A worker's model computes something else."""


class Lineup:
    """Workers with one case loaded and checked. A context manager: its end is theirs.

    `entrants` are (name, threads). Peers that are not installed, that fail or that disagree with the NumPy reference
    are reported and left out; if cvit is among those, `WorkerError` or `Disagreement` is raised.
    """

    def __init__(self, case: Case, tasks, entrants, settings: Settings, report: Report):
        self.case, self.tasks, self.settings = case, tuple(tasks), settings
        self.peers: list[Peer] = []
        self._stack = contextlib.ExitStack()
        try:
            file = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cvit-bench-"))) / "case.npz"
            case.write_arrays(file)
            report.status(f"{case.name}: computing the reference with NumPy")
            expected = reference(case, "train" in self.tasks, settings.threads)
            for name, threads in entrants:
                report.status(f"{case.name}: preparing {name} and checking its results")
                try:
                    peer = self._enter(name, threads, file, expected)
                except NotInstalled as error:
                    report.note(f"left out: {error}")
                except (WorkerError, Disagreement) as error:
                    if name == "cvit":
                        raise
                    report.fault(str(error))
                else:
                    self.peers.append(peer)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._stack.close()

    @property
    def cvit(self) -> Peer:
        return self.peers[0]

    def _enter(self, name: str, threads: int, file: Path, expected: dict) -> Peer:
        """Start a worker, load the case and check what it computes; end it again if that fails."""
        with contextlib.ExitStack() as stack:
            peer = stack.enter_context(start(name, threads, self.settings))
            tasks = [task for task in self.tasks if task in peer.tasks]
            load(peer, self.case, file, tasks)
            train = "train" in tasks and "losses" in expected
            found = peer.ask("check", logits="forward" in tasks, gradients=train, steps=CHECK_STEPS if train else 0)
            compare(name, found, expected)
            self._stack.push(stack.pop_all())
        return peer

    def race(self, task: str, rounds: int | None = None, seconds: float | None = None) -> dict[Peer, list[list[float]]]:
        """Seconds of every step, round by round, of each worker that does `task`. In a round they take turns."""
        rounds, seconds = rounds or self.settings.rounds, seconds or self.settings.seconds
        runners = [peer for peer in self.peers if task in peer.tasks]
        counts = {peer: steps_for(peer, task, seconds) for peer in runners}
        times: dict[Peer, list[list[float]]] = {peer: [] for peer in runners}
        for _ in range(rounds):
            for peer in runners:
                times[peer].append(take_turn(peer, task, counts[peer]))
        return times


def start(name: str, threads: int, settings: Settings) -> Peer:
    """A worker; cvit's runs under this interpreter, the others under the one that was asked for."""
    return Peer(name, threads, None if name == "cvit" else settings.peer_python)


def load(peer: Peer, case: Case, file: Path, tasks, optimizer: str = "sgd") -> None:
    """Have `peer` build the case's model from the arrays in `file`."""
    config = case.worker_config()
    peer.ask("load", config=config, file=str(file), tasks=list(tasks), optimizer=optimizer, lr=LEARNING_RATE)


def steps_for(peer: Peer, task: str, seconds: float) -> int:
    """How many steps take `peer` about `seconds`."""
    step = min(peer.ask("steps", task=task, count=2, warmup=1)["times"])
    return max(1, min(MAX_STEPS, math.ceil(seconds / max(step, 1e-9))))


def take_turn(peer: Peer, task: str, count: int) -> list[float]:
    """Times of `count` steps, after enough untimed ones to fill caches and wake threads."""
    return peer.ask("steps", task=task, count=count, warmup=max(1, count // 10))["times"]


@functools.lru_cache(maxsize=1)
def reference(case: Case, train: bool, threads: int) -> dict:
    """What the NumPy worker computes for `case`: logits and, with `train` and room for it, gradients and losses."""
    config = case.config
    kept = 4 * case.batch * config.heads * config.tokens**2 * config.depth
    train = train and kept <= REFERENCE_LIMIT
    with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder, Peer("numpy", threads) as peer:
        file = Path(folder) / "case.npz"
        case.write_arrays(file)
        load(peer, case, file, TASKS)
        return peer.ask("check", logits=True, gradients=train, steps=CHECK_STEPS if train else 0)


def compare(name: str, found: dict, expected: dict) -> None:
    """Raise `Disagreement` unless logits, losses and gradient norms (those that are there) are the expected ones."""

    def agree(what, error, tolerance):
        if not error <= tolerance:  # so that NaN is a disagreement
            raise Disagreement(f"{name}: {what} differ from NumPy's by {error:.1e} relatively (limit {tolerance:g})")

    if "logits" in found:
        agree("logits", _relative_error(found["logits"], expected["logits"]), LOGIT_TOLERANCE)
    if "losses" in found:
        agree("loss", _relative_error([found["loss"]], [expected["loss"]]), LOSS_TOLERANCE)
        agree("losses of the first steps", _relative_error(found["losses"], expected["losses"]), LOSS_TOLERANCE)
        norms, ours = expected["norms"], found["norms"]
        if norms.keys() != ours.keys():
            raise Disagreement(f"{name}: gradients of {sorted(norms.keys() ^ ours.keys())} on one side only")
        total = math.hypot(*norms.values())
        for tensor, norm in norms.items():
            # A gradient that is nothing but rounding (a key's bias: softmax ignores it) is measured against them all.
            error = abs(ours[tensor] - norm) / max(norm, 1e-3 * total)
            agree(f"the gradients of {tensor}", error, GRADIENT_TOLERANCE)


def _relative_error(found, expected) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return math.inf
    return float(np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1e-30))


@dataclasses.dataclass(frozen=True)
class Timing:
    """One worker's rounds: mean seconds of a step in each."""

    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: list[list[float]]) -> Timing:
        return cls(tuple(statistics.fmean(times) for times in rounds))

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratio(self, other: Timing) -> float:
        """How many times as long as `other` this took: the median of the rounds' ratios, each of one moment."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True))
