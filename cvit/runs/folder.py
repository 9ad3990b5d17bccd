"""A run's folder: the names of its files, who may write to it, and run.json.

    model.safetensors    the best model        history.csv       one line an epoch
    last.safetensors     the last one          predictions.csv   one line a picture of validation and test
    checkpoint/          to resume             run.json          all that repeats the run, and its results
    curves.png, confusion.png, mistakes.png, report.html

A folder belongs to one process at a time: `Folder.held` locks it (base/locks.py), so that two runs in one folder are
refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.errors import check
from ..base.files import replacing
from ..base.locks import BESIDE, leads_to, locked
from ..base.numbers import shown
from ..formats.reading import read_json

RUNS = Path("runs")  # where folders without a name of their own are made
MODEL, LAST, HISTORY = "model.safetensors", "last.safetensors", "history.csv"
CHECKPOINT, RUN, PREDICTIONS = "checkpoint", "run.json", "predictions.csv"
PICTURES = ("curves.png", "confusion.png", "mistakes.png", "report.html")
FORMAT = 1  # of run.json
PARTS = ("arguments", "settings", "machine")  # objects that it has
TEMPORARY = re.compile(r"\.cvit-[0-9a-f]{8}")  # names that base/files.py gives; a killed process leaves one


class Folder:
    """The folder of one run."""

    def __init__(self, path: str | os.PathLike, overwrite: bool = False):
        self.path = Path(path)
        self.overwrite = overwrite  # whether a new run may take the place of one that is there
        self._descriptor: int | None = None  # of the folder, which `held` has opened

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name

    @property
    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self.file(RUN).is_file()

    @property
    def is_free(self) -> bool:
        """Whether there is nothing that a new run could overwrite; half a file of a killed run is nothing."""
        if not self.path.is_dir():
            return not self.path.exists()
        return all(path.name == BESIDE or TEMPORARY.fullmatch(path.name) for path in self.path.iterdir())

    def check_free(self) -> None:
        """Raise `FileExistsError` where a new run would overwrite something, unless that is a run which it may."""
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "out must be a folder", str(self.path))
        if self.is_free or (self.overwrite and self.is_run):
            return
        if self.is_run:
            text = "holds a run already: resume it, overwrite it, or give another folder"
        else:
            text = "holds files that are no run's: give another folder"
        raise FileExistsError(errno.EEXIST, text, str(self.path))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep others out of it while the block runs; what a killed run left half-written goes.

        Raises `BlockingIOError` where another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "another process trains in this folder") as self._descriptor:
            self.check_held()
            for path in self.path.iterdir():
                if TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            yield

    def check_held(self) -> None:
        """Raise `FileNotFoundError` where the folder that is held is not the one that its path leads to any more.

        Somebody has removed, renamed or replaced it: a file written by that path would lie in a folder that nobody
        holds, or that another run does.
        """
        assert self._descriptor is not None
        if leads_to(self.path, self._descriptor):
            return
        text = "the run's folder was removed or replaced during the run"
        raise FileNotFoundError(errno.ENOENT, text, str(self.path))

    def clear(self) -> None:
        """Remove the files of an earlier run, and no others; run.json stays until the new run's takes its place.

        So who is killed in between leaves a run, which can be overwritten, and where it is resumed begins anew.
        """
        for folder in (CHECKPOINT, "tensorboard"):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.file(folder))
        for name in (MODEL, LAST, HISTORY, PREDICTIONS, *PICTURES):
            self.file(name).unlink(missing_ok=True)

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Write run.json."""
        with replacing(self.file(RUN)) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **facts}, indent=2) + "\n", encoding="utf-8")

    def read_facts(self) -> dict[str, Any]:
        """What run.json holds.

        Raises `FileNotFoundError` where no run was begun here, and `ValueError` for a damaged file.
        """
        path = self.file(RUN)
        facts = read_json(path)
        known = facts.get("format") == FORMAT and all(isinstance(facts.get(part), dict) for part in PARTS)
        check(known, f"{path} is not of a run that this version of cvit knows")
        return facts


def folder_for(out: str | os.PathLike | None, name: str, *, resume: bool, overwrite: bool) -> Folder:
    """The folder of a new run or of the one to resume, nothing changed yet.

    Without `out` a new run gets runs/NAME, or the first free of runs/NAME-2, runs/NAME-3, …; to resume is the last of
    these. Raises `FileExistsError` for a folder that holds something already, unless it is to be overwritten, which
    only an earlier run is, and `FileNotFoundError` where there is nothing to resume.
    """
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    if resume:
        folder = Folder(out) if out is not None else _last_of(name)
        if not folder.is_run:
            text = "no run was begun here, so there is none to resume"
            raise FileNotFoundError(errno.ENOENT, text, str(folder.path))
        return folder
    if out is None:
        number = 1
        while not (folder := _numbered(name, number)).is_free:
            number += 1
        return folder
    folder = Folder(out, overwrite)
    folder.check_free()
    return folder


def _numbered(name: str, number: int) -> Folder:
    return Folder(RUNS / (name if number == 1 else f"{name}-{number}"))


def _last_of(name: str) -> Folder:
    number = 1
    while _numbered(name, number + 1).is_run:
        number += 1
    return _numbered(name, number)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two nested dicts, one sentence each: "recipe.lr was 0.001, is 0.002"."""
    one, other = flat(before), flat(now)
    names = sorted(one.keys() | other.keys())
    missing = object()
    return [
        f"{name} was {shown(one.get(name))}, is {shown(other.get(name))}"
        for name in names
        if one.get(name, missing) != other.get(name, missing)
    ]


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one: {"recipe": {"lr": 0.1}} is {"recipe.lr": 0.1}."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found
