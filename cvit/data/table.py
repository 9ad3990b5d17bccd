"""Data from a CSV file with a line for each picture."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from ..base.errors import check, listed, short
from ..base.files import open_regular
from .parts import SPELLINGS, Part, Reading, Remarks
from .sources import Files

COLUMNS = {  # spellings of the headings
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "picture"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "part", "subset"),
    "weight": ("weight", "sample_weight"),
}


def read(path: Path, remarks: Remarks) -> Reading:
    """The pictures that a CSV file names, not opened yet.

    RFC 4180, in UTF-8, with a heading: path (or file, filename, image) and label (or class, category), and, if there,
    split (train, val or test; empty is train) and weight (a number of at least 0; empty is 1). Other columns are
    ignored. Paths are relative to the CSV file's folder, and may lead out of it.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no such table; the line is named.
    """
    import csv

    paths: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    weights: dict[str, list[float]] = {}
    try:
        with open_regular(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            heading = next(lines, [])
            columns = _columns(path, heading)
            for line in lines:
                if not line:
                    continue
                where = f"{path}, line {lines.line_num}"
                check(len(line) == len(heading), f"{where} must have {len(heading)} fields, got {len(line)}")
                cells = {name: line[number].strip() for name, number in columns.items()}
                check(bool(cells["path"]), f"{where} has no path")
                check(bool(cells["label"]), f"{where} has no label")
                part = _part_of(cells.get("split", ""), where)
                paths.setdefault(part, []).append(cells["path"])
                labels.setdefault(part, []).append(cells["label"])
                weights.setdefault(part, []).append(_weight(cells.get("weight", ""), where))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {short(error, 200)}") from None
    check(bool(paths), f"{path} has no pictures in it")
    parts = {}
    for part, names in paths.items():
        weight = np.array(weights[part]) if "weight" in columns else None
        parts[part] = Part(Files([path.parent / name for name in names], names), labels[part], weight)
    return Reading("csv", path.stem, parts)


def _columns(path: Path, heading: list[str]) -> dict[str, int]:
    """Where the columns are that count."""
    found: dict[str, int] = {}
    plain = [name.strip().lower() for name in heading]
    for name, spellings in COLUMNS.items():
        numbers = [number for number, written in enumerate(plain) if written in spellings]
        if len(numbers) > 1:  # the plainest name counts: a table of `file,path,label` means the path
            numbers = [plain.index(spelling) for spelling in spellings if spelling in plain][:1]
        if numbers:
            found[name] = numbers[0]
    missing = [name for name in ("path", "label") if name not in found]
    got = ", ".join(short(name) for name in heading) or "nothing"
    check(not missing, f"{path} must begin with a heading that has path and label, got {short(got, 200)}")
    return found


def _part_of(written: str, where: str) -> str:
    part = SPELLINGS.get(written.lower(), None if written else "train")
    if part is None:
        raise ValueError(f"{where}: split must be one of {listed(SPELLINGS)}, got {short(written)}")
    return part


def _weight(written: str, where: str) -> float:
    try:
        weight = float(written or 1)
    except ValueError:
        weight = math.nan
    check(math.isfinite(weight) and weight >= 0, f"{where}: weight must be at least 0 and finite, got {short(written)}")
    return weight
