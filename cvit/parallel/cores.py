"""Which CPUs of a machine are whose, where several ranks run on it, and what to say about it.

A launcher may bind each rank to CPUs of its own (Open MPI does so unless told `--bind-to none`), or bind nothing: then
every rank may run on every CPU, and ranks that all used all of them would take them from each other.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Sequence

from ..engine import runtime, team


def own() -> dict:
    """Where this process runs, as JSON values: the machine, CPUs it has and those allowed here, the cgroup's quota."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    quota = runtime.cgroup_cpus()
    return {
        "machine": runtime.read_text("/proc/sys/kernel/random/boot_id") or socket.gethostname(),
        "cpus": sorted(affinity),
        "all": os.cpu_count() or 1,
        "quota": None if quota == math.inf else quota,
        "cgroup": _namespace() + runtime.read_text("/proc/self/cgroup"),
    }


def _namespace() -> str:
    """What tells two containers apart in which the same name stands for different cgroups."""
    try:
        return f"{os.stat('/proc/self/ns/cgroup').st_ino} "
    except OSError:
        return ""


def shares(ranks: Sequence[dict]) -> list[int]:
    """How many threads each rank of one machine uses, from what `own` said of each: at least 1.

    Ranks whose CPUs overlap, by a detour as well, divide these, the earlier ones taking what is left over; none gets
    more than it may run on. Ranks of one cgroup divide its quota, rounded up to whole CPUs.
    """
    groups: list[tuple[set[int], list[int]]] = []  # CPUs, and the ranks that they belong to
    for rank, place in enumerate(ranks):
        cpus, members = set(place["cpus"]), [rank]
        for other in [group for group in groups if group[0] & cpus]:
            groups.remove(other)
            cpus, members = cpus | other[0], sorted(members + other[1])
        groups.append((cpus, members))
    result = [0] * len(ranks)
    for cpus, members in groups:
        for rank, count in zip(members, _divided(len(cpus), len(members))):
            result[rank] = min(count, len(ranks[rank]["cpus"]))
    for cgroup in {place["cgroup"] for place in ranks if place["quota"] is not None}:
        members = [rank for rank, place in enumerate(ranks) if place["cgroup"] == cgroup]
        for rank, count in zip(members, _divided(math.ceil(ranks[members[0]]["quota"]), len(members))):
            result[rank] = min(count, result[rank])
    return [max(1, count) for count in result]


def _divided(count: int, parts: int) -> list[int]:
    return [count // parts + (part < count % parts) for part in range(parts)]


def use(count: int) -> None:
    """Use so many threads unless the user has said something else, now or later."""
    if runtime.omp_num_threads(os.environ.get("OMP_NUM_THREADS", "")) is None:
        team.set_cpu_limit(min(count, runtime.MAX_THREADS))


def line(ranks: Sequence[dict], threads: Sequence[int]) -> str:
    """What came of it, from what `own` said of each rank of the run and the number of threads that each uses."""
    machines: dict[str, list[int]] = {}
    for rank, place in enumerate(ranks):
        machines.setdefault(place["machine"], []).append(rank)
    as_shared, used, there = True, 0, 0
    for members in machines.values():
        here = [ranks[rank] for rank in members]
        as_shared &= shares(here) == [threads[rank] for rank in members]
        cpus = len(set().union(*(place["cpus"] for place in here)))
        quotas = {place["cgroup"]: place["quota"] for place in here}.values()
        used += cpus if None in quotas else min(cpus, sum(math.ceil(quota) for quota in quotas))
        there += max(place["all"] for place in here)
    low, high = min(threads), max(threads)
    each = _counted(high, "thread") if low == high else f"{low} to {high} threads"
    of_all = f"{used} of {there} cores" if used < there else _counted(used, "core")
    where = "one machine" if len(machines) == 1 else f"{len(machines)} machines"
    return f"{_counted(len(ranks), 'rank')} of {each}{'' if as_shared else ', as set,'} on {of_all} of {where}"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
