"""A run's folder: run.json by what resumes it, history.csv and predictions.csv by what draws them."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from pathlib import Path
from random import Random

import numpy as np

from cvit.plots import lookup
from cvit.runs.training import opened, train

from .. import changes
from ..running import Target

FILES = ("run.json", "history.csv", "predictions.csv", "model.safetensors")
DATA = "data.npz"


@functools.cache
def _seed() -> dict[str, bytes]:
    """The files of a run of one epoch, and its data."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pixels = np.arange(8 * 8 * 8, dtype=np.uint32).astype(np.uint8).reshape(8, 8, 8)
        np.savez(folder / DATA, x=pixels, y=np.arange(8) % 2)
        train(
            folder / DATA, out=folder / "run", epochs=1, width=8, depth=1, heads=2, hidden=8, patch_size=4,
            image_size=8, pictures=False,
        )  # fmt: skip
        return {name: (folder / "run" / name).read_bytes() for name in FILES} | {DATA: (folder / DATA).read_bytes()}


def make(rng: Random, folder: Path) -> None:
    """All files, of which one or two are wrong."""
    seed = _seed()
    facts = json.loads(seed["run.json"])
    facts["arguments"]["data"] = str(folder / DATA)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        facts = changes.changed(rng, facts)
    run = folder / "run"
    run.mkdir()
    (folder / DATA).write_bytes(seed[DATA])
    changes.place(rng, run / "run.json", changes.json_text(rng, facts), 0.01)
    for name in FILES[1:3]:
        data = seed[name]
        for _ in range(rng.choice((0, 1, 2))):
            data = changes.damaged(rng, data)
        if rng.random() < 0.1:
            cell = changes.text(rng).encode("utf-8", "replace")
            data = data.replace(rng.choice((b"0", b"1", b",", b"train[")), cell, rng.choice((1, -1)))
        changes.place(rng, run / name, data, 0.01)
    if rng.random() < 0.8:
        (run / FILES[3]).write_bytes(seed[FILES[3]])


def read(rng: Random, folder: Path) -> None:
    """The job that goes on, or what is drawn."""
    if rng.random() < 0.5:
        opened(None, out=folder / "run", resume=True)
        return
    found = lookup.find(folder / "run")
    with contextlib.suppress(ValueError):
        if found.history is not None:
            from cvit.plots.curves import best_epoch, columns_of

            best_epoch(columns_of(found.history))


TARGET = Target(make, read, (ValueError, OSError))
