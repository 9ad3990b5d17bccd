"""`Augmentation`: random changes of training pictures, as timm and DeiT publish them, each a function of drawn numbers.

A picture's numbers, `Augmentation.draws` of them, come from `uniforms(seed, epoch, indices, augmentation.draws)`. Every
change has slots of its own among them (below), so that a change switched on or off leaves the others as they were.
Geometry and colour are Pillow's; arrays of small pictures can be flipped, shifted, mapped and erased a batch at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..base.numbers import as_int, finite, shown
from ..pictures.open import pillow
from ..pictures.pixels import INTERPOLATIONS, Size
from . import boxes, settings
from .augment import AFFINE_DRAWS, Affine, bordered
from .draws import between, whole
from .geometry import Fill, colour, covering, fill_values, moved
from .rand_augment import RANDOM_FILTERS, Canvas, RandAugment, brightness, color, contrast

if TYPE_CHECKING:
    from PIL import Image

MOST_EDGE = 1 << 15  # pixels
MOVING = ("nearest", "bilinear", "bicubic", "random")  # interpolations with which Pillow turns and shears
GREY = 128  # the fill that timm takes where it knows no mean
JITTER = (brightness, contrast, color)
STILL = Canvas(GREY, 0)  # for changes that move nothing
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # in which jitter applies them

# The slots of a picture's draws; RandAugment's come last, as many as its layers need.
_CROP = slice(0, boxes.DRAWS)
_FILTER, _FLIP, _VERTICAL, _TOP, _LEFT = range(_CROP.stop, _CROP.stop + 5)
_AFFINE = slice(_LEFT + 1, _LEFT + 1 + AFFINE_DRAWS)
_JITTER = slice(_AFFINE.stop, _AFFINE.stop + 4)  # the order, and three factors
_ERASE, _NOISE = _JITTER.stop, _JITTER.stop + 1
_ERASED = slice(_NOISE + 1, _NOISE + 1 + boxes.DRAWS)
_LAYERS = _ERASED.stop


@dataclass(frozen=True)
class Augmentation:
    """Which random changes training pictures undergo, in this order: crop, affine map, flips, colour, erasing.

    The defaults are those of timm's `create_transform` for training, with DeiT's bicubic interpolation and erasing;
    DeiT has `rand_augment="rand-m9-mstd0.5-inc1"` as well. Letters and digits want `flip=0`.

    Parameters
    ----------
    crop_scale : (float, float) or None
        Random resized crop: the least and the largest share of a picture's area that is kept. None for none: a picture
        is then resized so that it just covers the size, and its middle is cut out.
    crop_ratio : (float, float)
        The crop's least and largest width to height.
    interpolation : "bicubic", "bilinear", "nearest", "lanczos", "box", "hamming" or "random"
        Pillow's filters; "random" is bilinear or bicubic, anew for every change. RandAugment takes the first three and
        "random".
    flip, vertical_flip : float
        The probabilities of left and right, and of top and bottom, to change places.
    rand_augment : str, optional
        timm's words for RandAugment, see `RandAugment.parse`. Where it is on, the colour jitter is off, as in timm.
    color_jitter : float or (float, float, float)
        Brightness, contrast and saturation, in random order, each by a factor from `max(0, 1 - jitter)` to
        `1 + jitter`; one number is all three's.
    erasing : float
        The probability of a rectangle of 2 % to a third of the picture, 0.3 to 3.3 times as high as wide, to become
        normal noise, pixel by pixel, after normalization.
    affine : Affine, optional
        Small affine maps, resampled bilinearly; for small pictures.
    pad_crop : int
        A border of so many pixels is laid round the picture (of the final size), and a part of the picture's size is
        cut out at random; for small pictures, in place of a random resized crop.

    Raises
    ------
    TypeError, ValueError
        A value is of a wrong type or out of range, or two do not go together.
    """

    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    vertical_flip: float = 0.0
    rand_augment: str | None = None
    color_jitter: float | tuple[float, float, float] = 0.4
    erasing: float = 0.25
    affine: Affine | None = None
    pad_crop: int = 0

    def __post_init__(self):
        fix = lambda name, value: object.__setattr__(self, name, value)
        if self.crop_scale is not None:
            fix("crop_scale", _range("crop_scale", self.crop_scale, most=1.0))
        fix("crop_ratio", _range("crop_ratio", self.crop_ratio, most=1000.0))
        known = (*INTERPOLATIONS, "random")
        right = isinstance(self.interpolation, str) and self.interpolation in known
        check(right, f"interpolation must be one of {known}, got {shown(self.interpolation)}")
        for name in ("flip", "vertical_flip", "erasing"):
            share = finite(name, getattr(self, name))
            check(share <= 1, f"{name} must be a probability, at most 1, got {shown(share)}")
            fix(name, share)
        if self.rand_augment is not None:
            _rand_augment(self.rand_augment)
            moving = self.interpolation in MOVING
            check(moving, f"rand_augment needs an interpolation of {MOVING}, got {shown(self.interpolation)}")
        fix("color_jitter", _jitter(self.color_jitter))
        if isinstance(self.affine, Mapping):
            fix("affine", _affine(self.affine))
        if not (self.affine is None or isinstance(self.affine, Affine)):
            raise TypeError(f"affine must be an Affine or None, got {shown(self.affine)}")
        fix("pad_crop", as_int("pad_crop", self.pad_crop, minimum=0, maximum=MOST_EDGE))
        one = self.crop_scale is None or self.pad_crop == 0
        check(one, f"pad_crop must be 0 where crop_scale is on, got {self.pad_crop}: both are random crops")

    @classmethod
    def none(cls) -> Augmentation:
        """No change at all: every other one starts from it with `dataclasses.replace`."""
        return cls(crop_scale=None, flip=0.0, color_jitter=0.0, erasing=0.0)

    @property
    def draws(self) -> int:
        """How many even numbers of [0, 1) a picture needs."""
        return _LAYERS + (0 if self.rand_augment is None else _rand_augment(self.rand_augment).draws)

    @property
    def vectorised(self) -> bool:
        """Whether `batch` does all there is to do: no resized crop, no change of colour."""
        return self.crop_scale is None and self.rand_augment is None and not any(self._jitters)

    @property
    def _jitters(self) -> tuple[float, ...]:
        return self.color_jitter if isinstance(self.color_jitter, tuple) else (self.color_jitter,) * 3

    # ------------------------------------------------------------------------------------------- one picture
    def pixels(self, image: Image.Image, size: Size | int, draws: Sequence[float], fill: Fill = GREY) -> Image.Image:
        """The picture, of mode RGB or L, changed in geometry and colour: a picture of the same mode and `size`.

        Where nothing is changed, it is the picture that came in.

        Parameters
        ----------
        image : Pillow image of mode RGB or L
            It stays as it is.
        size : (height, width) or int
        draws : (self.draws,) numbers of [0, 1)
        fill : number or one a channel, 0 .. 255
            The colour of what comes from outside the picture. timm takes the mean with which models normalize, see
            `fill_of`.

        Raises
        ------
        TypeError, ValueError
            The picture is of another mode, or an argument has not the form above.
        """
        size, row = _size(size), self._row(draws)
        if not isinstance(image, pillow().Image):
            raise TypeError(f"image must be a Pillow image, got {shown(type(image).__name__)}")
        check(image.mode in ("RGB", "L"), f"image must be of mode RGB or L, got {shown(image.mode)}")
        outside = colour(fill, image.mode)
        image = self._cropped(image, size, row, outside)
        if self.affine is not None:
            image = moved(image, self.affine, row[_AFFINE], outside)
        turn = pillow().Transpose
        if row[_FLIP] < self.flip:
            image = image.transpose(turn.FLIP_LEFT_RIGHT)
        if row[_VERTICAL] < self.vertical_flip:
            image = image.transpose(turn.FLIP_TOP_BOTTOM)
        if self.rand_augment is not None:
            filter = INTERPOLATIONS.get(self.interpolation)
            return _rand_augment(self.rand_augment)(image, row[_LAYERS:], outside, filter)
        return self._jittered(image, row[_JITTER])

    def crop_box(self, size: Size, draws: Sequence[float]) -> boxes.Box:
        """Top, left, height and width of what the random resized crop keeps of a picture of `size`, (height, width).

        Who decodes a JPEG can so learn how much of its resolution is needed. Without such a crop it is the whole.
        """
        row, (height, width) = self._row(draws), _size(size)
        if self.crop_scale is None:
            return 0, 0, height, width
        return boxes.crop_box(height, width, self.crop_scale, self.crop_ratio, row[_CROP])

    def _cropped(self, image, size, row, outside):
        """The picture cropped, at random or in the middle, and of the size."""
        height, width = size
        filter = self._filter(row[_FILTER])
        if self.crop_scale is not None:
            top, left, down, across = boxes.crop_box(
                image.height, image.width, self.crop_scale, self.crop_ratio, row[_CROP]
            )
            return image.crop((left, top, left + across, top + down)).resize((width, height), filter)
        image = covering(image, size, filter)
        if self.pad_crop == 0:
            return image
        top, left = (whole(row[slot], 2 * self.pad_crop + 1) - self.pad_crop for slot in (_TOP, _LEFT))
        framed = pillow().new(image.mode, (width, height), outside)
        framed.paste(image, (-left, -top))
        return framed

    def _filter(self, draw: float) -> int:
        """Pillow's number of the interpolation."""
        return INTERPOLATIONS[self.interpolation] if self.interpolation != "random" else RANDOM_FILTERS[whole(draw, 2)]

    def _jittered(self, image, row):
        """Brightness, contrast and saturation changed, as torchvision's ColorJitter does it."""
        jitters = self._jitters
        for change in ORDERS[whole(row[0], len(ORDERS))]:
            if jitters[change]:
                factor = between(row[1 + change], max(0.0, 1.0 - jitters[change]), 1.0 + jitters[change])
                image = JITTER[change](image, factor, STILL)
        return image

    # ----------------------------------------------------------------------------------------------- values
    def erase(self, values: np.ndarray, draws: Sequence[float]) -> None:
        """Random erasing in the values (C, H, W) of a normalized picture, float32, which is changed in place.

        The noise is standard normal, from NumPy's default generator with the seed that a draw of its own gives.
        """
        right = isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim == 3
        if not right:
            raise TypeError(f"values must be a float32 array (C, H, W), got {shown(getattr(values, 'shape', values))}")
        self._erase(values, self._row(draws))

    def _erase(self, values, row):
        if row[_ERASE] >= self.erasing:
            return
        box = boxes.erased_box(values.shape[1], values.shape[2], row[_ERASED])
        if box is None:
            return
        top, left, height, width = box
        noise = np.random.default_rng(int(row[_NOISE] * 2**53))
        erased = noise.standard_normal((len(values), height, width), np.float32)
        values[:, top : top + height, left : left + width] = erased

    def batch(self, values: np.ndarray, draws: np.ndarray, fill: Fill = 0.0) -> np.ndarray:
        """All changes of a vectorised augmentation, in values (n, C, H, W), float32: a new array, the input untouched.

        Parameters
        ----------
        values : (n, C, H, W) float32
            Each picture's result depends on it and its own draws alone, not on the others of the batch.
        draws : (n, self.draws) float64 of [0, 1)
        fill : number or one a channel
            What comes from outside a picture, as a value: 0 is the mean with which it was normalized.

        Raises
        ------
        TypeError, ValueError
            An argument has another form, or the augmentation has changes that need `pixels`.
        """
        check(self.vectorised, "batch needs an augmentation without crop_scale, rand_augment and color_jitter")
        values, draws = as_array("values", values), as_array("draws", draws)
        if values.dtype != np.float32 or values.ndim != 4:
            raise TypeError(f"values must be float32 (n, C, H, W), got {values.dtype} {values.shape}")
        shape = (len(values), self.draws)
        check(draws.shape == shape, f"draws must have shape {shape}, got {draws.shape}")
        outside = fill_values(fill, values.shape[1])
        rows = draws.tolist()
        values = self._shifted(values, rows, outside)
        if self.affine is not None:
            values = self.affine(values, [row[_AFFINE] for row in rows], outside)
        for picture, row in zip(values, rows):
            if row[_FLIP] < self.flip:
                picture[...] = picture[:, :, ::-1].copy()
            if row[_VERTICAL] < self.vertical_flip:
                picture[...] = picture[:, ::-1].copy()
            self._erase(picture, row)
        return values

    def _shifted(self, values, rows, outside):
        """A copy of the values, each picture shifted by the crop out of its border."""
        if self.pad_crop == 0:
            return values.copy()
        _, _, H, W = values.shape
        padded, shifted = bordered(values, self.pad_crop, outside), np.empty(values.shape, np.float32)
        for picture, out, row in zip(padded, shifted, rows):
            top, left = (whole(row[slot], 2 * self.pad_crop + 1) for slot in (_TOP, _LEFT))
            out[...] = picture[:, top : top + H, left : left + W]
        return shifted

    def _row(self, draws) -> list[float]:
        """A picture's draws as floats of Python's, which its formulas handle several times faster."""
        row = draws.tolist() if isinstance(draws, np.ndarray) else list(draws)
        check(len(row) == self.draws, f"draws must be {self.draws} numbers, got {len(row)}")
        return row

    # ------------------------------------------------------------------------------------------- in and out
    def to_json(self) -> dict[str, Any]:
        """All fields as a dict of JSON's types."""
        return settings.to_json(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Augmentation:
        """What `to_json` made. Raises ValueError where a field is missing, unknown or wrong."""
        return settings.from_json(cls, "augmentation", fields)


@functools.lru_cache(maxsize=32)
def _rand_augment(text: str) -> RandAugment:
    return RandAugment.parse(text)


def _range(name: str, value, most: float) -> tuple[float, float]:
    right = isinstance(value, (list, tuple)) and len(value) == 2
    check(right, f"{name} must be two numbers, the least and the largest, got {shown(value)}")
    low, high = (finite(name, number) for number in value)
    check(1e-6 <= low <= high <= most, f"{name} must rise, within 1e-06 and {most:g}, got {shown(value)}")
    return low, high


def _jitter(value) -> float | tuple[float, float, float]:
    if not isinstance(value, (list, tuple)):
        return _factor(value)
    check(len(value) == 3, f"color_jitter must be one number, or brightness, contrast, saturation, got {shown(value)}")
    one, two, three = map(_factor, value)
    return one, two, three


def _factor(value) -> float:
    number = finite("color_jitter", value)
    check(number <= 100, f"color_jitter must be at most 100, got {shown(value)}")
    return number


def _affine(fields: Mapping) -> Affine:
    try:
        return Affine(**fields)
    except TypeError as error:
        raise ValueError(f"affine: {error}") from None


def _size(value) -> Size:
    edges = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    check(len(edges) == 2, f"size must be one number or (height, width), got {shown(value)}")
    height, width = (as_int("size", edge, maximum=MOST_EDGE) for edge in edges)
    return height, width
