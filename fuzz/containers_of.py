"""Safetensors and .npz files put together by hand, so that any part of them can be wrong and the rest right."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import zlib
from random import Random
from typing import Any, NamedTuple

import numpy as np

from cvit.formats import checksum
from cvit.formats.tensors import STORED, Tensors

from . import changes

CODES = {"float32": "F32", "float64": "F64", "float16": "F16", "bool": "BOOL", "bfloat16": "BF16"} | {
    f"{kind}int{bits}": f"{'U' if kind else 'I'}{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)
}


class Stored(NamedTuple):
    """A tensor as it lies in a file."""

    name: str
    dtype: str  # a name of CODES
    shape: tuple[int, ...]
    data: bytes


def stored(arrays: dict[str, np.ndarray]) -> list[Stored]:
    """Arrays in their order."""
    return [Stored(name, array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()]


def changed_tensors(rng: Random, tensors: list[Stored]) -> list[Stored]:
    """One tensor missing, twice, renamed, moved, of another dtype, of another shape or of other numbers."""
    if not tensors:
        return tensors
    tensors = list(tensors)
    place = rng.randrange(len(tensors))
    one, how = tensors[place], rng.randrange(9)
    if how == 0:
        del tensors[place]
    elif how == 1:
        tensors.append(one._replace(name=rng.choice(tensors).name + changes.text(rng)))
    elif how == 2:
        tensors[place] = one._replace(name=changes.near(rng, one.name))
    elif how == 3:
        rng.shuffle(tensors)
    elif how == 4:  # of all of them, which a model must have
        dtype = rng.choice(("float64", "float16", "bfloat16", "float32", "int8"))
        tensors = [_of_dtype(tensor, dtype) for tensor in tensors]
    elif how == 5:
        tensors[place] = _of_dtype(one, rng.choice(list(CODES)))
    elif how == 6:
        shape = list(one.shape)
        rng.shuffle(shape)
        if rng.random() < 0.5:
            shape.insert(rng.randrange(len(shape) + 1), 1)
        tensors[place] = one._replace(shape=tuple(shape))
    elif how == 7:
        axis = rng.randrange(len(one.shape)) if one.shape else 0
        shape = tuple(rng.choice((0, 1, n + 1, 2 * n)) if i == axis else n for i, n in enumerate(one.shape))
        size = int(np.prod(shape)) * STORED[one.dtype].itemsize
        tensors[place] = one._replace(shape=shape, data=(one.data * 3)[:size].ljust(size, b"\0"))
    else:
        tensors[place] = one._replace(data=rng.choice((b"\xff", b"\0", b"\x7f"))[:1] * len(one.data))
    return tensors


def _of_dtype(one: Stored, dtype: str) -> Stored:
    size = int(np.prod(one.shape)) * STORED[dtype].itemsize
    return one._replace(dtype=dtype, data=(one.data * 8)[:size].ljust(size, b"\0"))


def header_of(tensors: list[Stored], metadata: dict[str, Any]) -> dict[str, Any]:
    """The header's content of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    reached = 0
    for one in tensors:
        offsets = [reached, reached + len(one.data)]
        header[one.name] = {"dtype": CODES[one.dtype], "shape": list(one.shape), "data_offsets": offsets}
        reached = offsets[1]
    return header


def safetensors(text: bytes, data: bytes, *, sign: bool = False) -> bytes:
    """A file of a header's text and of data; with `sign` a blank checksum in it becomes the right one."""
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + data
    if not sign or len(checksum.PLACE.findall(whole[: 8 + len(text)])) != 1:
        return whole
    digits = checksum._digits(whole, 8 + len(text))
    start = checksum._place(whole[: 8 + len(text)])
    return whole[:start] + digits.encode() + whole[start + len(digits) :]


def attacked(rng: Random, tensors: list[Stored], metadata: dict[str, Any]) -> bytes:
    """A safetensors file with faults in its tensors, its header or its bytes, and mostly a right checksum."""
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        tensors = changed_tensors(rng, tensors)
    header = header_of(tensors, metadata)
    for _ in range(rng.choice((0, 0, 1, 2))):
        header = changes.changed(rng, header)
    text = changes.json_text(rng, header) if rng.random() < 0.3 else json.dumps(header).encode()
    data = b"".join(one.data for one in tensors)
    if rng.random() < 0.05:
        data += bytes(rng.randrange(100))
    whole = safetensors(text, data, sign=rng.random() < 0.9)
    if rng.random() < 0.1:
        whole = rng.choice((0, 1, 7, 8, 1 << 20, 1 << 32, (1 << 64) - 1)).to_bytes(8, "little") + whole[8:]
    return changes.damaged(rng, whole) if rng.random() < 0.1 else whole


# ------------------------------------------------------------------------------------------------------------ archives
FIELDS = {  # of each record of a zip archive: its mark, and places and sizes of its numbers (APPNOTE.TXT 4.3)
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\x01\x02": ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)),
    b"PK\x05\x06": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}
DESCRS = (
    "<f4",
    "<f8",
    "<f2",
    ">f4",
    "|b1",
    "<i8",
    "|u1",
    "<u2",
    "|V2",
    "|O",
    "<c8",
    "<U3",
    "|S3",
    "<f16",
    "",
    "f4",
    "<M8",
)


class Member(NamedTuple):
    """An array in an archive."""

    name: str
    descr: str
    fortran: bool
    shape: tuple[int, ...]
    data: bytes


def members(arrays: dict[str, np.ndarray]) -> list[Member]:
    """Arrays in their order."""
    return [
        Member(f"{name}.npy", a.dtype.str, False, a.shape, np.ascontiguousarray(a).tobytes())
        for name, a in arrays.items()
    ]


def npy(rng: Random, one: Member, faults: float) -> bytes:
    """An .npy file, with the probability `faults` with something wrong in its header."""
    header: dict[str, Any] = {"descr": one.descr, "fortran_order": one.fortran, "shape": one.shape}
    text = repr(header)
    version, data = 1, one.data
    if rng.random() < faults:
        how = rng.randrange(8)
        if how < 3:
            name = rng.choice(list(header))
            header[name] = rng.choice((changes.value(rng), rng.choice(DESCRS), _other_shape(rng, one.shape), True))
            text = repr(header)
        elif how == 3:
            text = changes.damaged(rng, text.encode()).decode("latin1")
        elif how == 4:
            text = rng.choice(("(" * 300, "{" * 5000, "[" * 200 + "]" * 200, "1" * 9000, "", "-" * 5000 + "1"))
        elif how == 5:
            version = rng.choice((0, 2, 3, 4))
        elif how == 6:
            data = rng.choice((b"", data[: len(data) // 2], data + b"\0", data * 3))
        else:  # a length that is not the header's
            length = rng.choice((0, 1, 60_000, 65_535))
            return b"\x93NUMPY\1\0" + struct.pack("<H", length) + text.encode("latin1", "replace") + data
    encoded = text.encode("latin1", "replace")
    width = "<H" if version == 1 else "<I"
    encoded += b" " * (-(len(encoded) + 8 + struct.calcsize(width) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack(width, len(encoded) & 0xFFFF) + encoded + data


def _other_shape(rng: Random, shape: tuple[int, ...]) -> tuple:
    new = list(shape) or [1]
    new[rng.randrange(len(new))] = rng.choice((0, 1, -1, 1 << 20, 1 << 31, 1 << 40, 1 << 62, 10**20, True, 2.0))
    return tuple(new)


def zipped(contents: list[tuple[bytes, bytes]], deflate: bool) -> bytearray:
    """A zip archive of (name, content), as `zipfile` writes one, in a tenth of its time."""
    whole, directory = bytearray(), bytearray()
    for name, content in contents:
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        packed = packer.compress(content) + packer.flush() if deflate else content
        sizes = (8 * deflate, 0, 0, zlib.crc32(content), len(packed), len(content), len(name), 0)
        directory += struct.pack("<4s4H2H3I5H2I", b"PK\1\2", 20, 20, 1 << 11, *sizes[:8], 0, 0, 0, 0, len(whole)) + name
        whole += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 1 << 11, *sizes) + name + packed
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(contents), len(contents), len(directory), len(whole), 0)
    return whole + directory + end


def archive(rng: Random, arrays: list[Member], faults: float = 0.3) -> bytes:
    """An .npz file of these arrays with faults in its arrays, its records or its bytes."""
    contents = []
    for one in arrays:
        content = npy(rng, one, faults / len(arrays))
        if rng.random() < 0.0005:  # unpacks to far more than it has
            content += bytes(rng.choice((1 << 20, 1 << 26)))
        contents.append((one.name.encode("utf-8", "replace"), content))
    data = zipped(contents, rng.random() < 0.5)
    if rng.random() < faults:
        mark = rng.choice(list(FIELDS))
        places = [found.start() for found in re.finditer(re.escape(mark), data)]
        at, (offset, size) = rng.choice(places), rng.choice(FIELDS[mark])
        old = int.from_bytes(data[at + offset : at + offset + size], "little")
        new = rng.choice(
            (old + 1, old - 1, old * 2, old ^ 1 << rng.randrange(16), int(rng.choice(changes.NUMBERS[:27])))
        )
        data[at + offset : at + offset + size] = (new & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return changes.damaged(rng, bytes(data)) if rng.random() < faults / 3 else bytes(data)


def changed_members(rng: Random, arrays: list[Member]) -> list[Member]:
    """One array missing, renamed, moved, of another dtype, or of another shape that fits its data."""
    if not arrays:
        return arrays
    arrays = list(arrays)
    place = rng.randrange(len(arrays))
    one, how = arrays[place], rng.randrange(7)
    if how == 0:
        del arrays[place]
    elif how == 1:
        name = rng.choice((changes.near(rng, one.name), rng.choice(arrays).name, "../" + one.name))
        arrays[place] = one._replace(name=name.replace("\ud800", "").replace("\udcff", "") or "x")
    elif how == 2:
        rng.shuffle(arrays)
    elif how == 3:
        descr = rng.choice(DESCRS[:9])
        size = int(np.prod(one.shape)) * np.dtype("V2" if descr == "|V2" else descr).itemsize
        arrays[place] = one._replace(descr=descr, data=(one.data * 8)[:size].ljust(size, b"\0"))
    elif how == 4:
        shape = list(one.shape)
        rng.shuffle(shape)
        shape.insert(rng.randrange(len(shape) + 1), 1)
        arrays[place] = one._replace(shape=tuple(shape), fortran=rng.random() < 0.5)
    elif how == 5:
        arrays[place] = one._replace(data=rng.choice((b"\xff", b"\0", b"\x7f")) * len(one.data))
    else:
        shape = tuple(rng.choice((n, n, 0, 1, n + 1, 2 * n)) for n in one.shape)
        size = len(one.data) // max(int(np.prod(one.shape)), 1) * int(np.prod(shape))
        arrays[place] = one._replace(shape=shape, data=(one.data * 40)[:size].ljust(size, b"\0"))
    return arrays


def faulty_archive(rng: Random, seeds: tuple[list[Member], ...]) -> bytes:
    """One of several archives, with faults in its arrays and in its bytes."""
    arrays = rng.choice(seeds)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        arrays = changed_members(rng, arrays)
    return archive(rng, arrays, rng.choice((0.1, 0.3, 0.6))) if arrays else b""


def read_each(tensors: Tensors, strict: bool) -> None:
    """All values, tensor by tensor: what one of them lacks is no reason to leave the others out."""
    for tensor in tensors.values():
        with contextlib.suppress(ValueError):
            tensor.read(strict=strict)
