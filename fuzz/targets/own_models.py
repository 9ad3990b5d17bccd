"""cvit's own model files of every format, mostly with a right checksum, by `cvit.load`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

from cvit import load
from cvit.formats import checkpoint
from cvit.formats.checksum import BLANK, KEY
from cvit.model import config_format

from .. import changes
from ..containers_of import Stored, attacked, stored
from ..models_of import models, use
from ..running import Target

NAME = "x.safetensors"


@functools.cache
def _seeds() -> tuple[tuple[list[Stored], dict[str, str]], ...]:
    """Tensors and metadata: each model in today's format, and the plain ones in the formats before."""
    seeds = []
    for model in models():
        tensors = stored(model.layout.views(model.weights))
        notes = checkpoint.notes_of(model)
        seeds.append((tensors, {KEY: BLANK, **notes}))
        fields = json.loads(notes[checkpoint.CONFIG_KEY])
        for number in (3, 2, 1):
            known = config_format.DEFAULTS[number]
            old = {name: value for name, value in fields.items() if name in known} | {"format": number}
            if number == 1:
                old = {**old, "gelu": "tanh"}
                del old["format"]
            if all(fields.get(name) == value for name, value in _later(known).items()):
                seeds.append((tensors, {**notes, checkpoint.CONFIG_KEY: json.dumps(old)}))
    return tuple(seeds)


def _later(known: dict[str, Any]) -> dict[str, Any]:
    """The fields that a format lacks, at the values that they had."""
    today = json.loads(json.dumps(config_format.DEFAULTS[config_format.FORMAT]))
    return {name: value for name, value in today.items() if name not in known and name != "activation"}


def make(rng: Random, folder: Path) -> None:
    """A file, some of whose texts of JSON are changed."""
    tensors, metadata = rng.choice(_seeds())
    metadata = dict(metadata)
    if rng.random() < 0.7:
        key = rng.choice([key for key in metadata if key != KEY])
        try:
            inner = json.loads(metadata[key])
        except ValueError:  # the precision, a word
            inner = metadata[key]
        for _ in range(rng.choice((1, 1, 2, 3))):
            inner = changes.changed(rng, inner)
        metadata[key] = changes.json_text(rng, inner, 4000).decode("utf-8", "surrogateescape")
    if rng.random() < 0.1:
        metadata[checkpoint.PRECISION_KEY] = rng.choice(("f32", "f64", "bf16", "bf16-fast", "auto", changes.text(rng)))
    changes.place(rng, folder / NAME, attacked(rng, tensors, metadata), 0.005)


def read(rng: Random, folder: Path) -> None:
    """The model, its notes, and a pass of it."""
    path = folder / NAME if rng.random() < 0.8 else folder
    options: dict[str, Any] = {"mmap": rng.random() < 0.3}
    if rng.random() < 0.2:
        options |= rng.choice((
            dict(image_size=12), dict(classes=5), dict(channels=1), dict(num_heads=2), dict(precision="f64"),
            dict(precision="bf16"), dict(dtype="float64"), dict(strict=False),
        ))  # fmt: skip
    model = load(path, **options)
    if path != folder:
        checkpoint.read_metadata(path)
    use(rng, model)


TARGET = Target(make, read, (ValueError, OSError))
