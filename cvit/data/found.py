"""From a path, or arrays, to a data set: what is to be trained on, validated and tested by, and remarks on it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..base.numbers import as_int, finite, shown
from . import archive, builtin, folder, table
from .inspecting import hold_out, say_duplicates, without_broken, without_strangers
from .parts import Reading, Remarks
from .pictures import Pictures

SHARE = 0.1  # of each class, held out where the data has no validation part
THREADS = 2


@dataclasses.dataclass
class Found:
    """A data set.

    Attributes
    ----------
    name : str
        Of the folder or file, without its ending.
    kind : str
        "folder", "csv", "npz", "digits" or "arrays".
    class_names : tuple of str
        The classes in the order of their numbers.
    train, validation, test : Pictures
        `validation` is None where nothing was to be held out, `test` where there is none.
    remarks : list of str
        Sentences on what was found and done.
    """

    name: str
    kind: str
    class_names: tuple[str, ...]
    train: Pictures
    validation: Pictures | None
    test: Pictures | None
    remarks: list[str]


class Kind(NamedTuple):
    """A kind of data: what it is called, whether a path is of it, and its reader."""

    name: str
    suits: Callable[[Path], bool]
    read: Callable[[Path, Remarks], Reading]


KINDS = (
    Kind("digits", lambda path: str(path) == "digits", builtin.read),
    Kind("a folder with one folder per class", lambda path: path.is_dir(), folder.read),
    Kind("a .csv file", lambda path: path.suffix.lower() == ".csv", table.read),
    Kind("an .npz file", lambda path: path.suffix.lower() == ".npz", archive.read),
)


def find(
    path: str | os.PathLike,
    *,
    strict: bool = False,
    validation: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    on_check: Callable[[int, int], None] | None = None,
) -> Found:
    """The data set at `path`, every picture of it opened and checked.

    Parameters
    ----------
    path : path, or "digits"
        A folder with one folder per class, or with such folders in train/, val/ and test/; a .csv file with the columns
        path and label; an .npz file with the arrays x and y; or the name of scikit-learn's digits (a folder of that
        name is ./digits). `folder.read`, `table.read` and `archive.read` tell the details.
    strict : bool
        Raise for what is remarked on otherwise: pictures that cannot be read, or are there twice; classes with one
        picture or none; pictures for validation or testing of a class that is not trained.
    validation : float, optional
        The share of each class that is held out of the training part, at least 0 and below 1; 0 holds nothing out.
        None holds a tenth out where the data has no validation part. A test part is never used for that.
    seed : int
        Of what is held out.
    threads : int, optional
        That pictures are checked on; by default 2.
    on_check : (done, all) -> None, optional
        Told of every file that was checked, for each part from 1 on.

    Raises
    ------
    OSError
        There is no such file or folder, or it cannot be read.
    ValueError
        It is no data set, has nothing to train on, or is not as `strict` wants it.
    ModuleNotFoundError
        Pillow or scikit-learn is needed and missing.
    """
    fraction, seed = _fraction(validation), as_int("seed", seed, minimum=0, maximum=2**32 - 1)
    threads = THREADS if threads is None else as_int("threads", threads)
    place = Path(path)
    kind = next((kind for kind in KINDS if kind.suits(place)), None)
    if kind is None:
        place.stat()  # a missing file is its own error
        known = ", ".join(kind.name for kind in KINDS)
        raise ValueError(f"{place} is no data set that can be read: {known} can")
    remarks = Remarks(strict)
    return _checked(kind.read(place, remarks), remarks, fraction, seed, threads, on_check)


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray] | float | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
    strict: bool = False,
    seed: int = 0,
    name: str = "arrays",
) -> Found:
    """A data set of arrays.

    Parameters
    ----------
    images : array (n, h, w), (n, h, w, c) or (n, c, h, w)
        uint8, or floats from 0 to 1 or from 0 to 255; grey, RGB, or RGB with alpha.
    labels : (n,) integers or strings
    validation, test : (images, labels), optional
        `validation` may be the share to hold out instead, as in `find`.
    class_names : names, optional
        Of the labels 0, 1, 2, ...
    weights : (n,), optional
        How much each training picture counts in the loss.
    strict, seed : see `find`
    name : str
        For what is printed, and for a run's folder.

    Raises
    ------
    TypeError, ValueError
        An array has a wrong type, shape or value, there is nothing to train on, or it is not as `strict` wants it.
    """
    seed = as_int("seed", seed, minimum=0, maximum=2**32 - 1)
    parts: dict[str, tuple] = {"train": (images, labels)}
    fraction = None
    if isinstance(validation, (tuple, list)):
        parts["validation"] = _pair("validation", validation)
    else:
        fraction = _fraction(validation)
    if test is not None:
        parts["test"] = _pair("test", test)
    if weights is not None:
        weights = as_array("weights", weights)
        count = len(as_array("images", images))
        check(weights.shape == (count,), f"weights must have shape ({count},), got {weights.shape}")
    remarks = Remarks(strict)
    reading = archive.of_arrays("arrays", name, parts, class_names, remarks, weights)
    return _checked(reading, remarks, fraction, seed, THREADS, None)


def _pair(part: str, pair) -> tuple:
    right = isinstance(pair, (tuple, list)) and len(pair) == 2
    check(right, f"{part} must be (images, labels), got {shown(type(pair).__name__)}")
    return tuple(pair)


def _fraction(validation) -> float | None:
    if validation is None:
        return None
    fraction = finite("validation", validation)
    check(fraction < 1, f"validation must be a share of the pictures, below 1, got {shown(validation)}")
    return fraction


def _checked(reading, remarks, fraction, seed, threads, on_check) -> Found:
    """The data set that was read, after all checks."""
    check(
        not fraction or "validation" not in reading.parts,
        f"{reading.name} has a validation part: validation must be None, got {fraction}",
    )
    if reading.classes is None and "train" in reading.parts:
        reading.classes = tuple(sorted(set(reading.parts["train"].labels)))
    without_broken(reading, remarks, threads, on_check)
    classes = without_strangers(reading, remarks)
    say_duplicates(reading, remarks)
    share = SHARE if fraction is None else fraction
    if "validation" not in reading.parts and share:
        hold_out(reading, classes, share, seed, remarks)
    number = {label: index for index, label in enumerate(classes)}
    made = {
        name: Pictures(part.source, np.array([number[label] for label in part.labels], np.int64), classes, part.weights)
        for name, part in reading.parts.items()
    }
    return Found(
        reading.name, reading.kind, classes, made["train"], made.get("validation"), made.get("test"), remarks.texts
    )
