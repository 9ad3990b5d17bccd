"""Pictures for the tests of data sets: small files made with Pillow, each another one."""

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image


def pixels(seed: int, height: int = 20, width: int = 24, channels: int = 3) -> np.ndarray:
    """A smooth random picture, uint8 (height, width, channels): JPEG keeps it about as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), np.uint8)
    planes = [
        Image.fromarray(coarse[:, :, c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def write(path, seed: int, height: int = 20, width: int = 24, *, grey: bool = False, **options) -> None:
    """A picture in a file of the format that its name says; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = pixels(seed, height, width, 1 if grey else 3)
    Image.fromarray(array[:, :, 0] if grey else array).save(path, **options)


def folder(root, classes: dict[str, int], *, ending: str = ".png", start: int = 0, **options):
    """A folder with so many pictures of each class; returns it."""
    seed = start
    for name, count in classes.items():
        for number in range(count):
            write(root / name / f"{number}{ending}", seed, **options)
            seed += 1
    return root


def check_one(texts, *words):
    """Exactly one sentence has all these words; returns it."""
    having = [text for text in texts if all(word in text for word in words)]
    assert len(having) == 1, (words, texts)
    return having[0]
