"""Settings kept in files: a frozen dataclass to a plain dict of JSON's types, and back with its checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ..base.errors import check, listed, short
from ..base.numbers import shown

FORMAT = 1
Settings = TypeVar("Settings")


def to_json(settings) -> dict[str, Any]:
    """All fields of a dataclass, with the format's number; what is a tuple there is a list."""
    return {"format": FORMAT, **_plain(dataclasses.asdict(settings))}


def from_json(kind: type[Settings], name: str, fields: Mapping[str, Any]) -> Settings:
    """What `to_json` made of a dataclass of this kind, whose own checks see every value.

    Raises
    ------
    ValueError
        A field is missing, unknown or wrong; `name` says of what.
    """
    check(isinstance(fields, Mapping), f"{name} must be a JSON object, got {shown(fields)}")
    number = fields.get("format")
    check(number == FORMAT and number is not True, f"{name} must be of format {FORMAT}, got {shown(number)}")
    given = {key: value for key, value in fields.items() if key != "format"}
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    missing, unknown = known - given.keys(), given.keys() - known
    check(not missing, f"{name} lacks {listed(missing)}")
    check(not unknown, f"{name} has unknown keys: {listed(map(str, unknown))}")
    try:
        return kind(**given)
    except TypeError as error:  # in a file a value of a wrong type is a wrong value
        raise ValueError(f"{name}: {short(error, 200)}") from None


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
