"""Folders of pictures with a folder a class, or with parts above these, by `cvit.data.find`."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from cvit.data import find

from .. import changes
from ..running import Target
from .tables import picture

FOLDERS = ("cat", "dog", "train", "val", "test", "Training", "valid", ".hidden", "__MACOSX", "\udcff", "a b", "x" * 200)
FILES = (
    "a.png", "b.PNG", "c.jpg", ".d.png", "e.txt", "f.heic", "\udcfe.png", "g\n.png", "h.png", "i.gif", "=1+2.png",
    "j.svg",
)  # fmt: skip


def make(rng: Random, folder: Path) -> None:
    """One to four folders, each with files or with folders that have some."""
    root = folder / "data"
    root.mkdir()
    split = rng.random() < 0.4
    for top in rng.sample(("train", "val", "test") if split else FOLDERS, rng.randrange(1, 4)):
        place = root / top
        if rng.random() < 0.03:
            place.symlink_to(rng.choice((".", "..", "nowhere", top)))
            continue
        place.mkdir()
        for inner in rng.sample(FOLDERS, rng.randrange(3)) if split else ("",):
            if inner and rng.random() < 0.05:
                (place / inner).symlink_to(rng.choice((".", "..", "../..", "nowhere")))
                continue
            (place / inner).mkdir(exist_ok=True)
            _fill(rng, place / inner)
    if rng.random() < 0.2:
        _fill(rng, root)


def _fill(rng: Random, folder: Path) -> None:
    for name in rng.sample(FILES, rng.randrange(5)):
        data = picture() + bytes([rng.randrange(3)])
        if rng.random() < 0.2:
            data = changes.damaged(rng, data)
        if not os.path.lexists(folder / name):
            changes.place(rng, folder / name, data, 0.03)


def read(rng: Random, folder: Path) -> None:
    """The data set."""
    find(folder / "data", strict=rng.random() < 0.2, validation=rng.choice((None, 0, 0.5)), threads=1)


TARGET = Target(make, read, (ValueError, OSError))
