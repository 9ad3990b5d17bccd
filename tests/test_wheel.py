"""cvit where others have put it: beside other OpenMP runtimes, in a second interpreter, without the system calls of
Unix, and the list of systems and Pythons that wheels are built for."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from cvit.engine import team

ROOT = Path(__file__).parent.parent
LINUX = sys.platform.startswith("linux")


def told(program, *arguments, **environment):
    """The lines that a Python program of its own prints."""
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


# ------------------------------------------------------------------------------------------- several OpenMP runtimes
# Imports the modules that it is told in that order, and prints what cvit computes: alone, after each of the others has
# used its threads, and in a forked child, with the number of threads.
BESIDE_OTHERS = """
import hashlib, importlib, os, sys
names = sys.argv[1].split(",")
for name in names:
    importlib.import_module(name)
import numpy as np
import cvit
from cvit.engine import plan

plan.THREAD_FLOPS = 1e-3  # the model is small; share its passes out all the same
config = cvit.ViTConfig(image_size=8, patch_size=2, channels=1, width=48, depth=2, heads=4, hidden=96, classes=10)
model = cvit.ViT(config, seed=1)
x = np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)

def digest():
    loss, grad = model.loss_and_grad(x, np.arange(16) % 10)
    return hashlib.sha256(np.float64(loss).tobytes() + grad.tobytes() + model.forward(x).tobytes()).hexdigest()

def tell():
    print(cvit.get_num_threads(), digest(), flush=True)

cvit.set_num_threads(3)
tell()
if "torch" in names:
    import torch
    a = torch.ones(300, 300, requires_grad=True)
    (a @ a).exp().sum().backward()
if "sklearn.cluster" in names:
    sys.modules["sklearn.cluster"].KMeans(3, n_init=1, random_state=0).fit(np.random.default_rng(0).random((3000, 4)))
tell()
sys.stdout.flush()
child = os.fork()
if not child:
    tell()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
tell()
if "torch" in names:  # a limit for cvit as well where it was imported after torch, whose libgomp then serves both
    torch.set_num_threads(1)
    assert cvit.get_num_threads() in (1, 3)
print(digest())
"""


@pytest.fixture(scope="module")
def alone():
    """What cvit computes with no other runtime in its process."""
    return told(BESIDE_OTHERS, "cvit")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.skipif(not team.has_openmp(), reason="built without OpenMP")
@pytest.mark.parametrize("names", ["torch sklearn.cluster cvit", "cvit sklearn.cluster torch"])
def test_the_same_bits_and_threads_beside_other_openmp_runtimes(alone, names):
    """Each brings a libgomp of its own; torch's takes the place of those that are loaded after it."""
    order = [name for name in names.split() if importlib.util.find_spec(name.partition(".")[0])]
    if order == ["cvit"]:
        pytest.skip("neither torch nor scikit-learn is installed")
    assert [line.split()[0] for line in alone[:-1]] == ["3", "3", "1", "3"]
    assert {line.split()[-1] for line in alone} == {alone[-1]}
    assert told(BESIDE_OTHERS, ",".join(order)) == alone


# ------------------------------------------------------------------------------------------- a second interpreter
SECOND = """
import os, sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
read, write = os.pipe()
before = sys.argv[1] == "after"
if before:
    import cvit
inside = f'''
import os, warnings
warnings.simplefilter("ignore")
try:
    import cvit
    answer = "works"
except ImportError as error:
    answer = type(error).__name__ + " " + str(error)
os.write({write}, answer.encode())
'''
failed = interpreters.run_string(interpreters.create(), inside)
assert failed is None, failed
print(os.read(read, 1000).decode())
import cvit
print(cvit.ops.gelu([[0.0]]).tolist(), flush=True)
os._exit(0)  # NumPy in two interpreters may not come through the end of both
"""
REFUSED = "ImportError cvit works in the main interpreter of a process alone: use threads, or processes"


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="interpreters of CPython")
@pytest.mark.parametrize("when", ["after", "before"])
def test_a_second_interpreter_is_refused_in_one_sentence(when):
    """After the first has imported cvit, or before; the first goes on."""
    assert told(SECOND, when) == [REFUSED, "[[0.0]]"]


# ----------------------------------------------------------------------------------------------- free-threaded Python
@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has its lock")
def test_free_threaded_python_stays_without_its_lock():
    """Every extension says that it works so: Python would warn of one that does not, and take its lock again."""
    code = (
        "import cvit, cvit.data, cvit.ops, cvit.train, sys; print(sys._is_gil_enabled(), cvit.fit and cvit.load and 1)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={name: value for name, value in os.environ.items() if name != "PYTHON_GIL"},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "False 1\n", run.stderr


# --------------------------------------------------------------------------------------------------- without Unix
# Hides what Windows lacks, with a lock of Windows' kind in place of flock, then imports every module and writes files.
WITHOUT_UNIX = """
import asyncio, fcntl, importlib, mmap, os, pkgutil, signal, subprocess, sys, tempfile, types  # asyncio: scikit-learn's
import numpy, safetensors.numpy, threadpoolctl

def locking(file, mode, size):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in (
    "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "chown", "fchown", "fchmod", "posix_fallocate", "fork", "sysconf",
    "register_at_fork", "sched_getaffinity", "sched_setaffinity", "uname", "geteuid", "mkfifo",
):
    delattr(os, name)
for name in ("SIGHUP", "SIGPIPE", "SIGSTOP", "SIGCONT", "SIGKILL"):
    delattr(signal, name)
for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"):
    if hasattr(mmap, name):
        delattr(mmap, name)

import cvit
count = 0
apart = ("_worker", "__main__", "peers.serve")
for module in pkgutil.walk_packages(cvit.__path__, "cvit."):
    if not module.name.endswith(apart) and ".census." not in module.name:  # they take torch and timm
        try:
            importlib.import_module(module.name)
            count += 1
        except ModuleNotFoundError as error:
            assert "cvit-cpu[" in str(error), error  # an extra that is not installed
print(count)

from cvit.base.locks import BESIDE
from cvit.runs.folder import Folder
from cvit.train import state
folder = Folder(tempfile.mkdtemp())
try:
    with folder.held(), Folder(folder.path).held():
        print("both")
except BlockingIOError as error:
    print(error.strerror)
assert os.listdir(folder.path) == [BESIDE] and folder.is_free
for number in range(3):
    state.write(folder.path / "checkpoint", {"w": numpy.full(3, number, numpy.float32)}, {"n": number})
arrays, facts, warning = state.read(folder.path / "checkpoint")
print(arrays["w"].tolist(), facts, warning)
model = cvit.ViT(cvit.ViTConfig(image_size=8, patch_size=4, width=32, depth=1, heads=2, classes=3), seed=0)
for _ in range(2):
    cvit.save(folder.path / "model", model)
print(numpy.array_equal(cvit.load(folder.path / "model", mmap=True).weights, model.weights))
"""


@pytest.mark.skipif(not LINUX, reason="hides what Linux has")
def test_every_module_does_without_what_windows_lacks():
    """As far as one can tell on Linux: Windows' own ways are not here."""
    count, *lines = told(WITHOUT_UNIX)
    assert int(count) > 100
    assert lines == ["another process trains in this folder", "[2.0, 2.0, 2.0] {'n': 2} None", "True"]


# ----------------------------------------------------------------------------------------------------- what is built
@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="the tests are not in the sources")
def test_wheels_are_built_and_tested_for_the_pythons_that_are_named():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["project"]["classifiers"]), re.MULTILINE)
    wheels = project["tool"]["cibuildwheel"]
    assert [tag for tag in wheels["build"] if "t-" not in tag] == [f"cp{n.replace('.', '')}-*" for n in named]
    for system in (wheels, wheels["macos"]):  # a system's own environment takes the place of the general one
        assert system["environment"]["CVIT_STABLE_ABI"] == "1"
    assert project["project"]["requires-python"] == f">={named[0]}"
    for name in re.findall(r"tests/\w+\.py", wheels["test-command"]):
        assert (ROOT / name).exists(), name
    workflow = ROOT / ".github/workflows/tests.yml"
    if workflow.exists():  # an sdist does without
        assert f"python: {named}".replace("'", '"') in workflow.read_text(encoding="utf-8")
