"""Texts of JSON that say what a model, its pictures or a run is."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

from cvit import ViTConfig
from cvit.data import Augmentation
from cvit.formats.reading import JSON_BYTES, read_json
from cvit.model import config_format
from cvit.model.origin import Origin
from cvit.pictures.preprocessing import Preprocessing
from cvit.runs.recipe import Recipe

from .. import changes
from ..models_of import models
from ..running import Target

NAME = "x.json"


def _of_fields(kind) -> Any:
    """The reader of a kind that takes a dict, for a text."""

    def read(text: str) -> None:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(fields, dict):  # what the callers have made sure of
            kind(fields)

    return read


@functools.cache
def _seeds() -> tuple[tuple[Any, Any], ...]:
    """(reader of a text, JSON that it takes)."""
    configs = [json.loads(model.config.to_json()) for model in models()]
    old = {**json.loads(json.dumps(config_format.DEFAULTS[1])), "gelu": "erf"}
    hows = (Preprocessing(size=8), Preprocessing(size=8, mean=(0.5,), std=(0.5,), keep=(4, 8)))
    found: list[tuple[Any, Any]] = [(ViTConfig.from_json, fields) for fields in (*configs, old)]
    for how in hows:
        found.append((Preprocessing.from_json, json.loads(how.to_json())))
        found.append((_of_fields(Preprocessing.from_hf), json.loads(json.dumps(how.to_hf()))))
        found.append((_of_fields(Preprocessing.from_timm), json.loads(json.dumps(how.to_timm()))))
    found.append((Origin.from_json, json.loads(Origin("timm", ("packed",)).to_json())))
    for augmentation in (Augmentation(), Augmentation.none()):
        found.append((_of_fields(Augmentation.from_json), json.loads(json.dumps(augmentation.to_json()))))
        recipe = json.loads(json.dumps(Recipe(augmentation=augmentation).to_json()))
        found.append((_of_fields(Recipe.from_json), recipe))
    return tuple(found)


def make(rng: Random, folder: Path) -> None:
    """One text, and the number of what reads it."""
    number = rng.randrange(len(_seeds()) + 1)
    tree = rng.choice(_seeds())[1] if number == len(_seeds()) else _seeds()[number][1]
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = changes.changed(rng, tree)
    most = 3 * JSON_BYTES if number == len(_seeds()) else JSON_BYTES  # what a file's reader hands on
    room = most if rng.random() < 0.0005 else 50_000
    changes.place(rng, folder / NAME, changes.json_text(rng, tree, room), 0.002)
    (folder / "number").write_text(str(number))


def read(rng: Random, folder: Path) -> None:
    """The text by its reader, or as a file of JSON."""
    number = int((folder / "number").read_text())
    if number == len(_seeds()):
        read_json(folder / NAME)
    elif (folder / NAME).is_file():
        _seeds()[number][0]((folder / NAME).read_bytes().decode("utf-8", "surrogateescape"))


TARGET = Target(make, read, (ValueError, OSError))
