"""An .npz file as `Tensors`: a zip archive with one .npy file per array, the format of big_vision and of the first ViT.

`base/archives.py` reads the archive, and tells what no file can make it do.
"""

from __future__ import annotations

import os
from functools import partial

import numpy as np

from ..base.archives import KIND, Archive, Packed
from ..base.errors import check
from ..base.files import mapped
from ..base.numbers import shown
from .tensors import StoredTensor, Tensors

# Weights hardly compress. What unpacks to more than both is no checkpoint but a trap.
UNPACKED_BYTES, UNPACKED_RATIO = 1 << 26, 16
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
    label = str(path)
    archive = Archive(mapped(path, KIND), label, UNPACKED_BYTES, UNPACKED_RATIO)
    entries: dict[str, StoredTensor] = {}
    for member in archive.members:
        name = member.filename.removesuffix(".npy")
        check(member.filename.endswith(".npy"), f"{label}: {shown(name)} is no array: its name does not end in .npy")
        check(name not in entries, f"{label}: {shown(name)} occurs twice")
        entries[name] = _entry(label, archive.packed(member))
    return Tensors(entries, label)


def _entry(label: str, array: Packed) -> StoredTensor:
    """One array as a tensor, its sizes compared."""
    dtype = CODES.get(array.descr[1:])
    if dtype is None or array.descr[0] not in "<>|=":  # refused by name when it is read
        return StoredTensor(array.name, array.shape, array.descr, label, partial(np.empty, 0))
    stored = np.dtype("u2" if dtype == "bfloat16" else dtype).newbyteorder(">" if array.descr[0] == ">" else "<")
    array.check_size(stored, dtype)
    return StoredTensor(array.name, array.shape, dtype, label, partial(array.values, stored))
