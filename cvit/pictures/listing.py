"""The pictures of a folder, by the extensions of their names."""

from __future__ import annotations

import os
from pathlib import Path

from ..base.errors import check

EXTENSIONS = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
        ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".avif", ".avifs", ".ico", ".tga", ".pcx", ".qoi",
        ".dds", ".mpo",
    )
)  # fmt: skip


def pictures_in(folder: str | os.PathLike) -> list[Path]:
    """The pictures in a folder and the folders below it, sorted by their paths, each relative to `folder`.

    A picture is a file whose name ends as one of `EXTENSIONS`, in upper or lower case. Names that begin with a dot are
    left out, and links to folders are not followed.

    Raises
    ------
    OSError
        The folder, or one below it, cannot be read.
    ValueError
        There is no picture.
    """
    found: list[Path] = []
    folder = Path(folder)
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(place).relative_to(folder)
        found += [here / name for name in files if not name.startswith(".") and is_picture(name)]
    check(bool(found), f"{folder} has no pictures in it")
    return sorted(found)


def is_picture(name: str) -> bool:
    """Whether a file's name ends as a picture's does."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _raise(error: OSError):
    raise error
