"""Data from a folder: one folder a class, or train/, val/ and test/ with such folders in them."""

from __future__ import annotations

import os
from pathlib import Path

from ..base.errors import check
from ..pictures.listing import is_picture
from .parts import SPELLINGS, Part, Reading, Remarks, counted, some
from .sources import Files

# Pictures that Pillow cannot open, or not without running what is in them. They are named, so that nobody thinks they
# were learnt from.
UNREADABLE = frozenset(
    (
        ".svg", ".svgz", ".heic", ".heif", ".jxl", ".eps", ".ps", ".pdf", ".ai", ".wmf", ".emf", ".raw", ".cr2", ".cr3",
        ".nef", ".arw", ".dng", ".orf", ".rw2", ".exr", ".hdr", ".xcf", ".dcm", ".nii",
    )
)  # fmt: skip
IGNORED = ("__MACOSX",)  # what archives made on a Mac leave behind


def read(path: Path, remarks: Remarks) -> Reading:
    """The pictures of a folder, found by their names' endings and not opened yet.

    With a folder train (or training) that has folders in it, the parts are train, val (valid, validation) and test
    (testing), each with a folder a class; without one, the folders are the classes themselves. A folder train beside
    others with pictures, none of which is val or test, is a class as well. Pictures in folders below a class's folder
    belong to it. Names that begin with a dot are left out, links to folders are followed only where they stand for a
    class or a part.

    Raises
    ------
    OSError
        A folder cannot be read.
    ValueError
        There are no class folders, no training part beside others, or two folders for one part.
    """
    folders, loose = _entries(path)
    parts = _parts(path, folders)
    if not parts:
        check(bool(folders), _without_folders(path, loose))
        _say_loose(path, loose, remarks)
        return Reading("folder", _name(path), {"train": _part(path, folders, path, remarks)})
    check("train" in parts, f"{path} has no folder train beside {', '.join(folder.name for folder in parts.values())}")
    others = [folder.name for folder in folders if folder not in parts.values()]
    if others:
        remarks.fault(f"{path} has folders beside {parts['train'].name} that are left out: {some(others)}")
    _say_loose(path, loose, remarks)
    found = {}
    for part, folder in parts.items():
        classes, loose = _entries(folder)
        check(bool(classes) or part != "train", _without_folders(folder, loose))
        if not classes:
            remarks.fault(f"{_without_folders(folder, loose)}; it is left out")
            continue
        _say_loose(folder, loose, remarks)
        found[part] = _part(folder, classes, path, remarks)
    return Reading("folder", _name(path), found)


def _parts(path: Path, folders: list[Path]) -> dict[str, Path]:
    """The folders of the parts; none where the folders are classes, one of which may be called train or test."""
    parts: dict[str, Path] = {}
    for folder in folders:
        part = SPELLINGS.get(folder.name.lower())
        if part is not None:
            check(part not in parts, f"{path} has two folders for one part: {parts.get(part)} and {folder}")
            parts[part] = folder
    others = [folder for folder in folders if folder not in parts.values()]
    if not others:
        return parts
    divided = "train" in parts and bool(_entries(parts["train"])[0])
    alone = len(parts) == 1 and any(_files(folder)[0] for folder in others)  # train beside other classes
    return parts if divided and not alone else {}


def _part(folder: Path, classes: list[Path], root: Path, remarks: Remarks) -> Part:
    """The pictures below the class folders of `folder`, with names relative to `root`."""
    paths: list[Path] = []
    labels: list[str] = []
    unreadable: list[str] = []
    empty: list[str] = []
    others = 0
    for place in classes:
        pictures, wrong, ignored = _files(place)
        paths += pictures
        labels += [place.name] * len(pictures)
        unreadable += [path.relative_to(root).as_posix() for path in wrong]
        others += ignored
        if not pictures:
            empty.append(place.name)
    if empty:
        remarks.fault(f"{folder} has {counted(len(empty), 'class folder')} without pictures, left out: {some(empty)}")
    if unreadable:
        what = counted(len(unreadable), "picture")
        remarks.fault(f"{folder} has {what} of a format that cannot be read, left out: {some(unreadable)}")
    if others:
        what = counted(others, "file that is no picture", "files that are no pictures")
        remarks.note(f"{folder} has {what}, ignored")
    return Part(Files(paths, [path.relative_to(root).as_posix() for path in paths]), labels)


def _entries(folder: Path) -> tuple[list[Path], list[str]]:
    """The folders in a folder, sorted by name, and the names of the pictures that lie beside them."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in IGNORED)
    return [path for path in entries if path.is_dir()], [path.name for path in entries if is_picture(path.name)]


def _files(folder: Path) -> tuple[list[Path], list[Path], int]:
    """Below a folder: the pictures, the pictures of formats that cannot be read, and the number of other files."""
    pictures: list[Path] = []
    unreadable: list[Path] = []
    others = 0
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in IGNORED]
        for name in files:
            if name.startswith("."):
                continue
            if is_picture(name):
                pictures.append(Path(place, name))
            elif os.path.splitext(name)[1].lower() in UNREADABLE:
                unreadable.append(Path(place, name))
            else:
                others += 1
    return sorted(pictures), sorted(unreadable), others


def _without_folders(path: Path, loose: list[str]) -> str:
    if loose:
        return f"{path} has {counted(len(loose), 'picture')} but no folders: one folder for each class is needed"
    return f"{path} is empty: one folder for each class is needed, with its pictures in it"


def _say_loose(folder: Path, loose: list[str], remarks: Remarks) -> None:
    if loose:
        remarks.fault(
            f"{folder} has {counted(len(loose), 'picture')} beside the class folders, left out: {some(loose)}"
        )


def _name(path: Path) -> str:
    return path.resolve().name or "data"


def _raise(error: OSError):
    raise error
