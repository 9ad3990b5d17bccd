"""RandAugment as timm does it: some of fifteen changes of a picture, drawn at random, all of one magnitude.

Cubuk et al. 2019, "RandAugment: Practical automated data augmentation with a reduced search space" (arXiv 1909.13719).
What a magnitude from 0 to 10 means for each change is timm's, from timm/data/auto_augment.py, and so are the pixels:
both leave them to Pillow. `OPS` is the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..base.errors import check
from ..base.numbers import shown
from ..pictures.open import pillow
from .draws import between, normal, whole

if TYPE_CHECKING:
    from PIL import Image

DRAWS = 6  # of a layer: which op, whether, the magnitude's two, the sign, the interpolation
TOP = 10.0  # the magnitude at which an op is at its strongest, unless mmax allows more
UNIFORM = 100.0  # from which mstd on magnitudes are even between 0 and m
MOST_LAYERS = 15
RANDOM_FILTERS = (2, 3)  # Pillow's numbers of bilinear and bicubic, either of which "random" interpolation takes


class Canvas(NamedTuple):
    """How an op that moves pixels does it."""

    fill: int | tuple[int, ...]  # the colour from outside the picture, a number a band
    filter: int  # Pillow's number of the interpolation


# ------------------------------------------------------------------------------- the changes, (image, argument, canvas)
def auto_contrast(image: Image.Image, argument: None, canvas: Canvas) -> Image.Image:
    """The darkest value of each band to 0, the brightest to 255."""
    return _ops().autocontrast(image)


def equalize(image: Image.Image, argument: None, canvas: Canvas) -> Image.Image:
    """Each band's histogram made even."""
    return _ops().equalize(image)


def invert(image: Image.Image, argument: None, canvas: Canvas) -> Image.Image:
    """The negative."""
    return _ops().invert(image)


def rotate(image: Image.Image, degrees: float, canvas: Canvas) -> Image.Image:
    """Turned about the middle, counter-clockwise."""
    filter = pillow().Resampling(canvas.filter)
    return image.rotate(degrees, resample=filter, fillcolor=canvas.fill)


def posterize(image: Image.Image, bits: int, canvas: Canvas) -> Image.Image:
    """Only the upper bits of each byte kept; of none the picture is black, where timm fails with Pillow 13."""
    kept = 256 - 2 ** (8 - max(bits, 0))
    return image.point([byte & kept for byte in range(256)] * len(image.getbands()))


def solarize(image: Image.Image, threshold: int, canvas: Canvas) -> Image.Image:
    """Bytes from a threshold on inverted."""
    return _ops().solarize(image, threshold)


def solarize_add(image: Image.Image, added: int, canvas: Canvas) -> Image.Image:
    """Bytes below 128 raised."""
    table = [min(255, byte + added) if byte < 128 else byte for byte in range(256)]
    return image.point(table * len(image.getbands()))


def color(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    """Saturation: 0 is grey, 1 the picture as it is."""
    return _enhance().Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    """Distances from the mean grey: 0 is grey all over, 1 the picture as it is."""
    return _enhance().Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    """0 is black, 1 the picture as it is."""
    return _enhance().Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    """0 is blurred, 1 the picture as it is."""
    return _enhance().Sharpness(image).enhance(factor)


def shear_x(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    """Rows shifted, the lower the more."""
    return _mapped(image, (1, factor, 0, 0, 1, 0), canvas)


def shear_y(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    """Columns shifted, the more to the right the more."""
    return _mapped(image, (1, 0, 0, factor, 1, 0), canvas)


def translate_x(image: Image.Image, share: float, canvas: Canvas) -> Image.Image:
    """Moved by a share of the width."""
    return _mapped(image, (1, 0, share * image.width, 0, 1, 0), canvas)


def translate_y(image: Image.Image, share: float, canvas: Canvas) -> Image.Image:
    """Moved by a share of the height."""
    return _mapped(image, (1, 0, 0, 0, 1, share * image.height), canvas)


def _mapped(image, matrix, canvas):
    affine = pillow().Transform.AFFINE
    return image.transform(image.size, affine, matrix, resample=canvas.filter, fillcolor=canvas.fill)


def _ops() -> Any:
    from PIL import ImageOps

    return ImageOps


def _enhance() -> Any:
    from PIL import ImageEnhance

    return ImageEnhance


# ---------------------------------------------------------------- what a magnitude means, (level, negative) -> argument
def _signed(value: float, negative: bool) -> float:
    return -value if negative else value


def _nothing(level: float, negative: bool) -> None:
    return None


def _degrees(level: float, negative: bool) -> float:
    return _signed(level / TOP * 30.0, negative)


def _bits(level: float, negative: bool) -> int:
    return int(level / TOP * 4)


def _bits_increasing(level: float, negative: bool) -> int:
    return 4 - _bits(level, negative)


def _threshold(level: float, negative: bool) -> int:
    return min(256, int(level / TOP * 256))


def _threshold_increasing(level: float, negative: bool) -> int:
    return 256 - _threshold(level, negative)


def _added(level: float, negative: bool) -> int:
    return min(128, int(level / TOP * 110))


def _factor(level: float, negative: bool) -> float:
    return level / TOP * 1.8 + 0.1


def _factor_increasing(level: float, negative: bool) -> float:
    return max(0.1, 1.0 + _signed(level / TOP * 0.9, negative))


def _slant(level: float, negative: bool) -> float:
    return _signed(level / TOP * 0.3, negative)


def _share(level: float, negative: bool) -> float:
    return _signed(level / TOP * 0.45, negative)


class Op(NamedTuple):
    """A change, what a magnitude means for it, and what it means with "inc1": the larger, the further from no change.

    Without it a larger magnitude keeps more bits of Posterize, has a higher threshold of Solarize, and goes from dull
    to vivid in the four ops that enhance.
    """

    run: Callable[[Image.Image, Any, Canvas], Image.Image]
    argument: Callable[[float, bool], Any]
    increasing: Callable[[float, bool], Any]


OPS = {  # in timm's order
    "AutoContrast": Op(auto_contrast, _nothing, _nothing),
    "Equalize": Op(equalize, _nothing, _nothing),
    "Invert": Op(invert, _nothing, _nothing),
    "Rotate": Op(rotate, _degrees, _degrees),
    "Posterize": Op(posterize, _bits, _bits_increasing),
    "Solarize": Op(solarize, _threshold, _threshold_increasing),
    "SolarizeAdd": Op(solarize_add, _added, _added),
    "Color": Op(color, _factor, _factor_increasing),
    "Contrast": Op(contrast, _factor, _factor_increasing),
    "Brightness": Op(brightness, _factor, _factor_increasing),
    "Sharpness": Op(sharpness, _factor, _factor_increasing),
    "ShearX": Op(shear_x, _slant, _slant),
    "ShearY": Op(shear_y, _slant, _slant),
    "TranslateX": Op(translate_x, _share, _share),
    "TranslateY": Op(translate_y, _share, _share),
}
_TABLE = tuple(OPS.values())


# -------------------------------------------------------------------------------------------------------- the whole
@dataclass(frozen=True)
class RandAugment:
    """`layers` ops one after the other, each applied with `probability`, their magnitudes drawn anew each time.

    A magnitude is normal about `magnitude` with the standard deviation `deviation`, then clipped to 0 … `most`; with
    an infinite deviation it is even between 0 and `magnitude`.
    """

    magnitude: float = TOP
    layers: int = 2
    probability: float = 0.5
    deviation: float = 0.0
    most: float = TOP
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """From timm's words for it: "rand" and, after hyphens and in any order, keys with numbers.

        "rand-m9-mstd0.5-inc1" is DeiT's. m: magnitude (10); n: layers (2); p: probability (0.5); mstd: deviation (0),
        above 100 an infinite one; mmax: the largest magnitude (10); inc: whether all ops grow stronger with it (0).

        Raises
        ------
        ValueError
            A part is none of these, or out of range; which one is said. timm's sets of other ops (t…) are not there.
        """
        if not isinstance(text, str):
            raise TypeError(f'rand_augment must be a text as "rand-m9-mstd0.5-inc1", got {shown(text)}')
        head, *parts = text.split("-")
        check(head == "rand", f'rand_augment must begin with "rand", as "rand-m9-mstd0.5-inc1", got {shown(text)}')
        fields: dict[str, Any] = {}
        for part in parts:
            name, value = _read(part, text)
            check(name not in fields, f"rand_augment says {name} twice: {shown(text)}")
            fields[name] = value
        return cls(**fields)

    @property
    def draws(self) -> int:
        """How many even numbers of [0, 1) a picture needs."""
        return self.layers * DRAWS

    def __call__(
        self, image: Image.Image, draws: Sequence[float], fill: int | tuple[int, ...], filter: int | None
    ) -> Image.Image:
        """The picture, of mode RGB or L, changed.

        `fill` is the colour from outside, `filter` Pillow's number of the interpolation, None for bilinear or bicubic
        at random.
        """
        for layer in range(self.layers):
            which, whether, first, second, sign, sampling = draws[layer * DRAWS : (layer + 1) * DRAWS]
            if whether >= self.probability:
                continue
            op = _TABLE[whole(which, len(_TABLE))]
            argument = op.increasing if self.increasing else op.argument
            chosen = RANDOM_FILTERS[whole(sampling, 2)] if filter is None else filter
            image = op.run(image, argument(self.level(first, second), sign >= 0.5), Canvas(fill, chosen))
        return image

    def level(self, first: float, second: float) -> float:
        """A magnitude from two even numbers of [0, 1)."""
        level = self.magnitude
        if self.deviation == float("inf"):
            level = between(first, 0.0, level)
        elif self.deviation > 0:
            level += self.deviation * normal(first, second)
        return max(0.0, min(level, self.most))


_KEYS: dict[str, tuple[str, Callable[[str], Any], float, float]] = {  # field, type, least, most
    "m": ("magnitude", int, 0, 1000),
    "n": ("layers", int, 1, MOST_LAYERS),
    "p": ("probability", float, 0, 1),
    "mstd": ("deviation", float, 0, float("inf")),
    "mmax": ("most", int, 1, 1000),
    "inc": ("increasing", int, 0, 1),
}


def _read(part: str, text: str) -> tuple[str, Any]:
    """The field that a part as "mstd0.5" sets, and its value."""
    key, digits = re.fullmatch(r"([^\d.]*)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
    if key not in _KEYS:
        known = ", ".join(_KEYS)
        sets = " (other sets of ops are not supported)" if part.startswith(("t", "w")) else ""
        raise ValueError(f"rand_augment has the unknown part {shown(part)}{sets} in {shown(text)}; known are {known}")
    name, kind, least, most = _KEYS[key]
    pattern = r"\d{1,9}" if kind is int else r"\d{1,9}(\.\d{1,9})?"
    number = kind(digits) if re.fullmatch(pattern, digits, re.ASCII) else -1
    right = least <= number <= most
    what = "a whole number" if kind is int else "a number"
    bound = f"from {least:g} to {most:g}" if most < float("inf") else f"of at least {least:g}"
    check(right, f"rand_augment needs {what} {bound} after {key}, got {shown(part)} in {shown(text)}")
    if name == "deviation" and number > UNIFORM:
        number = float("inf")
    return name, bool(number) if name == "increasing" else number
