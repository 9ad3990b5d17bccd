"""safetensors files with a checksum of their own contents: what is read is what was written.

The format has none: a bit that flips in a file makes another weight, and nobody notices. Here the metadata holds under
"cvit.checksum" 32 hexadecimal digits: BLAKE2b (RFC 7693) of 128 bits over the header, these digits as zeros, and over
sums of the data. For the sums each MiB of the data is a matrix of 64-bit numbers in rows of 2 KiB, of which all rows
and all columns are added up, modulo 2^64; what is left of less than a row goes in as it is. So hashing, which is slow,
sees a hundredth of the data, and adding up runs at the memory's speed.

Every change of one number changes a row's sum, so any flipped bit is found. So is any change within one row, since no
two of its numbers share a column, any two or three flipped bits, and what is cut off or exchanged. Four bits at the
corners of a rectangle, flipped in opposite directions, would be missed: this is against faults of disks, memories and
networks, not against someone who makes a file on purpose, and who could make its checksum as well.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..engine.runtime import get_num_threads
from .bfloat16 import bits_of
from .safetensors_file import CODES, HEADER_BYTES, read_mapped
from .tensors import STORED, Tensors

KEY = "cvit.checksum"
BLANK = "0" * 32
WRITTEN = {**CODES, "bfloat16": "BF16"}
PLACE = re.compile(rb'"cvit\.checksum"\s*:\s*"([0-9a-f]{32})"')
NUMBER = np.dtype("<u8")
ROW = 256  # numbers in a row
BLOCK = 512 * ROW * NUMBER.itemsize  # bytes of a matrix
PART = 16 * BLOCK  # bytes that one thread adds up at a time


def write_checked(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], *, bfloat16: bool = False
) -> None:
    """Write a safetensors file of `arrays` and `metadata` with its checksum to `path`, in place of what stands there.

    Arrays are of float64, float32, float16, bool or integers; with `bfloat16` those of float64 and float32 are rounded
    to that. Nothing is flushed to the disk, and what was written before an error stays: the caller has made a temporary
    file.

    Raises
    ------
    TypeError, ValueError
        An array of another dtype; names and metadata of more than 4 MB. Nothing is written then.
    OSError
        What the system reports, a full disk for instance.
    """
    header, stored = _prepared(arrays, {KEY: BLANK, **metadata}, bfloat16)
    start = len(header)
    with open(path, "w+b") as file:
        _write(file, header, stored)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            digits = _digits(data, start)
        file.seek(_place(header))
        file.write(digits.encode())


def write_plain(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], *, bfloat16: bool = False
) -> None:
    """As `write_checked`, without a checksum: a file of another library's model."""
    header, stored = _prepared(arrays, metadata, bfloat16)
    with open(path, "wb") as file:
        _write(file, header, stored)


class Checked:
    """A safetensors file, mapped into memory, and its checksum if it has one.

    Attributes
    ----------
    tensors : Tensors
    has_checksum : bool
    order : list of str
        The tensors' names as their data follow each other.
    """

    def __init__(self, path: str | os.PathLike):
        """OSError and ValueError as `read_safetensors`. The contents are looked at by `verify`."""
        self._path = path
        self.tensors, self._data, self._start, self.order = read_mapped(path)
        self.has_checksum = KEY in self.tensors.metadata

    def mapped(self, dtype: np.dtype) -> np.ndarray | None:
        """All data as a read-only vector of `dtype` that lies in the map, None where they do not begin at a multiple of
        its size."""
        if self._start % dtype.itemsize:
            return None
        return np.frombuffer(self._data, dtype, offset=self._start)

    def verify(self, target: np.ndarray | None = None) -> None:
        """Raise a `ValueError` that names the file unless its contents are those that its checksum was made of.

        Into `target`, a vector of uint8 as long as the data, these are copied on the way, while they are in the cache.
        """
        said = self.tensors.metadata.get(KEY, "")
        right = re.fullmatch("[0-9a-f]{32}", said) and len(PLACE.findall(self._data[: self._start])) == 1
        check(
            bool(right) and _digits(self._data, self._start, target) == said,
            f"{self._path} is damaged: its contents are not those that its checksum was made of",
        )


def read_checked(path: str | os.PathLike) -> tuple[Tensors, bool]:
    """The tensors of a safetensors file, mapped into memory, and whether it has a checksum, which is right then.

    Raises
    ------
    OSError, ValueError
        As `read_safetensors`, and as `Checked.verify`.
    """
    file = Checked(path)
    if file.has_checksum:
        file.verify()
    return file.tensors, file.has_checksum


class _Stored(NamedTuple):
    """An array and the dtype that it has in a file, by its name in `STORED`."""

    array: np.ndarray
    dtype: str

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return STORED[self.dtype].itemsize

    def data(self) -> memoryview:
        """The bytes in a file: little-endian, C-contiguous."""
        if self.dtype == "bfloat16":
            values = bits_of(self.array)
        else:
            values = np.require(self.array, STORED[self.dtype], ["C_CONTIGUOUS"])
        return values.reshape(-1).view(np.uint8).data


def _stored(name: str, array: np.ndarray, bfloat16: bool) -> _Stored:
    array = as_array(name, array)
    if array.dtype.name not in CODES:
        raise TypeError(f"{name} must be of floats, bool or integers, got {array.dtype}")
    narrow = bfloat16 and array.dtype.name in ("float32", "float64")
    return _Stored(array, "bfloat16" if narrow else array.dtype.name)


def _prepared(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], bfloat16: bool
) -> tuple[bytes, list[_Stored]]:
    """A file's header, and its arrays in their order."""
    stored = {name: _stored(name, array, bfloat16) for name, array in arrays.items()}
    names = sorted(stored, key=lambda name: -stored[name].size)  # so that every array is aligned
    return _header([(name, stored[name]) for name in names], metadata), [stored[name] for name in names]


def _write(file, header: bytes, stored: list[_Stored]) -> None:
    file.write(header)
    for one in stored:
        file.write(one.data())


def _header(arrays: list[tuple[str, _Stored]], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, of a multiple of 8 bytes."""
    header: dict[str, object] = {}
    reached = 0
    for name, (array, dtype) in arrays:
        offsets = [reached, reached + array.size * STORED[dtype].itemsize]
        header[name] = {"dtype": WRITTEN[dtype], "shape": list(array.shape), "data_offsets": offsets}
        reached = offsets[1]
    # Readers count brackets before they read a header, lest it be a deep nest of them: metadata have theirs escaped.
    texts = json.dumps(dict(metadata), separators=(",", ":"))[1:-1]
    texts = texts.replace("[", "\\u005b").replace("{", "\\u007b")
    rest = json.dumps(header, separators=(",", ":"))[1:]
    text = f'{{"__metadata__":{{{texts}}}{"," if header else ""}{rest}'.encode()
    text += b" " * (-len(text) % 8)
    check(len(text) <= HEADER_BYTES, f"names and metadata must take at most {HEADER_BYTES} bytes, got {len(text)}")
    return len(text).to_bytes(8, "little") + text


def _place(header: bytes | bytearray) -> int:
    """Where the checksum's first digit stands in a header that has one."""
    found = PLACE.search(header)
    assert found is not None
    return found.start(1)


def _digits(data: mmap.mmap, start: int, target: np.ndarray | None = None) -> str:
    """The checksum of a file whose data begin at byte `start`; the data are copied to `target`."""
    header = bytearray(data[:start])
    place = _place(header)
    header[place : place + len(BLANK)] = BLANK.encode()
    total = hashlib.blake2b(header, digest_size=len(BLANK) // 2)
    values = np.frombuffer(data, np.uint8, len(data) - start, start)
    parts = [slice(begin, begin + PART) for begin in range(0, len(values), PART)]
    threads = min(len(parts), get_num_threads())
    if threads < 2:
        for part in parts:
            total.update(_sums(values, part, target))
        return total.hexdigest()
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets other threads run while it adds up and copies
        for sums in pool.map(lambda part: _sums(values, part, target), parts):
            total.update(sums)
    return total.hexdigest()


def _sums(values: np.ndarray, part: slice, target: np.ndarray | None) -> bytes:
    """The sums of rows and columns of a part of `values`, bytes, and what is less than a row; copies it to `target`."""
    sums: list[bytes] = []
    width = ROW * NUMBER.itemsize
    for first in range(part.start, min(part.stop, len(values)), BLOCK):
        block = values[first : first + BLOCK]
        rows = len(block) // width
        matrix = block[: rows * width].view(NUMBER).reshape(rows, ROW)
        sums += [matrix.sum(axis=0).tobytes(), matrix.sum(axis=1).tobytes(), block[rows * width :].tobytes()]
        if target is not None:
            target[first : first + BLOCK] = block
    return b"".join(sums)
