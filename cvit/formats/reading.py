"""JSON as strangers wrote it, with limits.

What stands in such a file is no reason for more memory or time than its own size accounts for, and no text of it gets
into a message at full length.
"""

from __future__ import annotations

import json
import os

from ..base.errors import check, short
from ..base.files import open_regular
from ..base.numbers import shown

JSON_BYTES = 4_000_000  # a config of 21,843 classes with their names has two million; as objects it is 30 times that


def read_json(path: str | os.PathLike) -> dict:
    """The JSON object in a file of at most `JSON_BYTES`; anything else is a `ValueError` that names the file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check(size <= JSON_BYTES, f"{path} has {size} bytes, more than the {JSON_BYTES} that are read as JSON")
        return json_object(file.read(JSON_BYTES), str(path))


def json_object(text: bytes, what: str) -> dict:
    """The JSON object that `text` (UTF-8) is; `what` names its place in the `ValueError` for anything else.

    A key that occurs twice is refused as well: two readers might take two different values for it.
    """

    def once(pairs: list[tuple[str, object]]) -> dict:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {shown(twice)} occurs twice")
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"{what}: the JSON is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ones, and so is a number too long to read
        raise ValueError(f"{what}: not JSON that can be read: {short(error, 200)}") from None
    check(isinstance(value, dict), f"{what}: must be a JSON object, got {type(value).__name__}")
    return value
