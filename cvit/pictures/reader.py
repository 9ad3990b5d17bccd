"""Whatever a caller means by "pictures" as a list: one, several, an array of them, or folders of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import check
from .listing import pictures_in


def as_pictures(images) -> tuple[list[Any], bool]:
    """Pictures that `open_picture` takes, and whether `images` was a single one of these.

    Parameters
    ----------
    images : a picture, a folder, an array (N, h, w, c), or a list or tuple of pictures and folders
        A picture is a path, a Pillow image or a uint8 array (h, w) or (h, w, c). A folder stands for the pictures in it
        and in the folders below, in the order of their sorted paths (`pictures_in`).

    Raises
    ------
    ValueError
        There is no picture at all, or none in a folder.
    OSError
        A folder cannot be read.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    single = not isinstance(images, (list, tuple)) and not _is_folder(images)
    found: list[Any] = []
    for entry in images if isinstance(images, (list, tuple)) else [images]:
        if _is_folder(entry):
            found += [Path(entry) / name for name in pictures_in(entry)]
        else:
            found.append(entry)
    check(len(found) > 0, "images must hold at least one picture, got none")
    return found, single


def _is_folder(entry) -> bool:
    return isinstance(entry, (str, os.PathLike)) and os.path.isdir(entry)
