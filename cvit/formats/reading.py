"""Files in, as strangers wrote them: mapped into memory, and JSON with limits.

What stands in such a file is no reason for more memory or time than its own size accounts for, and no text of it gets
into a message at full length.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import stat
from collections.abc import Iterator

from ..base.errors import check, short
from ..base.files import NO_WAITING
from ..base.numbers import shown

JSON_BYTES = 10_000_000  # a config of 21,843 classes with their names has two million


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[int, int]]:
    """The descriptor and the size of a regular file. A FIFO, which would wait for its writer, is refused."""
    file = os.open(path, os.O_RDONLY | NO_WAITING)
    try:
        state = os.fstat(file)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        yield file, state.st_size
    finally:
        os.close(file)


def mapped(path: str | os.PathLike, kind: str) -> mmap.mmap:
    """The bytes of a regular file, mapped read-only: they are read from the disk when they are looked at.

    The map lives as long as an array that views it. Nobody may shorten the file meanwhile, as with any map; replacing
    it, as `base.files.replacing` does, is fine.

    Raises
    ------
    OSError
        What the system reports, and for anything that is not a regular file.
    ValueError
        The file is empty, so it is not of `kind`.
    """
    with _opened(path) as (file, size):
        check(size > 0, f"{path} is not {kind}: it is empty")
        return mmap.mmap(file, size, access=mmap.ACCESS_READ)


def read_json(path: str | os.PathLike) -> dict:
    """The JSON object in a file of at most `JSON_BYTES`; anything else is a `ValueError` that names the file."""
    with _opened(path) as (file, size):
        check(size <= JSON_BYTES, f"{path} has {size} bytes, more than the {JSON_BYTES} that are read as JSON")
        with open(file, "rb", closefd=False) as stream:
            return json_object(stream.read(JSON_BYTES), str(path))


def json_object(text: bytes, what: str) -> dict:
    """The JSON object that `text` (UTF-8) is; `what` names its place in the `ValueError` for anything else.

    A key that occurs twice is refused as well: two readers might take two different values for it.
    """

    def once(pairs: list[tuple[str, object]]) -> dict:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {shown(twice)} occurs twice")
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"{what}: the JSON is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ones, and so is a number too long to read
        raise ValueError(f"{what}: not JSON that can be read: {short(error, 200)}") from None
    check(isinstance(value, dict), f"{what}: must be a JSON object, got {type(value).__name__}")
    return value
