""".npz files of data, by `cvit.data.find`."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

import numpy as np

from cvit.data import find

from .. import changes
from ..containers_of import Member, faulty_archive, members
from ..running import Target

NAME = "x.npz"


@functools.cache
def _seeds() -> tuple[list[Member], ...]:
    pixels = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
    labels = np.array([0, 1, 0, 1, 0, 1])
    return (
        members(dict(x=pixels, y=labels)),
        members(dict(x=pixels[..., None], y=labels.astype(np.uint8)[:, None], classes=np.array(["a", "b"]))),
        members(dict(x_train=pixels / 255, y_train=labels, x_val=pixels[:2] / 255, y_val=labels[:2])),
        members(dict(x=np.stack([pixels] * 3, 1), y=np.array(["cat", "dog"] * 3), x_test=pixels, y_test=labels)),
        members(dict(images=pixels.astype(np.float32), labels=labels.astype(np.float64))),
        members(dict(X=pixels > 40, Y=labels > 0)),
    )


def make(rng: Random, folder: Path) -> None:
    """An archive with faults."""
    changes.place(rng, folder / NAME, faulty_archive(rng, _seeds()), 0.01)


def read(rng: Random, folder: Path) -> None:
    """The data set."""
    find(folder / NAME, strict=rng.random() < 0.2, validation=rng.choice((None, 0, 0.5)))


TARGET = Target(make, read, (ValueError, OSError))
