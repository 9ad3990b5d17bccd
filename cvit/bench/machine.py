"""The machine a benchmark ran on, and which of its CPUs to use."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np

_CPU = Path("/sys/devices/system/cpu")


def cpu_name() -> str:
    """The processor's name as its maker writes it, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        answer = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return answer.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def usable_cpus() -> list[int]:
    """The CPUs this process may run on, one of every core first, then their hyper-threads."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))

    def rank(cpu):
        try:
            siblings = (_CPU / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            return 0, cpu
        return _parse_list(siblings).index(cpu), cpu

    return sorted(os.sched_getaffinity(0), key=rank)


def pick_cpus(threads: int) -> list[int]:
    """`threads` CPUs to confine a process to; none where that is all of them, or where the system cannot do it."""
    cpus = usable_cpus()
    return cpus[:threads] if threads < len(cpus) and hasattr(os, "sched_setaffinity") else []


def _parse_list(text: str) -> list[int]:
    """Linux's CPU lists: "0-2,8" is [0, 1, 2, 8]."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def caches() -> dict[str, int]:
    """Bytes of the first core's data caches by level, {"L1": …, "L2": …}; empty where the system does not tell."""
    sizes = {}
    for cache in sorted(_CPU.glob("cpu0/cache/index*")):
        try:
            kind, level, size = ((cache / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size[-1:] in "KM":
            sizes[f"L{level}"] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
    return sizes


def describe(threads: int) -> dict:
    """What is known of this machine without measuring: JSON-ready, without the names of host and user."""
    import cvit

    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        load = None
    return {
        "cpu": cpu_name(),
        "arch": platform.machine(),
        "cpus": len(usable_cpus()),
        "threads": threads,
        "bfloat16": bfloat16_instructions(),
        "caches": caches(),
        "memory": _memory(),
        "system": platform.system(),
        "load": load,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cvit": cvit.__version__,
    }


def bfloat16_instructions(cpuinfo: str = "/proc/cpuinfo") -> list[str] | None:
    """What this CPU has for bfloat16 and the system lets programs use, of "amx_bf16", "avx512_bf16" (x86), "bf16",
    "svebf16" and "smebf16" (ARM); None where the system does not tell."""
    known = ("amx_bf16", "avx512_bf16", "bf16", "svebf16", "smebf16")
    try:
        for line in Path(cpuinfo).read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return [flag for flag in known if flag in flags.split()]
    except OSError:
        pass
    if platform.system() == "Darwin":
        answer = subprocess.run(["sysctl", "-n", "hw.optional.arm.FEAT_BF16"], capture_output=True, text=True)
        return ["bf16"] if answer.stdout.strip() == "1" else []
    return None


def _memory() -> int | None:
    """Bytes of main memory, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
