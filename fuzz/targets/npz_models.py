""".npz files of vit_jax and big_vision, by `cvit.load`, and of any content as `Tensors`."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

import numpy as np

from cvit import load
from cvit.formats.npz import read_npz

from .. import changes
from ..containers_of import Member, faulty_archive, members, read_each
from ..models_of import published, use
from ..running import Target

NAME = "x.npz"


@functools.cache
def _seeds() -> tuple[list[Member], ...]:
    found = [members(arrays) for name, arrays, _ in published() if name == "flax npz"]
    scanned = {name: array for name, array in published()[0][1].items() if array.ndim < 3}
    return (*found, members(scanned), members({"params/a/b": np.ones((2, 3)), "c": np.arange(3)}))


def make(rng: Random, folder: Path) -> None:
    """An archive with faults."""
    changes.place(rng, folder / NAME, faulty_archive(rng, _seeds()), 0.005)


def read(rng: Random, folder: Path) -> None:
    """The model and a pass of it, or each array."""
    path = folder / NAME
    if rng.random() < 0.5:
        use(rng, load(path, strict=rng.random() < 0.5))
        return
    read_each(read_npz(path), strict=True)


TARGET = Target(make, read, (ValueError, OSError))
