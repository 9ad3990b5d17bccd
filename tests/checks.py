"""What several test modules share: comparisons, and the same call with several numbers of threads or instruction sets.

Bounds. In float64 everything agrees with tests/reference.py to 1e-10 of the largest entry. In float32 a bound is
derived from the op: `growth` roundings, each of half a unit in the last place, of sums whose terms add up to `size`
in magnitude (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: n additions or multiplications in a
row err by at most n eps/2 of the terms' magnitudes). Inputs are rounded to the dtype before the reference sees them,
so that both compute the same thing.
"""

import ctypes
import importlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import watched

import cvit

ROOT = Path(__file__).resolve().parents[1]
FLOAT64_BOUND = 1e-10
THREADS = (1, 2, 3, 5)
C_FLAGS = ["-std=gnu11", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Icsrc", "-Icvit/engine"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]


def same_bits(a, b) -> bool:
    """Whether two arrays, numbers or (nested) tuples of them are equal byte for byte, NaN and -0 included."""
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def on_all_threads(call):
    """What `call()` returns, the same bits with 1, 2, 3 and 5 threads."""
    before = cvit.get_num_threads()
    results = []
    for threads in THREADS:
        cvit.set_num_threads(threads)
        results.append(call())
    cvit.set_num_threads(before)
    for threads, result in zip(THREADS, results):
        assert same_bits(results[0], result), f"{threads} threads give other bits than 1"
    return results[0]


def on_all_isas(call, isas=None):
    """What `call()` returns, the same bits with each of these instruction sets, or all of this machine's.

    The last one stays selected: a fixture puts it back after the test.
    """
    isas = cvit.available_isas() if isas is None else isas
    results = []
    for name in isas:
        cvit.set_isa(name)
        results.append(call())
    for name, result in zip(isas, results):
        assert same_bits(results[0], result), f"{name} gives other bits than {isas[0]}"
    return results[0]


def distance(found, expected):
    """The relative error in the Euclidean norm."""
    difference = np.subtract(found, expected, dtype=np.float64)
    return np.linalg.norm(difference) / max(np.linalg.norm(expected), 1e-30)


def assert_close(actual, expected, bound=FLOAT64_BOUND, name="", floor=0.0):
    """Same shape, all finite, and no entry off by more than `bound` times the largest expected one (or `floor`)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, name
    assert np.isfinite(actual).all(), name
    error, size = np.abs(actual - expected).max(initial=0.0), np.abs(expected).max(initial=floor)
    assert error <= bound * size, f"{name} off by {error:.3e} where the largest entry is {size:.3e}"


def assert_rounded(actual, expected, size, growth, name=""):
    """`actual` is `expected` but for rounding.

    float64 as in `assert_close`, float32 within growth · eps/2 · size, entry by entry.
    """
    actual = np.asarray(actual)
    if actual.dtype == np.float64:
        assert_close(actual, expected, name=name, floor=np.max(size, initial=0.0))
        return
    assert actual.dtype == np.float32 and actual.shape == np.shape(expected), name
    error = np.abs(actual - np.asarray(expected, np.float64))
    allowed = growth * np.finfo(np.float32).eps / 2 * np.broadcast_to(size, error.shape)
    allowed = np.maximum(allowed, 1e-30 * np.max(size))  # exp is 0 below 1e-38: what is lost with it
    assert (error <= allowed).all(), f"{name} off by {np.max(error / allowed):.2f} times what rounding explains"


def normal(rng, *shape, dtype=np.float64):
    """Standard normal numbers, rounded to `dtype`."""
    return rng.standard_normal(shape).astype(dtype)


def wide(*arrays):
    """float64 copies for the reference."""
    return [np.asarray(array, np.float64) for array in arrays]


def compiled(folder, source, *flags):
    """A C file of this repository as a library in `folder`, which `make asan` watches; without a C compiler the test is
    skipped."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not shutil.which(compiler[0]):
        pytest.skip("no C compiler")
    library = Path(folder, f"{Path(source).stem}.so")
    command = [*compiler, *C_FLAGS, *watched.COMPILED, "-shared", "-fPIC", *flags, source, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return ctypes.CDLL(str(library))


def peer(name):
    """A module of another library, or one that needs another, imported beside a CPU build of torch.

    Where it is missing the test is skipped, or all of the module that asks; with CVIT_PEERS=1, as in continuous
    integration, that is a failure. `make asan` watches cvit alone.
    """
    if watched.SANITIZE:
        pytest.skip("other libraries come without checks; cvit's code runs in other tests", allow_module_level=True)
    try:
        importlib.import_module("cvit.families.census.peers")  # declares what torchvision needs
        return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("CVIT_PEERS", "0") != "0":
            raise
        pytest.skip(f"needs {name}: {error}", allow_module_level=True)
