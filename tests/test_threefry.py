"""cvit.threefry against JAX: recorded numbers everywhere, live ones where JAX is installed."""

import hashlib
import math
import pathlib

import numpy as np
import pytest

from cvit.model import threefry

RECORDED = np.load(pathlib.Path(__file__).parent / "data" / "flax_random.npz")
SEEDS = [int(seed) for seed in RECORDED["seeds"]]
NORMAL_RTOL = 4e-7  # a few units in the last place: XLA's log1p is not correctly rounded


@pytest.fixture(params=range(len(SEEDS)), ids=lambda i: f"seed{SEEDS[i]}")
def recorded(request):
    """A seed and what JAX made of it, by name."""
    prefix = f"{request.param}."
    return SEEDS[request.param], {k.removeprefix(prefix): RECORDED[k] for k in RECORDED.files if k.startswith(prefix)}


def test_random123_vectors():
    """The known answers that the authors of Threefry publish with Random123 for threefry2x32-20."""
    for counter, key, expected in [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ]:
        high, low = (np.array([word], np.uint32) for word in counter)
        result = threefry.threefry2x32(np.array(key, np.uint32), high, low)
        assert tuple(int(word[0]) for word in result) == expected


def test_keys_and_bits_equal_jax(recorded):
    seed, jax_made = recorded
    key = threefry.key(seed)
    np.testing.assert_array_equal(key, jax_made["key"])
    np.testing.assert_array_equal(threefry.split(key, 3), jax_made["split"])
    folded = [threefry.fold_in(key, data) for data in (0, 1, 2**32 - 1)]
    np.testing.assert_array_equal(folded, jax_made["fold_in"])
    np.testing.assert_array_equal(threefry.random_bits(key, (5, 3)), jax_made["bits"])
    digest = hashlib.sha256(threefry.random_bits(key, (100_003,)).astype("<u4")).hexdigest()
    assert digest == jax_made["digest"]


def test_floats_equal_jax(recorded):
    seed, jax_made = recorded
    key = threefry.key(seed)
    np.testing.assert_array_equal(threefry.uniform(key, (16,), -0.7, 0.3), jax_made["uniform"])
    for draw in ("normal", "truncated_normal"):
        numbers = getattr(threefry, draw)(key, (150,))
        assert numbers.dtype == np.float32
        np.testing.assert_allclose(numbers, jax_made[draw], rtol=NORMAL_RTOL)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3, 4), (3, threefry._BLOCK // 2)])
def test_shapes(shape):
    key = threefry.key(0)
    for draw in (threefry.random_bits, threefry.uniform, threefry.normal, threefry.truncated_normal):
        numbers = draw(key, shape)
        assert numbers.shape == shape
        np.testing.assert_array_equal(numbers.ravel(), draw(key, (math.prod(shape),)))


def test_a_number_depends_on_its_index_alone():
    key = threefry.key(3)
    long = threefry.random_bits(key, (2 * threefry._BLOCK + 5,))
    np.testing.assert_array_equal(threefry.random_bits(key, (7,)), long[:7])


def test_counters_beyond_32_bits():
    """Both halves of the counter matter."""
    key, low = threefry.key(1), np.zeros(1, np.uint32)
    assert threefry.threefry2x32(key, low, low) != threefry.threefry2x32(key, low + np.uint32(1), low)


def test_erf_inv_inverts_erf():
    x = np.linspace(-0.99999, 0.99999, 10_001, dtype=np.float32)
    inverse = threefry.erf_inv(x)
    back = np.array([math.erf(y) for y in inverse])
    slope = 2 / math.sqrt(math.pi) * np.exp(-np.square(inverse, dtype=np.float64))  # of erf, which scales y's error
    assert np.all(np.abs(back - x) <= 1e-5 * slope * np.abs(inverse) + 1e-12)


def test_truncated_normal_stays_inside():
    draws = threefry.truncated_normal(threefry.key(5), (200_000,))
    assert np.abs(draws).max() < 2
    assert draws.std() == pytest.approx(0.8796, abs=5e-3)
    assert draws.mean() == pytest.approx(0, abs=1e-2)


def test_seeds():
    for seed in (5, 5.0, np.int8(5), np.float32(5), np.array(5), 2**32 + 5, 5 - 2**32):
        np.testing.assert_array_equal(threefry.key(seed), [0, 5])
    for bad, error, message in [
        (2**63, ValueError, r"seed must be less than 2\*\*63, got 9223372036854775808"),
        (-(2**63) - 1, ValueError, "seed must be at least"),
        (2.5, ValueError, "seed must be a whole number, got 2.5"),
        (float("nan"), TypeError, "seed must be an integer, got nan"),
        (None, TypeError, "seed must be an integer, got None"),
        (True, TypeError, "seed must be an integer, got True"),
    ]:
        with pytest.raises(error, match=message):
            threefry.key(bad)


@pytest.mark.parametrize("data", [-1, 2**32])
def test_fold_in_takes_32_bits(data):
    with pytest.raises(ValueError, match="data must lie between 0 and"):
        threefry.fold_in(threefry.key(0), data)


@pytest.mark.parametrize("seed", [0, 7, -3, 2**31, 2**40 + 3])
def test_live_jax(seed):
    jax = pytest.importorskip("jax")
    theirs, ours = jax.random.key(seed), threefry.key(seed)
    np.testing.assert_array_equal(ours, jax.random.key_data(theirs))
    np.testing.assert_array_equal(threefry.split(ours), jax.random.key_data(jax.random.split(theirs)))
    shape = (3, 12_345)
    np.testing.assert_array_equal(threefry.random_bits(ours, shape), jax.random.bits(theirs, shape))
    for low, high in [(0, 1), (-1, 1), (-0.954, 0.954), (2.5, 3)]:
        expected = jax.random.uniform(theirs, shape, minval=low, maxval=high)
        np.testing.assert_array_equal(threefry.uniform(ours, shape, low, high), expected)
    np.testing.assert_allclose(threefry.normal(ours, shape), jax.random.normal(theirs, shape), rtol=NORMAL_RTOL)
    expected = jax.random.truncated_normal(theirs, -2, 2, shape)
    np.testing.assert_allclose(threefry.truncated_normal(ours, shape), expected, rtol=NORMAL_RTOL)
