"""Resampled positions against torch's interpolate and SciPy's zoom."""

import numpy as np
import pytest
from checks import assert_close, peer

from cvit.families.positions import RULES, resample

GRIDS = [((4, 4), (7, 5)), ((7, 6), (3, 4)), ((5, 3), (5, 9)), ((3, 2), (1, 1)), ((1, 1), (3, 2)), ((14, 14), (16, 16))]


@pytest.mark.parametrize("old, new", GRIDS)
@pytest.mark.parametrize("rule", RULES)
def test_equal_to_torch(rule, old, new):
    torch = peer("torch")
    mode, _, how = rule.partition(" ")
    positions = np.random.default_rng(0).standard_normal((2 + old[0] * old[1], 5)).astype(np.float32)
    grid = torch.from_numpy(positions[2:].reshape(1, *old, 5)).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(
        grid, size=new, mode=mode, align_corners=how == "corners", antialias=how == "antialias"
    )
    got = resample(positions, 2, old, new, rule)
    assert got.dtype == np.float32
    assert np.array_equal(got[:2], positions[:2])
    assert_close(got[2:], wanted.permute(0, 2, 3, 1).reshape(-1, 5).numpy(), 2e-6, name=rule)


@pytest.mark.parametrize("old, new", [grids for grids in GRIDS if min(grids[0]) > 1])
def test_bilinear_corners_is_zoom(old, new):
    """As big_vision resamples; SciPy's zoom to one row takes the first."""
    ndimage = pytest.importorskip("scipy.ndimage")
    positions = np.random.default_rng(0).standard_normal((old[0] * old[1], 5)).astype(np.float32)
    factors = (new[0] / old[0], new[1] / old[1], 1)
    wanted = ndimage.zoom(positions.reshape(*old, 5), factors, order=1)
    assert_close(resample(positions, 0, old, new, "bilinear corners"), wanted.reshape(-1, 5), 1e-6, name="zoom")
