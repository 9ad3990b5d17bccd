"""Pictures of every format that is read, by `open_picture`, `inspect` and a model's preprocessing."""

from __future__ import annotations

import functools
import io
import warnings
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, features

from cvit.pictures.open import inspect, open_picture
from cvit.pictures.preprocessing import Preprocessing

from .. import changes
from ..running import Target

KINDS = (  # format, modes, options
    ("PNG", ("L", "RGB", "RGBA", "P", "I;16", "1", "LA"), {}),
    ("PNG", ("RGB", "P"), dict(compress_level=0)),
    ("JPEG", ("L", "RGB", "CMYK"), {}),
    ("JPEG", ("RGB",), dict(progressive=True, quality=30)),
    ("GIF", ("L", "P"), {}),
    ("BMP", ("L", "RGB", "1"), {}),
    ("TIFF", ("L", "RGB", "RGBA", "F", "LAB", "I;16"), {}),
    ("TIFF", ("RGB", "L"), dict(compression="tiff_lzw")),
    ("TIFF", ("RGB", "L"), dict(compression="tiff_adobe_deflate")),
    ("WEBP", ("RGB", "RGBA"), {}),
    ("PPM", ("L", "RGB", "1", "I"), {}),
    ("JPEG2000", ("L", "RGB"), {}),
    ("ICO", ("RGBA",), dict(sizes=[(16, 16)])),
    ("TGA", ("L", "RGB"), dict(compression="tga_rle")),
    ("PCX", ("L", "RGB"), {}),
    ("DDS", ("RGB", "RGBA"), {}),
    ("SGI", ("L", "RGB"), {}),
    ("QOI", ("RGB",), {}),
    ("AVIF", ("RGB",), {}),
    ("MPO", ("RGB",), {}),
)


@functools.cache
def _seeds() -> tuple[bytes, ...]:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    made = []
    for form, modes, options in KINDS:
        if form == "AVIF" and not features.check("avif"):
            continue
        for mode in modes:
            image = Image.fromarray(pixels)
            if mode == "LAB":
                image = Image.frombytes("LAB", (24, 16), pixels.tobytes())
            else:
                image = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
            buffer = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6
            extra = {"exif": exif} if form in ("JPEG", "PNG", "WEBP") and mode == "RGB" else {}
            try:
                image.save(buffer, form, **options, **extra)
            except (OSError, KeyError):  # a form or a mode that this Pillow does not write
                continue
            made.append(buffer.getvalue())
    frames = [Image.new("P", (8, 8), n) for n in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return (*made, buffer.getvalue())


def _changed(rng: Random, data: bytes) -> bytes:
    if data[:8] == b"\x89PNG\r\n\x1a\n" and rng.random() < 0.6:
        return _changed_png(rng, data)
    return changes.damaged(rng, data)


def _changed_png(rng: Random, data: bytes) -> bytes:
    """A PNG with a changed, moved, doubled or missing chunk, whose checksums are right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place, how = rng.randrange(len(chunks)), rng.randrange(6)
    kind, body = chunks[place]
    if how < 3:
        chunks[place] = kind, changes.damaged(rng, body)
    elif how == 3:
        kind = rng.choice((b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"IDAT"))
        chunks.insert(place, (kind, rng.choice((body, zlib.compress(bytes(100_000)), rng.randbytes(8)))))
    elif how == 4 and len(chunks) > 1:
        del chunks[place]
    else:  # any size, with the data of another
        size = [rng.choice((1, 24, 255, 5000, 9000, 13_000, 1 << 16, (1 << 31) - 1)) for _ in range(2)]
        depth, colour = rng.choice(((8, 2), (8, 0), (1, 0), (16, 6), (8, 3), (8, 6)))
        body = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big") + bytes((depth, colour, 0, 0, 0))
        chunks[0] = b"IHDR", body
    return data[:8] + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    )


def make(rng: Random, folder: Path) -> None:
    """A picture with faults; its ending says nothing."""
    data = rng.choice(_seeds())
    for _ in range(rng.choice((1, 1, 2))):
        data = _changed(rng, data)
    changes.place(rng, folder / "x.png", data, 0.005)


@functools.cache
def _hows() -> tuple[Preprocessing, ...]:
    return (
        Preprocessing(size=8), Preprocessing(size=8, mean=(0.5,), std=(0.5,), resize="long_edge"),
        Preprocessing(size=(8, 12), resize="squash", alpha="white", rescale_first=True),
    )  # fmt: skip


def read(rng: Random, folder: Path) -> None:
    """The picture in one of the ways."""
    path, how = folder / "x.png", rng.randrange(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == 0:
            options = dict(channels=rng.choice((1, 3)), alpha=rng.choice(("drop", "white")))
            open_picture(path, **options, short_edge=rng.choice((None, 4)))
        elif how == 1 and path.is_file():
            inspect(path.read_bytes(), "x.png")
        else:
            rng.choice(_hows())(path)


TARGET = Target(make, read, (ValueError, OSError))
