"""Files in and out: only regular ones are opened, and the one way in which cvit writes one.

A file is written under a temporary name beside its target, flushed to the disk, and renamed. The rename is atomic
(POSIX rename(2)), so whoever opens the target finds the old content or the new, also after a crash, a full disk or a
Ctrl-C. `train/state.py` has an order of its own for a run's checkpoints, of which it keeps two. `check_writable` tries
it before the work whose result it shall hold.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import check

NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)  # file systems and modes without one
NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # an open FIFO would wait for its other end; Windows has none
FOR_SYNC = os.O_RDONLY if hasattr(os, "O_DIRECTORY") else os.O_RDWR  # Windows syncs only what may be written


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """`open(path, "rb")` of a regular file.

    Anything else is an `OSError` at once: a FIFO would wait for its writer, and a device like /dev/zero has no end.
    """
    opener = lambda name, flags: os.open(name, flags | NO_WAITING)
    file = open(os.fspath(path), "rb", opener=opener)  # noqa: SIM115  # the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def mapped(path: str | os.PathLike, kind: str) -> mmap.mmap:
    """The bytes of a regular file, mapped read-only: they are read from the disk when they are looked at.

    The map lives as long as an array that views it. Nobody may shorten the file meanwhile, as with any map; replacing
    it, as `replacing` does, is fine.

    Raises
    ------
    OSError
        What the system reports, and for anything that is not a regular file.
    ValueError
        The file is empty, so it is not of `kind`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check(size > 0, f"{path} is not {kind}: it is empty")
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to; at the end it takes `path`'s place, after an error it is
    removed.

    A symbolic link stays, and the file that it points to is replaced. A new file has the mode that the umask leaves, a
    replaced one keeps its mode, and its owner where that is allowed. The content is on the disk when the block ends.

    Raises
    ------
    OSError
        With `path` as its file name: for anything that is not a regular file (a directory, a FIFO, a device), for a
        file that may not be written to, and for whatever the system reports, a full disk for instance.
    """
    path = Path(path)
    with named(path):
        target, old = _target(path)
        temporary = _create(target)
    try:
        with named(path, temporary):
            mode = stat.S_IMODE(temporary.stat().st_mode if old is None else old.st_mode)
            yield temporary
            _finish(temporary, old, mode)
            os.replace(temporary, target)
            sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike, size: int = 0) -> None:
    """Raise the `OSError` that `replacing(path)` would raise now, for a file of `size` bytes. Leaves nothing behind.

    It does what `replacing` does up to the rename: creates the temporary file and reserves its room on the disk.
    """
    path = Path(path)
    with named(path):
        target, _ = _target(path)
        temporary = _create(target)
    try:
        with named(path, temporary):
            if size and hasattr(os, "posix_fallocate"):
                with open(temporary, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
    finally:
        temporary.unlink(missing_ok=True)


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """The file to replace, symbolic links resolved, and its state (None: there is none yet).

    Opens it to see that it may be written.
    """
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    os.close(os.open(path, os.O_WRONLY | NO_WAITING))  # a rename alone would not ask the file's mode
    return Path(os.path.realpath(path)), old


def _create(target: Path) -> Path:
    """A new, empty file beside `target`, with the mode that the umask leaves.

    Its name is short whatever the target's length.
    """
    temporary = target.with_name(f".cvit-{secrets.token_hex(4)}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


def _finish(temporary: Path, old: os.stat_result | None, mode: int) -> None:
    """Owner, mode and content of the written file brought to the disk.

    Whoever wrote it may have made it anew (safetensors does).
    """
    with synced(temporary):
        if old is not None and hasattr(os, "chown"):  # Windows has no such owners
            with contextlib.suppress(PermissionError):
                os.chown(temporary, old.st_uid, old.st_gid)
        os.chmod(temporary, mode)


@contextlib.contextmanager
def synced(path: Path) -> Iterator[None]:
    """Bring the content and the mode that a file has at the end of the block to the disk; a missing one is made."""
    file = os.open(path, FOR_SYNC | os.O_CREAT, 0o666)
    try:
        yield
        os.fsync(file)
    finally:
        os.close(file)


def sync_directory(folder: Path) -> None:
    """Bring the rename itself to the disk, where the file system can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno not in NO_DIRECTORY_SYNC:
            raise


@contextlib.contextmanager
def named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an `OSError` of the block name `path`, where it names the temporary file or none: a full disk's error has no
    name."""
    try:
        yield
    except OSError as error:
        foreign = error.filename is not None and temporary is not None and str(error.filename) != str(temporary)
        if error.errno is None or foreign:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
