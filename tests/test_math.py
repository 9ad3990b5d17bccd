"""exp, tanh, erf, and attention's 2^x and ln: the largest error in units in the last place (ULP), and what happens at
the edges.

The ULP of a result is the distance between neighbouring numbers of its dtype at the exact value. float32 is compared
with NumPy's and Python's float64 functions, float64 with extended precision (80 or more bits): NumPy's for exp and
tanh, a series for erf.
"""

import math

import numpy as np
import pytest
from checks import same_bits

import cvit
from cvit import ops

EXTENDED = np.finfo(np.longdouble).eps < 1e-18
FUNCTIONS = {
    "exp": ops.exp,
    "tanh": ops.tanh,
    "erf": ops.erf,
    "exp2": lambda x: ops._elementwise(3, x),
    "log": lambda x: ops._elementwise(4, x),
}

# The largest error in ULP, the worst instruction set's: the bound, and in the comment what 16 million float32 and 1.6
# million float64 numbers gave. Each function is measured from the smallest normal numbers to where it stays constant.
BOUNDS = {
    ("exp", np.float32): 1.0,  # 0.96
    ("exp", np.float64): 1.0,  # 0.99
    ("tanh", np.float32): 2.5,  # 2.32
    ("tanh", np.float64): 2.5,  # 2.39
    ("erf", np.float32): 1.25,  # 1.19
    ("erf", np.float64): 1.0,  # 0.96
    ("exp2", np.float32): 1.3,  # 1.27
    ("exp2", np.float64): 1.3,  # 1.24
    ("log", np.float32): 2.0,  # 1.89
    ("log", np.float64): 2.0,  # 1.70
}
RANGES = {
    ("exp", np.float32): (-87.33, 88.37),
    ("exp", np.float64): (-708.39, 709.43),
    ("tanh", np.float32): (-20, 20),
    ("tanh", np.float64): (-40, 40),
    ("erf", np.float32): (-8, 8),
    ("erf", np.float64): (-8, 8),
    ("exp2", np.float32): (-126, 127.4),
    ("exp2", np.float64): (-1022, 1023.4),
    ("log", np.float32): (1, 1e9),
    ("log", np.float64): (1, 1e9),
}


def erf_extended(x):
    """erf in np.longdouble: 2/sqrt(pi) e^(-x²) Σ 2^n x^(2n+1) / (2n+1)!!, whose terms are all of one sign."""
    x = np.minimum(np.maximum(np.asarray(x, np.longdouble), -7), 7)  # 1 - erf(7) is 4e-23
    term = total = x
    for n in range(1, 250):
        term = term * (2 * x * x) / (2 * n + 1)
        total = total + term
    pi = np.longdouble("3.14159265358979323846264338327950288")
    return total * np.exp(-x * x) * 2 / np.sqrt(pi)


def floats(start, stop, count, dtype):
    """About `count` numbers between two positive ones, and their negatives: evenly spaced bit patterns, so every binade
    is met."""
    kind = np.int32 if dtype == np.float32 else np.int64
    first, last = np.array([start, stop], dtype).view(kind)
    step = max(1, (int(last) - int(first)) // count) | 1  # odd, so that the low bits vary
    positive = np.arange(first, last + 1, step, dtype=kind).view(dtype)
    return np.concatenate([positive, -positive, np.array([start, stop, -start, -stop], dtype)])


def ulps(actual, exact):
    """Errors in ULP of actual's dtype."""
    nearest = np.abs(exact).astype(actual.dtype)
    spacing = np.spacing(np.maximum(nearest, np.finfo(actual.dtype).tiny)).astype(exact.dtype)
    return np.abs(actual.astype(exact.dtype) - exact) / spacing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_worst_error(name, dtype):
    if dtype == np.float64 and not EXTENDED:
        pytest.skip("no extended precision here to compare float64 with")
    low, high = RANGES[name, dtype]
    x = floats(np.finfo(dtype).tiny, max(-low, high), 400_000 if dtype == np.float32 else 60_000, dtype)
    x = x[(low <= x) & (x <= high)]
    erf = np.vectorize(math.erf) if dtype == np.float32 else erf_extended
    exact = (erf if name == "erf" else getattr(np, name))(
        x.astype(np.float64 if dtype == np.float32 else np.longdouble)
    )
    for isa in cvit.available_isas():
        cvit.set_isa(isa)
        worst = ulps(FUNCTIONS[name](x), exact).max()
        assert worst <= BOUNDS[name, dtype], f"{isa}: {worst:.3f} ULP"


def test_the_erf_that_float64_is_compared_with():
    x = floats(1e-300, 6.5, 2000, np.float64)
    assert ulps(np.vectorize(math.erf)(x), erf_extended(x)).max() < 1.01


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_functions(isa, dtype, name):
    """f(-x) = -f(x) bit for bit, zero keeps its sign, and the ends are ±1."""
    f = FUNCTIONS[name]
    x = np.concatenate([floats(1e-30, 1e30, 4000, dtype), np.array([0, np.finfo(dtype).max, np.inf], dtype)])
    assert same_bits(f(-x), -f(x))
    assert same_bits(f(np.array([0.0, -0.0], dtype)), np.array([0.0, -0.0], dtype))
    assert same_bits(f(np.array([20, 1e3, np.finfo(dtype).max, np.inf], dtype)), np.ones(4, dtype))
    assert np.abs(f(x)).max() == 1


def test_exp_at_the_edges(isa, dtype):
    low, high = (-87.3365402, 88.3762589) if dtype == np.float32 else (-708.39641853226408, 709.43613930310391)
    one = np.array([0.0, -0.0, 1e-40, -1e-40, np.finfo(dtype).tiny, -np.finfo(dtype).tiny], dtype)
    assert same_bits(ops.exp(one), np.ones_like(one))
    below = np.array([-np.inf, np.finfo(dtype).min, -1e4, low - 0.01], dtype)
    assert same_bits(ops.exp(below), np.zeros_like(below))
    at_low, at_high = ops.exp(np.array([low, high], dtype))
    assert np.finfo(dtype).tiny <= at_low < 1.001 * np.finfo(dtype).tiny
    above = np.array([high + 0.01, 1e4, np.finfo(dtype).max, np.inf], dtype)
    assert same_bits(ops.exp(above), np.full_like(above, at_high)) and np.isfinite(at_high)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_stays_nan(isa, dtype, name):
    """Whatever its sign and its payload."""
    kind, patterns = {
        np.float32: (np.uint32, [0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0xFFFFFFFF]),
        np.float64: (
            np.uint64,
            [0x7FF8 << 48, 0xFFF8 << 48, (0x7FF8 << 48) + 1, (0x7FF0 << 48) + 1, 0xFFF8123456789ABC, 2**64 - 1],
        ),
    }[dtype]
    assert np.isnan(FUNCTIONS[name](np.array(patterns, kind).view(dtype))).all()


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_denormals(isa, dtype, name):
    """Proportional to x near zero, to within the spacing of what is that small."""
    x = np.finfo(dtype).smallest_subnormal * np.array([1, 2, 100, 12345], dtype)
    factor = {"tanh": 1, "erf": 2 / math.sqrt(math.pi)}[name]
    np.testing.assert_allclose(
        FUNCTIONS[name](x), x.astype(np.float64) * factor, rtol=0, atol=2.5 * np.finfo(dtype).smallest_subnormal
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_place_does_not_matter(isa, dtype, name, rng):
    """A number's result is the same in a whole vector and in an array's last, partial one."""
    x = rng.standard_normal(67).astype(dtype)
    f = FUNCTIONS[name]
    whole = f(x)
    for count in range(1, 40):
        assert same_bits(f(x[:count].copy()), whole[:count].copy())
