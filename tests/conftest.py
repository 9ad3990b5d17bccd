"""Fixtures for every test module; threads and instruction set are put back after each test."""

import hypothesis
import numpy as np
import pytest

import cvit

pytest.register_assert_rewrite("checks")

# A kernel's first call may be slow on a busy machine: no deadline.
hypothesis.settings.register_profile("cvit", deadline=None, max_examples=40)
hypothesis.settings.load_profile("cvit")


@pytest.fixture(autouse=True)
def _restored():
    isa = cvit.get_isa()
    yield
    cvit.set_isa(isa)
    cvit.set_num_threads(None)


@pytest.fixture(params=cvit.available_isas())
def isa(request):
    """Each instruction set of this machine in turn, selected."""
    cvit.set_isa(request.param)
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["f32", "f64"])
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(0)
