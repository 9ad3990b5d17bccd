"""CSV files that name pictures, by `cvit.data.find`."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from cvit.data import find

from .. import changes
from ..running import Target

NAME = "x.csv"
HEADINGS = (
    "path,label", "file,class,split", "image,category,part,weight", "label,path", "path,path,label", "a,b", "",
    'path,"label', "\ufeffpath,label", "Path , LABEL",
)  # fmt: skip
PARTS = ("train", "val", "test", "", "validation", "x")


@functools.cache
def picture() -> bytes:
    """A small PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def make(rng: Random, folder: Path) -> None:
    """Two pictures, perhaps one that is none, and a table."""
    for name in ("a.png", "b.png"):
        changes.place(rng, folder / name, picture(), 0.05)
    names = ("a.png", "b.png", "./a.png", "../b/b.png", "missing.png", ".", "x.csv")
    if rng.random() < 0.1:
        names += ("/dev/zero", "/dev/null", "a\0b.png", "..", "/", "a.png/x", "x" * 300)
    heading = rng.choice(HEADINGS[:4]) if rng.random() < 0.8 else rng.choice(HEADINGS)
    lines = [heading]
    for _ in range(rng.choice((0, 1, 4, 6, 10))):
        cells = {
            "path": rng.choice(names), "label": rng.choice(("cat", "dog", "cat", changes.text(rng)[:200])),
            "split": rng.choice(PARTS[:4]), "weight": rng.choice(("1", "0", "", "0.5", "-1", "nan", "1e999", "x")),
        }  # fmt: skip
        order = {"label,path": ("label", "path")}.get(heading, ("path", "label", "split", "weight"))
        cells_ = [cells[name] for name in order][: heading.count(",") + 1]
        quoted = ['"' + cell.replace('"', '""') + '"' if rng.random() < 0.2 else cell for cell in cells_]
        lines.append(",".join(quoted))
    text = rng.choice(("\n", "\r\n")).join(lines) + rng.choice(("", "\n"))
    data = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin1")), "replace")
    if rng.random() < 0.3:
        data = changes.damaged(rng, data)
    if rng.random() < 0.01:
        data += rng.choice((b"x" * 200_000, b"a.png,cat\n" * 2000, b'"' + b"\n" * 100_000, b"," * 100_000))
    changes.place(rng, folder / NAME, data, 0.01)


def read(rng: Random, folder: Path) -> None:
    """The data set."""
    find(folder / NAME, strict=rng.random() < 0.2, validation=rng.choice((None, 0, 0.5)), threads=1)


TARGET = Target(make, read, (ValueError, OSError))
