"""Builds csrc as a static library for each instruction set and element type, and every cvit/**/*.pyx as an extension.

Environment:
    CVIT_OPENMP=0     build without OpenMP: one thread
    CVIT_SYMBOLS=1    keep symbols, for perf and gdb
    CVIT_STABLE_ABI=1 build extensions, and a wheel of them, for every Python from 3.11 on, where that is possible
    CVIT_SANITIZE=…   build with -fsanitize=… (address,undefined or thread), see the Makefile

A new kernel table is one file, csrc/**/<isa>_<element>.c; a new instruction set is also a row of ISA_FLAGS and one of
MACHINE_ISAS.
Everything is compiled on as many cores as this process may use. In the clone only what has changed is compiled again:
sources, headers, this file, the compiler, or one of the variables above.
"""

import functools
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor

try:
    from setuptools import Extension, setup
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler
    from setuptools.command.build import build
    from setuptools.command.build_clib import build_clib
    from setuptools.command.build_ext import build_ext
except ImportError:
    sys.exit("cvit's build needs setuptools: pip install -e '.[test]', which brings all that `make build` takes")

# Extensions that plan and convert, and compute nothing: for size, a third of which the wheel saves.
COLD = (
    "cvit.engine.building", "cvit.engine.cutting", "cvit.engine.places", "cvit.engine.plan", "cvit.engine.tables",
    "cvit.engine.update",
    "cvit.ops._kernels",
)  # fmt: skip

# -O3 unrolls the tile loops, which -O2 leaves at half the speed. Contraction to fused multiply-adds is a default of GCC
# and not of Clang. Nothing here may reorder sums: no fast-math.
CFLAGS = ["-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# Errors only where cvit is developed: what an sdist, which alone has PKG-INFO, is compiled with may have learnt to warn
# of more. setuptools gives clang on Windows a linker's flag.
WARNINGS = ["-Wall", "-Wextra"] + ["-Werror"] * (not os.path.exists("PKG-INFO"))
WARNINGS += ["-Wno-unused-command-line-argument"] * (sys.platform == "win32")
ISA_FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
    "amx": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    "neon": [],
}
# bfloat16's results are the same bits on every machine: what is fused, the source says (docs/bfloat16.md). bf16fast is
# "bf16-fast", the order of sums of AVX512_BF16's instruction.
ELEMENT_FLAGS = {
    "f32": [],
    "f64": [],
    "bf16": ["-ffp-contract=off"],
    "bf16fast": ["-ffp-contract=off", "-mavx512bf16"],
}
X86 = ["avx2", "avx512", "amx"]
MACHINE_ISAS = {"x86_64": X86, "AMD64": X86, "aarch64": ["neon"], "arm64": ["neon"]}

# The flags for OpenMP, to compile and to link with, of which the first that the compiler takes are used. Apple's clang
# knows OpenMP, but not its flag, and brings no library: CPPFLAGS and LDFLAGS may name one, or Homebrew has it.
OPENMP_FLAGS = [(["-fopenmp"], ["-fopenmp"])]
if sys.platform == "darwin":
    _home = "/opt/homebrew/opt/libomp" if platform.machine() == "arm64" else "/usr/local/opt/libomp"
    _apple = ["-Xpreprocessor", "-fopenmp"]
    OPENMP_FLAGS += [(_apple, ["-lomp"]), ([*_apple, f"-I{_home}/include"], [f"-L{_home}/lib", "-lomp"])]
    # Python's installers for macOS compile for both processors at once: what -mavx2 says is for one alone.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

# Windows: clang in GCC's style. MSVC has no vector types, and GCC does not align the stack there for AVX's registers.
COMPILER = "mingw32" if sys.platform == "win32" else None
CYTHON_DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,  # what is kept for the process: cvit/engine/team.pyx
}

# Free-threaded Python has no stable ABI yet, and on Windows setuptools links what clang compiles to one Python's DLL.
STABLE_ABI = os.environ.get("CVIT_STABLE_ABI", "0") != "0"
STABLE_ABI &= sys.platform != "win32" and not sysconfig.get_config_var("Py_GIL_DISABLED")
MACROS = [("Py_LIMITED_API", "0x030b0000")] * STABLE_ABI
WHEEL = {"py_limited_api": "cp311"} if STABLE_ABI else {}

sanitize = os.environ.get("CVIT_SANITIZE")
symbols = bool(sanitize or "CVIT_SYMBOLS" in os.environ or sys.platform != "linux")
# Python's own flags bring -g, whose tables take a third of the compiler's time and are stripped anyway.
DEBUG = ["-g" if symbols else "-g0"]
STRIP = [] if symbols else ["-Wl,-s"]
SANITIZE = ["-O1", f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"] if sanitize else []
# GCC's -O1 alone leaves products and sums apart, but for the rows of a tile that name their instruction: a row would
# depend on its place.
SANITIZE += ["-fexpensive-optimizations"] * bool(sanitize)
# Checks as calls, and without those that triple the unrolled tiles' code: GCC would compile these for many minutes.
SANITIZE += ["--param=asan-instrumentation-with-call-threshold=0"] * ("address" in (sanitize or ""))
SANITIZE += ["-fno-sanitize=pointer-overflow,null,object-size"] * ("undefined" in (sanitize or ""))

cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def files(folder, *patterns):
    """The files under `folder` whose names match, sorted, as setuptools wants them: relative, with slashes."""
    return sorted(path.as_posix() for pattern in patterns for path in pathlib.Path(folder).rglob(pattern))


# ------------------------------------------------------------------------------------------------------- the compiler
def compile_probe(source, *flags):
    """None if the compiler makes a program of `source`, else the first error it names."""
    compiler = new_compiler(compiler=COMPILER)
    customize_compiler(compiler)
    command = [part for part in compiler.compiler_so if part != "-c"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "probe.c")
        path.write_text(source)
        try:
            run = subprocess.run(
                [*command, *flags, str(path), "-o", str(path.with_suffix(""))], capture_output=True, text=True
            )
        except FileNotFoundError:
            return f"there is no {command[0]!r}"
    lines = [line for line in run.stderr.splitlines() if "error" in line] or run.stderr.splitlines() or ["it failed"]
    return lines[0].removeprefix(f"{path}:") if run.returncode else None


def require_tools():
    """Stop with one line that says what to install, unless this machine has what a build takes."""
    compiler = new_compiler(compiler=COMPILER)
    customize_compiler(compiler)
    include = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
    if not shutil.which(compiler.compiler_so[0]):
        sys.exit(
            f"cvit is compiled from C, and there is no C compiler {compiler.compiler_so[0]!r} here: install gcc or "
            "clang (Debian, Ubuntu: apt install gcc libc6-dev; Fedora: dnf install gcc), or name yours in CC"
        )
    if sys.platform == "win32" and compile_probe("#ifndef __clang__\n#error\n#endif\nint main(void) { return 0; }\n"):
        sys.exit(
            "on Windows cvit is compiled by clang in GCC's style, which CC must name: CC=clang, of MSYS2's CLANG64 "
            "environment (pacman -S mingw-w64-clang-x86_64-clang mingw-w64-clang-x86_64-openmp)"
        )
    error = compile_probe("#include <stdio.h>\nint main(void) { return 0; }\n")
    if error:
        sys.exit(
            f"cvit's build cannot compile a C program ({error}): install the C library's headers (Debian, Ubuntu: "
            "apt install libc6-dev; Fedora: dnf install glibc-devel)"
        )
    error = compile_probe("#include <Python.h>\nint main(void) { return 0; }\n", *include)
    if error:
        sys.exit(
            f"cvit's build lacks the headers of Python {platform.python_version()} ({error}): install them "
            "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)"
        )


def knows(instruction, flags):
    """Whether the compiler has the flags, and its assembler the instruction."""
    source = f'#include <immintrin.h>\nint main(void) {{ __asm__("{instruction}"); return 0; }}\n'
    return compile_probe(source, *flags) is None


def openmp_flags():
    """The flags for OpenMP, to compile and to link with; empty (with a warning) where the compiler has none."""
    if os.environ.get("CVIT_OPENMP", "1") == "0":
        return [], []
    program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
    for compiling, linking in OPENMP_FLAGS:
        if not compile_probe(program, *compiling, *linking, *shlex.split(os.environ.get("LDFLAGS", ""))):
            return compiling, linking
    warnings.warn("this compiler has no OpenMP: cvit is built for one thread", stacklevel=2)
    return [], []


# ------------------------------------------------------------------------------------------------ csrc, and the .pyx
@functools.cache
def isas():
    """The instruction sets that are built here."""
    here = ["portable", *MACHINE_ISAS.get(platform.machine(), [])]
    # GCC has AMX's instructions from version 11 on.
    return tuple(isa for isa in here if isa != "amx" or knows("tdpbf16ps %tmm0, %tmm1, %tmm2", ISA_FLAGS["amx"]))


@functools.cache
def has_bf16_fast():
    """Whether the table "bf16-fast" is built: GCC has AVX512_BF16 from version 10 on."""
    flags = ISA_FLAGS["avx512"] + ELEMENT_FLAGS["bf16fast"]
    return "avx512" in isas() and knows("vdpbf16ps %zmm0, %zmm1, %zmm2", flags)


def kernel_libraries():
    """csrc as (name, how to build it): a library for each file, so that they are compiled side by side and apart.

    A file whose name begins with an instruction set's has its flags; others, such as dispatch.c, have none of their own
    and come first, as the linker needs them.
    """
    libraries = {"": []} | {isa: [] for isa in isas()}
    headers = [*files("csrc", "*.h", "*.inc"), "setup.py"]
    for source in files("csrc", "*.c"):
        stem = pathlib.Path(source).stem
        isa = next((isa for isa in ISA_FLAGS if stem.startswith(f"{isa}_")), "")
        element = stem.rpartition("_")[2] if isa else ""
        if isa in libraries and (element != "bf16fast" or has_bf16_fast()):
            flags = CFLAGS + WARNINGS + ISA_FLAGS.get(isa, []) + ELEMENT_FLAGS.get(element, []) + SANITIZE + DEBUG
            if not isa:
                flags += ["-DCVIT_HAS_AMX"] * ("amx" in isas()) + ["-DCVIT_HAS_BF16_FAST"] * has_bf16_fast()
            build = {"sources": [source], "cflags": flags, "include_dirs": ["csrc"], "obj_deps": {"": headers}}
            libraries[isa].append((f"cvit_{stem}", build))
    return [library for isa in libraries.values() for library in isa]


def extensions():
    """Each cvit/**/*.pyx. Only `engine.team` refers to csrc's symbols; the others reach the tables through it."""
    interface = pathlib.Path("csrc/cvit.h").read_text(encoding="utf-8")
    included = [f"csrc/{name}" for name in re.findall('#include "(.+)"', interface)]
    shared = [*files("csrc", "*.h"), *included, *files("cvit", "*.h"), "setup.py"]
    made = []
    for source in files("cvit", "*.pyx"):
        name = source.removesuffix(".pyx").replace("/", ".")
        linked = files("csrc", "*.c", "*.inc") if name == "cvit.engine.team" else []  # anew when a library was
        made.append(
            Extension(
                name,
                [source],
                include_dirs=["csrc", "cvit/engine"],
                depends=sorted({*shared, *linked}),
                extra_compile_args=["-Os" if name in COLD else "-O2", *SANITIZE, *DEBUG],
                extra_link_args=STRIP + SANITIZE,
                define_macros=MACROS,
                py_limited_api=STABLE_ABI,
            )
        )
    return made


def translate(modules):
    """Have Cython make a C file of each .pyx that has changed, under build/cython."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        sys.exit("cvit's build needs Cython: pip install -e '.[test]', which brings all that `make build` takes")
    made = cythonize([*modules], compiler_directives=CYTHON_DIRECTIVES, build_dir="build/cython")
    for module, translated in zip(modules, made):
        module.sources, module.depends = translated.sources, translated.depends


def settings_file(folder):
    """A file of what is chosen outside the sources, written when that changes: all that is compiled depends on it."""
    chosen = {name: os.environ.get(name, "") for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "CVIT_OPENMP")}
    text = repr(
        [sys.version, platform.machine(), isas(), has_bf16_fast(), CFLAGS, DEBUG, STRIP, SANITIZE, MACROS, chosen]
    )
    path = pathlib.Path(folder, "settings.txt")
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(path)


class Build(build):
    """Begins with the C files: where there is no compiler, nothing is copied first."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] not in ("build_clib", "build_ext"))


class BuildLibraries(build_clib):
    """Compiles the libraries side by side; Cython, which is busy on one core, translates the modules meanwhile."""

    def finalize_options(self):
        super().finalize_options()
        self.compiler = self.compiler or COMPILER
        base = self.get_finalized_command("build").build_base
        # Here also for `pip install -e`, whose own folder is temporary: `make build` after it has the kernels already.
        self.build_temp = self.build_clib = os.path.join(base, "kernels")

    def build_libraries(self, libraries):
        require_tools()
        settings = settings_file(self.get_finalized_command("build").build_base)
        for _, library in libraries:
            library["obj_deps"][""].append(settings)
        one = super().build_libraries
        with ThreadPoolExecutor(cores) as pool:  # the widest vectors, last in the list, take longest
            jobs = [pool.submit(one, [library]) for library in reversed(libraries)]
            translate(self.distribution.ext_modules)
            for job in jobs:
                job.result()


class BuildExtensions(build_ext):
    """Compiles the extensions side by side."""

    def finalize_options(self):
        super().finalize_options()
        self.compiler, self.parallel = self.compiler or COMPILER, self.parallel or cores

    def build_extensions(self):
        translate(self.extensions)  # does nothing after build_clib's
        compiling, linking = openmp_flags()
        settings = settings_file(self.get_finalized_command("build").build_base)
        for extension in self.extensions:
            extension.depends.append(settings)
            extension.extra_compile_args += compiling
            extension.extra_link_args += linking
        self.extensions.sort(key=lambda extension: -os.path.getsize(extension.sources[0]))  # the longest first
        super().build_extensions()


if __name__ == "__main__":
    setup(
        libraries=kernel_libraries(),
        ext_modules=extensions(),
        cmdclass={"build": Build, "build_clib": BuildLibraries, "build_ext": BuildExtensions},
        options={"bdist_wheel": WHEEL},
    )
