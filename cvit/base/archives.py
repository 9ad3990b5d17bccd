"""The arrays of an .npz file, a zip archive with one .npy file each, where strangers may have written it.

Never a pickle: an array of objects is refused. Sizes stand in three places, the archive's directory, the .npy header
and the data; they are compared before an array is made, and what an archive may unpack to is limited by its own size.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import lzma
import mmap
import struct
import zipfile
import zlib

import numpy as np

from .arrays import check_shape
from .errors import check, short
from .numbers import shown

DIRECTORY_BYTES, MEMBERS = 2_000_000, 10_000  # a vision transformer has some hundred tensors
MAGIC = b"\x93NUMPY"
NPY_HEADER_BYTES = 10_000  # NumPy's own limit
PIECE = 1 << 20
KIND = "an .npz file"
# What Python raises on a zip archive that is damaged or says something impossible.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # zipfile's answer to a compression method that it does not know
    RuntimeError,  # and to an encrypted member
    ValueError,
    OverflowError,
    OSError,
)


@dataclasses.dataclass(frozen=True)
class Packed:
    """One array of an archive, whose .npy header was read.

    Attributes
    ----------
    name : str
        Without ".npy".
    descr : str
        The dtype as it stands there, "<f4" for instance: any text of two characters or more that is not an object's.
    shape : tuple of int
    """

    name: str
    descr: str
    shape: tuple[int, ...]
    _fortran: bool
    _start: int  # bytes of the .npy header
    _archive: Archive
    _member: zipfile.ZipInfo

    def check_size(self, dtype: np.dtype, what: object) -> None:
        """Raise unless the archive has as many bytes as this shape takes of `dtype`, called `what`."""
        count = 1
        for extent in self.shape:
            count *= extent
        wanted, got = self._start + count * dtype.itemsize, self._member.file_size
        check(
            wanted == got,
            f"{self._archive.label}: {shown(self.name)} must have {wanted} bytes, as {what} of shape "
            f"{shown(self.shape)}, got {got}",
        )

    def values(self, dtype: np.dtype) -> np.ndarray:
        """The data, whose size was checked, unpacked into memory of their own."""
        data = np.empty(self._member.file_size - self._start, np.uint8)
        view, filled = data.data, 0
        try:
            with self._archive.zip.open(self._member) as file:
                file.read(self._start)
                while filled < len(data):
                    got = file.readinto(view[filled : filled + PIECE])  # type: ignore[attr-defined]
                    check(got > 0, f"it ends after {filled} of {len(data)} bytes")
                    filled += got
                file.read(1)  # the end of the data, where the checksum is compared
        except DAMAGED as error:
            text = f"{self._archive.label}: {shown(self.name)} is damaged: {short(error, 200)}"
            raise ValueError(text) from None
        array = data != 0 if dtype == np.bool_ else data.view(dtype)
        return array.reshape(self.shape[::-1]).T if self._fortran else array.reshape(self.shape)


class Archive:
    """An .npz file's directory, read; what is in the members is read when `packed` or `values` ask for it.

    Attributes
    ----------
    label : str
        The file, for messages.
    members : list of zipfile.ZipInfo
    most : int
        Bytes that it may unpack to.
    """

    def __init__(self, data: mmap.mmap, label: str, most_bytes: int, most_ratio: int):
        """`data` are the file's bytes; it may unpack to `most_bytes`, or to `most_ratio` times its own size.

        Raises `ValueError`, naming the file, if it is no archive or would unpack to more.
        """
        window = _Window(data)
        try:
            self.zip = zipfile.ZipFile(window)
        except DAMAGED as error:
            raise ValueError(f"{label} is not {KIND}: {short(error, 200)}") from None
        window.most = None
        self.label, self.size, self.members = label, window.size, self.zip.infolist()
        count = len(self.members)
        check(count <= MEMBERS, f"{label} has {count} members, more than the {MEMBERS} allowed")
        total, self.most = sum(member.file_size for member in self.members), max(most_bytes, most_ratio * self.size)
        check(
            total <= self.most,
            f"{label} of {self.size} bytes would unpack to {total}, more than the {self.most} allowed",
        )

    def packed(self, member: zipfile.ZipInfo) -> Packed:
        """One array: its .npy header read. A `ValueError` names the file and the array."""
        name, size = member.filename.removesuffix(".npy"), member.compress_size
        label = f"{self.label}: {shown(name)}"
        right = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not member.flag_bits & 1
        check(right, f"{label} must be stored or deflated, without encryption")
        fits = size <= self.size and (member.compress_type == zipfile.ZIP_DEFLATED or size == member.file_size)
        check(fits, f"{label} says that it has {member.file_size} bytes, of which {size} are in the file")
        try:
            with self.zip.open(member) as file:
                descr, fortran, shape, start = _npy_header(file)
        except DAMAGED as error:
            raise ValueError(f"{label} is no array: {short(error, 200)}") from None
        shape = check_shape(shape, self.label, name)
        check(descr.lstrip("<>|=")[:1] != "O", f"{label} is an array of objects, a pickle, and never opened")
        return Packed(name, descr, shape, fortran, start, self, member)


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
