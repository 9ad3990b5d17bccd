"""cvit on AArch64, compiled across and emulated by qemu: kernels, whole models, and files of the suite that are named.

    python tests/aarch64/run.py                            kernels and models
    python tests/aarch64/run.py tests/test_ops.py ...      these tests as well, with AArch64's Python and NumPy

The kernels of every table run on the inputs of fuzz/native, compared with loops in double; the tables of bfloat16 must
agree to the bit. Then tests/aarch64/models.py runs there and here: in bf16 each of its arrays has the same bits on both
machines, whatever the table; in float32 and float64 it is the same but for rounding.

Needs qemu-user, gcc-aarch64-linux-gnu, pip, and apt that knows arm64 (dpkg --add-architecture arm64; apt update).
AArch64's Python, its headers, NumPy and all that is built are under build/aarch64.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import setup  # noqa: E402

CROSS = "aarch64-linux-gnu-gcc"
HOME = ROOT / "build" / "aarch64"
SYSTEM, SITE, BUILT = HOME / "system", HOME / "site", HOME / "cvit"
# Debian's Python and what it and NumPy load.
PACKAGES = [
    "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0",
    "liblzma5", "libuuid1", "libcrypt1", "libsqlite3-0", "python3.11-minimal", "libpython3.11-minimal",
    "libpython3.11-stdlib", "libpython3.11-dev",
]  # fmt: skip
LIBRARIES = ["numpy", "safetensors", "threadpoolctl", "pytest", "hypothesis"]
# Of the largest entry: what tests/test_families*.py allow between implementations in float32, and the suite in float64.
BOUNDS = {"f32": 1e-4, "f64": 1e-10}


def run(*command, **more):
    done = subprocess.run(list(map(str, command)), text=True, cwd=more.pop("cwd", ROOT), **more)
    if done.returncode:
        sys.exit(f"{command[0]} failed: {' '.join(map(str, command))}\n{done.stdout or ''}{done.stderr or ''}")
    return done.stdout


def fetch():
    """AArch64's Python, of the packages of Debian, and its libraries, of the package index; once."""
    if not (SYSTEM / "usr/bin/python3.11").exists():
        debs = HOME / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        run("apt-get", "download", *(f"{name}:arm64" for name in PACKAGES), cwd=debs, capture_output=True)
        for deb in sorted(debs.glob("*.deb")):
            run("dpkg", "-x", deb, SYSTEM)
    if not (SITE / "hypothesis").exists():
        target = ["--target", SITE, "--platform", "manylinux_2_28_aarch64", "--platform", "manylinux2014_aarch64"]
        run(
            sys.executable, "-m", "pip", "install", "-q", *target, "--python-version", "3.11", "--only-binary=:all:",
            *LIBRARIES,
        )  # fmt: skip


def build():
    """cvit's sources and extensions, compiled for AArch64 with setup.py's flags; what is up to date stays."""
    shutil.copytree(
        ROOT / "cvit", BUILT / "cvit", ignore=shutil.ignore_patterns("*.so", "__pycache__"), dirs_exist_ok=True
    )
    here, platform.machine = platform.machine, lambda: "aarch64"  # what setup.py asks
    setup.isas.cache_clear()
    libraries, modules = setup.kernel_libraries(), setup.extensions()
    platform.machine = here
    setup.translate(modules)
    newest = max(path.stat().st_mtime for path in [*ROOT.glob("csrc/**/*"), *ROOT.glob("cvit/**/*.h")])
    python = [f"-I{SYSTEM}/usr/include", f"-I{SYSTEM}/usr/include/python3.11"]

    def compiled(source, flags):
        made = HOME / "objects" / f"{Path(source).with_suffix('').as_posix().replace('/', '.')}.o"
        made.parent.mkdir(parents=True, exist_ok=True)
        if not made.exists() or made.stat().st_mtime < max(newest, Path(ROOT, source).stat().st_mtime):
            run(CROSS, "-fPIC", *flags, "-c", source, "-o", made)
        return made

    def linked(module):
        flags = ["-O2", "-DNDEBUG", "-fwrapv", "-Icsrc", "-Icvit/engine", *python, "-fopenmp"]
        (source,) = module.sources
        objects = [compiled(source, flags)]
        if module.name == "cvit.engine.team":
            objects += kernels
        made = BUILT / f"{module.name.replace('.', '/')}.cpython-311-aarch64-linux-gnu.so"
        run(CROSS, "-shared", *objects, "-o", made, "-fopenmp", "-lm")

    with ThreadPoolExecutor(setup.cores) as pool:
        kernels = list(pool.map(lambda one: compiled(one[1]["sources"][0], ["-Icsrc", *one[1]["cflags"]]), libraries))
        list(pool.map(linked, modules))


def emulated(*arguments):
    """AArch64's Python with cvit, NumPy and pytest."""
    environment = os.environ | {"PYTHONPATH": f"{BUILT}:{SITE}", "PYTHONHOME": f"{SYSTEM}/usr", "OMP_NUM_THREADS": "2"}
    run("qemu-aarch64", "-L", SYSTEM, SYSTEM / "usr/bin/python3.11", "-P", *arguments, env=environment)


def bits(array):
    """Bytes, any NaN the same."""
    return np.where(np.isnan(array), np.nan, array).tobytes()


def compare(there, here):
    """Both machines' results, by "case | precision | what | table"."""
    counts = dict.fromkeys(["bf16", *BOUNDS], 0)
    ours = {}
    for name in here.files:
        ours.setdefault(name.rpartition(" | ")[0], []).append(here[name])
    for name in there.files:
        key, precision, found = name.rpartition(" | ")[0], name.split(" | ")[1], there[name]
        for expected in ours[key]:
            if precision == "bf16":
                same = bits(found) == bits(expected)
            else:
                same = np.abs(found - expected).max() <= BOUNDS[precision] * np.abs(expected).max()
            if not same:
                sys.exit(
                    f"{name}: AArch64 gives other {'bits' if precision == 'bf16' else 'numbers'} than this machine"
                )
        counts[precision] += 1
    print(", ".join(f"{precision}: {count} arrays" for precision, count in counts.items()), "as on this machine")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", metavar="tests/test_….py", help="run these there, too")
    parser.add_argument("--runs", type=int, default=2000, help="inputs for each target of fuzz/native")
    given = parser.parse_args()
    for tool, package in ((CROSS, "gcc-aarch64-linux-gnu"), ("qemu-aarch64", "qemu-user"), ("apt-get", "apt")):
        if not shutil.which(tool):
            sys.exit(f"there is no {tool} here (Debian, Ubuntu: apt install {package})")
    run(sys.executable, "fuzz/native/run.py", "--runs", given.runs, "--cc", CROSS, "--under", "qemu-aarch64")
    fetch()
    build()
    emulated("tests/aarch64/models.py", HOME / "there.npz")
    run(sys.executable, "tests/aarch64/models.py", HOME / "here.npz")
    compare(np.load(HOME / "there.npz"), np.load(HOME / "here.npz"))
    if given.tests:
        emulated("-m", "pytest", "-q", "-p", "no:cacheprovider", *given.tests)


if __name__ == "__main__":
    main()
