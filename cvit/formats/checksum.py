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

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..engine.runtime import get_num_threads
from .safetensors_file import CODES, HEADER_BYTES, read_mapped
from .tensors import Tensors

KEY = "cvit.checksum"
BLANK = "0" * 32
PLACE = re.compile(rb'"cvit\.checksum"\s*:\s*"([0-9a-f]{32})"')
NUMBER = np.dtype("<u8")
ROW = 256  # numbers in a row
BLOCK = 512 * ROW * NUMBER.itemsize  # bytes of a matrix
PART = 16 * BLOCK  # bytes that one thread adds up at a time


def write_checked(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of `arrays` and `metadata` with its checksum to `path`, in place of what stands there.

    Arrays are of float64, float32, float16, bool or integers. Nothing is flushed to the disk, and what was written
    before an error stays: the caller has made a temporary file.

    Raises
    ------
    TypeError, ValueError
        An array of another dtype; names and metadata of more than 4 MB. Nothing is written then.
    OSError
        What the system reports, a full disk for instance.
    """
    stored = {name: _stored(name, array) for name, array in arrays.items()}
    names = sorted(stored, key=lambda name: -stored[name].dtype.itemsize)  # so that every array is aligned
    header, start = _header([(name, stored[name]) for name in names], metadata)
    with open(path, "w+b") as file:
        file.write(header)
        for name in names:
            file.write(stored[name].reshape(-1).view(np.uint8).data)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            digits = _digits(data, start)
        file.seek(_place(header))
        file.write(digits.encode())


def read_checked(path: str | os.PathLike) -> tuple[Tensors, bool]:
    """The tensors of a safetensors file, mapped into memory, and whether it has a checksum, which is right then.

    Raises
    ------
    OSError
        As `read_safetensors`.
    ValueError
        As `read_safetensors`, and for a file whose contents are not those that its checksum was made of.
    """
    tensors, data, start = read_mapped(path)
    said = tensors.metadata.get(KEY)
    if said is None:
        return tensors, False
    right = bool(re.fullmatch("[0-9a-f]{32}", said)) and len(PLACE.findall(data[:start])) == 1
    check(
        right and _digits(data, start) == said,
        f"{path} is damaged: its contents are not those that its checksum was made of",
    )
    return tensors, True


def _stored(name: str, array: np.ndarray) -> np.ndarray:
    """`array` as it lies in a file: little-endian, C-contiguous."""
    array = as_array(name, array)
    if array.dtype.name not in CODES:
        raise TypeError(f"{name} must be of floats, bool or integers, got {array.dtype}")
    return np.require(array, array.dtype.newbyteorder("<"), ["C_CONTIGUOUS"])


def _header(arrays: list[tuple[str, np.ndarray]], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """Length and JSON, the checksum blank, and where the data start: at a multiple of 8."""
    header: dict[str, object] = {}
    reached = 0
    for name, array in arrays:
        offsets = [reached, reached + array.nbytes]
        header[name] = {"dtype": CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        reached = offsets[1]
    # Readers count brackets before they read a header, lest it be a deep nest of them: metadata have theirs escaped.
    texts = json.dumps({KEY: BLANK, **metadata}, separators=(",", ":"))[1:-1]
    texts = texts.replace("[", "\\u005b").replace("{", "\\u007b")
    rest = json.dumps(header, separators=(",", ":"))[1:]
    text = f'{{"__metadata__":{{{texts}}}{"," if header else ""}{rest}'.encode()
    text += b" " * (-len(text) % 8)
    check(len(text) <= HEADER_BYTES, f"names and metadata must take at most {HEADER_BYTES} bytes, got {len(text)}")
    return len(text).to_bytes(8, "little") + text, 8 + len(text)


def _place(header: bytes | bytearray) -> int:
    """Where the checksum's first digit stands in a header that has one."""
    found = PLACE.search(header)
    assert found is not None
    return found.start(1)


def _digits(data: mmap.mmap, start: int) -> str:
    """The checksum of a file whose data begin at byte `start`."""
    header, size = bytearray(data[:start]), len(data)
    place = _place(header)
    header[place : place + len(BLANK)] = BLANK.encode()
    total = hashlib.blake2b(header, digest_size=len(BLANK) // 2)
    parts = [(begin, min(begin + PART, size)) for begin in range(start, size, PART)]
    threads = min(len(parts), get_num_threads())
    if threads < 2:
        for begin, end in parts:
            total.update(_sums(data, begin, end))
        return total.hexdigest()
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets other threads run while it adds up
        for sums in pool.map(lambda part: _sums(data, *part), parts):
            total.update(sums)
    return total.hexdigest()


def _sums(data: mmap.mmap, begin: int, end: int) -> bytes:
    """The sums of rows and columns of data[begin:end], and what is less than a row."""
    sums: list[bytes] = []
    for first in range(begin, end, BLOCK):
        rows = (min(first + BLOCK, end) - first) // (ROW * NUMBER.itemsize)
        if rows:
            matrix = np.frombuffer(data, NUMBER, rows * ROW, first).reshape(rows, ROW)
            sums += [matrix.sum(axis=0).tobytes(), matrix.sum(axis=1).tobytes()]
    rest = (end - begin) % (ROW * NUMBER.itemsize)
    return b"".join([*sums, data[end - rest : end]])
