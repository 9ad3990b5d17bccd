"""`checkpoint="block"`: the same bits from less memory."""

import dataclasses

import numpy as np
import pytest
from checks import same_bits

from cvit import ViT, ViTConfig

CONFIG = ViTConfig(image_size=(12, 8), patch_size=4, width=24, depth=4, heads=3, hidden=300, classes=5)


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_as_with_everything_kept(depth, pool, dtype):
    config = dataclasses.replace(CONFIG, depth=depth, pool=pool)
    rng = np.random.default_rng(0)
    weights = (0.3 * rng.standard_normal(ViT(config).layout.size)).astype(dtype)
    x, y = rng.standard_normal((3, 3, 12, 8)).astype(dtype), rng.integers(0, 5, 3)
    kept, again = ViT(config, weights), ViT(config, weights, checkpoint="block")
    for _ in range(2):  # a second pass meets the first one's leftovers
        assert same_bits(kept.loss_and_grad(x, y), again.loss_and_grad(x, y))
    assert same_bits(kept.logits, again.logits)
    assert same_bits(kept.forward(x), again.forward(x))


def test_the_plan_is_smaller():
    config = ViTConfig.variant("Ti/16")
    kept, again = ViT(config).plan(8), ViT(config, checkpoint="block").plan(8)
    assert again.bytes < 0.35 * kept.bytes
    assert again.buffers["hidden rows"] == kept.buffers["hidden rows"] / config.depth


def test_other_words_are_errors():
    with pytest.raises(ValueError, match="checkpoint must be None or 'block', got 'all'"):
        ViT(CONFIG, checkpoint="all")
