"""The small model that tests of `precision` make, its images and all that it computes."""

import numpy as np

from cvit import Layout, ViT, ViTConfig

SMALL = ViTConfig(image_size=(8, 12), patch_size=2, channels=2, width=30, depth=2, heads=3, hidden=50, classes=7)


def weights(config=SMALL, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal(Layout.of(config).size)).astype(np.float32)


def model(config=SMALL, **options):
    return ViT(config, weights(config), **{"precision": "bf16", **options})


def batch(N=5, config=SMALL, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, config.channels, *config.image_size)).astype(np.float32)
    return x, rng.integers(config.classes, size=N)


def outputs(model, x, y):
    """Everything that a model computes, as arrays."""
    results = {name: getattr(model, name)(x) for name in ("forward", "features", "tokens", "attention")}
    results |= {f"front {first}": model.front(x, first) for first in (0, 1, "head")}
    results |= {f"layer {i}": values for i, values in enumerate(model.tokens(x, [0, 1], norm=True))}
    if not model.frozen:
        loss, grad = model.loss_and_grad(x, y)
        results |= {"loss": np.array(loss), "grad": grad.copy(), "logits": model.logits.copy()}
    return results
