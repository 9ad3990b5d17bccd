"""What the build takes in and gives out: lists of files, stubs, and one clear sentence where something is missing."""

import ast
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MADE = {"build", "dist", "__pycache__"}  # folders that are no part of the sources
_made = shutil.ignore_patterns(*MADE, "*.so", "*.egg-info", ".*")
_measured = shutil.ignore_patterns("results", "plots")  # what bench/ keeps of runs


def not_sources(folder, names):
    """The names in a folder that are no sources, for `shutil.copytree`."""
    return _made(folder, names) | (_measured(folder, names) if folder == str(ROOT / "bench") else set())


def packaging(*command, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the sources as they are cloned: nothing compiled."""
    copy = tmp_path_factory.mktemp("clone") / "cvit"
    return Path(shutil.copytree(ROOT, copy, ignore=not_sources))


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """The names of the files that an sdist holds."""
    folder = tmp_path_factory.mktemp("metadata")
    run = packaging("-q", "egg_info", "--egg-base", str(folder))
    assert run.returncode == 0, run.stderr
    assert "no files found" not in run.stderr, run.stderr
    (list_,) = folder.glob("*/SOURCES.txt")
    return set(list_.read_text().splitlines())


def test_the_sdist_holds_all_that_is_compiled_tested_and_read(listed):
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in MADE]
    tree = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        if folder.suffix != ".egg-info"
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc")
    }
    assert len(tree) > 100
    assert tree <= listed, sorted(tree - listed)
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTING.md", "Makefile"} <= listed
    assert not [name for name in listed if name.endswith((".so", ".pyc")) or name.split("/")[0] in MADE]


def test_the_wheel_holds_stubs_and_no_sources(sources):
    run = packaging("-q", "build_py", "--build-lib", "out", cwd=sources)
    assert run.returncode == 0, run.stderr
    built = {path.relative_to(sources / "out").as_posix() for path in (sources / "out").rglob("*") if path.is_file()}
    shutil.rmtree(sources / "out")
    ours = {
        path.relative_to(ROOT).as_posix() for kind in ("py", "pyi", "j2") for path in (ROOT / "cvit").rglob(f"*.{kind}")
    }
    assert built == ours | {"cvit/py.typed", "cvit_command.py"}


def functions(body, prefix=""):
    """The functions of a stub and of its classes, each with the names of its parameters."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield prefix + node.name, [a.arg for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]


COMPILED = sorted((ROOT / "cvit").rglob("*.pyx"))


SPECIAL = ("__init__", "__call__")  # methods of which a compiled class has no signature to read


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_stub_says_what_its_module_has(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    module = importlib.import_module(name)
    own = {key for key, value in vars(module).items() if getattr(value, "__module__", "") == name and key[0] != "_"}
    stub = path.with_suffix(".pyi")
    if not stub.exists():
        assert not own, f"{name} defines what Python sees: write {stub.name}"
        return
    body = ast.parse(stub.read_text(encoding="utf-8")).body
    assert own == {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for written, parameters in functions(body):
        found = module
        for part in written.split("."):
            found = getattr(found, part)
        if callable(found) and not written.endswith(SPECIAL):
            assert list(inspect.signature(found).parameters) == parameters, written
    for node in body:
        if isinstance(node, ast.ClassDef):
            public = {key for key in vars(getattr(module, node.name)) if key[0] != "_"}
            methods = {member.name for member in node.body if isinstance(member, ast.FunctionDef)} - {*SPECIAL}
            assert public == methods | {ast.unparse(m.target) for m in node.body if isinstance(m, ast.AnnAssign)}


def test_cython_has_nothing_to_warn_of(tmp_path):
    """It warns of what is an error here: a struct that is constructed with some of its members has the others unset."""
    program = (
        "import setup\nfrom Cython.Build import cythonize\nfrom Cython.Compiler import Options\n"
        "Options.warning_errors = True\ncythonize(setup.extensions(), compiler_directives=setup.CYTHON_DIRECTIVES, "
        f"build_dir={str(tmp_path)!r}, quiet=True, force=True)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_kernel_table_is_compiled_with_its_instruction_sets_flags():
    program = (
        "import json, setup; print(json.dumps([[n, b['sources'], b['cflags']] for n, b in setup.kernel_libraries()]))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    libraries = {Path(source).stem: flags for _, (source,), flags in ast.literal_eval(run.stdout)}
    assert "dispatch" in libraries and "portable_f32" in libraries and "portable_f64" in libraries
    if "avx512_f32" in libraries:
        assert "-mavx512f" in libraries["avx512_f32"] and "-mavx512f" not in libraries["avx2_f32"]
        assert not any(flag.startswith("-mavx") for name in ("dispatch", "portable_f32") for flag in libraries[name])
        assert "-mavx512bf16" not in libraries["avx512_bf16"]
    assert ("avx512_bf16fast" in libraries) == ("-DCVIT_HAS_BF16_FAST" in libraries["dispatch"])
    assert "-mavx512bf16" in libraries.get("avx512_bf16fast", ["-mavx512bf16"])


def test_a_build_with_other_settings_is_a_new_build(sources, tmp_path):
    """Objects of another compiler or without OpenMP are not what was asked for; of the same settings they are kept."""
    (tmp_path / "build").mkdir()
    told = []
    changes = {"CVIT_OPENMP": "0"}, {"CC": "clang"}, {"CVIT_SYMBOLS": "1"}, {"CVIT_STABLE_ABI": "1"}
    for variables in ({}, {}, *changes):
        environment = {name: value for name, value in os.environ.items() if name != "CC" and name[:5] != "CVIT_"}
        program = f"import setup; print(setup.settings_file({str(tmp_path / 'build')!r}))"
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=sources, env=environment | variables, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        told.append(Path(run.stdout.strip()).stat().st_mtime_ns)
    assert told[0] == told[1] < told[2] < told[3] < told[4] < told[5]


# ------------------------------------------------------------------------------------------------ what a user is told
@pytest.mark.parametrize(
    "system, without_lock, wanted, given",
    [
        ("linux", 0, "1", True),
        ("darwin", None, "1", True),
        ("linux", 1, "1", False),
        ("win32", 0, "1", False),
        ("linux", 0, "0", False),
    ],
)
def test_the_stable_abi_is_used_where_it_is_wanted_and_there_is_one(sources, system, without_lock, wanted, given):
    """Of the oldest Python that cvit runs on; free-threaded Python has none, and Windows' are for one."""
    program = f"""
import json, sys, sysconfig
import setuptools.command.build_clib, setuptools.command.build_ext, setuptools._distutils.ccompiler
asked = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: {without_lock} if name == "Py_GIL_DISABLED" else asked(name)
sys.platform, first = {system!r}, sys.platform
import setup
sys.platform = first
print(json.dumps([[module.define_macros, module.py_limited_api] for module in setup.extensions()]))
print(json.dumps(setup.WHEEL))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=sources,
        env=os.environ | {"CVIT_STABLE_ABI": wanted},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    modules, wheel = map(json.loads, run.stdout.splitlines())
    assert len(modules) == len(COMPILED)
    for macros, limited in modules:
        assert limited is given and macros == [["Py_LIMITED_API", "0x030b0000"]] * given
    assert wheel == ({"py_limited_api": "cp311"} if given else {})
    with open(sources / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["requires-python"] == ">=3.11"


def test_a_build_without_a_compiler_says_what_to_install_in_one_line(sources):
    run = packaging("-q", "build", cwd=sources, CC="no-such-compiler")
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "'no-such-compiler'" in line and "gcc or clang" in line and "apt install gcc" in line and "dnf" in line


@pytest.mark.parametrize("header, package", [("Python.h", "python3-dev"), ("stdio.h", "libc6-dev")])
def test_a_build_without_headers_says_what_to_install_in_one_line(sources, tmp_path, header, package):
    compiler = tmp_path / "compiler"
    message = f"x.c:1:10: fatal error: {header}: No such file or directory"
    compiler.write_text(f'#!/bin/sh\nfor file; do case $file in *.c) grep -q "<{header}>" "$file" && ')
    compiler.write_text(compiler.read_text() + f'{{ echo "{message}" >&2; exit 1; }}; esac; done; exit 0\n')
    compiler.chmod(0o755)
    run = packaging("-q", "build", cwd=sources, CC=str(compiler))
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert message.split(": ", 1)[1] in line and f"apt install {package}" in line


@pytest.mark.parametrize("module", ["Cython", "setuptools"])
def test_a_build_without_its_tools_says_what_to_install_in_one_line(sources, tmp_path, module):
    (tmp_path / f"{module}.py").write_text(f"raise ImportError('no {module}')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    run = packaging("-q", "build_ext", cwd=sources, PYTHONPATH=path)
    assert run.returncode == 1
    assert f"cvit's build needs {module}: pip install -e '.[test]'" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_sources_that_are_not_compiled_say_so_in_one_sentence(sources):
    program = (
        "try:\n    import cvit\nexcept ImportError as error:\n"
        "    print(error, error.__cause__, error.__suppress_context__)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=sources, capture_output=True, text=True, check=True)
    assert run.stdout == (
        f"{sources / 'cvit'} holds cvit's sources without its compiled modules for this Python: "
        "start Python elsewhere, or install with pip install -e . None True\n"
    )


def test_a_compiled_module_that_fails_is_not_explained_away(sources, tmp_path):
    """A library that is missing at import, say: the original error tells which."""
    copy = Path(shutil.copytree(sources, tmp_path / "clone"))
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (copy / "cvit/engine" / f"team{suffix}").write_bytes(b"not a library")
    run = subprocess.run([sys.executable, "-c", "import cvit"], cwd=copy, capture_output=True, text=True)
    assert "holds cvit's sources" not in run.stderr and f"team{suffix}" in run.stderr


def test_the_test_extra_brings_what_the_build_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["build-system"]["requires"]) <= set(project["project"]["optional-dependencies"]["test"])
