"""`cvit train` and `cvit embed` on several hosts, over networks that are slow, lose packets or break.

    make hosts                                        # all of it, as root: some minutes
    python tests/long/hosts.py --only broken          # with tests/ on the PYTHONPATH

The hosts are namespaces of this machine, see network.py; Open MPI starts its daemons there as it does by ssh, and its
TCP carries every message. So the bits of several hosts are compared with those of processes on one, and what only
networks do can be done to a run: it must end with the same bits, or within `--timeout` with one line on each rank that
is left, a folder without half a file, and `--resume` must go on to the bits of a run that was left alone.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from kills import SHAPE, check_stopped, result, steps_done
from mpi_runs import ENVIRONMENT, launcher
from network import DEVICE, LONGEST, Hosts, Run
from test_runs import archive

import cvit

CVIT = [sys.executable, "-m", "cvit"]
TRAIN = f"{SHAPE} --batch-size 16 --ema 0.9 --mixup 0.2 --seed 0 --threads 1 --no-pictures".split()
EXACT = ["--exact-reduction"]
# After TRAIN, and instead of its own.
WIDER = ["--image-size=16", "--patch-size=4", "--width=128", "--depth=6", "--heads=4"]
MANY, FIRST_STEPS = 60, 20  # epochs of a run that is long enough to be broken in the middle
OFTEN = ["--save-minutes", "0.0002"]
AWAY = 2.0  # seconds
TIMEOUT = 4.0  # `--timeout` of runs that are broken
ENDING = 12.0  # seconds that processes and launcher have beyond it


class Trial:
    """A folder with data and models, and the runs of one process that others are compared with."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = archive(folder / "stripes.npz", count=60)
        self.expected: dict[tuple, dict[str, bytes]] = {}
        self._count = 0

    def out(self, kind: str = "run") -> Path:
        self._count += 1
        return self.folder / f"{kind}-{self._count}"

    def train(self, out: Path, *options, epochs: int = 3) -> list:
        return [*CVIT, "train", self.data, "--out", out, "--epochs", epochs, *TRAIN, *options]

    def alone(self, *options, epochs: int = 3, ranks: int = 1) -> dict[str, bytes]:
        """The files of a run on one machine, of one process or of ranks over shared memory."""
        key = (options, epochs, ranks)
        if key not in self.expected:
            out = self.out("alone")
            start = [launcher(), "-n", ranks] if ranks > 1 else []
            line = [str(word) for word in [*start, *self.train(out, *options, epochs=epochs)]]
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **ENVIRONMENT})
            self.expected[key] = result(out)
        return self.expected[key]


# ------------------------------------------------------------------------------------------------------ the same bits
def bits(trial: Trial) -> None:
    """The files of one machine, from 2, 3 and 4 hosts, and of 2 ranks on each of 2."""
    with hosts_of(trial, 4) as hosts:
        for count, per_host in ((2, 1), (3, 1), (4, 1), (2, 2)):
            size, where = count * per_host, f"{count} hosts of {per_host}"
            for options, ranks in (((), size), (EXACT, 1), ([*EXACT, "--split-optimizer"], 1)):
                out = trial.out()
                line = trial.train(out, *options)
                said = Run(hosts, line, trial.folder, per_host, count).succeeded()
                assert re.search(rf"^{size} ranks of 1 thread.* of {count} machines$", said, re.M), said
                expected = trial.alone(*(o for o in options if o in EXACT), ranks=ranks)
                assert result(out) == expected, f"{where}, {options}: other bits"
            print(f"{where}: the bits of one machine; {moved(hosts)}", flush=True)


def embedding(trial: Trial) -> None:
    """Rank 0 writes the file of one process, byte for byte, and speaks of broken pictures."""
    from PIL import Image

    photos, out = trial.folder / "photos", trial.folder / "features.npy"
    photos.mkdir()
    draw = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(draw.integers(0, 256, (30 + number, 40, 3), np.uint8)).save(photos / f"{number:02}.png")
    (photos / "17.png").write_text("no picture")
    model = trial.folder / "embedder"
    line = [*CVIT, "train", photos.parent / "stripes.npz", "--out", model, "--epochs", "1", *TRAIN]
    subprocess.run([str(word) for word in line], check=True, stdout=subprocess.DEVNULL)
    line = [*CVIT, "embed", model, photos, "--batch", "3", "--out"]
    alone = subprocess.run([str(w) for w in [*line, f"{out}.npy"]], check=True, capture_output=True, text=True)
    with hosts_of(trial, 3) as hosts:
        hosts.switch.lines(delay=1e-3)
        run = Run(hosts, [*line, out], trial.folder)
        run.succeeded()
        assert out.read_bytes() == Path(f"{out}.npy").read_bytes(), "other features"
        assert run.output(0, "err") == alone.stderr and "17.png" in alone.stderr, run.told()
        print(f"embed on 3 hosts: the file of one process; {moved(hosts)}", flush=True)


# ----------------------------------------------------------------------------------------------- slow and lossy lines
LINES = {
    "delay 0.1 ms": dict(delay=1e-4), "delay 1 ms": dict(delay=1e-3), "delay 20 ms": dict(delay=20e-3),
    "loss 1 %": dict(loss=0.01), "delay 1 ms, loss 1 %": dict(delay=1e-3, loss=0.01),
    "100 Mbit/s": dict(rate=100e6 / 8), "1 Gbit/s": dict(rate=1e9 / 8), "10 Gbit/s": dict(rate=10e9 / 8),
    "100 Mbit/s, delay 20 ms, loss 1 %": dict(rate=100e6 / 8, delay=20e-3, loss=0.01),
}  # fmt: skip


def lines(trial: Trial) -> None:
    """The same bits over lines of any kind, of a model whose gradient of 5 MB takes several pieces."""
    options = [*EXACT, *WIDER]
    expected = trial.alone(*options, epochs=1)
    with hosts_of(trial, 3, mtu=1500) as hosts:
        for name, how in LINES.items():
            out = trial.out()
            moved(hosts)
            hosts.switch.lines(**how)
            Run(hosts, trial.train(out, *options, epochs=1), trial.folder).succeeded()
            assert result(out) == expected, f"{name}: other bits"
            print(f"3 hosts, {name}: the bits of one process; {moved(hosts)}", flush=True)


# --------------------------------------------------------------------------------------------------------- broken lines
def pulled(hosts: Hosts, name: str) -> None:
    hosts.switch.connected[hosts.names.index(name)] = False


def plugged_in(hosts: Hosts, name: str) -> None:
    hosts.switch.connected[hosts.names.index(name)] = True


def shut(hosts: Hosts, name: str) -> None:
    hosts.run(name, ["ip", "link", "set", DEVICE, "down"])


def opened(hosts: Hosts, name: str) -> None:
    hosts.run(name, ["ip", "link", "set", DEVICE, "up"])


def stopped(hosts: Hosts, name: str) -> None:
    hosts.kill(name, signal.SIGSTOP, all_of_it=False)


def killed(hosts: Hosts, name: str) -> None:
    hosts.kill(name, all_of_it=False)


# What happens to a host, and whether nothing is heard of it, nor it of others, or it is at an end.
BROKEN: dict[str, tuple[Callable[[Hosts, str], None], str]] = {
    "its cable is pulled": (pulled, "cut off"),
    "its network device is shut down": (shut, "cut off"),
    "its power goes": (Hosts.power_off, "silent"),
    "all its processes are stopped": (stopped, "silent"),
    "all its processes are killed": (killed, "at an end"),
}


def broken(trial: Trial) -> None:
    """Every rank that is left ends in time, those that hear each other with one line; `--resume` goes on elsewhere."""
    expected = trial.alone(*EXACT, *OFTEN, epochs=MANY)
    for what, (how, kind) in BROKEN.items():
        for number, name in ((2, "h3"), (0, "h1")):  # the last host, and that of rank 0 and the launcher
            out = trial.out()
            line = trial.train(out, *EXACT, *OFTEN, epochs=MANY)
            with hosts_of(trial, 3) as hosts:
                run = Run(hosts, [*line, "--timeout", TIMEOUT], trial.folder)
                steps = begun(run, out)
                how(hosts, name)
                seconds = left(run, [] if kind == "cut off" else [name])
                errors = run.errors()
                speakers = {"cut off": [number and 0, number or 1], "silent": [0 if number else 1]}.get(kind, [])
                for rank, text in enumerate(errors):
                    assert text.count("\n") == (rank in speakers), f"{what}: {name}\n{run.told()}"
                    assert not text or "no word from rank" in text, run.told()
                if how is killed and number:  # Open MPI ends all before cvit can: it must have said whose end it was
                    run.ended(ENDING)
                    assert name in run.told(), run.told()
                if how is stopped:  # and now they go on
                    hosts.kill(name, signal.SIGCONT, all_of_it=False)
                    left(run, [])
            done = check_stopped(out, steps, killed=True)
            with hosts_of(trial, 2) as hosts:
                Run(hosts, [*line, "--resume"], trial.folder).succeeded()
            assert result(out) == expected, f"{what}, {name}: other bits after --resume"
            told = [f"{text.strip()}" for text in errors if text] or ["(nothing of cvit's)"]
            print(f"{name}: {what} after {steps} steps: the others ended in {seconds:.1f} s; resumed from {done}")
            print(*(f"    {text}" for text in told), sep="\n", flush=True)


def begun(run: Run, out: Path) -> int:
    """The steps of the checkpoint of a run that is well on its way."""
    until = time.monotonic() + LONGEST
    while (steps := steps_done(out)) < FIRST_STEPS:
        time.sleep(0.02)
        assert run.process.poll() is None and time.monotonic() < until, run.told()
    return steps


def left(run: Run, dead: list[str]) -> float:
    """Wait until no rank runs on any other host: after how many seconds. (The launcher may wait for longer.)"""
    hosts, start = run.hosts, time.monotonic()
    while any(run.ranks_on(name) for name in hosts.names if name not in dead):
        time.sleep(0.05)
        assert time.monotonic() < start + TIMEOUT + ENDING, f"ranks have not ended\n{run.told()}"
    return time.monotonic() - start


def outage(trial: Trial) -> None:
    """A network that is away for a while, shorter than `--timeout`: the run goes on, to the same bits."""
    expected = trial.alone(*EXACT, *OFTEN, epochs=MANY)
    for away, back, what in ((pulled, plugged_in, "a cable is pulled"), (shut, opened, "a device is shut down")):
        for name in ("h3", "h1"):
            out = trial.out()
            with hosts_of(trial, 3) as hosts:
                run = Run(hosts, trial.train(out, *EXACT, *OFTEN, "--timeout", 60, epochs=MANY), trial.folder)
                begun(run, out)
                away(hosts, name)
                time.sleep(AWAY)
                before = steps_done(out)
                time.sleep(0.5)
                assert steps_done(out) == before, "the line was not away"
                back(hosts, name)
                run.succeeded()
                assert result(out) == expected, f"{what}: other bits"
            print(f"{name}: {what} for {AWAY:g} s: the bits of a run left alone", flush=True)


# ------------------------------------------------------------------------------------------------------ differing hosts
def differing(trial: Trial) -> None:
    """What is another on one of the hosts is told before the first step, by one line that names both."""
    import cvit.base.version as version

    other = archive(trial.folder / "other.npz", seed=1, count=60)
    changed = trial.folder / "version.py"
    changed.write_text(Path(version.__file__).read_text().replace(version.VERSION, "0.0.1"))
    isas = [isa for isa in cvit.available_isas() if isa != cvit.get_isa()]
    cases: dict[str, tuple[str, str]] = {
        "another version": (f"mount --bind {changed} {version.__file__}", "ranks differ in cvit: rank 0 (host h1)"),
        "other data": (f"mount --bind {other} {trial.data}", "ranks differ in data.digest: rank 0 (host h1)"),
        "no data": (f"mount --bind /dev/null {trial.data}", "cvit: error: rank 1 (host h2): "),
        "another instruction set": (f"export CVIT_ISA={isas[0]}", "ranks differ in isa: rank 0 (host h1)"),
    }
    special = trial.folder / "h2.sh"
    for what, (command, told) in cases.items():
        special.write_text(command + "\n")
        out = trial.out()
        with hosts_of(trial, 3) as hosts:
            run = Run(hosts, trial.train(out), trial.folder)
            status = run.ended()
        text = "".join(run.errors())
        assert status and text.count("\n") == 1 and told in text and "host h2" in text, f"{what}\n{run.told()}"
        assert not (out / "checkpoint").exists(), f"{what}: a run has begun"
        print(f"{what} on h2: {text.strip()}", flush=True)
    special.write_text(f"export CVIT_ISA={isas[0]}\n")
    with hosts_of(trial, 2) as hosts:
        out = trial.out()
        Run(hosts, trial.train(out, *EXACT, "--precision", "bf16"), trial.folder).succeeded()
    assert result(out) == trial.alone(*EXACT, "--precision", "bf16")
    special.unlink()
    print("bf16 on hosts of two instruction sets: the bits of one process", flush=True)


# --------------------------------------------------------------------------------------------------------------- cores
def sharing(trial: Trial) -> None:
    """Machines are told apart by their boot ids: hosts that are one machine in truth divide its CPUs."""
    cpus = len(os.sched_getaffinity(0))
    for different in (True, False):
        machines, each = (2, cpus) if different else (1, cpus // 2)
        with hosts_of(trial, 2, different_machines=different) as hosts:
            line = [word for word in trial.train(trial.out()) if word not in ("--threads", "1")]
            said = Run(hosts, line, trial.folder).succeeded()
        [told] = re.findall(r"^2 ranks of .*", said, re.M)
        where = f"{machines} machines" if different else "one machine"
        assert told.startswith(f"2 ranks of {each} thread") and told.endswith(where), told
        print(f"{'different' if different else 'the same'} boot ids: {told}", flush=True)


# ----------------------------------------------------------------------------------------------------------- the whole
def hosts_of(trial: Trial, count: int, **options) -> Hosts:
    return Hosts(count, trial.folder, **options)


def moved(hosts: Hosts) -> str:
    """What the hosts have sent since it was told last."""
    switch = hosts.switch
    text = f"{sum(switch.sent) / 1e6:.1f} MB in {switch.packets} packets, {switch.dropped} lost"
    switch.sent, switch.packets, switch.dropped = [0] * len(switch.sent), 0, 0
    return text


PARTS: dict[str, Callable[[Trial], None]] = {
    "bits": bits,
    "embedding": embedding,
    "lines": lines,
    "broken": broken,
    "outage": outage,
    "differing": differing,
    "sharing": sharing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="default: all")
    args = parser.parse_args()
    for name in args.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Trial(Path(folder)))


if __name__ == "__main__":
    main()
