"""The floating-point mode as the C library sets and reads it (fenv.h), on Linux for x86-64 and AArch64.

x86-64: MXCSR is the last word of glibc's fenv_t; AArch64: FPCR the first.
"""

import contextlib
import ctypes
import platform
import sys

import pytest

WORD = {"x86_64": 7, "aarch64": 0}.get(platform.machine())
needed = pytest.mark.skipif(
    WORD is None or sys.platform != "linux", reason="fenv_t is known for Linux on x86-64 and AArch64 alone"
)
UPWARD, FLUSH = {"x86_64": (0x4000, 0x8040), "aarch64": (1 << 22, 1 << 24)}.get(platform.machine(), (0, 0))
FIELDS = {"x86_64": 0xFFC0, "aarch64": 0x7C00000}.get(platform.machine(), 0)  # all but the flags of what has happened


def environment():
    words = (ctypes.c_uint32 * 16)()
    ctypes.CDLL(None if platform.machine() != "x86_64" else "libm.so.6").fegetenv(words)
    return words


@contextlib.contextmanager
def mode(bits):
    """The calling thread with `bits` set in its control register; checks at the end that they are what they were."""
    libm = ctypes.CDLL("libm.so.6")
    before, changed = environment(), environment()
    changed[WORD] |= bits
    libm.fesetenv(changed)
    try:
        set_to = environment()[WORD] & FIELDS
        yield
        after = environment()[WORD] & FIELDS
    finally:
        libm.fesetenv(before)
    assert set_to == changed[WORD] & FIELDS, "the mode could not be set"
    assert after == set_to, f"the caller's mode was changed from {set_to:#x} to {after:#x}"
