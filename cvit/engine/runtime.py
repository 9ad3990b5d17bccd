"""Threads and instruction sets: what the user can set, and what is respected without being asked.

Threads. The number used by the next call is
- what `set_num_threads` said, if it was called;
- else OpenMP's number (CPU affinity), but not more than the CPUs that the process's cgroup allows; `OMP_NUM_THREADS`,
  where it holds a number that OpenMP accepts (of a list, such as "4,2", the first), takes the place of both;
- and never more than `threadpoolctl.threadpool_limits` allows at the moment of the call. (OpenMP does not tell a limit
  equal to its own default from none: after `set_num_threads(8)` on 4 cores a limit of 3 counts, one of 4 does not.)
A process forked after cvit was imported uses one thread: OpenMP's threads do not survive a fork. Results are the same
bits for any number of threads. The largest number is `MAX_THREADS`, more than any machine has cores: the operating
system ends a process that asks OpenMP for more threads than it may have.

Instruction set. The best one that the CPU and the operating system support is selected at import; `CVIT_ISA` in the
environment or `set_isa` choose another. Results differ between instruction sets in the last bits; those in bfloat16
do not (docs/bfloat16.md).
"""

from __future__ import annotations

import contextlib
import math
import os
import re

from ..base.numbers import as_int

MAX_THREADS = 1024

# What libgomp accepts for how long an idle thread spins: a count with a unit, or for ever; a policy.
_SPINNING = {"GOMP_SPINCOUNT": r"\d+\s*[kmgt]?|infinite|infinity", "OMP_WAIT_POLICY": "active|passive"}


@contextlib.contextmanager
def _short_spinning():
    """Have libgomp, if it is loaded only now, let idle threads sleep early.

    Threads that spin take the core from other programs. What the environment says about it validly is respected.
    """
    before = os.environ.get("GOMP_SPINCOUNT")
    if any(re.fullmatch(form, os.environ.get(name, "").strip(), re.IGNORECASE) for name, form in _SPINNING.items()):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "20000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["GOMP_SPINCOUNT"]
        else:
            os.environ["GOMP_SPINCOUNT"] = before


with _short_spinning():
    from . import team


def read_text(path: str) -> str:
    """What stands in a small file, without white space around it; "" where it cannot be read."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def cgroup_cpus(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """CPUs that the cgroup's quota is worth (version 2, then version 1), infinity without one."""
    limit = math.inf
    for line in read_text(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "" and path.startswith("/"):  # version 2: the tightest quota on the way up counts
            while True:
                quota, _, period = read_text(f"{root}{path.rstrip('/')}/cpu.max").partition(" ")
                if quota.isdigit() and period.isdigit() and int(period) > 0:
                    limit = min(limit, int(quota) / int(period))
                if path in ("/", ""):
                    break
                path = os.path.dirname(path)
        elif "cpu" in controllers.split(","):
            for folder in (f"{root}/cpu{path}", f"{root}/cpu"):
                quota, period = read_text(f"{folder}/cpu.cfs_quota_us"), read_text(f"{folder}/cpu.cfs_period_us")
                if quota.isdigit() and period.isdigit() and int(period) > 0:
                    limit = min(limit, int(quota) / int(period))
    return limit


def available_cpus() -> int:
    """CPUs this process may use: its affinity, and its cgroup's quota rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpus()
    return affinity if quota == math.inf else max(1, min(affinity, math.ceil(quota)))


def omp_num_threads(text: str) -> int | None:
    """The number in `OMP_NUM_THREADS`, of a list the first; None where OpenMP accepts none."""
    numbers = [number.strip() for number in text.split(",")]
    if not all(re.fullmatch(r"\+?[0-9]{1,9}", number) and int(number) > 0 for number in numbers):
        return None
    return int(numbers[0])


def _default_limit() -> int:
    """The most threads that a call uses while nobody has called `set_num_threads`."""
    return min(omp_num_threads(os.environ.get("OMP_NUM_THREADS", "")) or available_cpus(), MAX_THREADS)


def get_num_threads() -> int:
    """Threads that the next call will use."""
    return max(1, team.num_threads())


def set_num_threads(count: int | None) -> None:
    """Use `count` threads from the next call on; None goes back to the default.

    More threads than cores are allowed, up to `MAX_THREADS` = 1024.
    """
    team.set_num_threads(0 if count is None else as_int("count", count, maximum=MAX_THREADS))


def available_isas() -> list[str]:
    """Instruction sets that this machine runs, from the plainest to the best: of "portable", "avx2", "avx512", "amx",
    "neon".

    "amx" has kernels of its own for bfloat16 alone; float32 and float64 are those of "avx512".
    """
    return team.isa_names()


def get_isa() -> str:
    """The instruction set in use."""
    return team.get_isa()


def set_isa(name: str) -> None:
    """Use the kernels of one of `available_isas()` from the next call on; what another thread is calling of a model or
    an op goes on with those that it began with.

    A frozen model keeps weights packed for one instruction set and packs them anew after a change.
    """
    team.set_isa(name)


team.set_cpu_limit(_default_limit())
try:
    team.set_isa(os.environ.get("CVIT_ISA") or available_isas()[-1])
except ValueError as error:
    raise ValueError(f"CVIT_ISA, from the environment: {error}") from None
