"""bfloat16's results are the same bits on every machine (docs/bfloat16.md): tests/bf16/kernels.c runs every kernel of a
table on numbers of its own and writes a checksum for each.

The tables of this machine must agree with each other and with a file of what they gave elsewhere; on x86 the table of
AArch64 is compiled and emulated as well. Where the definition itself is changed on purpose:

    python tests/test_bf16_machines.py        writes tests/data/bf16_checksums.json anew
"""

import ctypes
import hashlib
import json
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from checks import C_FLAGS, ROOT, compiled

import cvit
from cvit.engine import team

KERNELS = "tests/bf16/kernels.c"
RECORDED = ROOT / "tests" / "data" / "bf16_checksums.json"
CROSS = "aarch64-linux-gnu-gcc"


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return done.stdout


def parsed(text):
    """{"kernel and case": checksum}"""
    return dict(line.rsplit(" ", 1) for line in text.splitlines())


def lines_of(library, address):
    """The lines of a table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.txt")
        library.checksums(ctypes.c_void_p(address), str(path).encode())
        return parsed(path.read_text(encoding="utf-8"))


def of_this_machine(library, isa):
    """The lines of an instruction set's table, as it was built."""
    cvit.set_isa(isa)
    return lines_of(library, team.table_address(precision="bf16"))


def recorded():
    return json.loads(RECORDED.read_text(encoding="utf-8"))


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
    return compiled(tmp_path_factory.mktemp("machines"), KERNELS)


def test_this_machines_tables(library, bf16_isa):
    lines = of_this_machine(library, bf16_isa)
    assert_equal(lines, of_this_machine(library, "portable"))
    assert of_each_kernel(lines) == recorded()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AArch64 is emulated on x86 alone")
def test_the_table_of_aarch64(library, tmp_path):
    for tool, package in ((CROSS, "gcc-aarch64-linux-gnu"), ("qemu-aarch64", "qemu-user")):
        if not shutil.which(tool):
            pytest.skip(f"no {tool} (Debian, Ubuntu: apt install {package})")
    program = str(tmp_path / "kernels")
    sources = KERNELS, "csrc/isa/neon_bf16.c"
    run(CROSS, *C_FLAGS, "-fno-math-errno", "-static", "-DTESTED=cvit_neon_bf16", *sources, "-o", program, "-lm")
    assert_equal(parsed(run("qemu-aarch64", program)), of_this_machine(library, "portable"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        built = compiled(made, KERNELS)
    digests = [of_each_kernel(of_this_machine(built, name)) for name in cvit.available_isas()]
    assert all(each == digests[0] for each in digests), "this machine's tables differ"
    RECORDED.write_text(json.dumps(digests[0], indent=1) + "\n", encoding="utf-8")
