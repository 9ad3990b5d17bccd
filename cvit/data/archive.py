"""Data from an .npz file, and from arrays: pictures in any order of axes, bytes or floats, with labels."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..base.archives import KIND, Archive, Packed
from ..base.arrays import as_array
from ..base.errors import check, listed, short
from ..base.files import mapped
from ..base.numbers import shown
from .parts import PARTS, Part, Reading, Remarks, counted
from .sources import Arrays, Floats, Source

NAMES = {  # of the arrays in a file: pictures, then labels; in lower case
    "train": (("x", "x_train", "images", "train_images"), ("y", "y_train", "labels", "train_labels")),
    "validation": (
        ("x_val", "x_valid", "x_validation", "val_images"),
        ("y_val", "y_valid", "y_validation", "val_labels"),
    ),
    "test": (("x_test", "test_images"), ("y_test", "test_labels")),
}
CLASSES = ("classes", "class_names")
# Pictures of grey digits in float64 unpack to some 30 times what they take in a file. Of what unpacks to more than both
# a small file would fill the memory; and so it would with pictures of a few pixels, each of which takes some room for
# its name and its hash.
UNPACKED_BYTES, UNPACKED_RATIO = 1 << 24, 64
PICTURE_BYTES = 512
DESCR = re.compile(r"[<>|=]?[biufcU][0-9]{1,6}")  # dtypes of arrays without objects


def read(path: Path, remarks: Remarks) -> Reading:
    """The arrays of an .npz file: x and y (or x_train, y_train), optionally x_val, y_val, x_test, y_test and classes.

    See `of_arrays`. `classes` are the names of the classes 0, 1, 2, ...

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no .npz file, lacks an array, or has one that cannot be used, or would unpack to far more than its own
        size. Arrays of objects are refused: they would have to be unpickled, which can run any program.
    """
    written, arrays, most = _arrays_of(path)
    parts = {}
    for part, (pictures, labels) in NAMES.items():
        x, y = ([name for name in names if name in arrays] for names in (pictures, labels))
        if not x and not y:
            continue
        lacking = labels[0] if x else pictures[0]
        check(bool(x and y), f"{path} has {(x + y)[0]} without {lacking}")
        parts[part] = (arrays[x[0]], arrays[y[0]])
    check("train" in parts, f"{path} must hold the arrays x and y, got {listed(written) or 'nothing'}")
    classes = next((arrays[name] for name in CLASSES if name in arrays), None)
    count = sum(len(x) if x.ndim else 0 for x, _ in parts.values())
    check(PICTURE_BYTES * count <= most, f"{path} has {count} pictures, more than {most // PICTURE_BYTES} for its size")
    try:
        return of_arrays("npz", path.stem, parts, classes, remarks)
    except TypeError as error:  # in a file a wrong type is a wrong value
        raise ValueError(f"{path}: {short(error, 500)}") from None


def _arrays_of(path: Path) -> tuple[list[str], dict[str, np.ndarray], int]:
    """The names of all arrays in an .npz file, those that are known here, by their names in lower case, and the bytes
    that it may take."""
    wanted = {name for pair in NAMES.values() for names in pair for name in names} | {*CLASSES}
    try:
        archive = Archive(mapped(path, KIND), str(path), UNPACKED_BYTES, UNPACKED_RATIO)
        names = {member.filename.removesuffix(".npy"): member for member in archive.members}
        arrays = {
            name.lower(): _values(archive.packed(member)) for name, member in names.items() if name.lower() in wanted
        }
        return list(names), arrays, archive.most
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} is not {KIND}: ").removeprefix(f"{path} ")
        raise ValueError(f"{path} cannot be read as an .npz file: {short(reason, 300)}") from None


def _values(array: Packed) -> np.ndarray:
    """An array's values, of any dtype but objects, records and dates; the native byte order."""
    known = DESCR.fullmatch(array.descr) is not None
    try:
        dtype = np.dtype(array.descr) if known else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.itemsize == 0:
        raise ValueError(f"{shown(array.name)} must hold numbers or texts, got {shown(array.descr)}")
    array.check_size(dtype, array.descr)
    values = array.values(dtype)
    values = np.require(values, dtype.newbyteorder("="), ["C_CONTIGUOUS"])
    if dtype.kind == "U":  # four bytes a letter, and Python takes none beyond the last of Unicode
        last = values.reshape(-1).view(np.uint32).max(initial=0)
        check(last <= sys.maxunicode, f"{shown(array.name)} must hold texts, got the letter number {last}")
    return values


def of_arrays(
    kind: str,
    name: str,
    parts: dict[str, tuple],
    classes: Sequence[str] | np.ndarray | None,
    remarks: Remarks,
    weights: np.ndarray | None = None,
) -> Reading:
    """Arrays as parts of a data set.

    Parameters
    ----------
    parts : part -> (pictures, labels)
        Pictures (n, h, w), (n, h, w, c) or (n, c, h, w) with 1, 3 or 4 channels: uint8, or other integers from 0 to
        255; or floats from 0 to 1, or from 0 to 255, which become bytes if they are
        bytes in that scale. Labels (n,): integers or strings.
    classes : names, optional
        Of the labels 0, 1, 2, ...; without them the labels themselves are the names.
    weights : (n,), optional
        Of the training part.

    Raises
    ------
    TypeError, ValueError
        An array has a wrong type, shape or value.
    """
    named = None if classes is None else _class_names(classes)
    pictures = {part: _pictures(parts[part][0], part) for part in PARTS if part in parts}
    floats = [array for array in pictures.values() if array.dtype.kind == "f"]
    unit = all(float(array.max(initial=0)) <= 1 for array in floats)  # of all parts alike
    found, numeric = {}, []
    for part, array in pictures.items():
        source = Arrays(array, part) if array.dtype == np.uint8 else _of_floats(array, unit, part, remarks)
        y = parts[part][1]
        labels, numbers = _labels(y, part, len(source), named)
        numeric.append(numbers)
        found[part] = Part(source, labels, weights if part == "train" else None)
    check(len(set(numeric)) == 1, "labels of all parts must be integers, or of all parts strings")
    order = named or (tuple(sorted(set(found["train"].labels), key=int)) if numeric[0] else None)
    return Reading(kind, name, found, order)


def _class_names(classes) -> tuple[str, ...]:
    array = as_array("classes", classes)
    check(
        array.ndim == 1 and array.dtype.kind == "U", f"classes must be a list of names, got {array.dtype} {array.shape}"
    )
    names = tuple(array.tolist())
    check(len(set(names)) == len(names), "classes must be names that differ")
    return names


def _labels(labels, part: str, count: int, named: tuple[str, ...] | None) -> tuple[list[str], bool]:
    """The name of each picture's class, and whether the labels were numbers."""
    array = as_array(f"labels of {part}", labels)
    if array.ndim == 2 and array.shape[1] == 1:  # as Keras has them
        array = array[:, 0]
    check(array.shape == (count,), f"labels of {part} must have shape ({count},), got {array.shape}")
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array):
        array = array.astype(str)
    if array.dtype.kind == "U":
        check(all(label.strip() for label in set(array.tolist())), f"labels of {part} must not be empty")
        return array.tolist(), False
    if array.dtype.kind == "f" and bool((array == np.rint(array)).all()):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iub":
        raise TypeError(f"labels of {part} must be integers or strings, got {array.dtype}")
    numbers = array.astype(np.int64).tolist()
    if named is None:
        return [str(number) for number in numbers], True
    right = all(0 <= number < len(named) for number in set(numbers))
    check(right, f"labels of {part} must lie in [0, {len(named)}), as there are that many classes")
    return [named[number] for number in numbers], True


def _pictures(images, part: str) -> np.ndarray:
    """An array of any kind that `of_arrays` takes as pictures (n, h, w, c), uint8 or floats."""
    array = as_array(f"images of {part}", images)
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4):
        array = np.moveaxis(array, 1, 3)
    right = array.ndim == 4 and array.shape[3] in (1, 3, 4) and 0 not in shape[1:]
    check(right, f"images of {part} must have shape (n, h, w), (n, h, w, c) or (n, c, h, w), got {shape}")
    if array.dtype.kind not in "iubf":
        raise TypeError(f"images of {part} must be uint8 or floats, got {array.dtype}")
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    low, high = array.min(initial=0), array.max(initial=0)
    right = bool(low >= 0 and high <= 255)  # not of NaN
    check(right, f"images of {part} must lie between 0 and 1, or 0 and 255, got values from {low:g} to {high:g}")
    return array if array.dtype.kind == "f" else array.astype(np.uint8)


def _of_floats(array: np.ndarray, unit: bool, part: str, remarks: Remarks) -> Source:
    """Pictures of floats, from 0 to 1 where `unit`, else from 0 to 255."""
    scaled = array.astype(np.float32) * np.float32(255 if unit else 1)
    whole = np.rint(scaled)
    scale = f"from 0 to {1 if unit else 255}, the largest of which is {float(array.max(initial=0)):g}"
    what = f"{part}: {counted(len(array), 'picture')} of {array.dtype}"
    if bool((np.abs(scaled - whole) <= 1e-3).all()):
        remarks.note(f"{what} were read as bytes, values {scale}")
        return Arrays(whole.astype(np.uint8), part)
    check(array.shape[3] != 4, f"images of {part} of floats must have 1 or 3 channels, got 4")
    remarks.note(f"{what} were read as brightness, values {scale}")
    return Floats(scaled, part)
