"""The models for which Flax's weights and logits are recorded in tests/data, shared by the recorder and the tests."""

from typing import NamedTuple

import numpy as np

from cvit.model.config import ViTConfig

SEEDS = (0, 1, 2**31, 2**40 + 3, -1, -5)


class Case(NamedTuple):
    """A model drawn from `seed`, and the size (height, width) of its image, before the last partial patches go."""

    seed: int
    size: tuple[int, int]
    config: ViTConfig

    @property
    def image(self):
        """float32 (height, width, C), uniform in [-1, 1): `RandomState`'s numbers are the same in every NumPy."""
        shape = (*self.size, self.config.channels)
        return np.random.RandomState(self.seed & 0xFFFF).uniform(-1, 1, shape).astype(np.float32)

    @property
    def cropped(self):
        """The image's whole patches."""
        height, width = self.config.image_size
        return self.image[:height, :width]


def case(seed, size, channels, patch, width, heads, hidden, depth, classes, **changes):
    grid = tuple(side // patch * patch for side in size)
    config = ViTConfig(
        image_size=grid, patch_size=patch, channels=channels, width=width, heads=heads, hidden=hidden, depth=depth,
        classes=classes, **{"pool": "mean", **changes},
    )  # fmt: skip
    return Case(seed, size, config)


# The model of `vit_forward`:
#    seed       size      C   P   D  H    F  depth  classes
PLAIN = [
    case(0, (4, 4), 3, 2, 8, 2, 16, 2, 4),
    case(1, (8, 8), 1, 2, 64, 4, 128, 4, 10),
    case(2**31, (7, 10), 2, 3, 12, 3, 20, 1, 5),
    case(-1, (5, 3), 4, 1, 6, 1, 7, 3, 3),
    case(-5, (33, 20), 3, 16, 48, 6, 33, 2, 17),
    case(2**40 + 3, (15, 44), 1, 7, 30, 5, 1, 2, 2),
    case(0, (32, 32), 3, 4, 40, 2, 80, 12, 10),
    case(1, (13, 13), 4, 13, 16, 4, 64, 1, 6),
    case(-1, (9, 31), 2, 5, 20, 20, 12, 0, 9),
    case(-5, (24, 17), 3, 8, 10, 1, 50, 12, 3),
]
# What a configuration can change; the last is the plain architecture of `vit_classify`.
VARIANTS = [
    case(3, (6, 9), 3, 3, 12, 2, 24, 2, 5, pool="cls"),
    case(4, (6, 9), 3, 3, 12, 2, 24, 2, 5, bias=False),
    case(5, (6, 9), 3, 3, 12, 2, 24, 2, 5, norm_affine=False),
    case(6, (6, 9), 3, 3, 12, 2, 24, 2, 5, final_norm=False, eps=1e-5),
    case(7, (8, 4), 1, 2, 16, 4, 16, 3, 10, pool="cls", bias=False, norm_affine=False, final_norm=False, eps=1e-5),
]
CASES = PLAIN + VARIANTS


def name(case):
    """A short name of a case, for the names of recorded arrays and of tests."""
    c = case.config
    variant = "" if case in PLAIN else f"-{c.pool}-{c.bias:d}{c.norm_affine:d}{c.final_norm:d}"
    return (
        f"seed{case.seed}-{case.size[0]}x{case.size[1]}x{c.channels}-p{c.patch_size}-d{c.width}-h{c.heads}-f{c.hidden}"
        f"-l{c.depth}-k{c.classes}{variant}"
    )


def flatten(tree, path=""):
    """All numbers of a nested dict of arrays as {dotted name: flat array}."""
    if hasattr(tree, "items"):
        parts = (flatten(value, f"{path}.{key}") for key, value in tree.items())
        return {name: array for part in parts for name, array in part.items()}
    return {path: np.asarray(tree).ravel()}


def samples(tree, count=200):
    """Every so many-th number of a nested dict of arrays, and the sums of the absolute values of its arrays."""
    arrays = sorted(flatten(tree).items())
    numbers = np.concatenate([array for _, array in arrays])
    sums = np.array([np.abs(array).sum(dtype=np.float64) for _, array in arrays])
    return numbers[:: max(1, len(numbers) // count)], sums
