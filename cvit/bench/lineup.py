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
from .peers import OWN, NotInstalled, Peer, WorkerError
from .report import Report

LEARNING_RATE = 1e-3  # small enough for thousands of steps on one batch, large enough for the check to see the update
CHECK_STEPS = 2
MAX_STEPS = 5000  # of one worker in one round


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """How far from NumPy's float32 logits, losses and the norms of gradients may be, relatively.

    A gradient that is nothing but rounding (a key's bias: softmax ignores it) is measured against `small` times the
    norm of them all.
    """

    logits: float
    losses: float
    gradients: float
    small: float


# float32 models of a dozen blocks agree to a few 1e-6; a product in bfloat16 or TF32 is off by 1e-3 and more. Of
# bfloat16 models, whose logits are off by up to 3e-2 in the cases, only what is wrong and not rounded must stand out.
FLOAT32 = Tolerances(2e-4, 2e-4, 1e-3, 1e-3)
BFLOAT16 = Tolerances(1e-1, 3e-2, 1e-1, 1e-2)
TOLERANCES = {"f32": FLOAT32, "bf16": BFLOAT16, "bf16-fast": BFLOAT16}

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
    precision: str = "f32"  # of cvit
    optimizer: str = "sgd"


class Disagreement(Exception):
    """A worker's model computes something else."""


class Lineup:
    """Workers with one case loaded and checked. A context manager: its end is theirs.

    `entrants` are (name, threads). Peers that are not installed, that fail or that disagree with the NumPy reference
    are reported and left out; if cvit is among those, `WorkerError` or `Disagreement` is raised.
    """

    def __init__(self, case: Case, tasks, entrants, settings: Settings, report: Report):
        self.case, self.tasks, self.settings = case, tuple(tasks), settings
        self.report = report
        self.peers: list[Peer] = []
        self.errors: dict[Peer, float | None] = {}  # of their logits
        self._stack = contextlib.ExitStack()
        try:
            file = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cvit-bench-"))) / "case.npz"
            case.write_arrays(file)
            report.status(f"{case.name}: computing the reference with NumPy")
            expected = reference(case, "train" in self.tasks, settings.threads, settings.optimizer)
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
                    report.data.setdefault("versions", {})[name] = peer.version
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
            remark = load(peer, self.case, file, tasks, self.settings.optimizer)
            if remark:
                self.report.note(f"{name}: {remark}")
            train = "train" in tasks and "losses" in expected
            found = peer.ask("check", logits="forward" in tasks, gradients=train, steps=CHECK_STEPS if train else 0)
            self.errors[peer] = compare(name, found, expected, TOLERANCES[peer.precision])
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
    """A worker; cvit's run under this interpreter, the others under the one that was asked for."""
    variant = settings.precision if name == "cvit" else None
    return Peer(name, threads, None if name in OWN else settings.peer_python, variant=variant)


def load(peer: Peer, case: Case, file: Path, tasks, optimizer: str = "sgd") -> str:
    """Have `peer` build the case's model from the arrays in `file`. Returns its remark on its precision, or ""."""
    config = case.worker_config()
    answer = peer.ask("load", config=config, file=str(file), tasks=list(tasks), optimizer=optimizer, lr=LEARNING_RATE)
    peer.precision = answer["precision"]
    return answer["remark"]


def steps_for(peer: Peer, task: str, seconds: float) -> int:
    """How many steps take `peer` about `seconds`."""
    step = min(peer.ask("steps", task=task, count=2, warmup=1)["times"])
    return max(1, min(MAX_STEPS, math.ceil(seconds / max(step, 1e-9))))


def take_turn(peer: Peer, task: str, count: int) -> list[float]:
    """Times of `count` steps, after enough untimed ones to fill caches and wake threads."""
    return peer.ask("steps", task=task, count=count, warmup=max(1, count // 10))["times"]


@functools.lru_cache(maxsize=1)
def reference(case: Case, train: bool, threads: int, optimizer: str = "sgd") -> dict:
    """What the NumPy worker computes for `case`: logits and, with `train` and room for it, gradients and losses."""
    config = case.config
    kept = 4 * case.batch * config.heads * config.tokens**2 * config.depth
    train = train and kept <= REFERENCE_LIMIT
    with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder, Peer("numpy", threads) as peer:
        file = Path(folder) / "case.npz"
        case.write_arrays(file)
        load(peer, case, file, TASKS, optimizer)
        return peer.ask("check", logits=True, gradients=train, steps=CHECK_STEPS if train else 0)


def compare(name: str, found: dict, expected: dict, tolerances: Tolerances = FLOAT32) -> float | None:
    """Raise `Disagreement` unless logits, losses and gradient norms (those that are there) are the expected ones.

    Returns the logits' largest error relative to the largest of them, None without logits.
    """

    def agree(what, error, tolerance):
        if not error <= tolerance:  # so that NaN is a disagreement
            raise Disagreement(f"{name}: {what} differ from NumPy's by {error:.1e} relatively (limit {tolerance:g})")

    error = None
    if "logits" in found:
        error = _relative_error(found["logits"], expected["logits"])
        agree("logits", error, tolerances.logits)
    if "losses" in found:
        agree("loss", _relative_error([found["loss"]], [expected["loss"]]), tolerances.losses)
        agree("losses of the first steps", _relative_error(found["losses"], expected["losses"]), tolerances.losses)
        norms, ours = expected["norms"], found["norms"]
        if norms.keys() != ours.keys():
            raise Disagreement(f"{name}: gradients of {sorted(norms.keys() ^ ours.keys())} on one side only")
        total = math.hypot(*norms.values())
        for tensor, norm in norms.items():
            apart = abs(ours[tensor] - norm) / max(norm, tolerances.small * total)
            agree(f"the gradients of {tensor}", apart, tolerances.gradients)
    return error


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
