"""Files of features, .npz, .npy or .csv, that are written row by row: the memory does not depend on their length.

NumPy's formats begin with the number of rows, which is known at the end. So the rows go to a file without a name first,
in the folder of the result, and are copied behind their head then.
"""

from __future__ import annotations

import contextlib
import csv
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.files import replacing

Write = Callable[[list[str], object], None]  # names, and their features as an array (n, D)


def writer_for(path: Path) -> contextlib.AbstractContextManager[Write]:
    """A context that gives `write(names, features)`; at its end the file stands at `path`, after an error it does not.

    Raises `ValueError` at once for a name whose ending is none of the three.
    """
    kinds = {".npz": _npz, ".npy": _npy, ".csv": _csv}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"--out must end in .npz, .npy or .csv, got {path.name!r}")
    return kind(path)


@contextlib.contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with replacing(path) as temporary, open(temporary, "w", newline="", errors="surrogateescape") as file:
        rows = csv.writer(file)
        first = True

        def write(names, features):
            nonlocal first
            if first:
                rows.writerow(["name", *(f"f{column}" for column in range(features.shape[1]))])
                first = False
            digits = ".9g" if features.dtype.itemsize == 4 else ".17g"  # enough to read the same number again
            rows.writerows(
                [name, *(format(value, digits) for value in row)] for name, row in zip(names, features.tolist())
            )

        yield write


@contextlib.contextmanager
def _npy(path: Path) -> Iterator[Write]:
    with replacing(path) as temporary, _rows(path.parent) as (write, copy):
        yield write
        with open(temporary, "wb") as file:
            copy(file)


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Write]:
    import numpy as np

    names: list[str] = []
    with replacing(path) as temporary, _rows(path.parent) as (write_rows, copy):

        def write(more, features):
            names.extend(more)
            write_rows(more, features)

        yield write
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                copy(member)
            with archive.open("names.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(names, np.str_), allow_pickle=False)


@contextlib.contextmanager
def _rows(folder: Path):
    """`write(names, features)`, and `copy(file)`, which writes all rows to a file in the format .npy."""
    import numpy as np

    count, width, dtype = 0, 0, np.dtype(np.float32)
    with tempfile.TemporaryFile(dir=folder, prefix=".cvit-") as rows:

        def write(names, features):
            nonlocal count, width, dtype
            count, width, dtype = count + len(features), features.shape[1], features.dtype
            rows.write(np.ascontiguousarray(features).data)

        def copy(file):
            rows.seek(0)
            head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, width)}
            np.lib.format.write_array_header_1_0(file, head)
            shutil.copyfileobj(rows, file, 1 << 20)

        yield write, copy
