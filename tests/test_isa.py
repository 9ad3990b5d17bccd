"""Instruction sets: which there are, how one is chosen, and that all compute the same but for rounding."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from checks import assert_close, same_bits

import cvit
from cvit import ViT, ViTConfig
from cvit.engine import team

CONFIG = ViTConfig(image_size=8, patch_size=2, channels=1, width=36, depth=2, heads=3, hidden=50, classes=10)


def python(code, **environment):
    """Run `code` in a fresh interpreter; returns the finished process."""
    environment = {**{k: v for k, v in os.environ.items() if k not in ("CVIT_ISA", "OMP_NUM_THREADS")}, **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def test_what_this_machine_runs():
    """Every x86-64 and AArch64 has the portable kernels; where Linux lists a feature, its kernels are available."""
    isas = cvit.available_isas()
    assert isas[0] == "portable" and set(isas) <= set(team.isa_names(supported_only=False))
    if platform.machine() == "aarch64":
        assert isas == ["portable", "neon"]
    if platform.machine() == "x86_64" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            flags = next(line for line in file if line.startswith("flags")).split()
        assert ("avx2" in isas) == {"avx2", "fma"}.issubset(flags)
        assert ("avx512" in isas) == {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx2", "fma"}.issubset(flags)
        if "amx" in isas:  # not the other way round: the kernel may refuse the tiles
            assert {"amx_tile", "amx_bf16", "avx512_bf16"}.issubset(flags) and isas[-2] == "avx512"


def test_choosing():
    for name in cvit.available_isas():
        cvit.set_isa(name)
        assert cvit.get_isa() == name


@pytest.mark.parametrize(
    "name", ["nonsense", "", "AVX2", None, 3, *({"neon", "avx2", "avx512", "amx"} - set(cvit.available_isas()))]
)
def test_a_wrong_name_changes_nothing(name):
    before = cvit.get_isa()
    with pytest.raises(ValueError, match=r"isa must be one of .*portable.*, got"):
        cvit.set_isa(name)
    assert cvit.get_isa() == before


def test_the_best_is_the_default():
    assert python("import cvit; print(cvit.get_isa())").stdout.strip() == cvit.available_isas()[-1]
    assert python("import cvit; print(cvit.get_isa())", CVIT_ISA="").stdout.strip() == cvit.available_isas()[-1]


@pytest.mark.parametrize("name", cvit.available_isas())
def test_the_environment_chooses(name):
    """And a process that was told so computes the same bits as one that chose."""
    code = (
        "import cvit, numpy as np; print(cvit.get_isa(), "
        "cvit.ops.linear(np.ones((3, 70), 'f4') / 3, np.ones((70, 5), 'f4') / 7).tobytes().hex())"
    )
    told = python(code, CVIT_ISA=name)
    assert told.returncode == 0, told.stderr
    cvit.set_isa(name)
    bits = cvit.ops.linear(np.ones((3, 70), "f4") / 3, np.ones((70, 5), "f4") / 7).tobytes().hex()
    assert told.stdout.split() == [name, bits]


def test_the_environment_is_checked():
    failed = python("import cvit", CVIT_ISA="nonsense")
    assert failed.returncode != 0
    *_, message = failed.stderr.splitlines()
    assert (
        message.startswith("ValueError: CVIT_ISA")
        and "must be one of ['portable'" in message
        and "got 'nonsense'" in message
    )


def test_tiles_fit_their_registers():
    """MR x NR accumulators, one row of B and one broadcast: at most 32 vectors for AVX-512 and NEON, 16 for the
    others.
    """
    vectors = {"portable": (16, 4), "avx2": (16, 8), "avx512": (32, 16), "amx": (32, 16), "neon": (32, 4)}
    for name in cvit.available_isas():
        cvit.set_isa(name)
        rows, columns, depth = team.tile_sizes()
        registers, lanes = vectors[name]
        assert columns % lanes == 0 and depth % columns == 0
        assert (rows + 1) * (columns // lanes) + 1 <= registers


def test_instruction_sets_agree(dtype):
    """Logits, loss and gradient, within what rounding makes of two blocks of sums of up to 200 terms."""
    x = np.random.default_rng(0).standard_normal((12, 1, 8, 8)).astype(dtype)
    y = np.arange(12) % 10
    results = []
    for name in cvit.available_isas():
        cvit.set_isa(name)
        model = ViT(CONFIG, seed=1, dtype=dtype)
        model.weights += dtype(0.05)
        loss, grad = model.loss_and_grad(x, y)
        results.append((loss, grad, model.forward(x)))
    for result in results[1:]:
        for a, b in zip(result, results[0]):
            assert_close(a, b, 4 * 200 * np.finfo(dtype).eps)


def test_changing_between_calls_of_one_model():
    """A model keeps an engine for each set that it was called with; going back gives the first bits again."""
    model = ViT(CONFIG)
    model.weights += np.float32(0.05)
    x, y = np.ones((2, 1, 8, 8), np.float32), [1, 2]
    first = {}
    for name in 2 * cvit.available_isas():
        cvit.set_isa(name)
        loss, grad = model.loss_and_grad(x, y)
        result = loss, grad.copy(), model.forward(x)
        assert same_bits(first.setdefault(name, result), result)
