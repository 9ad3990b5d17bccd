"""A .safetensors file, or a folder of them with an index, as `Tensors`. Only the headers are read on opening.

A file is the header's length (8 bytes, little-endian), the header (JSON) and the data:

    {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [3, 4], "data_offsets": [begin, end]}, ...}

Offsets count from the first byte of the data. The tensors must tile the data, without a hole, an overlap or a rest, so
that no byte is read twice and nothing is hidden between them.
"""

from __future__ import annotations

import mmap
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base.arrays import check_shape
from ..base.errors import check, listed
from ..base.files import mapped
from ..base.numbers import shown
from .reading import json_object, read_json
from .tensors import STORED, StoredTensor, Tensors

HEADER_BYTES = 4_000_000  # some 40,000 tensors; a vision transformer's header has a hundredth of it
INDEX = "model.safetensors.index.json"
NAMES = {  # the format's dtypes
    "F32": "float32",
    "F64": "float64",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
CODES = {name: code for code, name in NAMES.items() if name != "bfloat16"}  # of NumPy's dtypes, by their names
# Those that are refused when they are read, not before: others of the file may be all that is wanted. With bytes each.
UNREAD = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "C64": 8}
KEYS = {"dtype", "shape", "data_offsets"}
KIND = "a safetensors file"


def read_safetensors(path: str | os.PathLike) -> Tensors:
    """The tensors of a .safetensors file, mapped into memory.

    Raises
    ------
    OSError
        What the system reports: the file is missing, or may not be read.
    ValueError
        The file is damaged or says something impossible. Names the file, and the tensor if it is one's.
    """
    return read_mapped(path).tensors


class Mapped(NamedTuple):
    """A file of this format."""

    tensors: Tensors
    data: mmap.mmap  # all of its bytes
    start: int  # where in them the tensors' data begin
    order: list[str]  # the names as their data follow each other


def read_mapped(path: str | os.PathLike) -> Mapped:
    """As `read_safetensors`, with the file's bytes."""
    label, data = str(path), mapped(path, KIND)
    check(len(data) >= 8, f"{label} is not {KIND}: it has only {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    room = min(len(data) - 8, HEADER_BYTES)
    check(length <= room, f"{label} is not {KIND}: its header should have {length} bytes, more than the {room} allowed")
    text = data[8 : 8 + length]
    brackets = text.count(b"[") + text.count(b"{")  # a tensor has three, in 45 bytes or more
    check(brackets <= length // 10 + 10, f"{label} is not {KIND}: its header has {brackets} brackets in {length} bytes")
    header = json_object(text, f"{label} is not {KIND}, or its header is damaged")
    metadata = header.pop("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    check(texts, f"{label}: __metadata__ must map texts to texts, got {shown(metadata)}")
    start = 8 + length
    spans, entries = [], {}
    for name, entry in header.items():
        begin, end, entries[name] = _entry(label, data, start, name, entry)
        spans.append((begin, end, name))
    _check_tiling(label, spans, len(data) - start)
    return Mapped(Tensors(entries, label, metadata), data, start, [name for _, _, name in sorted(spans)])


def _entry(label: str, data: mmap.mmap, start: int, name: str, entry: object) -> tuple[int, int, StoredTensor]:
    """One tensor with its first byte and the one after its last, checked against the data's size."""
    if not isinstance(entry, dict) or entry.keys() != KEYS:
        got = listed(map(shown, entry), 4) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{label}: {shown(name)} must have dtype, shape and data_offsets, got {got}")
    code, offsets = entry["dtype"], entry["data_offsets"]
    known = isinstance(code, str) and (code in NAMES or code in UNREAD)
    check(known, f"{label}: {shown(name)} is of a dtype that is not known here: {shown(code)}")
    shape = check_shape(entry["shape"], label, name)
    right = isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)
    check(right, f"{label}: {shown(name)} must have two data_offsets, got {shown(offsets)}")
    begin, end = offsets
    room = len(data) - start
    inside = 0 <= begin <= end <= room
    check(
        inside,
        f"{label}: {shown(name)} must lie within the {room} bytes of data, got data_offsets {shown(offsets)}; "
        "the file may be cut off",
    )
    count = 1
    for extent in shape:
        count *= extent
    dtype: str = NAMES.get(code, code)  # type: ignore[assignment]
    wanted = count * (STORED[dtype].itemsize if dtype in STORED else UNREAD[code])
    check(
        end - begin == wanted,
        f"{label}: {shown(name)} must have {wanted} bytes, as {code} of shape {shown(shape)}, got {end - begin}",
    )
    return begin, end, StoredTensor(name, shape, dtype, label, partial(_view, data, dtype, count, start + begin))


def _view(data: mmap.mmap, dtype: str, count: int, offset: int) -> np.ndarray:
    if count == 0:
        return np.empty(0, STORED[dtype])
    if dtype == "bool":  # in a file a true one may be any byte but 0, in NumPy it may not
        return np.frombuffer(data, np.uint8, count, offset) != 0
    return np.frombuffer(data, STORED[dtype], count, offset)


def _check_tiling(label: str, spans: list[tuple[int, int, str]], size: int) -> None:
    reached, last = 0, "the header"
    for begin, end, name in sorted(spans):
        check(begin >= reached, f"{label}: {shown(name)} overlaps {shown(last)}")
        check(begin <= reached, f"{label}: {begin - reached} bytes before {shown(name)} belong to no tensor")
        reached, last = end, name
    check(reached == size, f"{label}: {size - reached} bytes after the last tensor belong to none")


def shards_of(index: dict, label: str) -> dict[str, str]:
    """The weight_map of an index: from each tensor's name to the file that holds it, a plain .safetensors name.

    A path, which could lead out of the folder, is a `ValueError`.
    """
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{label}: weight_map must map tensors to files, got {shown(shards)}")
    for name, file in shards.items():
        plain = isinstance(file, str) and file.endswith(".safetensors") and not set(file) & set("/\\\0")
        check(plain, f"{label}: {shown(name)} must be in a .safetensors file beside the index, got {shown(file)}")
    return shards


def read_sharded(path: str | os.PathLike) -> Tensors:
    """The tensors that an index (model.safetensors.index.json) finds in the .safetensors files beside it.

    Raises
    ------
    OSError
        What the system reports for the index or for a file of it; FileNotFoundError names all that are missing.
    ValueError
        As `read_safetensors`, and for a tensor that is not where the index says. A tensor that the index leaves out is
        left out.
    """
    path, label = Path(path), str(path)
    shards = shards_of(read_json(path), label)
    files = sorted(set(shards.values()))
    missing = [file for file in files if not (path.parent / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"{label}: {len(missing)} of its {len(files)} files are missing: {listed(map(shown, missing))}"
        )
    opened = {file: read_safetensors(path.parent / file) for file in files}
    absent = [name for name, file in shards.items() if name not in opened[file]]
    check(
        not absent,
        f"{label}: {len(absent)} tensors are not in the files that it names: {listed(map(shown, absent), 3)}",
    )
    metadata = opened[files[0]].metadata
    return Tensors({name: opened[file][name] for name, file in shards.items()}, label, metadata)
