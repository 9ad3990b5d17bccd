"""Builds the targets of this folder and runs them.

    python fuzz/native/run.py --seconds 60                  each under libFuzzer, AddressSanitizer and UBSan (clang)
    python fuzz/native/run.py --seconds 60 gemm norm        these alone
    python fuzz/native/run.py --runs 2000 --cc gcc          without a fuzzer: so many inputs of a target's own
    python fuzz/native/run.py --runs 2000 --cc aarch64-linux-gnu-gcc --under qemu-aarch64      the same on AArch64

csrc is compiled with setup.py's flags for the compiler's machine, AMX's table with its tiles in plain C. All that is
built, and the inputs that a fuzzer keeps, are under build/fuzz.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
import setup  # noqa: E402

SANITIZERS = ["-gline-tables-only", "-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all"]
# As setup.py's sanitizers: the unrolled tiles would take many minutes.
OF_KERNELS = [
    "-fno-sanitize=pointer-overflow,null,object-size",
    "-mllvm",
    "-asan-instrumentation-with-call-threshold=0",
]
WARNINGS = [*setup.WARNINGS, "-Wno-unused-function"]
TARGETS = sorted(path.stem for path in HERE.glob("*.c"))


def run(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **more)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def table_flags(path, isas):
    """The flags of a file of csrc beside those of all, or None if the machine has no such table."""
    isa, _, element = path.stem.rpartition("_")
    if not isa:
        return ["-DCVIT_HAS_AMX", "-DCVIT_HAS_BF16_FAST"] * ("avx512" in isas)
    if isa not in isas:
        return None
    flags = setup.ISA_FLAGS["avx512"] + ["-DCVIT_AMX_EMULATED"] if isa == "amx" else setup.ISA_FLAGS[isa]
    return flags + setup.ELEMENT_FLAGS[element]


def build(folder, compiler, targets, optimized, flags, kernels_flags, link):
    """The targets as programs in `folder`, compiled on all cores; what is newer than every source stays."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = run([*compiler, "-dumpmachine"]).split("-")[0]
    isas = ["portable", *setup.MACHINE_ISAS.get(machine, [])]
    common = [f for f in setup.CFLAGS if f != "-O3"] + [optimized, *WARNINGS, *flags, "-Icsrc", "-Icvit/engine"]
    headers = [*Path(ROOT, "csrc").rglob("*.h"), *Path(ROOT, "csrc").rglob("*.inc"), HERE / "fuzz.h", HERE / "run.py"]
    newest = max(path.stat().st_mtime for path in headers)
    jobs, kernels = [], []
    for path in sorted(Path(ROOT, "csrc").rglob("*.c")):
        own = table_flags(path, isas)
        if own is not None:
            kernels.append(folder / f"{path.stem}.o")
            jobs.append((path, kernels[-1], own + kernels_flags))
    for name in targets:
        emulated = ["-DCVIT_AMX_EMULATED"] * ("amx" in isas)
        jobs.append((HERE / f"{name}.c", folder / f"{name}.o", ["-ffp-contract=off", *emulated]))

    def compile_one(job):
        source, made, own = job
        if not made.exists() or made.stat().st_mtime < max(newest, source.stat().st_mtime):
            run([*compiler, *common, *own, "-c", str(source), "-o", str(made)])

    with ThreadPoolExecutor(setup.cores) as pool:
        list(pool.map(compile_one, jobs))
    for name in targets:
        run([*compiler, *flags, *link, str(folder / f"{name}.o"), *map(str, kernels), "-o", str(folder / name), "-lm"])


def fuzz(folder, name, seconds):
    """Run one target under libFuzzer; returns how many inputs it tried."""
    corpus = folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    options = [
        "-max_len=64",
        "-len_control=0",
        f"-max_total_time={seconds}",
        "-print_final_stats=1",
        "-detect_leaks=0",
        "-timeout=60",
    ]
    environment = os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=16", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [folder / name, *options, f"-artifact_prefix={folder}/{name}-", corpus],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-6000:]}")
    return int(re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[], metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target, under libFuzzer")
    parser.add_argument("--runs", type=int, help="this many inputs for each target, without a fuzzer or sanitizers")
    parser.add_argument("--seed", type=int, default=0, help="of these inputs")
    parser.add_argument("--cc", default=os.environ.get("CLANG", "clang"))
    parser.add_argument("--under", default="", help="what runs the programs, such as qemu-aarch64")
    given = parser.parse_args()
    targets, compiler = given.targets or TARGETS, shlex.split(given.cc)
    total = 0
    if given.runs:
        folder = ROOT / "build" / "fuzz" / Path(compiler[-1]).name
        static = ["-static"] * bool(given.under)
        build(folder, compiler, targets, "-O3", ["-DRUNS=1000"], [], static)
    else:
        folder = ROOT / "build" / "fuzz" / "native"
        build(folder, compiler, targets, "-O1", SANITIZERS, OF_KERNELS, ["-fsanitize=fuzzer"])
    for name in targets:
        start = time.monotonic()
        if given.runs:
            run([*shlex.split(given.under), folder / name, str(given.seed), str(given.runs)])
            count = given.runs
        else:
            count = fuzz(folder, name, given.seconds)
        total += count
        print(f"{name}: {count:,} inputs in {time.monotonic() - start:.0f} s", flush=True)
    print(f"{total:,} inputs, each on every table of the machine")


if __name__ == "__main__":
    main()
