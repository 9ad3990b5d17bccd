"""Who takes part in a run: this process alone, or the ranks of an MPI world.

    alone.py       what a run knows of its ranks, and the case of one
    processes.py   the case of several: meeting, waiting, and ending when one has failed
    messages.py    what they send each other
    cores.py       who uses which CPUs

mpi4py is imported here alone, and only where a launcher has started this process as one of several.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ..base.errors import check
from ..base.numbers import finite, shown
from .alone import ALONE, RankError, Ranks
from .processes import Processes

__all__ = ["ALONE", "RankError", "Ranks", "launched", "of", "strangers", "world"]

# Where launchers write how many processes they have started: Open MPI; MPICH, Intel MPI and Slurm's pmi2; MVAPICH.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def launched() -> bool:
    """Whether an MPI launcher has started this process as one of several."""
    return _launched_size() > 1


def _launched_size() -> int:
    found = [_number(name) for name in SIZES if os.environ.get(name, "").strip()]
    if not found and "PMIX_RANK" in os.environ:  # Slurm's pmix: the number of tasks is in the job's own script as well
        found = [_number("SLURM_NTASKS")]
    return max(found, default=1)


def strangers() -> int:
    """How many processes srun has started without MPI, so that none knows of the others: 1 where it is otherwise."""
    joined = "PMIX_RANK" in os.environ or any(os.environ.get(name, "").strip() for name in SIZES)
    return 1 if joined else _number("SLURM_STEP_NUM_TASKS")


def _number(name: str) -> int:
    """A variable of the environment, 1 where it is absent or no number."""
    text = os.environ.get(name, "").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else 1


def world(timeout: float = 600.0) -> Ranks:
    """The ranks that an MPI launcher has started, all of which call this; `ALONE` where there is none or one.

    Raises
    ------
    ModuleNotFoundError
        Without mpi4py.
    ImportError
        Where mpi4py finds no MPI library.
    RankError
        Where mpi4py's MPI library is not that of the launcher, so that each process takes itself for the only one.
    """
    if not launched():
        return ALONE
    try:
        from mpi4py import MPI
    except ModuleNotFoundError:
        raise ModuleNotFoundError('a run of several processes needs mpi4py: pip install "cvit-cpu[mpi]"') from None
    except RuntimeError as error:
        raise ImportError(f"mpi4py cannot be used: {error}") from None
    if MPI.COMM_WORLD.Get_size() == 1:
        library = MPI.Get_library_version().split(",")[0].strip()
        raise RankError(
            f"the launcher has started {_launched_size()} processes, but mpi4py's MPI ({library}) knows of one: "
            "mpiexec must be that of the MPI which mpi4py uses"
        )
    return of(MPI.COMM_WORLD, timeout=timeout)


def of(comm: Any, *, timeout: float = 600.0) -> Ranks:
    """The ranks of an mpi4py communicator, over a copy of it: all its ranks call this. `ALONE` for None or one rank.

    After `timeout` seconds without a word from a rank that is waited for, the run ends with a `RankError`.
    """
    check(finite("timeout", timeout) > 0, f"timeout must be greater than 0, got {shown(timeout)}")
    if comm is None:
        return ALONE
    MPI = sys.modules.get("mpi4py.MPI")  # where it is not, there is no communicator either
    if MPI is None or not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise TypeError(f"comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, got {shown(comm)}")
    if comm.Get_size() == 1:
        return ALONE
    check(
        MPI.Query_thread() >= MPI.THREAD_SERIALIZED,
        "comm must allow MPI calls from several threads, one at a time: set mpi4py.rc.thread_level to 'serialized' or "
        "'multiple' before MPI is imported",
    )
    return Processes(MPI, comm, float(timeout))
