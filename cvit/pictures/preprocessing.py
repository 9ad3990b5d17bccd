"""`Preprocessing`: what is done to a picture before a model sees it, as settings, and as a call."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.errors import check, listed, short
from ..base.numbers import as_int, finite, shown
from . import published
from .open import ALPHA, open_picture
from .pixels import INTERPOLATIONS, Size, values
from .reader import as_pictures

if TYPE_CHECKING:
    from PIL import Image

FORMAT = 2  # of `to_json`; format 1 has no `keep`
MOST_EDGE = 1 << 15  # pixels of an edge
RESIZES = ("squash", "short_edge", "long_edge", None)
ROUNDINGS = ("timm", "transformers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to a picture before a model sees it: open, resize, crop, scale, normalize.

    Pixels equal those of the original libraries' pipelines on Pillow's images, to 1/255 at most: timm's
    `create_transform`, and transformers' processors with the backend "pil". (torch's own bicubic resizing, which the
    backend "torchvision" uses, differs from Pillow's by up to 19/255.)

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the picture that resizing and cropping make: what comes out, unless there is `keep`.
    resize : "squash", "short_edge", "long_edge" or None
        To `resize_size` whatever the picture's aspect ratio; keeping the ratio, so that it just covers `resize_size`;
        keeping it, so that it just fits in, with a border of the colour `mean`; or not at all.
    resize_size : int or (int, int), optional
        By default `size`.
    interpolation : "bicubic", "bilinear", "nearest", "lanczos", "box" or "hamming"
        Pillow's filters.
    crop : bool
        Whether the middle is cut out, `size` large; a picture that is smaller gets a border. Without a crop the
        resized pictures must have `size`.
    rounding : "timm" or "transformers"
        Whose way of rounding edges and the crop's origin.
    rescale : float
        What the bytes 0 .. 255 are multiplied with.
    rescale_first : bool
        Whether that comes before resizing, which is then done in floats (DINOv3 in transformers).
    mean, std : tuple of float, one a channel
        Subtracted after `rescale`, then divided by. Three channels are RGB, one is grey.
    keep : int or (int, int), optional
        Height and width of the part at the top left that comes out. A convolution whose patches do not divide `size`
        leaves the rest out; 378 of 384 pixels for patches of 14.
    alpha : "drop" or "white"
        What becomes of transparent pixels, see `open_picture`.

    Examples
    --------
    >>> preprocessing = Preprocessing(size=224, resize_size=256)
    >>> preprocessing(np.zeros((300, 400, 3), np.uint8)).shape
    (1, 3, 224, 224)
    """

    size: Size = (224, 224)
    resize: str | None = "short_edge"
    resize_size: Size | None = None
    interpolation: str = "bicubic"
    crop: bool = True
    rounding: str = "timm"
    rescale: float = 1 / 255
    rescale_first: bool = False
    mean: tuple[float, ...] = published.HALF
    std: tuple[float, ...] = published.HALF
    alpha: str = "drop"
    keep: Size | None = None

    def __post_init__(self):
        fix = lambda name, value: object.__setattr__(self, name, value)
        fix("size", _size("size", self.size))
        if self.resize is None:
            check(self.resize_size is None, "resize_size must be None where resize is")
        else:
            fix("resize_size", self.size if self.resize_size is None else _size("resize_size", self.resize_size))
        if self.keep is not None:
            keep = _size("keep", self.keep)
            inside = keep[0] <= self.size[0] and keep[1] <= self.size[1]
            check(inside, f"keep must be within the size {self.size}, got {keep}")
            fix("keep", None if keep == self.size else keep)
        for name, known in (
            ("resize", RESIZES), ("interpolation", tuple(INTERPOLATIONS)), ("rounding", ROUNDINGS), ("alpha", ALPHA),
        ):  # fmt: skip
            value = getattr(self, name)
            right = value is None or isinstance(value, str)
            check(right and value in known, f"{name} must be one of {known}, got {shown(value)}")
        for name in ("crop", "rescale_first"):
            value = getattr(self, name)
            check(isinstance(value, bool), f"{name} must be True or False, got {shown(value)}")
        check(
            self.crop or self.resize is None or (self.resize == "squash" and self.resize_size == self.size),
            f"without a crop pictures must be squashed to size {self.size}, got {self.resize} to {self.resize_size}",
        )
        fix("rescale", _number("rescale", self.rescale, positive=True))
        fix("mean", _numbers("mean", self.mean))
        fix("std", _numbers("std", self.std, positive=True))
        check(len(self.mean) == len(self.std), f"mean and std must be as many, got {len(self.mean)}, {len(self.std)}")
        check(self.channels in (1, 3), f"mean must have 1 number for grey or 3 for RGB, got {self.channels}")

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what comes out."""
        return (self.channels, *(self.keep or self.size))

    @property
    def crop_fraction(self) -> float | None:
        """The part of a resized edge that the crop keeps, timm's crop_pct; None if height and width differ in it."""
        return published.crop_fraction(self._fields())

    def __call__(self, images) -> np.ndarray:
        """The values of pictures, a new float32 array (N, C, H, W).

        Parameters
        ----------
        images : one picture, a folder, or a list or tuple of these
            A picture is a path, a Pillow image, or a uint8 array (h, w) or (h, w, c); see `open_picture`. An array
            (N, h, w, c) is N pictures; a folder stands for all pictures in it, see `as_pictures`.

        Raises
        ------
        ValueError
            A picture cannot be decoded, or has another size than one that neither resizes nor crops needs.
        """
        images, _ = as_pictures(images)
        out = np.empty((len(images), *self.shape), np.float32)
        for picture, row in zip(images, out):
            values(self.opened(picture), self, row)
        return out

    def opened(self, picture) -> Image.Image:
        """One picture as the Pillow image that is to be resized: of mode RGB or L, and of a size that can be used."""
        beside = 2 * 4 + 2 * self.channels if self.rescale_first else 0  # a channel's floats and all bytes, twice each
        image = open_picture(picture, channels=self.channels, alpha=self.alpha, beside=beside)
        if self.resize is None and not self.crop and (image.height, image.width) != self.size:
            name = picture if isinstance(picture, (str, os.PathLike)) else "the picture"
            raise ValueError(f"{name} must have {_x(self.size)} pixels, got {image.height}x{image.width}")
        return image

    def with_size(self, height: int, width: int) -> Preprocessing:
        """The same for a model that takes pictures of another size, with the same crop fraction and all of it kept."""
        size = _size("size", (height, width))
        resized = self.resize_size
        if resized is not None:
            fraction = self.crop_fraction
            if fraction is not None:
                resized = _size("resize_size", tuple(int(edge / fraction) for edge in size))
            else:
                resized = _size("resize_size", tuple(new * r // s for new, r, s in zip(size, resized, self.size)))
        return dataclasses.replace(self, size=size, resize_size=resized, keep=None)

    def with_channels(self, channels: int) -> Preprocessing:
        """The same for grey pictures (1), with the mean of the channels' numbers, or for colours (3) from grey's."""
        if channels == self.channels:
            return self
        mean, std = ((sum(numbers) / len(numbers),) * channels for numbers in (self.mean, self.std))
        return dataclasses.replace(self, mean=mean, std=std)

    # ------------------------------------------------------------------------------------------------ in and out
    @classmethod
    def default(cls, image_size=224, channels: int = 3) -> Preprocessing:
        """For a model that says nothing: the short edge to the model's size, bicubic, values from -1 to 1."""
        size = _size("image_size", image_size)
        check(
            channels in (1, 3),
            f"channels must be 1 or 3 for pictures, got {shown(channels)}: give the model arrays of its own",
        )
        return cls(size=size, mean=(0.5,) * channels, std=(0.5,) * channels)

    @classmethod
    def from_timm(cls, pretrained_cfg: Mapping) -> Preprocessing:
        """From timm's `pretrained_cfg`, a dict; keys that are missing have timm's defaults.

        timm's `input_size`, `crop_pct` and `crop_mode` count, not those with `test_` before them, as timm's
        `resolve_data_config` does.
        """
        return cls._of(published.fields_of_timm, pretrained_cfg)

    @classmethod
    def from_hf(cls, preprocessor_config: Mapping) -> Preprocessing:
        """From transformers' preprocessor_config.json, read as a dict.

        Keys that are missing have the defaults of the class it names: ViT, DeiT, CLIP, Bit (DINOv2), Siglip,
        DINOv3ViT or Beit. Of another class size, resample, image_mean and image_std must be there.

        Raises
        ------
        ValueError
            A value is wrong, or the pictures would have no fixed size.
        """
        return cls._of(published.fields_of_hf, preprocessor_config)

    def to_timm(self) -> dict:
        """The keys of timm's `pretrained_cfg` that say the same.

        timm's own rounding of long edge and crop then holds, and a resizing in floats becomes one in bytes.

        Raises
        ------
        ValueError
            timm has no such preprocessing.
        """
        return published.timm_of_fields(self._fields())

    def to_hf(self) -> dict:
        """What stands in transformers' preprocessor_config.json, as a dict; its own rounding then holds.

        Raises
        ------
        ValueError
            transformers has no such preprocessing.
        """
        return published.hf_of_fields(self._fields())

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps({"format": FORMAT, **self._fields()})

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """What `to_json` wrote.

        Raises
        ------
        ValueError
            The text is not what `to_json` writes, or a value is wrong.
        """
        try:
            fields = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"preprocessing is not valid JSON: {short(error, 200)}") from None
        check(isinstance(fields, dict), f"preprocessing must be a JSON object, got {short(repr(fields))}")
        number = fields.pop("format", None)
        known_format = number in (1, FORMAT) and not isinstance(number, bool)
        check(known_format, f"preprocessing must be of format 1 to {FORMAT}, got {short(repr(number))}")
        if number == 1:
            check("keep" not in fields, "preprocessing has unknown keys: keep")
            fields["keep"] = None
        known = {field.name for field in dataclasses.fields(cls)}
        missing, unknown = known - fields.keys(), fields.keys() - known
        check(not missing, f"preprocessing lacks {listed(missing)}")
        check(not unknown, f"preprocessing has unknown keys: {listed(unknown)}")
        return cls._of(dict, fields)

    def _fields(self) -> dict:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def _of(cls, read: Callable[[Any], dict], settings) -> Preprocessing:
        """From settings that came from outside, where a value of a wrong type is a `ValueError`, too."""
        try:
            return cls(**read(settings))
        except TypeError as error:
            raise ValueError(f"preprocessing: {short(error, 200)}") from None


def _x(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _size(name: str, value) -> Size:
    """A number or (height, width) as (height, width)."""
    edges = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    check(len(edges) == 2, f"{name} must be one number or (height, width), got {shown(value)}")
    height, width = (as_int(name, edge, maximum=MOST_EDGE) for edge in edges)
    return height, width


def _number(name: str, value, positive: bool = False) -> float:
    number = finite(name, value, minimum=-1e6)
    check(number <= 1e6, f"{name} must be at most 1e+06, got {shown(value)}")
    check(not positive or number >= 1e-6, f"{name} must be at least 1e-06, got {shown(value)}")
    return number


def _numbers(name: str, value, positive: bool = False) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple, np.ndarray)) else (value,)
    return tuple(_number(name, number, positive) for number in numbers)
