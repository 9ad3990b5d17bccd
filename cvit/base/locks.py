"""A file or a folder for one process at a time: flock(2), which the system takes back however a process ends.

Windows has no flock, and there an open file can be neither renamed nor removed: what is locked is an empty file
`.cvit-lock` in the folder, which stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

BESIDE = ".cvit-lock"
# File systems without locks, and NFS, which locks no folder: nothing is locked there.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EBADF)

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    import msvcrt

    def _place(path: Path) -> Path:
        return (path if path.is_dir() else path.parent) / BESIDE

    def _opened(path: Path, create: bool) -> int:
        return os.open(_place(path), os.O_RDWR | os.O_CREAT, 0o666)

    def _take(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:

    def _place(path: Path) -> Path:
        return path

    def _opened(path: Path, create: bool) -> int:
        if path.is_dir():
            return os.open(path, os.O_RDONLY)
        return os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(path: Path, busy: str, *, create: bool = False) -> Iterator[int]:
    """Hold the lock of a file or a folder while the block runs, which gets its descriptor, see `leads_to`; a missing
    file is made with `create`.

    Raises
    ------
    BlockingIOError
        With `busy` as its text and `path` as its file name, where another process holds the lock.
    OSError
        What the system reports, for a missing file without `create` say.
    """
    file = _opened(path, create)
    try:
        try:
            _take(file)
        except (BlockingIOError, PermissionError):  # as flock says it, and as Windows does
            raise BlockingIOError(errno.EAGAIN, busy, str(path)) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield file
    finally:
        os.close(file)


def leads_to(path: Path, file: int) -> bool:
    """Whether `path` still leads to what `locked` holds, which nobody has removed, renamed or replaced."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(_place(path)), os.fstat(file))
    return False
