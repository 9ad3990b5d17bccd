"""What is benchmarked: the benchmark's five cases, their variations, and the arrays that a case is run with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ..base.errors import check
from ..model.config import ViTConfig
from ..model.layout import Layout

TASKS = ("train", "forward")

_IMAGENET = dict(image_size=224, patch_size=16, channels=3, classes=1000)

# name: (fields of the configuration, batch size)
CASES = {
    "digits": (
        dict(image_size=8, patch_size=2, channels=1, width=64, heads=4, hidden=128, depth=4, classes=10),
        128,
    ),
    "cifar-s": (
        dict(image_size=32, patch_size=4, channels=3, width=192, heads=3, hidden=384, depth=6, classes=10),
        64,
    ),
    "ti16": (dict(width=192, heads=3, hidden=768, depth=12, **_IMAGENET), 8),
    "s16": (dict(width=384, heads=6, hidden=1536, depth=12, **_IMAGENET), 8),
    "b16": (dict(width=768, heads=12, hidden=3072, depth=12, **_IMAGENET), 4),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a batch size."""

    name: str
    config: ViTConfig
    batch: int

    @classmethod
    def named(cls, name: str, **changes) -> Case:
        """One of `CASES`, with fields of its configuration or its `batch` changed, which a star at its name tells."""
        check(name in CASES, f"case must be one of {', '.join(CASES)}, got {name!r}")
        fields, batch = CASES[name]
        name += "*" if changes else ""
        batch = changes.pop("batch", batch)
        check(batch >= 1, f"batch must be at least 1, got {batch}")
        return cls(name, ViTConfig(**{**fields, **changes}), batch)

    def flops(self, task: str) -> int:
        """Floating-point operations of one step: GEMMs and attention products; training is 3 times the forward pass."""
        return self.config.forward_flops(self.batch) * (3 if task == "train" else 1)

    def worker_config(self) -> dict:
        """The configuration as a worker reads it."""
        return {**dataclasses.asdict(self.config), "tokens": self.config.tokens}

    def write_arrays(self, file: Path, seed: int = 0) -> None:
        """Write weights, `images` (N, C, H, W) and `labels` (N,) as an .npz file.

        The weights are random everywhere, biases and norms too: a peer that left one out could not agree. The head of
        a freshly initialised ViT is zero, which would hide everything before it.
        """
        rng = np.random.default_rng(seed)
        draw = lambda shape, scale: (scale * rng.standard_normal(shape, np.float32)).astype(np.float32)
        arrays = {}
        for name, entry in Layout.of(self.config).entries.items():
            if entry.decay:
                arrays[name] = draw(entry.shape, entry.shape[0] ** -0.5)
            else:
                arrays[name] = draw(entry.shape, 0.1) + ("norm" in name and name.endswith("weight"))
        config = self.config
        arrays["images"] = draw((self.batch, config.channels, *config.image_size), 1.0)
        arrays["labels"] = rng.integers(config.classes, size=self.batch)
        np.savez(file, **arrays)
