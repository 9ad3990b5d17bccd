"""Where a pass spends its time, by `perf`, on one thread: how much of it in tiles, how fast those are, and what the
rest is.

    CVIT_SYMBOLS=1 python setup.py -q build_clib build_ext --inplace
    python bench/cycles.py --json bench/results/cycles.json

A training step is forward and backward, without the optimizer; a forward pass is a frozen model's. The peak is measured
before and after. Samples come from a timer, 5,000 a second; `perf` must be allowed to take them
(kernel.perf_event_paranoid).
"""

import argparse
import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

import cvit
from cvit.base.files import check_writable, replacing
from cvit.bench import names
from cvit.bench.cases import CASES, TASKS, Case
from cvit.bench.machine import describe, pick_cpus
from cvit.engine import team
from cvit.model.layout import Layout

# part: what the names of its kernels begin with
PARTS = {
    "tiles of rows": ("tile_A_ROWS",), "tiles of dW": ("tile_A_COLS",), "tiles of scores": ("tile_A_SCRATCH",),
    "packing": ("pack_", "write_"), "attention": ("attention", "few_"), "activation": ("activation",),
    "norms": ("norm",),
    "sums": ("column_sums", "sum_columns", "add_rows", "unscale"), "between tiles": ("gemm",),
}  # fmt: skip


def run(name, task, seconds):
    """Passes for so long; prints their FLOP/s and the peak. This is the process that `perf` watches."""
    if cpus := pick_cpus(1):
        os.sched_setaffinity(0, cpus)
    cvit.set_num_threads(1)
    case = Case.named(name)
    with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder:
        file = Path(folder, "case.npz")
        case.write_arrays(file)
        with np.load(file) as archive:
            arrays = dict(archive)
    images, labels = arrays.pop("images"), arrays.pop("labels")
    model = cvit.ViT(case.config, Layout.of(case.config).pack(arrays))
    if task == "forward":
        model.freeze()
    step = (lambda: model.forward(images)) if task == "forward" else (lambda: model.loss_and_grad(images, labels))
    step()
    peak, steps, start = team.measure_peak("float32", 1, 0.1), 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        step()
        steps += 1
    speed = steps * case.flops(task) / (time.perf_counter() - start)
    print(json.dumps({"flops_per_s": speed, "peak": max(peak, team.measure_peak("float32", 1, 0.1))}))


def profile(name, task, seconds):
    """One pass's entry: share of the peak, and the share of its samples that each part has."""
    with tempfile.TemporaryDirectory(prefix="cvit-perf-") as folder:
        samples = f"{folder}/samples"
        own = [sys.executable, __file__, "--run", name, task, str(seconds)]
        done = subprocess.run(
            ["perf", "record", "-q", "-e", "cpu-clock", "-F", "5000", "-o", samples, *own],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"perf record failed:\n{done.stderr}")
        entry = json.loads(done.stdout.splitlines()[-1])
        found = subprocess.run(
            ["perf", "script", "-F", "ip,sym", "-i", samples], capture_output=True, text=True, check=True
        )
    # Of the process's life count the passes alone: the probe of the peak and what NumPy and Python do is no kernel of
    # theirs.
    symbols = Counter(words[1] for line in found.stdout.splitlines() if len(words := line.split()) > 1)
    parts = Counter()
    for symbol, count in symbols.items():
        part = next((part for part, begins in PARTS.items() if symbol.startswith(begins)), None)
        if part is None and "cvit" in symbol and "probe" not in symbol:
            part = "between tiles"  # the passes' own functions
        if part:
            parts[part] += count
    total = sum(parts.values())
    if not parts["tiles of rows"]:
        sys.exit("no tiles among the samples' symbols: build with CVIT_SYMBOLS=1")
    entry |= {"case": name, "task": task, "parts": {part: parts[part] / total for part in PARTS}}
    entry["share"] = entry["flops_per_s"] / entry["peak"]
    entry["tiles"] = sum(share for part, share in entry["parts"].items() if part.startswith("tiles"))
    entry["share in tiles"] = entry["share"] / entry["tiles"]
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--cases",
        type=names(CASES),
        default=tuple(CASES),
        metavar="NAMES",
        help=f"which of {','.join(CASES)} (default: all)",
    )
    add("--tasks", type=names(TASKS), default=TASKS, metavar="NAMES", help="which of train,forward (default: both)")
    add("--seconds", type=float, default=6, help="of passes for each (default: 6)")
    add("--json", type=Path, help="write everything there, too")
    add("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run(args.run[0], args.run[1], float(args.run[2]))
    if not shutil.which("perf"):
        parser.error("needs the program perf")
    if args.seconds <= 0:
        parser.error("--seconds must be above 0")
    if args.json:
        try:
            check_writable(args.json)
        except OSError as error:
            parser.error(f"--json: {error.filename}: {error.strerror}")
    machine, entries = describe(1) | {"isa": cvit.get_isa()}, []
    columns = ("case", "of the peak", "in tiles", "of the peak there", *(part for part in PARTS))
    print("| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), sep="\n")
    for name in args.cases:
        for task in args.tasks:
            entry = profile(name, task, args.seconds)
            entries.append(entry)
            shares = [entry["share"], entry["tiles"], entry["share in tiles"], *entry["parts"].values()]
            print(
                "| " + " | ".join([f"{name} {task}", *(f"{100 * share:.0f} %" for share in shares)]) + " |", flush=True
            )
    if args.json:
        command = shlex.join(["python", "bench/cycles.py", *map(os.path.basename, sys.argv[1:])])
        data = {"machine": machine, "date": datetime.date.today().isoformat(), "command": command, "passes": entries}
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
