"""What is checked of a data set before anything is trained: that its pictures open, its classes and its parts."""

from __future__ import annotations

import collections
from collections.abc import Callable

import numpy as np

from ..base.errors import check
from .parts import Part, Reading, Remarks, counted, some
from .sources import Files


def without_broken(
    reading: Reading, remarks: Remarks, threads: int, on_check: Callable[[int, int], None] | None
) -> None:
    """Open all files, and take those out that cannot be used. They are named."""
    for name, part in reading.parts.items():
        if not isinstance(part.source, Files):
            continue
        usable, broken = part.source.checked(threads, on_check)
        if broken:
            what = f"{len(broken):,} of {counted(len(part), 'picture')}"
            reasons = some([f"{file} ({reason})" for file, reason in broken])
            remarks.fault(f"{name}: {what} cannot be read and {_are(broken)} left out: {reasons}")
        reading.parts[name] = part.take(usable)


def without_strangers(reading: Reading, remarks: Remarks) -> tuple[str, ...]:
    """The classes, in order; pictures of other parts whose class the training part lacks are taken out.

    Raises
    ------
    ValueError
        There is nothing to train on: no picture, or one class only.
    """
    check("train" in reading.parts, f"{reading.name} has no part to train on")
    counts = collections.Counter(reading.parts["train"].labels)
    check(
        bool(counts), ": ".join([f"{reading.name} has no pictures to train on", "; ".join(remarks.texts)]).strip(": ")
    )
    for name, part in reading.parts.items():
        strange = sorted(set(part.labels) - counts.keys())
        if strange:
            wrong = [label in strange for label in part.labels]
            what = counted(sum(wrong), "picture")
            many = f"{counted(len(strange), 'class', 'classes')} that the training part lacks"
            remarks.fault(f"{name}: {what} of {many} {_are(range(sum(wrong)))} left out: {some(strange)}")
            reading.parts[name] = part.take(np.flatnonzero(~np.array(wrong)))
    absent = [label for label in reading.classes or () if label not in counts]
    if absent:
        what = counted(len(absent), "class", "classes")
        remarks.fault(f"{what} without a picture to train on {_are(absent)} left out: {some(absent)}")
    classes = tuple(label for label in reading.classes or () if label in counts)
    check(len(classes) > 1, f"{reading.name} has one class only, {classes[0]}: at least two are needed")
    single = [label for label in classes if counts[label] == 1]
    if single:
        what = counted(len(single), "class", "classes")
        verb = "has" if len(single) == 1 else "have"
        remarks.fault(f"{what} {verb} one picture to train on, and none to be checked by: {some(single)}")
    for name in [name for name, part in reading.parts.items() if not len(part)]:
        remarks.fault(f"{name} has no pictures left")
        del reading.parts[name]
    return classes


def say_duplicates(reading: Reading, remarks: Remarks) -> None:
    """Name pictures that are there more than once: in the training part, and in another part as well."""
    train = reading.parts["train"]
    first: dict[bytes, int] = {}
    copies: list[str] = []
    contradictions: list[str] = []
    for index, digest in enumerate(train.source.hashes):
        original = first.setdefault(digest, index)
        if original != index:
            pair = f"{train.source.names[index]} = {train.source.names[original]}"
            (copies if train.labels[index] == train.labels[original] else contradictions).append(pair)
    if copies:
        remarks.fault(f"train: {_duplicates(copies)} of another one there: {some(copies)}")
    if contradictions:
        remarks.fault(f"train: {_duplicates(contradictions)} of one in another class: {some(contradictions)}")
    for name, part in reading.parts.items():
        if name == "train":
            continue
        leaks = [
            f"{own} = {train.source.names[first[digest]]}"
            for own, digest in zip(part.source.names, part.source.hashes)
            if digest in first
        ]
        if leaks:
            remarks.fault(
                f"{name}: {_duplicates(leaks)} of one that is trained on, so its accuracy is flattering: {some(leaks)}"
            )


def hold_out(reading: Reading, classes: tuple[str, ...], fraction: float, seed: int, remarks: Remarks) -> None:
    """Make a validation part out of a share of each class, at least one picture where a class has two or more.

    Copies of a picture go together, so that none is trained on and validated by.
    """
    train = reading.parts["train"]
    members: dict[str, dict[bytes, list[int]]] = {label: {} for label in classes}
    home: dict[bytes, str] = {}  # a picture that is in two classes goes with the first
    for index, (label, digest) in enumerate(zip(train.labels, train.source.hashes)):
        members[home.setdefault(digest, label)].setdefault(digest, []).append(index)
    random = np.random.RandomState(seed)  # its stream is frozen across NumPy versions, default_rng's is not
    held = np.zeros(len(train), bool)
    for label in classes:
        groups = list(members[label].values())
        count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
        for number in random.permutation(len(groups))[: max(count, 0)]:
            held[groups[number]] = True
    if not held.any():
        remarks.fault("no pictures could be held out for validation: each class has a single one")
        return
    share = f"{held.sum():,} of {len(train):,} pictures"
    remarks.note(f"{share} were held out for validation, {100 * fraction:.3g} % of each class, drawn with seed {seed}")
    reading.parts["validation"] = _of(train, held)
    reading.parts["train"] = _of(train, ~held)


def _of(part: Part, chosen: np.ndarray) -> Part:
    return part.take(np.flatnonzero(chosen))


def _duplicates(pairs: list[str]) -> str:
    return f"{counted(len(pairs), 'picture is a copy', 'pictures are copies')}"


def _are(things) -> str:
    return "is" if len(things) == 1 else "are"
