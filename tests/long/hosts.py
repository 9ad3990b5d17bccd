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
import json
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
from network import DEVICE, Hosts
from test_runs import archive

CVIT = [sys.executable, "-m", "cvit"]
TRAIN = f"{SHAPE} --batch-size 16 --ema 0.9 --mixup 0.2 --seed 1 --threads 1 --no-pictures".split()
EXACT = ["--exact-reduction"]
WIDER = "--image-size 16 --patch-size 4 --width 128 --depth 6 --heads 4 --batch-size 16 --threads 1 --no-pictures".split()
LONGEST = 120.0  # seconds of anything that is to end by itself
TIMEOUT = 4.0  # `--timeout` of runs that are broken
ENDING = 12.0  # seconds that processes and launcher have beyond it
# Each rank's output is its own; before, what is different about its host.
RANK = """
folder=$0; rank=$OMPI_COMM_WORLD_RANK
if [ -e $folder/$(hostname).sh ]; then . $folder/$(hostname).sh; fi
exec "$@" >$folder/$rank.out 2>$folder/$rank.err
"""
SETTINGS = {name: value for name, value in ENVIRONMENT.items() if "btl" not in name and "mapping" not in name}


class Run:
    """A command that mpiexec, on the first host, runs as `per_host` ranks on each host."""

    def __init__(self, hosts: Hosts, line: list, folder: Path, per_host: int = 1, count: int | None = None):
        self.hosts, self._folder = hosts, folder
        names = hosts.names[:count]
        self.size = per_host * len(names)
        for path in folder.glob("[0-9]*.*"):
            path.unlink()
        slots = ",".join(f"{name}:{per_host}" for name in names)
        command = [
            launcher(), "--prtemca", "plm_ssh_agent", hosts.agent, "--mca", "btl", "tcp,sm,self",
            "--mca", "btl_tcp_if_include", DEVICE, "--host", slots, "--map-by", f"ppr:{per_host}:node", "-n", self.size, "-x", "PYTHONPATH",
            "sh", "-c", RANK, folder, *line,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            hosts.inside(names[0], command), env={**os.environ, **SETTINGS}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def ended(self, timeout: float = LONGEST) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            self.launcher_said, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            print(self.told(), file=sys.stderr)
            raise AssertionError(f"the launcher had not ended after {timeout:g} s") from None
        return self.process.returncode

    def succeeded(self, timeout: float = LONGEST) -> str:
        """What rank 0 has printed, of a run that ended well, the others printing nothing."""
        status = self.ended(timeout)
        assert status == 0, f"status {status}\n{self.told()}"
        assert not any(self.output(rank) for rank in range(1, self.size)), self.told()
        return self.output(0)

    def output(self, rank: int, kind: str = "out") -> str:
        path = self._folder / f"{rank}.{kind}"
        return path.read_text() if path.exists() else ""

    def errors(self) -> list[str]:
        """What each rank has said of an error, but for MPI's own words on it."""
        return [
            "".join(line for line in self.output(rank, "err").splitlines(True) if line.startswith("cvit"))
            for rank in range(self.size)
        ]

    def told(self) -> str:
        ranks = [f"rank {r}:\n{self.output(r)}{self.output(r, 'err')}" for r in range(self.size)]
        return "\n".join([*ranks, f"mpiexec:\n{getattr(self, 'launcher_said', '')}"])


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


# -------------------------------------------------------------------------------------------------- slow and lossy lines
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
            out, before = trial.out(), moved(hosts)
            hosts.switch.lines(**how)
            Run(hosts, trial.train(out, *options, epochs=1), trial.folder).succeeded()
            assert result(out) == expected, f"{name}: other bits"
            print(f"3 hosts, {name}: the bits of one process; {moved(hosts)}", flush=True)


def hosts_of(trial: Trial, count: int, **options) -> Hosts:
    return Hosts(count, trial.folder, **options)


def moved(hosts: Hosts) -> str:
    """What the hosts have sent since it was told last."""
    switch = hosts.switch
    text = f"{sum(switch.sent) / 1e6:.1f} MB in {switch.packets} packets, {switch.dropped} lost"
    switch.sent, switch.packets, switch.dropped = [0] * len(switch.sent), 0, 0
    return text


PARTS: dict[str, Callable[[Trial], None]] = {"bits": bits, "embedding": embedding, "lines": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="default: all")
    args = parser.parse_args()
    for name in args.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Trial(Path(folder)))


if __name__ == "__main__":
    main()
