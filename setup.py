"""Builds csrc as one static library for each instruction set, and every cvit/**/*.pyx as an extension.

Environment:
    CVIT_OPENMP=0     build without OpenMP: one thread
    CVIT_SYMBOLS=1    keep symbols, for perf and gdb
    CVIT_SANITIZE=…   build with -fsanitize=… (address,undefined or thread), see the Makefile
"""

import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import warnings

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler

# -O3 unrolls the tile loops, which -O2 leaves at half the speed. Contraction to fused multiply-adds is GCC's default and not
# Clang's. Nothing here may reorder sums: no fast-math.
CFLAGS = ["-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
ISA_FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
    "neon": [],
}
MACHINE_ISAS = {"x86_64": ["avx2", "avx512"], "AMD64": ["avx2", "avx512"], "aarch64": ["neon"], "arm64": ["neon"]}

sanitize = os.environ.get("CVIT_SANITIZE")
strip = [] if sanitize or "CVIT_SYMBOLS" in os.environ or sys.platform != "linux" else ["-Wl,-s"]
SANITIZE = ["-O1", f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g"] if sanitize else []
# GCC's -O1 alone leaves products and sums apart, but for the rows of a tile that name their instruction: a row would depend on its place.
SANITIZE += ["-fexpensive-optimizations"] * bool(sanitize)
# Checks as calls, and without those that triple the unrolled tiles' code: GCC would compile these for many minutes.
SANITIZE += ["--param=asan-instrumentation-with-call-threshold=0"] * ("address" in (sanitize or ""))
SANITIZE += ["-fno-sanitize=pointer-overflow,null,object-size"] * ("undefined" in (sanitize or ""))


def openmp_flags():
    """The flags for OpenMP, empty (with a warning) where the compiler has none."""
    if os.environ.get("CVIT_OPENMP", "1") == "0":
        return []
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "probe.c")
        source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
        command = [*compiler.compiler_so, "-fopenmp", str(source), "-o", str(source.with_suffix(""))]
        if subprocess.run([part for part in command if part != "-c"], capture_output=True).returncode == 0:
            return ["-fopenmp"]
    warnings.warn("this compiler has no OpenMP: cvit is built for one thread")
    return []


kernel_files = sorted(str(path) for path in pathlib.Path("csrc").rglob("*") if path.suffix in (".h", ".inc", ".c"))


def kernel_library(isa):
    """csrc compiled for one instruction set; the portable one brings the dispatch."""
    sources = [f"csrc/isa/{isa}_{kind}.c" for kind in ("f32", "f64")]
    if isa == "portable":
        sources.append("csrc/dispatch.c")
    headers = [path for path in kernel_files if not path.endswith(".c")]
    flags = CFLAGS + WARNINGS + ISA_FLAGS[isa] + SANITIZE
    return f"cvit_{isa}", {"sources": sources, "cflags": flags, "include_dirs": ["csrc"], "obj_deps": {"": headers}}


isas = ["portable", *MACHINE_ISAS.get(platform.machine(), [])]
openmp = openmp_flags()


def extension(name):
    """One of cvit/**/*.pyx, by its module's name. Only `engine.team` refers to csrc's symbols; the others reach the tables through it."""
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=["csrc", "cvit/engine"],
        libraries=[],
        depends=kernel_files if name == "cvit.engine.team" else [],  # linked anew when a library was
        extra_compile_args=["-O2", "-g0" if strip else "-g", *SANITIZE, *openmp],
        extra_link_args=strip + SANITIZE + openmp,
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    )


modules = sorted(".".join(path.with_suffix("").parts) for path in pathlib.Path("cvit").rglob("*.pyx"))
setup(
    libraries=[kernel_library(isa) for isa in isas],
    ext_modules=cythonize(
        [extension(name) for name in modules],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "freethreading_compatible": False,
        },
        build_dir="build/cython",
    ),
)
