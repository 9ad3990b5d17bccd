"""Checkpoints of a run: arrays and facts in a folder, of which a whole one is there at every instant.

    state.safetensors       the newest
    previous.safetensors    the one before it
    writing.safetensors     one that is being written, or that was when its process ended

A checkpoint is written under its third name and brought to the disk; then the newest is renamed to be the one before,
and what was written to be the newest. Whoever is killed in between leaves a whole checkpoint under one of the names:
the next `write` or `read` completes the renaming, or removes what is only half a file. The names are fixed, so that no
temporary files pile up. Every file has a checksum of its contents (see formats/checksum.py); nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import check, short
from ..base.files import named, sync_directory, synced
from ..base.locks import locked
from ..base.numbers import shown
from ..formats.checksum import read_checked, write_checked
from ..formats.reading import json_object
from ..formats.safetensors_file import CODES

NEWEST, BEFORE, WRITING = "state.safetensors", "previous.safetensors", "writing.safetensors"
FACTS_KEY = "cvit.facts"
BUSY = "Another process is writing a checkpoint"

Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]


def write(folder: str | os.PathLike, arrays: Mapping[str, np.ndarray], facts: Facts) -> None:
    """Write a checkpoint into `folder`, which is made if it is missing; the newest so far becomes the one before.

    Parameters
    ----------
    arrays : mapping of names to arrays
        Of float64, float32, float16, bool or integers.
    facts : dict
        Of what JSON has: texts, numbers (NaN and infinity, too), truth values, None, lists, and dicts whose keys are
        texts; a tuple comes back as a list. At most some 4 MB as text.

    Raises
    ------
    TypeError, ValueError
        An array or a fact that cannot be written; nothing has changed then.
    OSError
        What the system reports, a full disk for instance: the checkpoints that were there are as they were.
        BlockingIOError where another process is writing into the folder.
    """
    if not isinstance(facts, dict):
        raise TypeError(f"facts must be a dict, got {type(facts).__name__}")
    try:
        text = json.dumps(facts)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"facts must be of what JSON has: {short(error, 200)}") from None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _complete(folder)
    writing = folder / WRITING
    with named(folder / NEWEST, writing), locked(writing, BUSY, create=True):
        try:
            with synced(writing):
                write_checked(writing, arrays, {FACTS_KEY: text})
        except BaseException:
            writing.unlink(missing_ok=True)
            raise
        _rename(folder)


def read(folder: str | os.PathLike) -> tuple[Arrays, Facts, str | None]:
    """The newest checkpoint in `folder` that is whole.

    Returns
    -------
    arrays, facts
        As they were given to `write`; the arrays are the caller's.
    warning : str or None
        Where the newest is missing or damaged and the one before it was read: that, and why.

    Raises
    ------
    FileNotFoundError
        There is no checkpoint.
    ValueError
        None is whole; names each and its reason. No file makes this allocate more than its own size, and what some MB
        of JSON take.
    """
    folder = Path(folder)
    with contextlib.suppress(OSError):  # a folder that may only be read, or into which another process writes
        _complete(folder)
    reasons = []
    for name in (NEWEST, BEFORE):
        try:
            arrays, facts = _read(folder / name)
        except FileNotFoundError:
            reasons.append(f"{folder / name} is missing")
        except (OSError, ValueError) as error:
            reasons.append(short(error, 300))
        else:
            return arrays, facts, f"{reasons[0]}; {name}, the checkpoint before it, is used" if reasons else None
    if not any(os.path.lexists(folder / name) for name in (NEWEST, BEFORE)):
        raise FileNotFoundError(f"{folder} holds no checkpoint: there is no {NEWEST} in it")
    raise ValueError(f"{folder} holds no checkpoint that is whole: {'; '.join(reasons)}")


def _read(path: Path) -> tuple[Arrays, Facts]:
    """A checkpoint's contents; a `ValueError` that names it where they are not what was written."""
    tensors, checked = read_checked(path)
    check(checked, f"{path} is damaged or no checkpoint: it has no checksum")
    text = tensors.metadata.get(FACTS_KEY)
    if text is None:
        raise ValueError(f"{path} is no checkpoint: it has no {FACTS_KEY!r} in its metadata")
    facts = json_object(text.encode("utf-8", "surrogatepass"), f"{path}: {FACTS_KEY}")
    arrays = {}
    for name, tensor in tensors.items():
        check(tensor.dtype in CODES, f"{path}: {shown(name)} is of dtype {tensor.dtype}, which no checkpoint has")
        values = tensor.stored().reshape(tensor.shape)
        arrays[name] = np.array(values, values.dtype.newbyteorder("="), order="C")
    return arrays, facts


def _complete(folder: Path) -> None:
    """Finish what a process that was killed has left: rename a whole checkpoint, remove half a one."""
    writing = folder / WRITING
    if not os.path.lexists(writing):
        return
    with locked(writing, BUSY):
        try:
            whole = read_checked(writing)[1]  # of the map nothing is kept: Windows renames no mapped file
        except FileNotFoundError:  # its process has just finished
            return
        except ValueError:
            whole = False
        if whole:
            _rename(folder)
        else:
            writing.unlink(missing_ok=True)


def _rename(folder: Path) -> None:
    """What was written becomes the newest, the newest the one before."""
    sync_directory(folder)  # from here on it is the third name that a whole checkpoint has for certain
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder / NEWEST, folder / BEFORE)
    os.replace(folder / WRITING, folder / NEWEST)
    sync_directory(folder)
