"""Folders of timm and transformers: config.json, preprocessor_config.json and weights, by `cvit.load`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from cvit import load
from cvit.pictures.preprocessing import Preprocessing

from .. import changes
from ..containers_of import attacked, header_of, safetensors, stored
from ..models_of import published, use
from ..running import Target


@functools.cache
def _processors() -> tuple[dict[str, Any], ...]:
    settings = (
        Preprocessing(size=8), Preprocessing(size=8, resize="squash", crop=False, interpolation="bilinear"),
        Preprocessing(size=8, resize_size=10, rescale_first=True, rounding="transformers"),
    )  # fmt: skip
    return tuple(json.loads(json.dumps(one.to_hf())) for one in settings)


@functools.cache
def _seeds() -> tuple[tuple[str, dict[str, np.ndarray], dict], ...]:
    found = []
    for name, arrays, config in published():
        if name == "flax npz":
            continue
        config = json.loads(json.dumps(config))
        if name.startswith("timm"):
            config["pretrained_cfg"] = {
                **config.get("pretrained_cfg", {}), **json.loads(json.dumps(Preprocessing(size=8).to_timm()))
            }  # fmt: skip
            config["label_names"] = ["a", "b", "c"]
        found.append((name, arrays, config))
    return tuple(found)


def make(rng: Random, folder: Path) -> None:
    """Mostly the JSON is wrong; else the weights, or both."""
    name, arrays, config = rng.choice(_seeds())
    tensors = stored(arrays)
    if rng.random() < 0.4:
        data = attacked(rng, tensors, {"format": "pt"})
    else:
        data = safetensors(json.dumps(header_of(tensors, {})).encode(), b"".join(one.data for one in tensors))
    changes.place(rng, folder / "model.safetensors", data, 0.005)
    if rng.random() < 0.9:
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            config = changes.changed(rng, config)
        changes.place(rng, folder / "config.json", changes.json_text(rng, config), 0.01)
    if rng.random() < (0.1 if name.startswith("timm") else 0.6):
        processor = rng.choice(_processors())
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            processor = changes.changed(rng, processor)
        changes.place(rng, folder / "preprocessor_config.json", changes.json_text(rng, processor), 0.01)


def read(rng: Random, folder: Path) -> None:
    """The model and a pass of it."""
    options: dict[str, Any] = {"strict": rng.random() < 0.6, "mmap": rng.random() < 0.1}
    if rng.random() < 0.3:
        options |= rng.choice((dict(image_size=16), dict(classes=5), dict(channels=1), dict(num_heads=2)))
    use(rng, load(folder, **options))


TARGET = Target(make, read, (ValueError, OSError))
