"""RandAugment's ops, what a magnitude means for them, and the whole of it equal timm's, pixel by pixel."""

import itertools
import math

import numpy as np
import pytest
from checks import peer

from cvit.data.draws import normal, uniforms
from cvit.data.rand_augment import DRAWS, OPS, Canvas, RandAugment

Image = pytest.importorskip("PIL.Image")

RELATIVE = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}  # timm's names
LEVELS = (0.0, 0.7, 3.0, 5.5, 9.0, 10.0, 14.0)
FILL = (124, 116, 104)
CASES = [(name, increasing) for name in OPS for increasing in (False, True)]


def picture(mode="RGB", size=(37, 29), seed=0):
    """Smooth colours with noise and a frame, so that every op has something to change."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    planes = [80 + 60 * np.sin(x / (4 + c)) + 40 * np.cos(y / (3 + c)) + rng.normal(0, 12, x.shape) for c in range(3)]
    image = Image.fromarray(np.clip(np.stack(planes, -1), 20, 230).astype(np.uint8))
    return image if mode == "RGB" else image.convert(mode)


def timms(name, increasing):
    """timm's name of an op's variant."""
    auto_augment = peer("timm.data.auto_augment")
    name = RELATIVE.get(name, name)
    longer = name + "Increasing"
    return auto_augment, longer if increasing and longer in auto_augment.NAME_TO_OP else name


@pytest.fixture(autouse=True)
def posterize_to_no_bits(monkeypatch):
    """timm asks Pillow for 0 bits at the strongest magnitude: black, until Pillow 13 refused it."""
    posterize = pytest.importorskip("PIL.ImageOps").posterize
    black = lambda image: image.point([0] * 256 * len(image.getbands()))
    monkeypatch.setattr(
        "PIL.ImageOps.posterize", lambda image, bits: posterize(image, bits) if bits > 0 else black(image)
    )


class Drawn:
    """The random numbers of one layer, in place of the module `random`: whether (not asked if sure), then the sign."""

    def __init__(self, row, sure):
        _, whether, self.first, self.second, sign, self.sampling = row
        self.given = iter((sign,) if sure else (whether, sign))

    def random(self):
        return next(self.given)

    def gauss(self, mean, deviation):
        return mean + deviation * normal(self.first, self.second)

    def uniform(self, low, high):
        return low + (high - low) * self.first

    def choice(self, values):
        return values[int(self.sampling * len(values))]


@pytest.mark.parametrize("name, increasing", CASES)
def test_magnitudes_mean_what_they_mean_in_timm(monkeypatch, name, increasing):
    auto_augment, theirs = timms(name, increasing)
    argument = OPS[name].increasing if increasing else OPS[name].argument
    function = auto_augment.LEVEL_TO_ARG[theirs]
    for level in LEVELS:
        for negative in (False, True):
            if function is None:
                assert argument(level, negative) is None
                continue
            monkeypatch.setattr(auto_augment.random, "random", lambda: 0.75 if negative else 0.25)
            assert function(level, {}) == (argument(level, negative),)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name, increasing", CASES)
def test_pixels_equal_timms(name, increasing, mode):
    auto_augment, theirs = timms(name, increasing)
    op, image = OPS[name], picture(mode)
    before = image.tobytes()
    fill = FILL if mode == "RGB" else FILL[0]
    changed = 0
    for level in LEVELS:
        for negative in (False, True):
            argument = (op.increasing if increasing else op.argument)(level, negative)
            arguments = () if argument is None else (argument,)
            for filter in (0, 2, 3):
                ours = op.run(image, argument, Canvas(fill, filter))
                expected = auto_augment.NAME_TO_OP[theirs](image, *arguments, fillcolor=fill, resample=filter)
                assert ours.mode == mode and ours.size == image.size
                assert ours.tobytes() == expected.tobytes()
                changed += ours.tobytes() != before
    assert changed or (name == "Color" and mode == "L")
    assert image.tobytes() == before


WORDS = [
    "rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m8-inc1-mstd101", "rand-m8-inc1-mstd1.0-n4", "rand", "rand-inc0",
    "rand-m15-mmax20-n3-p0.8-inc1", "rand-n5-p1-mstd2.5-m7", "rand-p0",
]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("text", WORDS)
def test_whole_changes_equal_timms(monkeypatch, text, interpolation):
    auto_augment, transforms = peer("timm.data.auto_augment"), peer("timm.data.transforms")
    settings = {"img_mean": FILL}
    if interpolation != "random":
        settings["interpolation"] = transforms.str_to_pil_interp(interpolation)
    theirs = auto_augment.rand_augment_transform(text, settings)
    ours = RandAugment.parse(text)
    assert ours.layers == theirs.num_layers and ours.draws == ours.layers * DRAWS
    filter = {"bicubic": 3, "bilinear": 2, "random": None}[interpolation]
    image, changed = picture(), 0
    for row in uniforms(0, 0, np.arange(60), ours.draws).tolist():
        expected = image
        for layer in range(ours.layers):
            drawn = row[layer * DRAWS : (layer + 1) * DRAWS]
            monkeypatch.setattr(auto_augment, "random", Drawn(drawn, ours.probability == 1))
            expected = theirs.ops[int(drawn[0] * len(theirs.ops))](expected)
        result = ours(image, row, FILL, filter)
        assert result.tobytes() == expected.tobytes()
        changed += result.tobytes() != image.tobytes()
    assert changed == 0 if ours.probability == 0 else changed > 20


def test_ops_are_drawn_evenly_and_as_often_as_said(monkeypatch):
    counts = dict.fromkeys(OPS, 0)

    def counting(name):
        def run(image, argument, canvas):
            counts[name] += 1
            return image

        return OPS[name]._replace(run=run)

    monkeypatch.setattr("cvit.data.rand_augment._TABLE", tuple(map(counting, OPS)))
    change, pictures = RandAugment.parse("rand-n3-p0.4"), 5000
    for row in uniforms(0, 0, np.arange(pictures), change.draws).tolist():
        change(None, row, 0, 0)
    share = 0.4 / 15
    error = 5 * math.sqrt(share * (1 - share) * 3 * pictures)
    assert all(abs(count - share * 3 * pictures) < error for count in counts.values())


def test_magnitudes_are_clipped_and_spread_as_said():
    draws = uniforms(0, 0, np.arange(20000), 2).tolist()
    levels = lambda text: np.array([*itertools.starmap(RandAugment.parse(text).level, draws)])
    for text, level in (("rand-m9", 9), ("rand-m12", 10), ("rand-m12-mmax20", 12), ("rand", 10)):
        assert set(levels(text)) == {level}
    spread = levels("rand-m5-mstd0.5")
    assert abs(spread.mean() - 5) < 5 * 0.5 / math.sqrt(20000) and abs(spread.std() - 0.5) < 0.02
    wide = levels("rand-m9-mstd5")
    assert wide.min() == 0 and wide.max() == 10
    even = levels("rand-m8-mstd101")
    assert abs(even.mean() - 4) < 5 * 8 / math.sqrt(12 * 20000) and 7.9 < even.max() < 8


def test_words_say_what_they_say():
    assert RandAugment.parse("rand-m9-mstd0.5-inc1") == RandAugment(9, 2, 0.5, 0.5, 10, True)
    assert RandAugment.parse("rand-mmax20-p0.8-n3") == RandAugment(10, 3, 0.8, 0, 20, False)
    assert RandAugment.parse("rand-mstd101").deviation == math.inf


@pytest.mark.parametrize(
    "text, error, message",
    [
        (9, TypeError, 'rand_augment must be a text as "rand-m9-mstd0.5-inc1", got 9'),
        ("augmix-m5", ValueError, "rand_augment must begin with \"rand\", .* got 'augmix-m5'"),
        ("", ValueError, "must begin with"),
        ("rand-m9-x3", ValueError, "unknown part 'x3' in 'rand-m9-x3'; known are m, n, p, mstd, mmax, inc"),
        ("rand-m9-", ValueError, "unknown part ''"),
        ("rand-tweights", ValueError, r"unknown part 'tweights' \(other sets of ops are not supported\)"),
        ("rand-w0", ValueError, r"unknown part 'w0' \(other sets"),
        ("rand-m9.5", ValueError, "needs a whole number from 0 to 1000 after m, got 'm9.5'"),
        ("rand-m", ValueError, "needs a whole number from 0 to 1000 after m, got 'm'"),
        ("rand-n0", ValueError, "needs a whole number from 1 to 15 after n, got 'n0'"),
        ("rand-p1.5", ValueError, "needs a number from 0 to 1 after p, got 'p1.5'"),
        ("rand-mstd1e3", ValueError, "needs a number of at least 0 after mstd, got 'mstd1e3'"),
        ("rand-inc2", ValueError, "needs a whole number from 0 to 1 after inc"),
        ("rand-m9-m8", ValueError, "says magnitude twice: 'rand-m9-m8'"),
    ],
)
def test_other_words_are_refused(text, error, message):
    with pytest.raises(error, match=message):
        RandAugment.parse(text)
