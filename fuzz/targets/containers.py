"""Safetensors files of any content, and indexes of several, as `Tensors`: every tensor is read."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random

import numpy as np

from cvit.formats.folder import read_tensors

from .. import changes
from ..containers_of import Stored, attacked, header_of, read_each, safetensors, stored
from ..running import Target

INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt", "a": "b"}


@functools.cache
def _seeds() -> tuple[list[Stored], ...]:
    kinds = ("float32", "float64", "float16", "bool", "int8", "int64", "uint16", "uint32")
    many = {f"t.{kind}": np.ones((2, 3), kind) for kind in kinds}
    many |= {"scalar": np.ones(()), "empty": np.ones((0, 4), np.float32)}
    bf16 = Stored("half", "bfloat16", (2, 2), b"\x80\x3f" * 4)
    return [*stored(many), bf16], stored({"a": np.arange(6, dtype=np.float32)}), []


def make(rng: Random, folder: Path) -> None:
    """One file, or an index with two."""
    if rng.random() < 0.7:
        changes.place(rng, folder / "x.safetensors", attacked(rng, rng.choice(_seeds()), rng.choice((METADATA, {}))))
        return
    names = ("a-1.safetensors", "a-2.safetensors")
    weight_map = {}
    for name, tensors in zip(names, _seeds()):
        data = attacked(rng, tensors, METADATA) if rng.random() < 0.3 else _plain(tensors)
        changes.place(rng, folder / name, data, 0.05)
        weight_map |= {one.name: name for one in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    for _ in range(rng.choice((0, 1, 1, 2))):
        index = changes.changed(rng, index)
    if rng.random() < 0.1 and isinstance(index, dict) and isinstance(index.get("weight_map"), dict):
        file = rng.choice(("../a-1.safetensors", "/dev/zero", "/etc/x.safetensors", "..", "a\0.safetensors", INDEX))
        index["weight_map"]["half"] = file
    changes.place(rng, folder / INDEX, changes.json_text(rng, index))


def _plain(tensors: list[Stored]) -> bytes:
    return safetensors(json.dumps(header_of(tensors, METADATA)).encode(), b"".join(one.data for one in tensors))


def read(rng: Random, folder: Path) -> None:
    """All tensors of it, one after the other."""
    path = folder / INDEX if (folder / INDEX).exists() or (folder / INDEX).is_symlink() else folder / "x.safetensors"
    strict = rng.random() < 0.5
    read_each(read_tensors(path), strict)


TARGET = Target(make, read, (ValueError, OSError))
