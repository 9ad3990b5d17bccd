"""Checkpoints of a run, mostly with a right checksum, by `state.read` and `Loop.restore`, and the run that goes on."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from cvit import AdamW, ViT
from cvit.formats.checksum import BLANK, KEY
from cvit.train import state
from cvit.train.ema import EMA
from cvit.train.loop import Loop

from .. import changes
from ..containers_of import Stored, attacked, header_of, safetensors, stored
from ..models_of import models
from ..running import Target

NAMES = (state.NEWEST, state.BEFORE, state.WRITING)


def _loop() -> Loop:
    model = ViT(models()[0].config, seed=0)
    images, labels = np.zeros((4, 3, 8, 8), np.float32), np.array([0, 1, 2, 0])
    return Loop(
        model, (images, labels), (images, labels), epochs=2, batch_size=2, optimizer=AdamW(model), ema=EMA(model, 0.9),
        patience=1,
    )  # fmt: skip


@functools.cache
def _seed() -> tuple[list[Stored], dict[str, Any]]:
    loop = _loop()
    loop.epochs = 1
    loop.run()
    loop.epochs = 2
    arrays, facts = loop.state()
    return stored(arrays), json.loads(json.dumps(facts))


def make(rng: Random, folder: Path) -> None:
    """One to three files, each of them perhaps whole."""
    for name in rng.choice((NAMES[:1], NAMES[:2], NAMES[:1], NAMES)):
        tensors, facts = _seed()
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            facts = changes.changed(rng, facts)
        text = changes.json_text(rng, facts, 4000).decode("utf-8", "surrogateescape")
        metadata = {KEY: BLANK, state.FACTS_KEY: text}
        data = attacked(rng, tensors, metadata)
        if rng.random() < 0.5:
            header = json.dumps(header_of(tensors, metadata)).encode()
            data = safetensors(header, b"".join(one.data for one in tensors), sign=True)
        changes.place(rng, folder / name, data, 0.01)


def read(rng: Random, folder: Path) -> None:
    """The loop that goes on from it, now and then to its end."""
    arrays, facts, _ = state.read(folder)
    loop = _loop()
    loop.restore(arrays, facts)
    if rng.random() < 0.1:
        loop.run()


TARGET = Target(make, read, (ValueError, OSError, FloatingPointError))
