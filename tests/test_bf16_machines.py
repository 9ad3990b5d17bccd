"""bfloat16's results are the same bits on every machine (docs/bfloat16.md): tests/bf16/kernels.c runs every kernel of a
table on numbers of its own and writes a checksum for each.

The tables of this machine must agree with each other and with a file of what they gave elsewhere; on x86 the table of
AArch64 is compiled and emulated as well. Where the definition itself is changed on purpose:

    python tests/test_bf16_machines.py        writes tests/data/bf16_checksums.json anew
"""

import ctypes
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

import cvit
from cvit.engine import team

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "tests" / "data" / "bf16_checksums.json"
FLAGS = ["-std=gnu11", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Icsrc", "-Icvit/engine"]
CROSS = "aarch64-linux-gnu-gcc"


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return done.stdout


def parsed(text):
    """{"kernel and case": checksum}"""
    return dict(line.rsplit(" ", 1) for line in text.splitlines())


def build(folder):
    library = Path(folder, "kernels.so")
    run(
        *shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-shared", "-fPIC", "tests/bf16/kernels.c", "-o", str(library)
    )
    return ctypes.CDLL(str(library))


def of_this_machine(library, isa):
    """The lines of an instruction set's table, as it was built."""
    cvit.set_isa(isa)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.txt")
        library.checksums(ctypes.c_void_p(team.table_address(precision="bf16")), str(path).encode())
        return parsed(path.read_text(encoding="utf-8"))


def of_each_kernel(lines):
    """One digest for each kernel."""
    groups = defaultdict(hashlib.sha256)
    for case, checksum in lines.items():
        groups[case.split(" ")[0].rstrip(",")].update(f"{case} {checksum}\n".encode())
    return {kernel: digest.hexdigest()[:16] for kernel, digest in sorted(groups.items())}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    differing = [case for case in expected if found[case] != expected[case]]
    assert not differing, f"{len(differing)} of {len(expected)} cases have other bits: {differing[:20]}"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not shutil.which(shlex.split(os.environ.get("CC", "cc"))[0]):
        pytest.skip("no C compiler")
    return build(tmp_path_factory.mktemp("machines"))


@pytest.mark.parametrize("name", cvit.available_isas())
def test_this_machines_tables(library, name):
    lines = of_this_machine(library, name)
    assert_equal(lines, of_this_machine(library, "portable"))
    assert of_each_kernel(lines) == json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AArch64 is emulated on x86 alone")
def test_the_table_of_aarch64(library, tmp_path):
    for tool, package in ((CROSS, "gcc-aarch64-linux-gnu"), ("qemu-aarch64", "qemu-user")):
        if not shutil.which(tool):
            pytest.skip(f"no {tool} (Debian, Ubuntu: apt install {package})")
    program = str(tmp_path / "kernels")
    sources = "tests/bf16/kernels.c", "csrc/isa/neon_bf16.c"
    run(CROSS, *FLAGS, "-fno-math-errno", "-static", "-DTESTED=cvit_neon_bf16", *sources, "-o", program, "-lm")
    assert_equal(parsed(run("qemu-aarch64", program)), of_this_machine(library, "portable"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        built = build(made)
    digests = [of_each_kernel(of_this_machine(built, name)) for name in cvit.available_isas()]
    assert all(each == digests[0] for each in digests), "this machine's tables differ"
    RECORDED.write_text(json.dumps(digests[0], indent=1) + "\n", encoding="utf-8")
