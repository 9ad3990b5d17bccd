"""Which files of a model's folder are read, on the disk and on the Hub alike, and the reader of each kind."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..base.errors import check, listed
from ..base.numbers import shown
from .npz import read_npz
from .reading import read_json
from .safetensors_file import INDEX, read_safetensors, read_sharded
from .tensors import PICKLES, Tensors, refuse_pickle

WEIGHTS = "model.safetensors"
CONFIGS = ("config.json", "open_clip_config.json")  # transformers' and timm's, open_clip's; the first there is taken
PREPROCESSOR = "preprocessor_config.json"
SUFFIXES = (".safetensors", ".npz")


def choose_weights(names: Iterable[str], label: str) -> str:
    """The file that holds a folder's weights, among the names of its files.

    model.safetensors, else the index of its shards, else the only .safetensors or .npz file.

    Raises
    ------
    ValueError
        There is none, or only pickles, or several without a first choice.
    """
    names = set(names)
    for name in (WEIGHTS, INDEX):
        if name in names:
            return name
    found = [name for name in names if name.endswith(SUFFIXES)]
    if len(found) == 1:
        return found[0]
    several = f"{label} must have one file of weights, or a {WEIGHTS}, got {len(found)}: {listed(map(shown, found))}"
    check(not found, several)
    for name in sorted(names):
        if name.endswith(PICKLES) and name != "training_args.bin":
            refuse_pickle(f"{label}/{name}")
    raise ValueError(f"{label} must have a {WEIGHTS}, or one .safetensors or .npz file: it has no weights")


def choose_json(names: Iterable[str]) -> list[str]:
    """The JSON files to read beside the weights: the config and the preprocessor's, where they exist."""
    names = set(names)
    return [name for name in CONFIGS if name in names][:1] + [name for name in (PREPROCESSOR,) if name in names]


def read_tensors(path: str | os.PathLike) -> Tensors:
    """The tensors of one file: .safetensors, .npz, or the index of several (model.safetensors.index.json).

    Raises
    ------
    OSError
        What the system reports.
    ValueError
        The file is a pickle, of another kind, or damaged; the message names it.
    """
    path = Path(path)
    refuse_pickle(path)
    if path.name.endswith(".safetensors.index.json"):
        return read_sharded(path)
    readers = {".safetensors": read_safetensors, ".npz": read_npz}
    check(path.suffix in readers, f"{path} must be a .safetensors or .npz file, or a folder with one")
    return readers[path.suffix](path)


def read_beside(folder: Path) -> tuple[dict | None, dict | None]:
    """The config and the preprocessor's config that stand in a folder, None where there is none."""
    there = [name for name in (*CONFIGS, PREPROCESSOR) if (folder / name).is_file()]
    found = {name: read_json(folder / name) for name in choose_json(there)}
    preprocessor = found.pop(PREPROCESSOR, None)
    return next(iter(found.values()), None), preprocessor
