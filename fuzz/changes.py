"""What is done to numbers, texts, JSON and bytes: mostly a little, so that what follows is still read.

Every function draws from `rng` (random.Random) and nothing else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

NUMBERS = (
    0, 1, -1, 2, 3, 4, 7, 8, 16, 17, 63, 64, 65, 127, 128, 255, 256, 1 << 15, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31,
    1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 31), -(1 << 63), 10**30, 10**400, 10**4299,
    0.0, -0.0, 0.5, 1.5, 1e-320, 1e-38, 1e38, 1e39, 1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "0", "1", "-1", "nan", "inf", "null", "true", "\0", "a\0b", "\ud800", "\udcff", "é", "𝒳", "\n", "\r",
    "\u2028", "../x", "../../x", "/", ".", "..", "a/b", "x" * 300, "x" * 5000, "{", "[", '"', "\\", "%s%n", "{0}",
    "__class__", "F32", "BF16", "F8_E4M3", "<f4", "|O", "model.safetensors", "config.json",
)  # fmt: skip


def whole(rng: Random) -> int | float:
    """A number at which something may go wrong."""
    return rng.choice(NUMBERS) if rng.random() < 0.7 else rng.getrandbits(rng.choice((3, 8, 16, 32, 64)))


def text(rng: Random) -> str:
    """A text at which something may go wrong."""
    if rng.random() < 0.8:
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x3000)))) for _ in range(rng.randrange(12)))


def value(rng: Random, depth: int = 0) -> Any:
    """Any value that JSON has."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return whole(rng)
    if kind < 4:
        return text(rng)
    if kind < 6:
        return rng.choice((None, True, False))
    if kind < 8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {text(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def changed(rng: Random, tree: Any) -> Any:
    """A copy of a JSON value in which one thing is different: a value, a key, an order, a length."""
    if isinstance(tree, dict) and tree and rng.random() < 0.95:
        return _changed_dict(rng, tree)
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        return _changed_list(rng, tree)
    return other(rng, tree)


def _changed_dict(rng: Random, tree: dict) -> dict:
    new, key, how = dict(tree), rng.choice(list(tree)), rng.random()
    if how < 0.8:
        new[key] = changed(rng, tree[key])
    elif how < 0.88:
        del new[key]
    elif how < 0.92:
        new[text(rng)] = value(rng)
    elif how < 0.96:
        key2 = rng.choice(list(tree))
        new[key], new[key2] = new[key2], new[key]
    else:
        new[near(rng, key)] = new.pop(key)
    return new


def _changed_list(rng: Random, tree: list) -> list:
    new, place, how = list(tree), rng.randrange(len(tree)), rng.random()
    if how < 0.7:
        new[place] = changed(rng, tree[place])
    elif how < 0.8:
        del new[place]
    elif how < 0.9:
        new.insert(place, value(rng))
    elif how < 0.95:
        new.insert(place, new[place])
    else:
        rng.shuffle(new)
    return new


def other(rng: Random, leaf: Any) -> Any:
    """Another value in place of one: near it, or any."""
    if isinstance(leaf, bool) or leaf is None or rng.random() < 0.25:
        return value(rng)
    if isinstance(leaf, (int, float)):
        how = rng.randrange(8)
        if how < 4:
            return (leaf + 1, leaf - 1, leaf * 2, -leaf)[how]
        return float(leaf) if how == 4 and abs(leaf) < 1e300 else whole(rng)
    if isinstance(leaf, str):
        return near(rng, leaf) if rng.random() < 0.6 else text(rng)
    return value(rng)


def near(rng: Random, word: str) -> str:
    """A text with a piece left out, doubled or put in."""
    begin = rng.randrange(len(word) + 1)
    end = min(begin + rng.randrange(4), len(word))
    return word[:begin] + rng.choice(("", word[begin:end] * 2, text(rng), word[begin:end].upper())) + word[end:]


def json_text(rng: Random, tree: Any, room: int = 100_000) -> bytes:
    """A JSON value as UTF-8, now and then as something that is no JSON, or barely."""
    how = rng.random()
    try:
        written = json.dumps(tree, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    except ValueError:  # a number of more digits than Python writes
        written = b'{"a": 1' + b"0" * 5000 + b"}"
    if how < 0.88:
        return written
    if how < 0.90 and written[:1] == b"{" and isinstance(tree, dict) and tree:
        key = json.dumps(rng.choice(list(tree)))
        return b"{" + key.encode() + b": " + json.dumps(value(rng)).encode() + b", " + written[1:]
    if how < 0.91:
        deep = rng.choice((10, 500, 990, 2000, room // 2))
        opened, shut = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        return b'{"a": ' + opened * (deep // len(opened)) + b"0" + shut * rng.choice((0, deep // len(opened))) + b"}"
    if how < 0.92:
        return rng.choice((b"\xef\xbb\xbf" + written, written.decode("utf-8", "replace").encode("utf-16"), b""))
    if how < 0.93:
        piece = rng.choice((b"[],", b'{"":0},', b"0.1,", b'"a",', b"1e9,"))
        return b'{"a": [' + piece * (rng.choice((10, 1000, room)) // len(piece)) + b"0]}"
    return damaged(rng, written)


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes with one to four faults: bits, numbers, pieces that are missing, doubled, moved or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place, how = rng.randrange(len(data) + 1), rng.randrange(9)
        if how < 2 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif how == 2 and place < len(data):
            data[place] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif how in (3, 4):
            size = rng.choice((1, 2, 4, 8))
            number = int(rng.choice(NUMBERS[:27])) & ((1 << 8 * size) - 1)
            data[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif how == 5:
            del data[place : place + rng.choice((1, 2, 4, 16, 100))]
        elif how == 6:
            data[place:place] = data[place : place + rng.choice((1, 4, 16, 64))]
        elif how == 7:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        else:
            del data[place:]
    return bytes(data)


def place(rng: Random, path: Path, data: bytes, special: float = 0.01) -> None:
    """Write `data` to `path`; with the probability `special` what stands there is no such file."""
    if rng.random() >= special:
        path.write_bytes(data)
        return
    how = rng.randrange(7)
    if how == 0:
        path.mkdir()
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.touch()
    else:
        path.symlink_to(("/dev/zero", "/dev/null", "nowhere", path.name)[how - 3])
