"""Fixtures for every test module; threads and instruction set are put back after each test."""

import ctypes
import sys
import weakref

import hypothesis
import numpy as np
import pytest
import watched

import cvit
from cvit.engine import memory, plan

pytest.register_assert_rewrite("checks")

# A kernel's first call may be slow on a busy machine: no deadline.
hypothesis.settings.register_profile("cvit", deadline=None, max_examples=40)
hypothesis.settings.load_profile("cvit")


def _exact(count, dtype):
    """As `memory.allocate`, but a block of its own that ends where the vector does: AddressSanitizer guards what lies
    behind."""
    address, size = ctypes.c_void_p(), max(count, 1) * np.dtype(dtype).itemsize
    libc = ctypes.CDLL(None)
    assert libc.posix_memalign(ctypes.byref(address), ctypes.c_size_t(64), ctypes.c_size_t(size)) == 0
    block = (ctypes.c_char * size).from_address(address.value)
    weakref.finalize(block, libc.free, address)
    return np.frombuffer(block, dtype)


plan.THREAD_FLOPS = 1e-3  # the tests' models are small; share their passes out all the same

if watched.SANITIZE:
    loaded = [module for name, module in sys.modules.items() if name.startswith("cvit.")]
    for module in [module for module in loaded if vars(module).get("allocate") is memory.allocate]:
        module.allocate = _exact


def pytest_collection_modifyitems(config, items):
    if watched.SANITIZE:
        left_out = [item for item in items if watched.reason(item.nodeid)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _restored():
    isa = cvit.get_isa()
    yield
    cvit.set_isa(isa)
    cvit.set_num_threads(None)


# Those with kernels of their own for float32 and float64: AMX's are AVX-512's, and would be tested twice.
FLOAT_ISAS = [name for name in cvit.available_isas() if name != "amx"]


@pytest.fixture(params=FLOAT_ISAS)
def isa(request):
    """Each instruction set of this machine in turn that has float kernels, selected."""
    cvit.set_isa(request.param)
    return request.param


@pytest.fixture(params=cvit.available_isas())
def bf16_isa(request):
    """Each instruction set of this machine in turn, selected: all have kernels of bfloat16."""
    cvit.set_isa(request.param)
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["f32", "f64"])
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(0)
