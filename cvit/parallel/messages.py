"""What ranks send each other, as bytes: a short head in JSON, and arrays as they lie in memory. Nothing is pickled.

A message of a known length comes first, the frame: two bytes that hold the head's length, the head, and what follows if
there is room. From the head the receiver learns how many bytes come after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..base.errors import check
from ..base.numbers import shown

FRAME = 512  # bytes, below what any MPI sends without waiting for the receiver
PIECE = 64 << 20  # bytes of a message at most: MPI counts in an int, and a rank that gets on is seen to
KINDS = "biufcSU"  # NumPy's letters for numbers and strings


def as_sendable(name: str, array: Any) -> np.ndarray:
    """`array` as one of numbers or strings whose elements lie one after the other."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in KINDS:
        raise TypeError(f"{name} must be an array of numbers or strings, got {shown(getattr(array, 'dtype', array))}")
    return np.asarray(array, order="C")


def bytes_of(array: np.ndarray) -> np.ndarray:
    """The memory of a contiguous array, a vector of bytes."""
    return array.reshape(-1).view(np.uint8)


def pieces(data: np.ndarray) -> Iterator[np.ndarray]:
    """Bytes in messages of at most `PIECE`; of no bytes, none."""
    for begin in range(0, data.size, PIECE):
        yield data[begin : begin + PIECE]


def framed(head: dict, body: np.ndarray) -> np.ndarray:
    """The frame of `body`'s bytes: with them where they find room."""
    text = json.dumps({**head, "bytes": body.size}, ensure_ascii=False).encode()
    check(len(text) <= FRAME - 2, f"a message's head must have at most {FRAME - 2} bytes, got {len(text)}")
    frame = np.zeros(FRAME, np.uint8)
    frame[:2] = divmod(len(text), 256)
    frame[2 : 2 + len(text)] = np.frombuffer(text, np.uint8)
    if len(text) + body.size <= FRAME - 2:
        frame[2 + len(text) : 2 + len(text) + body.size] = body
    return frame


def unframed(frame: np.ndarray) -> tuple[dict, np.ndarray, bool]:
    """A frame's head, the bytes it tells of, and whether these have come with it, else they are still to be read."""
    length = 256 * int(frame[0]) + int(frame[1])
    check(length <= FRAME - 2, f"a message's head must have at most {FRAME - 2} bytes, got {length}")
    head = json.loads(frame[2 : 2 + length].tobytes())
    body = np.empty(head["bytes"], np.uint8)
    whole = length + body.size <= FRAME - 2
    if whole:
        body[:] = frame[2 + length : 2 + length + body.size]
    return head, body, whole


def taken_apart(value: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """`value`, of which `Ranks.broadcast` says what it consists of, as JSON text in UTF-8 and the arrays in it."""
    arrays: list[np.ndarray] = []

    def apart(part: Any) -> Any:
        if part is None or isinstance(part, (bool, int, float, str)):
            return part
        if isinstance(part, (list, tuple)):
            return [apart(each) for each in part]
        if isinstance(part, dict):
            for key in part:
                if not isinstance(key, str):
                    raise TypeError(f"a dict to broadcast must have strings as keys, got {shown(key)}")
            return {"dict": {key: apart(each) for key, each in part.items()}}
        arrays.append(as_sendable("what is broadcast besides None, numbers, strings, lists and dicts", part))
        return {"array": arrays[-1].dtype.str, "shape": arrays[-1].shape}

    return np.frombuffer(json.dumps(apart(value)).encode(), np.uint8), arrays


def put_together(text: np.ndarray, given: list[np.ndarray] | None = None) -> tuple[Any, list[np.ndarray]]:
    """The value whose JSON text `taken_apart` made, and the arrays in it, in the same order.

    They are those given, else new ones that are to be filled.
    """
    arrays: list[np.ndarray] = []

    def together(part: Any) -> Any:
        if isinstance(part, list):
            return [together(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "dict" in part:
            return {key: together(each) for key, each in part["dict"].items()}
        arrays.append(_empty(part["array"], part["shape"]) if given is None else given[len(arrays)])
        return arrays[-1]

    return together(json.loads(text.tobytes())), arrays


def outgoing(head: dict, text: np.ndarray, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What `taken_apart` gave as messages: the frame, what of the text finds no room in it, and the arrays."""
    frame = framed(head, text)
    rest = [] if unframed(frame)[2] else [text]
    return [frame, *(part for data in (*rest, *map(bytes_of, arrays)) for part in pieces(data))]


def incoming(read: Callable[[list[np.ndarray]], None], look: Callable[[dict], None] | None = None) -> Any:
    """The value whose messages `outgoing` made. `read` fills vectors of bytes in order; `look` is given the head before
    more is read, and raises where it is another value's."""
    frame = np.empty(FRAME, np.uint8)
    read([frame])
    head, text, whole = unframed(frame)
    if look is not None:
        look(head)
    if not whole:
        read(list(pieces(text)))
    value, arrays = put_together(text)
    read([part for array in arrays for part in pieces(bytes_of(array))])
    return value


def _empty(dtype: str, shape: list[int]) -> np.ndarray:
    """An array for bytes to come, of one of the element types that are sent."""
    kind = np.dtype(dtype)
    check(kind.kind in KINDS, f"a message's arrays must hold numbers or strings, got {kind}")
    return np.empty(shape, kind)
