"""What `make asan` watches: the suite, but for what stands here with its reason, so that a new test is watched."""

import fnmatch
import os

SANITIZE = os.environ.get("CVIT_SANITIZE", "")  # as setup.py reads it; empty where nothing is watched
# For C files that tests compile. As setup.py's: checks as calls, and without those that triple the unrolled tiles.
COMPILED = [
    f"-fsanitize={SANITIZE}", "--param=asan-instrumentation-with-call-threshold=0",
    "-fno-sanitize=pointer-overflow,null,object-size", "-fno-omit-frame-pointer", "-g",
] if SANITIZE else []  # fmt: skip

LEFT_OUT = {
    "test_build.py::*": "builds, and calls no kernel",
    "test_bench.py::*": "times processes of its own, which run what other tests run",
    "test_busy.py::*": "keeps the threads of passes that other tests run off their cores for seconds",
    "test_promises.py::test_models_give_their_memory_back": "freed memory is kept for a while, so that its use is seen",
    "*finite_differences*": "thousands of passes of a kernel that other tests call, for its numbers",
}


def reason(nodeid: str) -> str:
    """Why a test is left out; empty where it is watched."""
    name = nodeid.removeprefix("tests/")
    return next((why for pattern, why in LEFT_OUT.items() if fnmatch.fnmatchcase(name, pattern)), "")
