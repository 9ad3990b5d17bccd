"""Which tile is best: products of kernels that were compiled with other numbers than csrc has, in turns with those.

    python bench/sweep.py --isa avx512 --json bench/results/sweep-avx512.json
    python bench/sweep.py --isa amx --precision bf16

What is swept stands in SWEPT, and in EDITS what it changes in the sources. Each variant is a copy of csrc with these
changes, of which the table's file in csrc/isa/ is compiled with setup.py's flags and a C compiler (`CC`, or cc). By
default one number at a time is changed; `--grid` takes every combination, `--variants` those that are named. Products
are those of the benchmark's cases on one thread, with operands and results where a pass finds them: a block of token
rows in cache; weights, dy and results beyond the second-level cache. In each round every variant takes a short turn at
a product, and the probe of the peak another; what counts is the median of the rounds' ratios. Before anything is timed
each variant's results are compared with NumPy's.

Whole passes of two builds of cvit: turns.py.
"""

import argparse
import ast
import concurrent.futures
import ctypes
import datetime
import itertools
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import cvit
from cvit.base.files import replacing
from cvit.bench.machine import describe, pick_cpus
from cvit.engine import team
from cvit.engine.memory import allocate

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
TIMED = ROOT / "bench" / "sweep.inc"  # what calls the kernels
FAR = 8 << 20  # bytes of weights and of results that a product goes round

# What a number, or a word, is in csrc: in which file, or one of which, where, and what stands there with another one.
ISA, ONE_ELEMENT = "isa/{isa}.h", "isa/{isa}_{element}.c"
HIDDEN_APART = """
#define hidden unused
#define hidden_backward unused_backward
#include "amx/hidden.inc"
#undef hidden
#undef hidden_backward
#include "hidden.inc"
"""
EDITS = {
    "rows": [  # of a register tile
        ((ISA,), r"#define MR .*", lambda n: f"#define MR {n}"),
        (
            (ISA,),
            r"#define EACH_ROW\(X\).*",
            lambda n: "#define EACH_ROW(X) " + " ".join(f"X({i + 1})" for i in range(n)),
        ),
    ],
    "depth": [((ISA, ONE_ELEMENT), r"#define KC .*", lambda n: f"#define KC {n}")],  # of a block
    "unroll": [((ISA,), r"#define UNROLL .*", lambda n: f'#define UNROLL _Pragma("GCC unroll {n}")')],
    # AMX, docs/amx.md: bytes of B that meet all rows before the next; B's lines also kept in the first-level cache;
    # hidden rows activated by a call of their own.
    "panels": [(("kernels/amx/gemm.inc",), r"PANELS_BYTES = [^,]*", lambda n: f"PANELS_BYTES = {n}")],
    "weights": [(("kernels/amx/piece.inc",), r"tile_load_once\(", lambda _: "tile_load(")],
    "hidden": [(("kernels/all.inc",), r'#include "amx/hidden.inc"', lambda _: HIDDEN_APART)],
}

# What each may be.
KNOWN = {
    "rows": range(1, 17), "depth": range(16, 1025, 16), "unroll": range(1, 17),
    "panels": range(100_000, 4_000_001, 100_000), "weights": ("kept",), "hidden": ("apart",),
}  # fmt: skip

# What is swept of each table: of a tile as many rows as there are registers for.
SWEPT = {
    ("portable", "f32"): {"rows": (4, 5, 6), "depth": (128, 256, 384), "unroll": (1, 2, 4)},
    ("neon", "f32"): {"rows": (6, 8, 12), "depth": (128, 256, 384), "unroll": (1, 2, 4)},
    ("avx2", "f32"): {"rows": (4, 5, 6), "depth": (128, 192, 256, 384, 512), "unroll": (1, 2, 4)},
    ("avx512", "f32"): {"rows": (8, 10, 12, 14), "depth": (128, 192, 256, 384, 512), "unroll": (1, 2, 4)},
    ("portable", "bf16"): {"rows": (4, 5, 6), "unroll": (1, 2, 4)},
    ("neon", "bf16"): {"rows": (6, 8, 12), "unroll": (1, 2, 4)},
    ("avx2", "bf16"): {"rows": (4, 5, 6), "unroll": (1, 2, 4)},
    ("avx512", "bf16"): {"rows": (8, 10, 12, 14), "unroll": (1, 2, 4)},
    ("avx512", "bf16-fast"): {"panels": (300000, 1200000)},
    ("amx", "bf16"): {"panels": (600000, 900000, 2000000), "weights": ("kept",), "hidden": ("apart",)},
}

# name: (m, n, k, kind); rows of a block times weights, or columns of x times dy; "hidden": one block of hidden columns
# and their GELU
PRODUCTS = {
    "digits q": (119, 64, 64, "rows"),
    "cifar-s fc1": (112, 384, 192, "rows"),
    "ti16 fc2": (112, 192, 768, "rows"),
    "s16 fc1": (112, 1536, 384, "rows"),
    "s16 fc2": (112, 384, 1536, "rows"),
    "b16 fc1": (98, 3072, 768, "rows"),
    "digits dW1": (64, 128, 432, "columns"),
    "ti16 dW1": (56, 768, 394, "columns"),
    "s16 dW1": (56, 1536, 394, "columns"),
    "ti16 GELU": (112, 384, 192, "hidden"),
    "s16 GELU": (112, 384, 384, "hidden"),
    "b16 GELU": (98, 384, 768, "hidden"),
    "l16 GELU": (98, 384, 1024, "hidden"),
}


def build_flags(isa, element):
    """Flags of a table as setup.py has them; importing it would start a build."""
    found = {}
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in (
            "CFLAGS", "ISA_FLAGS", "ELEMENT_FLAGS"
        ):  # fmt: skip
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return [*found["CFLAGS"], *found["ISA_FLAGS"][isa], *found["ELEMENT_FLAGS"][element]]


def element_of(precision):
    """As the files of csrc/isa/ name it."""
    return precision.replace("-", "")


def edited(isa, element, changes):
    """The files of csrc that these changes change, and their text then."""
    texts = {}
    for name, value in changes.items():
        for files, pattern, new in EDITS[name]:
            found = 0
            for path in (CSRC / file.format(isa=isa, element=element) for file in files):
                before = texts.get(path) or path.read_text(encoding="utf-8")
                texts[path], count = re.subn(pattern, lambda _, new=new, value=value: new(value), before)
                found += count
            if not found:
                sys.exit(f"sweep.py: there is no {pattern!r} in {path.relative_to(ROOT)}: EDITS is out of date")
    return {path: text for path, text in texts.items() if text != path.read_text(encoding="utf-8")}


class Variant:
    """One build of a table's kernels, with its own packed operands for each product."""

    def __init__(self, isa, precision, folder, changes, compiler):
        self.name = title(changes)
        self.half = precision != "f32"
        element = element_of(precision)
        sources = Path(folder, self.name.replace(" ", "-"))
        shutil.copytree(CSRC, sources)
        for path, text in edited(isa, element, changes).items():
            (sources / path.relative_to(CSRC)).write_text(text, encoding="utf-8")
        source = sources / "isa" / f"{isa}_{element}.c"
        with source.open("a", encoding="utf-8") as file:
            file.write(TIMED.read_text(encoding="utf-8"))
        library = str(sources / "kernels.so")
        flags = build_flags(isa, element)
        subprocess.run(
            [*compiler, *flags, "-fPIC", "-shared", f"-I{sources}", str(source), "-o", library, "-lm"], check=True
        )
        self.library = ctypes.CDLL(library)
        self.ready = {}

    def prepare(self, product, x, w, results):
        """Pack `product`'s operands from x and w, and compare the result with NumPy's."""
        (m, k), n, kind = x.shape, w.shape[1], PRODUCTS[product][3]
        size = -(-n // 64) * 64 * -(-k // 32) * 32
        bytes_of_size = size * (2 if self.half else 4)
        sets, places = max(2, FAR // bytes_of_size), max(2, min(results.size, FAR // 4) // (m * n))
        a, b = allocate(2 * (m + 32) * (k + 640), np.float32), allocate(sets * bytes_of_size, np.uint8)
        if kind == "columns":
            columns = np.ascontiguousarray(x.T)
            self.library.sweep_pack_columns(*numbers(k, m), at(columns), at(a))
        else:
            self.library.sweep_pack_rows(*numbers(m, k), at(x), at(a))
        for i in range(sets):
            self.library.sweep_pack(*numbers(k, n), at(w), at(b[i * bytes_of_size :]))
        operands = (*numbers(m, n, k), at(a), at(b), *numbers(sets, size), at(results), *numbers(places))
        call = getattr(self.library, f"sweep_{kind}")
        self.ready[product] = call, operands, (a, b)
        results[:] = np.nan
        checked = self.library.sweep_hidden_kept if kind == "hidden" else call
        checked(*numbers(1), *operands)
        found = results[: m * n].reshape(m, n)
        np.testing.assert_allclose(found, x @ w, rtol=1e-4, atol=1e-4 * k**0.5, err_msg=f"{product} with {self.name}")

    def run(self, product, times):
        """Seconds of `times` products."""
        call, operands, _ = self.ready[product]
        before = time.perf_counter()
        call(*numbers(times), *operands)
        return time.perf_counter() - before


def at(array):
    return ctypes.c_void_p(array.ctypes.data)


def numbers(*values):
    return map(ctypes.c_ssize_t, values)


def title(changes):
    return " ".join(f"{name} {value}" for name, value in changes.items()) or "as it is"


def changes(text):
    """NAME=VALUE,…"""
    found = dict(re.findall(r"(\w+)=(\w+)", text))
    if ",".join(f"{name}={value}" for name, value in found.items()) != text or not found:
        raise argparse.ArgumentTypeError(
            f"must be NAME=VALUE, or several with commas, like rows=6,unroll=2, got {text!r}"
        )
    for name, value in found.items():
        if name not in EDITS:
            raise argparse.ArgumentTypeError(f"there is no {name!r}: {', '.join(EDITS)}")
        known = KNOWN[name]
        if value not in map(str, known):
            several = f"one of {known[0]}, {known[1]}, …, {known[-1]}" if len(known) > 1 else known[0]
            raise argparse.ArgumentTypeError(f"{name} must be {several}, got {value!r}")
    return {name: int(value) if value.isdigit() else value for name, value in found.items()}


def variants_of(isa, element, swept, grid, named):
    """The changes of each variant: first none, then those that differ from what csrc has, and from one another."""
    if named:
        wanted = named
    elif grid:
        wanted = [dict(zip(swept, values)) for values in itertools.product(*swept.values())]
    else:
        wanted = [{name: value} for name, values in swept.items() for value in values]
    found = [{}]
    for one in wanted:
        if all(edited(isa, element, one) != edited(isa, element, other) for other in found):
            found.append(one)
    return found


def rounded(x):
    """x to nearest bfloat16, so that its products are those of its rounded operands."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def measure(variants, precision, products, rounds, seconds):
    """For each product and variant its share of the peak, and its speed over that of the first variant; medians."""
    rng = np.random.default_rng(0)
    results = allocate(max(FAR // 4, max(2 * m * n for m, n, _, _ in products.values())), np.float32)
    table = {}
    for product, (m, n, k, _) in products.items():
        x, w = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        if precision != "f32":
            x, w = rounded(x), rounded(w)
        for variant in variants:
            variant.prepare(product, x, w, results)
        times = max(2, round(seconds / (variants[0].run(product, 3) / 3)))
        speeds = [[] for _ in variants]
        peaks = []
        for _ in range(rounds):
            peaks.append(team.measure_peak(threads=1, seconds=seconds, precision=precision))
            for own, variant in zip(speeds, variants):
                variant.run(product, 1)
                own.append(2 * m * n * k * times / variant.run(product, times))
        for variant in variants:
            del variant.ready[product]
        peak = max(peaks)
        table[product] = {
            "peak": peak, "peak_median": statistics.median(peaks),
            "share": [statistics.median(own) / peak for own in speeds],
            "best": [max(own) / peak for own in speeds],
            "ratio": [statistics.median(mine / first for mine, first in zip(own, speeds[0])) for own in speeds],
        }  # fmt: skip
        cells = zip(table[product]["share"], table[product]["ratio"])
        print(
            f"{product:12} {m:4} x {n:4} x {k:4}",
            *(f"{share:6.0%} {ratio:5.3f}" for share, ratio in cells),
            sep="  ",
            flush=True,
        )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--isa",
        choices=dict.fromkeys(isa for isa, _ in SWEPT),
        default=cvit.get_isa(),
        help="instruction set (default: the one in use)",
    )
    parser.add_argument(
        "--precision", choices=dict.fromkeys(precision for _, precision in SWEPT), default="f32", help="(default: f32)"
    )
    parser.add_argument("--grid", action="store_true", help="every combination, not one number at a time")
    parser.add_argument(
        "--variants", type=changes, nargs="+", metavar="NAME=VALUE,…", help="these only, and what csrc has"
    )
    parser.add_argument("--rounds", type=int, default=60, help="rounds, of which the median counts (default: 60)")
    parser.add_argument("--seconds", type=float, default=0.004, help="length of a turn (default: 0.004)")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    args = parser.parse_args()
    if args.rounds <= 0 or args.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {args.json.parent}")
    asked = f"{args.isa} in {args.precision}"
    if (args.isa, args.precision) not in SWEPT:
        known = ", ".join(f"{isa} in {precision}" for isa, precision in SWEPT)
        parser.error(f"nothing is swept of {asked}; there are {known}")
    swept = SWEPT[args.isa, args.precision]
    for name in {name for one in args.variants or () for name in one}:
        if name not in swept:
            parser.error(f"--variants: {asked} has {', '.join(swept)}, not {name}")
    try:
        cvit.set_isa(args.isa)
        team.measure_peak(threads=1, seconds=1e-4, precision=args.precision)
    except ValueError as error:
        parser.error(str(error))
    machine = describe(1) | {"isa": args.isa, "precision": args.precision}
    wanted = variants_of(args.isa, element_of(args.precision), swept, args.grid, args.variants)
    products = {name: product for name, product in PRODUCTS.items() if product[3] != "hidden" or "hidden" in swept}
    if args.isa == "amx" or args.precision == "bf16-fast":  # blocks of rows are multiples of 32 there
        products = {name: (-(-m // 32) * 32, n, k, kind) for name, (m, n, k, kind) in products.items()}
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory(prefix="cvit-sweep-") as folder:
        print(f"compiling {len(wanted)} variants", file=sys.stderr)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            variants = list(pool.map(lambda one: Variant(args.isa, args.precision, folder, one, compiler), wanted))
        if cpus := pick_cpus(1):
            os.sched_setaffinity(0, cpus)
        print(f"{'':12} {'m      n      k':18}", *(f"{variant.name:>12}" for variant in variants), sep="  ")
        table = measure(variants, args.precision, products, args.rounds, args.seconds)
    if args.json:
        data = {
            "machine": machine, "date": datetime.date.today().isoformat(),
            "command": shlex.join(["python", "bench/sweep.py", *map(os.path.basename, sys.argv[1:])]),
            "settings": {"rounds": args.rounds, "seconds": args.seconds}, "variants": wanted, "products": table,
        }  # fmt: skip
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
