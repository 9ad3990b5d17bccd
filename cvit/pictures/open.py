"""One picture in, whatever it is: a file, a Pillow image or a uint8 array becomes an upright RGB or grey Pillow image.

Where the original libraries leave a choice, it is made as follows. A file's EXIF orientation is applied, so that a
photograph stands upright. Of an animation the first frame is taken. Grey of 16 bits keeps its upper 8 bits, as Pillow
itself does with colour of 16 bits (its own conversion of grey clips at 255, which turns most such pictures white).
Other wide modes, 32-bit integers and floats, are clipped to 0 .. 255 by Pillow.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check, short
from ..base.files import open_regular
from ..base.numbers import shown

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag: 1 is upright, 2 to 8 are the other ways to hold a camera
ALPHA = ("drop", "white")
GREY = ("1", "L", "LA", "La", "I", "F")  # and all modes that begin with I;16
# What the pixels of a file may take while they are decoded, turned and converted: that many bytes whatever the file's
# size, or so many for each of its own. A photograph has half a bit a pixel or more, so that at 12 bytes a pixel each of
# its bytes becomes 192; only what is nearly blank has less, 50 million pixels of colour in a few KB for instance.
MOST_BYTES, MOST_RATIO = 200_000_000, 192
# Bytes a pixel while a decoder is at work, where these are more than those of its result.
DECODERS = {"JPEG2000": 24, "WEBP": 16, "AVIF": 12}
# Formats that hold pixels. Pillow knows others that run programs (EPS, PDF) or hold references and data sets.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "DIB", "ICO", "TGA", "PCX", "QOI",
    "DDS", "SGI", "PSD",
)  # fmt: skip


def open_picture(
    picture, *, channels: int = 3, alpha: str = "drop", short_edge: int | None = None, beside: int = 0
) -> Image.Image:
    """`picture` as an upright Pillow image, decoded, of mode RGB (`channels` 3) or L (1).

    Parameters
    ----------
    picture : path, Pillow image, or uint8 array
        An array has the shape (h, w), or (h, w, c) with c = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
    channels : 3 or 1
        Grey becomes three equal channels, colour becomes grey by Pillow's luma, (299 R + 587 G + 114 B) / 1000.
    alpha : "drop" or "white"
        Transparent pixels keep the colour that stands in the file, or are laid on white. For a palette with a
        transparent colour the same.
    short_edge : int, optional
        How many pixels of the short edge are needed. A JPEG file that has at least twice as many is decoded at a half,
        a quarter or an eighth of its size, which takes a fraction of the time, with no fewer pixels than that.
    beside : int
        Bytes a pixel that the caller is going to take beside the picture's own; they count where a file is refused that
        would take too many.

    Raises
    ------
    OSError
        The file is missing or may not be read.
    ValueError
        The file, which is named, is no picture, is cut short or damaged, or has more pixels than Pillow allows
        (`PIL.Image.MAX_IMAGE_PIXELS`, doubled) or than a file of its size has (`MOST_BYTES`, `MOST_RATIO`).
    ModuleNotFoundError
        Pillow is missing.
    """
    check(channels in (1, 3), f"channels of a picture must be 1 or 3, got {shown(channels)}")
    check(alpha in ALPHA, f"alpha must be one of {ALPHA}, got {shown(alpha)}")
    image_module = pillow()
    if isinstance(picture, (str, os.PathLike)):
        with open_regular(picture) as file:
            # All of it: Pillow asks a file for as many bytes as it says that it has, and Python makes room for them.
            data = file.read()
        name = str(os.fspath(picture))
        with _named(name), image_module.open(io.BytesIO(data), formats=_formats()) as image:
            if short_edge is not None:
                image.draft(None, (short_edge, short_edge))
            _check_room(image, len(data), channels, alpha, beside)
            return _converted(image, channels, alpha)
    if isinstance(picture, image_module.Image):
        with _named(str(getattr(picture, "filename", "") or "the picture")):
            return _converted(picture, channels, alpha)
    return _converted(_of_array(picture), channels, alpha)


def inspect(data: bytes, name: str) -> tuple[int, int, bool]:
    """Height and width of a file's picture as it stands upright, and whether it is grey, after it was decoded.

    Its pixels are decoded, so that a picture which passes can be opened later; a JPEG's at an eighth of its size, for
    which all of its data is read as well. `name` stands for the file in errors, which are those of `open_picture`.
    """
    with _named(name), pillow().open(io.BytesIO(data), formats=_formats()) as image:
        edges, grey = (image.height, image.width), image.mode in GREY or image.mode.startswith("I;16")
        check(min(edges) > 0, f"the picture has no pixels, {image.width}x{image.height}")
        _check_room(image, len(data), 3, "white")
        image.draft(None, (1, 1))
        image.load()
        height, width = edges[::-1] if _orientation(image) in (5, 6, 7, 8) else edges
        return height, width, grey


def pillow() -> Any:
    """The module `PIL.Image`, imported when it is needed: Pillow is not among the base dependencies."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError('pictures need Pillow: pip install "cvit-cpu[pictures]"') from None
    return Image


@functools.cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow was built with."""
    image_module = pillow()
    image_module.init()
    return [name for name in FORMATS if name in image_module.OPEN]


@contextlib.contextmanager
def _named(name: str):
    """Let whatever a decoder raises on a damaged file be a `ValueError` that names the file.

    Errors of the system, a missing file for instance, stay as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(_message(name, error)) from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise SyntaxError, struct.error, IndexError and more
        raise ValueError(_message(name, error)) from None


def _message(name: str, error: Exception) -> str:
    kind = type(error).__name__
    if kind == "UnidentifiedImageError":
        return f"{name} is not a picture in a format that is read here"
    if kind == "DecompressionBombError":
        return f"{name} has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows: {short(error, 200)}"
    return f"{name} cannot be decoded: {short(error, 200) or kind}"


def _of_array(array) -> Image.Image:
    array = as_array("a picture", array)
    if array.dtype != np.uint8:
        raise TypeError(f"a picture that is an array must be uint8, values from 0 to 255, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    right = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (2, 3, 4))
    check(right and array.size > 0, f"a picture must have shape (h, w) or (h, w, 1 to 4 channels), got {array.shape}")
    return pillow().fromarray(np.ascontiguousarray(array))


def _check_room(image: Image.Image, size: int, channels: int, alpha: str, beside: int = 0) -> None:
    """Raise where an image that was opened and not decoded yet would take far more memory than its file's `size`."""
    own = 1 if image.mode in ("1", "L", "P") else 4  # bytes a pixel in Pillow
    each = own + (4 if image.mode != ("RGB" if channels == 3 else "L") else 0)
    if alpha == "white" and _is_transparent(image):
        each = own + 12  # with alpha, the paper, and both together
    each = max(each, DECODERS.get(image.format or "", 0), 16 if image.mode == "I" else 0, 4 + beside)

    def check_bytes(each: int) -> None:
        need = image.width * image.height * each
        text = f"its {image.width}x{image.height} pixels would take {need} bytes, too many for a file of {size}"
        check(need <= max(MOST_BYTES, MOST_RATIO * size), text)

    check_bytes(each)
    if _orientation(image) != 1:  # only now: of a PNG it may stand behind the pixels, which Pillow decodes then
        check_bytes(each + own)


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or image.info.get("transparency") is not None


def _converted(image: Image.Image, channels: int, alpha: str) -> Image.Image:
    """The image decoded, upright and of mode RGB or L."""
    image.load()
    check(image.width > 0 and image.height > 0, f"the picture has no pixels, {image.width}x{image.height}")
    image = _upright(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # I: before Pillow 11
        image = pillow().fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "LAB":
        image = _of_lab(image)
    elif image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if alpha == "white" and _is_transparent(image):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = pillow().new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow().alpha_composite(white, image)
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    turn = pillow().Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE, 6: turn.ROTATE_270,
        7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }  # fmt: skip
    orientation = _orientation(image)
    if orientation not in turns:
        return image
    turned = image.transpose(turns[orientation])
    turned.format = image.format
    return turned


def _orientation(image: Image.Image) -> int:
    """The image's EXIF orientation; EXIF data that cannot be read says nothing, which is 1."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _of_lab(image: Image.Image) -> Image.Image:
    """CIE L*a*b* as sRGB, by colour management: Pillow has no other way."""
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    turned = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    assert turned is not None  # None is for a conversion in place
    return turned
