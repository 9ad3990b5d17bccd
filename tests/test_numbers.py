"""Numbers in: whole, finite, and with the same meaning in the element type that computes with them."""

import re

import numpy as np
import pytest

from cvit.base.numbers import as_int, finite, representable, shown

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def test_as_int():
    for value in (3, 3.0, np.int8(3), np.float32(3), np.uint64(3)):
        assert as_int("n", value) == 3 and type(as_int("n", value)) is int
    for value, error, message in [
        (4, ValueError, "n must be at most 3, got 4"),
        (10**5000, ValueError, "n must be at most 3, got a value of type int"),
        (-(10**5000), ValueError, "n must be at least 1, got a value of type int"),
        (np.nan, TypeError, "n must be an integer, got nan"),
        ([1] * 10_000, TypeError, "n must be an integer, got [1, 1, 1"),
    ]:
        with pytest.raises(error, match=re.escape(message)) as caught:
            as_int("n", value, maximum=3)
        assert len(str(caught.value)) < 200


def test_an_error_shows_the_beginning_of_a_long_value():
    class Silent:
        def __repr__(self):
            raise RuntimeError

    assert shown("a") == "'a'" and shown(None) == "None"
    assert len(shown("a" * 100_000)) == 100 and shown("a" * 100_000).endswith("a…")
    assert shown(Silent()) == "a value of type Silent"
    with pytest.raises(ValueError, match="lr must be finite") as caught:
        finite("lr", 10**4000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value, options, message",
    [
        (1e39, {}, "lr must be at most 3.403e+38, the largest float32, got 1e+39"),
        (10**39, {}, "lr must be at most 3.403e+38, the largest float32, got 1000"),
        (1e-46, dict(positive=True), "lr must be at least 1.175e-38, the smallest normal float32, got 1e-46"),
        (1e-40, dict(positive=True), "lr must be at least 1.175e-38, the smallest normal float32, got 1e-40"),
        (0, dict(positive=True), "lr must be greater than 0, got 0"),
        (1.0, dict(below_one=True), "lr must be below 1, got 1.0"),
        (1 - 2**-25, dict(below_one=True), "(it rounds to 1 in float32)"),
        (-1e-9, {}, "lr must be finite and at least 0, got -1e-09"),
        (np.nan, {}, "lr must be finite and at least 0, got nan"),
    ],
)
def test_not_representable(value, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        representable("lr", value, F32, **options)


def test_representable():
    for value, dtype, options in [
        (3.4e38, F32, {}),
        (1e-46, F32, {}),  # becomes 0, which changes nothing for a learning rate
        (1e39, F64, {}),
        (1e-46, F64, dict(positive=True)),
        (2e-38, F32, dict(positive=True)),
        (1 - 2**-24, F32, dict(below_one=True)),
        (1 - 2**-25, F64, dict(below_one=True)),
        (1 - 2**-53, F64, dict(below_one=True)),
    ]:
        assert representable("lr", value, dtype, **options) == value
        if "below_one" in options:
            assert dtype.type(value) < 1
        if "positive" in options:
            assert dtype.type(value) >= np.finfo(dtype).tiny
