"""An .npz file as `Tensors`: a zip archive with one .npy file per array, the format of big_vision and of the first ViT.

Never a pickle: an array of objects is refused. Sizes stand in three places, the archive's directory, the .npy header
and the data; they are compared before an array is made, and what an archive may unpack to is limited by its own size.
"""

from __future__ import annotations

import ast
import io
import mmap
import os
import zipfile
from functools import partial

import numpy as np

from ..base import archives
from ..base.errors import check, short
from ..base.numbers import shown
from .reading import mapped
from .tensors import StoredTensor, Tensors, check_shape

DIRECTORY_BYTES, MEMBERS = 2_000_000, 10_000  # a vision transformer has some hundred tensors
MAGIC = b"\x93NUMPY"
NPY_HEADER_BYTES = 10_000  # NumPy's own limit
# Weights hardly compress. What unpacks to more than both is no checkpoint but a trap.
UNPACKED_BYTES, UNPACKED_RATIO = 1 << 26, 16
PIECE = 1 << 20
KIND = "an .npz file"
DAMAGED = (*archives.DAMAGED, OSError)
CODES = {  # the descr of an .npy file, without the byte order; 2 bytes without a meaning are bfloat16, as JAX saves it
    "f4": "float32",
    "f8": "float64",
    "f2": "float16",
    "b1": "bool",
    "V2": "bfloat16",
    **{f"{kind}{size}": f"{name}{8 * size}" for kind, name in (("i", "int"), ("u", "uint")) for size in (1, 2, 4, 8)},
}


def read_npz(path: str | os.PathLike) -> Tensors:
    """The tensors of an .npz file, by their names without ".npy"; those of big_vision have slashes in them.

    Only the headers are read on opening; `StoredTensor.read` unpacks a tensor, and checks its checksum.

    Raises
    ------
    OSError
        What the system reports: the file is missing, or may not be read.
    ValueError
        The file is damaged, has an array of objects, or would unpack to more than `UNPACKED_BYTES` and
        `UNPACKED_RATIO` times its own size. Names the file, and the array if it is one's.
    """
    label, window = str(path), _Window(mapped(path, KIND))
    try:
        archive = zipfile.ZipFile(window)
    except DAMAGED as error:
        raise ValueError(f"{label} is not {KIND}: {short(error, 200)}") from None
    window.most = None
    members = archive.infolist()
    check(len(members) <= MEMBERS, f"{label} has {len(members)} members, more than the {MEMBERS} allowed")
    total = sum(member.file_size for member in members)
    most = max(UNPACKED_BYTES, UNPACKED_RATIO * window.size)
    check(total <= most, f"{label} of {window.size} bytes would unpack to {total}, more than the {most} allowed")
    entries: dict[str, StoredTensor] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        check(member.filename.endswith(".npy"), f"{label}: {shown(name)} is no array: its name does not end in .npy")
        check(name not in entries, f"{label}: {shown(name)} occurs twice")
        entries[name] = _entry(label, archive, member, name, window.size)
    return Tensors(entries, label)


def _entry(label: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, room: int) -> StoredTensor:
    """One array: its .npy header read, and its sizes compared."""
    packed = member.compress_size
    right = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not member.flag_bits & 1
    check(right, f"{label}: {shown(name)} must be stored or deflated, without encryption")
    fits = packed <= room and (member.compress_type == zipfile.ZIP_DEFLATED or packed == member.file_size)
    check(fits, f"{label}: {shown(name)} says that it has {member.file_size} bytes, of which {packed} are in the file")
    try:
        with archive.open(member) as file:
            descr, fortran, shape, start = _npy_header(file)
    except DAMAGED as error:
        raise ValueError(f"{label}: {shown(name)} is no array: {short(error, 200)}") from None
    shape = check_shape(shape, label, name)
    check(descr.lstrip("<>|=") != "O", f"{label}: {shown(name)} is an array of objects, a pickle, and never opened")
    dtype = CODES.get(descr[1:])
    if dtype is None or descr[0] not in "<>|=":  # refused by name when it is read
        return StoredTensor(name, shape, descr, label, partial(np.empty, 0))
    stored = np.dtype("u2" if dtype == "bfloat16" else dtype).newbyteorder(">" if descr[0] == ">" else "<")
    count = 1
    for extent in shape:
        count *= extent
    wanted = start + count * stored.itemsize
    check(
        wanted == member.file_size,
        f"{label}: {shown(name)} must have {wanted} bytes, as {dtype} of shape {shown(shape)}, got {member.file_size}",
    )
    values = partial(_values, label, archive, member, start, stored, shape, fortran)
    return StoredTensor(name, shape, dtype, label, values)


def _npy_header(file) -> tuple[str, bool, object, int]:
    """The dtype's text, whether the first axis runs fastest, the shape as it stands there, and the header's length.

    NumPy's own reader would believe any length: a packed header of 4 GB takes 4 MB.
    """
    start = file.read(8)
    check(start[:6] == MAGIC and len(start) == 8, "it has no .npy header")
    check(start[6] in (1, 2, 3), f"its .npy header is of version {start[6]}, not 1 to 3")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    check(length <= NPY_HEADER_BYTES, f"its .npy header should have {length} bytes")
    text = file.read(length)
    check(len(text) == length, "its .npy header is cut off")
    try:
        header = ast.literal_eval(text.decode("utf-8" if start[6] == 3 else "latin1").strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all that literal_eval may say of a text
        raise ValueError(f"its .npy header cannot be read: {shown(text)}") from None
    keys = {"descr", "fortran_order", "shape"}
    check(isinstance(header, dict) and header.keys() == keys, f"its .npy header must have {sorted(keys)}")
    descr, fortran = header["descr"], header["fortran_order"]
    check(isinstance(descr, str) and len(descr) > 1, f"its dtype is {shown(descr)}")
    check(isinstance(fortran, bool), f"its fortran_order is {shown(fortran)}")
    return descr, fortran, header["shape"], 8 + width + length


def _values(label, archive, member, start, stored, shape, fortran) -> np.ndarray:
    """A member's data after its .npy header, unpacked into memory of the size that was checked."""
    data = np.empty(member.file_size - start, np.uint8)
    view, filled = data.data, 0
    try:
        with archive.open(member) as file:
            file.read(start)
            while filled < len(data):
                got = file.readinto(view[filled : filled + PIECE])
                check(got > 0, f"it ends after {filled} of {len(data)} bytes")
                filled += got
            file.read(1)  # the end of the data, where the checksum is compared
    except DAMAGED as error:
        name = member.filename.removesuffix(".npy")
        raise ValueError(f"{label}: {shown(name)} is damaged: {short(error, 200)}") from None
    array = data != 0 if stored == np.bool_ else data.view(stored)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


class _Window(io.RawIOBase):
    """A map as the file that `zipfile` wants. Until `most` is None, no single read may be larger than that.

    The archive's directory is read in one piece, of the length that the archive states.
    """

    def __init__(self, data: mmap.mmap):
        self.data, self.size, self.position = data, len(data), 0
        self.most: int | None = DIRECTORY_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError(22, "Invalid argument")  # as a file says it; zipfile expects it of a small one
        self.position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        wanted = max(self.size - self.position, 0) if size is None or size < 0 else size
        check(self.most is None or wanted <= self.most, f"its directory should have {wanted} bytes")
        piece = self.data[self.position : self.position + wanted]
        self.position += len(piece)
        return piece
