"""Where weights come from: a file, a folder, or a repository of the Hugging Face Hub, all as one `Source`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import check
from ..base.numbers import shown
from .folder import SUFFIXES, choose_weights, read_beside, read_tensors
from .tensors import Tensors, refuse_pickle

PREFIX = "hf-hub:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
GIVEN = "a .safetensors or .npz file, a folder with one, or a name on the Hugging Face Hub (owner/name)"


@dataclass(frozen=True)
class Source:
    """Weights and what stands beside them.

    Attributes
    ----------
    tensors : Tensors
    metadata : dict of str to str
        Of the .safetensors file; else empty.
    config : dict or None
        config.json, of transformers or of timm (open_clip_config.json where only that exists).
    preprocessor : dict or None
        preprocessor_config.json.
    path : Path
        The file of weights that is read, or the index of its shards.
    label : str
        For messages: the path given, or owner/name@revision.
    """

    tensors: Tensors = field(repr=False)
    metadata: dict[str, str] = field(repr=False)
    config: dict | None = field(repr=False)
    preprocessor: dict | None = field(repr=False)
    path: Path
    label: str


def open_source(where: str | os.PathLike, revision: str | None = None) -> Source:
    """The weights at `where`, opened but not yet read, with the JSON files beside them.

    Parameters
    ----------
    where : str or path
        An existing .safetensors or .npz file, or an index of shards; an existing folder with model.safetensors, with
        an index, or with one file of weights; or "owner/name" on the Hub, also as "owner/name@revision" and
        "hf-hub:owner/name". A path that exists is never looked up on the Hub, and what has the prefix always is.
    revision : str, optional
        A branch, tag or commit of the Hub's repository; None: its main branch.

    Raises
    ------
    FileNotFoundError
        There is no such path, and it is no name on the Hub.
    ModuleNotFoundError
        The Hub is asked for without huggingface_hub installed.
    OSError, ValueError
        Weights, JSON or repository cannot be read; see `folder.read_tensors`, `reading.read_json` and `hub.fetch`.
    """
    text = os.fspath(where) if isinstance(where, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"where must be {GIVEN}, got {shown(where)}")
    asked = text.startswith(PREFIX) and isinstance(where, str)
    if not asked and os.path.lexists(text):
        check(revision is None, f"revision is for names on the Hub, but {text} is a path that exists here")
        return _open(Path(text), text)
    name, _, of_name = text.removeprefix(PREFIX).partition("@")
    named = isinstance(where, str) and HUB_NAME.fullmatch(name) is not None and not name.endswith(SUFFIXES)
    if not asked:
        refuse_pickle(text)
        if not named:
            raise FileNotFoundError(f"there is no file {shown(text)}; give {GIVEN}")
    check(named, f"{shown(text)} must be {PREFIX}owner/name")
    agreed = not of_name or revision in (None, of_name)
    check(agreed, f"revision must be given once, got {shown(text)} and revision={shown(revision)}")
    from .hub import fetch  # only what is on the Hub needs it

    revision = revision or of_name or None
    folder = fetch(name, revision)
    return _open(folder, name if revision is None else f"{name}@{revision}")


def _open(path: Path, label: str) -> Source:
    if path.is_dir():
        path = path / choose_weights(os.listdir(path), label)
    tensors = read_tensors(path)
    config, preprocessor = read_beside(path.parent)
    return Source(tensors, tensors.metadata, config, preprocessor, path, label)
