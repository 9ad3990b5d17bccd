"""A command as one of several processes, which an MPI launcher has started. Rank 0 alone speaks for all of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

# Where launchers write which of its processes this one is: Open MPI; MPICH, Intel MPI and Slurm's pmi2; MVAPICH; PMIx.
PLACES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")
# Seconds that rank 0 has for what it says, before the end of another rank makes the launcher end all of them.
GRACE = 5.0


def first() -> bool:
    """Whether no launcher has started this process, or as the first of its own."""
    return all(os.environ.get(name, "").strip() in ("", "0") for name in PLACES)


@contextlib.contextmanager
def silent_unless_first() -> Iterator[None]:
    """Standard output of other ranks than 0 goes nowhere."""
    with contextlib.ExitStack() as stack:
        if not first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield


@contextlib.contextmanager
def told_by_first() -> Iterator[None]:
    """What all processes find out alike before they have met, as a wrong option: rank 0 says it, others only end."""
    with contextlib.ExitStack() as stack:
        if not first():
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield
        except (Exception, SystemExit) as error:
            told = isinstance(error, SystemExit) and not error.code  # --help and --version
            if not told and not first():
                time.sleep(GRACE)
            raise


def refuse_several(command: str) -> None:
    """Raise `ValueError` if this is one of several processes, each of which would do the whole work."""
    from ..parallel.ranks import launched

    if launched():
        raise ValueError(f"cvit {command} runs in one process: start it without mpiexec or srun")


def of_strangers() -> str:
    """What the first of the processes says that srun has started without MPI. It may be what is wanted, so no error."""
    from ..parallel.ranks import strangers

    count = strangers()
    if count == 1 or os.environ.get("SLURM_PROCID") != "0":
        return ""
    return f"srun has started {count} processes, each a run of its own: with srun --mpi=pmix they are one"
