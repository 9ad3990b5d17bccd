"""The job script of docs/cluster.md under SLURM, on three hosts that are namespaces of this machine (network.py).

    python tests/long/slurm.py          # as root, with tests/ on the PYTHONPATH; two minutes

Needs SLURM and munge (Debian: slurm-wlm, munge, libpmix-dev). The script is taken out of the text, with another folder,
little to learn and little time: `srun --mpi=pmix` and `mpiexec` must end with the bits of one process, a job whose time
is over must have saved what was learnt, and the next one go on from there. `srun` without MPI must say so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kills import SHAPE, result
from network import Hosts
from test_runs import archive

GUIDE = Path(__file__).parents[2] / "docs" / "cluster.md"
HOSTS = 3
OPTIONS = f"{SHAPE} --batch-size 16 --seed 0 --exact-reduction --no-pictures"
CLUSTER = """
ClusterName=cvit
SlurmctldHost=h1(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
"""


class Cluster:
    """SLURM on hosts; a context."""

    def __init__(self, hosts: Hosts, folder: Path):
        self._hosts, self._folder, self.cpus = hosts, folder, len(os.sched_getaffinity(0))
        self._environment = {
            **os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(GUIDE.parents[1]),
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }  # fmt: skip
        self._count = 0

    def __enter__(self) -> Cluster:
        folder, names = self._folder, self._hosts.names
        nodes = [f"NodeName={name} NodeAddr=10.77.0.{i + 1} CPUs={self.cpus}\n" for i, name in enumerate(names)]
        partition = f"PartitionName=all Nodes={','.join(names)} Default=YES State=UP\n"
        (folder / "slurm.conf").write_text(CLUSTER.format(folder=folder).lstrip() + "".join(nodes) + partition)
        (folder / "mpi.conf").write_text("PMIxCliTmpDirBase=/dev/shm\n")  # which no two hosts share here
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        for name in ("state", *(f"spool-{name}" for name in names)):
            (folder / name).mkdir()
        files = [f"--{kind}={folder}/munge.{kind.split('-')[0]}" for kind in ("socket", "key-file", "pid-file")]
        files += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
        self._begin(names[0], ["munged", "--foreground", "--force", *files])
        time.sleep(1)
        self._begin(names[0], ["slurmctld", "-D"])
        for name in names:
            self._begin(name, ["slurmd", "-D", "-N", name])
        until = time.monotonic() + 30
        while self.run("sinfo -h -t idle -o %D").stdout.strip() != str(len(names)):
            assert time.monotonic() < until, self.run("sinfo -Nl").stdout
            time.sleep(0.2)
        return self

    def __exit__(self, *_) -> None:
        """The daemons end with their hosts."""

    def _begin(self, host: str, command: list) -> None:
        nowhere = subprocess.DEVNULL
        subprocess.Popen(self._hosts.inside(host, command), env=self._environment, stdout=nowhere, stderr=nowhere)

    def run(self, command: str) -> subprocess.CompletedProcess:
        line = self._hosts.inside(self._hosts.names[0], ["sh", "-c", command])
        return subprocess.run(line, env=self._environment, capture_output=True, text=True, timeout=300)

    def job(self, script: str, until: str | None = None) -> str:
        """What a job has printed, once it has ended; or once it has printed `until`, which then ends it."""
        self._count += 1
        path, out = self._folder / f"job-{self._count}.sh", self._folder / f"job-{self._count}.out"
        path.write_text(script)
        wait = "--wait" if until is None else "--parsable"
        number = self.run(f"sbatch {wait} --output={out} {path}").stdout.strip()
        if until is not None:
            end = time.monotonic() + 60
            while not out.exists() or until not in out.read_text():
                assert time.monotonic() < end, f"{until} was not printed\n{out.read_text()}"
                time.sleep(0.2)
            self.run(f"scancel {number}")
        return out.read_text()


def scripts(folder: Path, cpus: int) -> dict[str, str]:
    """The guide's job scripts, with {out}, {epochs} and {more} in them."""
    text = GUIDE.read_text(encoding="utf-8")
    srun = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, re.S)[1]
    mpiexec = re.search(r"^    (mpiexec -n \$SLURM_NTASKS.*)$", text, re.M)[1]
    changes = {
        r"--nodes=\d+": f"--nodes={HOSTS}", r"--cpus-per-task=\d+": f"--cpus-per-task={cpus}",
        r"--time=\S+": "--time=00:02:00", r"TERM@\d+": "TERM@90",
        r"\. ~/cvit/bin/activate": f"PATH={Path(sys.executable).parent}:$PATH",
        r"cvit train \S+ --out \S+ --epochs \d+":
            f"python -m cvit train {folder}/stripes.npz --out {{out}} --epochs {{epochs}} {OPTIONS} {{more}}",
    }  # fmt: skip
    scripts = {"srun": srun, "mpiexec": re.sub(r"^srun .*$", lambda _: mpiexec, srun, flags=re.M)}
    for name in scripts:
        scripts[name] = scripts[name].replace("{", "{{").replace("}", "}}")
        for old, new in changes.items():
            scripts[name], count = re.subn(old, lambda _, new=new: new, scripts[name])
            assert count == 1, f"{old} is {count} times in\n{scripts[name]}"
    return scripts


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = archive(folder / "stripes.npz", count=60)
        line = f"{sys.executable} -m cvit train {data} --out {folder}/alone --epochs 9 {OPTIONS}"
        subprocess.run(line.split(), check=True, stdout=subprocess.DEVNULL)
        with Hosts(HOSTS, folder) as hosts, Cluster(hosts, folder) as cluster:
            threads = f"{cluster.cpus} thread{'s' * (cluster.cpus > 1)}"
            for kind, script in scripts(folder, cluster.cpus).items():
                out = folder / kind
                said = cluster.job(script.format(out=out, epochs=9, more=""))
                assert f"{HOSTS} ranks of {threads} on " in said, said
                assert result(out) == result(folder / "alone"), f"{kind}: other bits"
                long = folder / f"{kind}-long"
                said = cluster.job(script.format(out=long, epochs=100_000, more=""))
                assert (long / "last.safetensors").exists(), said  # which is written at the end of a run alone
                goes_on = re.sub("#SBATCH --signal=.*", "", script)
                cluster.job(goes_on.format(out=long, epochs=100_000, more="--resume"), until="resumed in epoch")
                print(
                    f"{kind}: the bits of one process; its time over, what was learnt was there, and went on",
                    flush=True,
                )
            alone = scripts(folder, cluster.cpus)["srun"].replace("--mpi=pmix ", "")
            said = cluster.job(alone.format(out=folder / "apart", epochs=2, more=""))
            assert f"srun has started {HOSTS} processes" in said and "another process trains in this folder" in said, (
                said
            )
            print("srun without MPI says so")


if __name__ == "__main__":
    main()
