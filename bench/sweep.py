"""Which tile is best: products with other tile sizes than csrc/isa/ has, in turns with those.

    python bench/sweep.py --isa avx512 --json bench/results/sweep-avx512.json

A tile is MR rows of sums, a block KC steps deep, and a turn of the tile's loop UNROLL steps (csrc/kernels/gemm.inc);
csrc/isa/ says which. Each variant is that file with other numbers, compiled with setup.py's flags and a C compiler
(`CC`, or cc). By default one number at a time is changed; `--grid` takes every combination, `--tiles` those that are
named. Products are those of the benchmark's cases on one thread, with operands and results where a pass finds them: a
block of token rows in cache; weights, dy and results beyond the second-level cache. In each round every variant takes
a short turn at a product, and the probe of the peak another; what counts is the median of the rounds' ratios. Before
anything is timed each variant's results are compared with NumPy's.

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
FAR = 8 << 20  # bytes of weights and of results that a product goes round

# What is swept for each instruction set: rows of a tile (as many as there are registers for), depth of a block,
# steps of a turn.
SWEPT = {
    "portable": ((4, 5, 6), (128, 256, 384), (1, 2, 4)),
    "neon": ((6, 8, 12), (128, 256, 384), (1, 2, 4)),
    "avx2": ((4, 5, 6), (128, 192, 256, 384, 512), (1, 2, 4)),
    "avx512": ((8, 10, 12, 14), (128, 192, 256, 384, 512), (1, 2, 4)),
}

# name: (m, n, k, whether it is a weight gradient's); rows of a block times weights, or columns of x times dy
PRODUCTS = {
    "digits q": (119, 64, 64, False),
    "cifar-s fc1": (112, 384, 192, False),
    "ti16 fc2": (112, 192, 768, False),
    "s16 fc1": (112, 1536, 384, False),
    "s16 fc2": (112, 384, 1536, False),
    "b16 fc1": (98, 3072, 768, False),
    "digits dW1": (64, 128, 432, True),
    "ti16 dW1": (56, 768, 394, True),
    "s16 dW1": (56, 1536, 394, True),
}

# The kernels are static: what times them is compiled with them.
TIMED = """
void sweep_pack(ptrdiff_t k, ptrdiff_t n, real *x, real *b)
{
    pack_panels(&(cvit_pack_panels){.k = k, .n = n, .x = {x, n}, .b = {b, k, 0}});
}
void sweep_pack_rows(ptrdiff_t m, ptrdiff_t k, real *x, real *a)
{
    pack_rows(&(cvit_pack_rows){.rows = m, .k = k, .x = {x, k}, .scale = 1, .a = {a, m}});
}
void sweep_pack_columns(ptrdiff_t k, ptrdiff_t m, real *x, real *a)
{
    pack_columns(&(cvit_pack_columns){.k = k, .m = m, .x = {x, m}, .a = a});
}
void sweep_rows(ptrdiff_t times, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, real *a, real *b, ptrdiff_t sets,
                ptrdiff_t size, real *c, ptrdiff_t places)
{
    cvit_gemm g = {.m = m, .n = n, .k = k, .a = {a, m}};
    for (ptrdiff_t i = 0; i < times; i++) {
        g.b = (cvit_panels){b + i % sets * size, k, 0};
        g.c = (cvit_matrix){c + i % places * m * n, n};
        gemm(&g);
    }
}
void sweep_columns(ptrdiff_t times, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, real *a, real *b, ptrdiff_t sets,
                   ptrdiff_t size, real *c, ptrdiff_t places)
{
    cvit_gemm_columns g = {.m = m, .n = n, .k = k, .a = a};
    for (ptrdiff_t i = 0; i < times; i++) {
        g.b = (cvit_panels){b + i % sets * size, k, 0};
        g.c = (cvit_matrix){c + i % places * m * n, n};
        gemm_columns(&g);
    }
}
"""


def build_flags():
    """CFLAGS and ISA_FLAGS as setup.py has them; importing it would start a build."""
    found = {}
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("CFLAGS", "ISA_FLAGS"):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found["CFLAGS"], found["ISA_FLAGS"]


def source_of(isa):
    """The float32 file of an instruction set, its header in place of the #include."""
    source = (CSRC / "isa" / f"{isa}_f32.c").read_text(encoding="utf-8")
    header = (CSRC / "isa" / f"{isa}.h").read_text(encoding="utf-8")
    return source.replace(f'#include "{isa}.h"\n', header).replace("../", f"{CSRC}/")


def defined(source, name):
    """The number that an isa file gives `name`; UNROLL is a pragma."""
    return int(re.search(rf"#define {name} \D*(\d+)", source).group(1))


class Variant:
    """One build of the float32 kernels, with its own packed operands for each product."""

    def __init__(self, isa, folder, tile, compiler):
        self.tile = tile
        rows, depth, unroll = tile
        source = source_of(isa)
        for name, value in (
            ("MR", rows), ("KC", depth), ("UNROLL", f'_Pragma("GCC unroll {unroll}")'),
            ("EACH_ROW\\(X\\)", " ".join(f"X({i})" for i in range(1, rows + 1))),
        ):  # fmt: skip
            source = re.sub(rf"(#define {name} ).*", lambda found, value=value: f"{found.group(1)}{value}", source)
        name = Path(folder, f"{isa}-{rows}-{depth}-{unroll}.c")
        name.write_text(source + TIMED, encoding="utf-8")
        flags, isa_flags = build_flags()
        library = str(name.with_suffix(".so"))
        command = [*compiler, *flags, *isa_flags[isa], "-fPIC", "-shared", f"-I{CSRC}", str(name), "-o", library, "-lm"]
        subprocess.run(command, check=True)
        self.library = ctypes.CDLL(library)
        self.ready = {}

    def prepare(self, product, x, w, results):
        """Pack `product`'s operands from x and w, and compare the result with NumPy's."""
        m, n, k, gradient = PRODUCTS[product]
        size = -(-n // 64) * 64 * k
        sets, places = max(2, FAR // (4 * size)), max(2, min(results.size, FAR // 4) // (m * n))
        a, b = allocate(2 * (m + 32) * (k + 640), np.float32), allocate(sets * size, np.float32)
        call = self.library.sweep_columns if gradient else self.library.sweep_rows
        if gradient:
            columns = np.ascontiguousarray(x.T)
            self.library.sweep_pack_columns(*numbers(k, m), at(columns), at(a))
        else:
            self.library.sweep_pack_rows(*numbers(m, k), at(x), at(a))
        for i in range(sets):
            self.library.sweep_pack(*numbers(k, n), at(w), at(b[i * size :]))
        operands = (*numbers(m, n, k), at(a), at(b), *numbers(sets, size), at(results), *numbers(places))
        self.ready[product] = call, operands, (a, b)
        results[:] = np.nan
        self.run(product, 1)
        found = results[: m * n].reshape(m, n)
        np.testing.assert_allclose(found, x @ w, rtol=1e-4, atol=1e-4 * k**0.5, err_msg=f"{product} with {self.tile}")

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


def tile(text):
    """MRxKCxUNROLL."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not found or not 1 <= int(found[1]) <= 16 or int(found[2]) % 16 or not int(found[2]) or not int(found[3]):
        raise argparse.ArgumentTypeError(
            f"must be MRxKCxUNROLL, MR at most 16, KC a multiple of 16, like 6x256x2, got {text!r}"
        )
    return tuple(map(int, found.groups()))


def tiles(isa, chosen, grid, named):
    """(MR, KC, UNROLL) of all variants, the one in csrc/isa/ first."""
    if named:
        found = named
    elif grid:
        found = itertools.product(*SWEPT[isa])
    else:
        found = [(*chosen[:i], value, *chosen[i + 1 :]) for i, values in enumerate(SWEPT[isa]) for value in values]
    return list(dict.fromkeys([chosen, *found]))


def measure(variants, rounds, seconds):
    """For each product and variant its share of the peak, and its speed over that of the first variant; medians."""
    rng = np.random.default_rng(0)
    results = allocate(max(FAR // 4, max(2 * m * n for m, n, _, _ in PRODUCTS.values())), np.float32)
    table = {}
    for product, (m, n, k, _) in PRODUCTS.items():
        x, w = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        for variant in variants:
            variant.prepare(product, x, w, results)
        times = max(2, round(seconds / (variants[0].run(product, 3) / 3)))
        speeds = [[] for _ in variants]
        peaks = []
        for _ in range(rounds):
            peaks.append(team.measure_peak("float32", 1, seconds))
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
            *(f"{share:5.0%} {ratio:5.3f}" for share, ratio in cells),
            sep="  ",
            flush=True,
        )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--isa", choices=SWEPT, default=cvit.get_isa(), help="instruction set (default: the one in use)"
    )
    parser.add_argument("--grid", action="store_true", help="every combination, not one number at a time")
    parser.add_argument(
        "--tiles", type=tile, nargs="+", metavar="MRxKCxUNROLL", help="these only, and the one in csrc/isa/"
    )
    parser.add_argument("--rounds", type=int, default=60, help="rounds, of which the median counts (default: 60)")
    parser.add_argument("--seconds", type=float, default=0.004, help="length of a turn (default: 0.004)")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    args = parser.parse_args()
    if args.rounds <= 0 or args.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {args.json.parent}")
    try:
        cvit.set_isa(args.isa)
    except ValueError as error:
        parser.error(str(error))
    machine = describe(1) | {"isa": args.isa}
    source = source_of(args.isa)
    wanted = tiles(args.isa, tuple(defined(source, name) for name in ("MR", "KC", "UNROLL")), args.grid, args.tiles)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory(prefix="cvit-sweep-") as folder:
        print(f"compiling {len(wanted)} variants", file=sys.stderr)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            variants = list(pool.map(lambda tile: Variant(args.isa, folder, tile, compiler), wanted))
        if cpus := pick_cpus(1):
            os.sched_setaffinity(0, cpus)
        print(f"{'':12} {'m      n      k':18}", *("{:>4} {:3} {:<2}".format(*tile) for tile in wanted), sep="  ")
        table = measure(variants, args.rounds, args.seconds)
    if args.json:
        data = {
            "machine": machine, "date": datetime.date.today().isoformat(),
            "command": shlex.join(["python", "bench/sweep.py", *map(os.path.basename, sys.argv[1:])]),
            "settings": {"rounds": args.rounds, "seconds": args.seconds}, "tiles": wanted, "products": table,
        }  # fmt: skip
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
