"""Random changes of pictures: crops, jitter and erasing equal timm's for the same draws, in any order and company."""

import dataclasses
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from checks import peer, same_bits

from cvit.data import Affine, Augmentation, uniforms
from cvit.data.augmentation import _CROP, _ERASE, _ERASED, _FILTER, _FLIP, _JITTER, _LAYERS, _VERTICAL, JITTER, ORDERS
from cvit.data.boxes import crop_box, erased_box
from cvit.data.geometry import fill_of
from cvit.pictures.preprocessing import Preprocessing

Image = pytest.importorskip("PIL.Image")

NONE = Augmentation.none()
DEIT = Augmentation(rand_augment="rand-m9-mstd0.5-inc1")


def only(**fields):
    return dataclasses.replace(NONE, **fields)


def picture(height=45, width=60, mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [120 + 70 * np.sin(x / (5 + c)) + 40 * np.cos(y / 7) + rng.normal(0, 8, x.shape) for c in range(3)]
    return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)).convert(mode)


def drawn(augmentation, pictures=200, seed=0):
    return uniforms(seed, 1, np.arange(pictures), augmentation.draws)


class Replayed:
    """The module `random`, giving out draws of ours: the trials' in turn, then the places'."""

    def __init__(self, draws, first=None):
        (self.top, self.left), self.first = draws[:2], first
        self.trials, self.places = iter(draws[2:]), iter((self.top, self.left))

    def random(self):
        return self.first

    def uniform(self, low, high):
        return low + (high - low) * next(self.trials)

    def randint(self, low, high):
        return low + int(next(self.places) * (high - low + 1))


# ------------------------------------------------------------------------------------------------------------- crops
@pytest.mark.parametrize("size", [(375, 500), (500, 375), (28, 28), (20, 400), (400, 20), (3, 5)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.4, 1.0), (0.9, 1.0)])
def test_crop_boxes_equal_timms_for_the_same_draws(monkeypatch, size, scale):
    transforms = peer("timm.data.transforms")
    image, ratio = Image.new("L", size[::-1]), (3 / 4, 4 / 3)
    for draws in drawn(NONE)[:, _CROP].tolist():
        monkeypatch.setattr(transforms, "random", Replayed(draws))
        expected = transforms.RandomResizedCropAndInterpolation.get_params(image, scale, ratio)
        assert crop_box(*size, scale, ratio, draws) == tuple(max(n, 1) if i > 1 else n for i, n in enumerate(expected))


def test_crop_boxes_are_distributed_as_timms():
    transforms, height, width = peer("timm.data.transforms"), 375, 500
    image, generator = Image.new("L", (width, height)), random.Random(0)
    state = random.getstate()
    random.setstate(generator.getstate())
    get = transforms.RandomResizedCropAndInterpolation.get_params
    theirs = np.array([get(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(5000)], float)
    random.setstate(state)
    ours = np.array([crop_box(height, width, (0.08, 1), (3 / 4, 4 / 3), d) for d in drawn(NONE, 5000)[:, _CROP]], float)
    for statistic in (
        lambda box: box[:, 2] * box[:, 3], lambda box: np.log(box[:, 3] / box[:, 2]),
        lambda box: box[:, 0] / (height + 1 - box[:, 2]), lambda box: box[:, 1] / (width + 1 - box[:, 3]),
    ):  # fmt: skip
        a, b = statistic(ours), statistic(theirs)
        assert abs(a.mean() - b.mean()) < 4 * math.hypot(a.std(), b.std()) / math.sqrt(5000)
        assert 0.95 < a.std() / b.std() < 1.05


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"])
def test_cropped_pixels_equal_timms(monkeypatch, interpolation, mode):
    transforms, image = peer("timm.data.transforms"), picture(mode=mode)
    ours = only(crop_scale=(0.08, 1.0), interpolation=interpolation)
    theirs = transforms.RandomResizedCropAndInterpolation((24, 32), interpolation=interpolation)
    for draws in drawn(ours, 20):
        monkeypatch.setattr(transforms, "random", Replayed(draws[_CROP].tolist()))
        assert ours.pixels(image, (24, 32), draws).tobytes() == theirs(image).tobytes()
        monkeypatch.setattr(transforms, "random", Replayed(draws[_CROP].tolist()))
        assert ours.crop_box((45, 60), draws) == theirs.get_params(image, theirs.scale, theirs.ratio)


def test_random_interpolation_is_bilinear_or_bicubic():
    ours, image, seen = only(crop_scale=(0.3, 1.0), interpolation="random"), picture(), [0, 0]
    for draws in drawn(ours, 40):
        cubic = bool(draws[_FILTER] >= 0.5)
        fixed = dataclasses.replace(ours, interpolation="bicubic" if cubic else "bilinear")
        assert ours.pixels(image, 20, draws).tobytes() == fixed.pixels(image, 20, draws).tobytes()
        seen[cubic] += 1
    assert min(seen) > 5


@pytest.mark.parametrize("size", [(45, 60), (32, 32), (20, 50), (90, 90)])
def test_without_a_crop_pictures_are_those_of_evaluation(size):
    image, draws = picture(), drawn(NONE, 1)[0]
    how = Preprocessing(size=size, resize="short_edge", mean=(0, 0, 0), std=(1, 1, 1), rescale=1.0)
    pixels = np.asarray(NONE.pixels(image, size, draws), np.float32)
    np.testing.assert_array_equal(np.moveaxis(pixels, -1, 0), how(image)[0])
    assert NONE.crop_box((45, 60), draws) == (0, 0, 45, 60)


def test_pictures_of_any_shape():
    """Also those that a crop of a share would leave without a pixel, or whose resized whole would fill the memory."""
    for height, width in ((1, 1), (1, 30), (40000, 1), (2, 9000)):
        image = Image.new("RGB", (width, height), (9, 9, 9))
        for ours in (Augmentation(color_jitter=0), DEIT, SMALL):
            for draws in drawn(ours, 3):
                assert ours.pixels(image, (20, 30), draws).size == (30, 20)
        assert NONE.pixels(image, (200, 300), drawn(NONE, 1)[0]).getcolors() == [(60000, (9, 9, 9))]


# ------------------------------------------------------------------------------------------------- flips and colours
def test_flips():
    image = picture()
    both = only(flip=0.5, vertical_flip=0.3)
    turns = Image.Transpose
    counts = np.zeros((2, 2), int)
    for draws in drawn(both, 400):
        across, down = draws[_FLIP] < 0.5, draws[_VERTICAL] < 0.3
        expected = image.transpose(turns.FLIP_LEFT_RIGHT) if across else image
        expected = expected.transpose(turns.FLIP_TOP_BOTTOM) if down else expected
        assert both.pixels(image, (45, 60), draws).tobytes() == expected.tobytes()
        counts[int(across), int(down)] += 1
    np.testing.assert_allclose(counts / 400, [[0.35, 0.15], [0.35, 0.15]], atol=0.1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("jitter", [0.4, (0.4, 0.0, 1.5)])
def test_jitter_equals_torchvisions(jitter, mode):
    functional, image = peer("torchvision.transforms.functional"), picture(mode=mode)
    adjust = functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation
    jitters = jitter if isinstance(jitter, tuple) else (jitter,) * 3
    ours, orders = only(color_jitter=jitter), set()
    for draws in drawn(ours, 60):
        order, *factors = draws[_JITTER]
        expected = image
        for change in ORDERS[int(order * 6)]:
            low, high = max(0, 1 - jitters[change]), 1 + jitters[change]
            if jitters[change]:
                expected = adjust[change](expected, low + (high - low) * factors[change])
        orders.add(ORDERS[int(order * 6)])
        assert ours.pixels(image, (45, 60), draws).tobytes() == expected.tobytes()
    assert len(orders) == 6 and len(JITTER) == 3


def test_jitter_is_off_where_rand_augment_is_on():
    image = picture()
    plain = only(rand_augment="rand-m9")
    for draws in drawn(plain, 20):
        with_jitter = dataclasses.replace(plain, color_jitter=0.9)
        assert with_jitter.pixels(image, 32, draws).tobytes() == plain.pixels(image, 32, draws).tobytes()


def test_rand_augment_fills_with_the_colour_given():
    """A white picture moved about has the fill in its corners, and nothing else is new."""
    image, ours = Image.new("RGB", (32, 32), (255, 255, 255)), only(rand_augment="rand-m9-p1", interpolation="nearest")
    colours = set()
    for draws in drawn(ours, 100):
        draws[_LAYERS::6] = 11.5 / 15  # ShearX, twice
        colours |= {colour for _, colour in ours.pixels(image, 32, draws, fill=(1, 2, 3)).getcolors()}
    assert colours == {(255, 255, 255), (1, 2, 3)}
    assert fill_of((0.485, 0.456, 0.406)) == (124, 116, 104) and fill_of((0.5, -1, 2)) == (128, 0, 255)


# ----------------------------------------------------------------------------------------------------------- erasing
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (8, 8), (50, 20)])
def test_erased_boxes_equal_timms_for_the_same_draws(monkeypatch, size):
    torch, erasing = peer("torch"), peer("timm.data.random_erasing")
    ours, theirs = only(erasing=0.5), erasing.RandomErasing(0.5, mode="pixel", max_count=1, device="cpu")
    monkeypatch.setattr(erasing, "_get_pixels", lambda _, __, shape, **___: torch.full(shape, 9.0))
    count, pictures = 0, 200 if size[0] < 100 else 40
    for draws in drawn(ours, pictures):
        values, expected = np.full((2, *size), 9.5, np.float32), torch.full((2, *size), 9.5)
        monkeypatch.setattr(erasing, "random", Replayed(draws[_ERASED].tolist(), first=draws[_ERASE]))
        theirs(expected)
        ours.erase(values, draws)
        np.testing.assert_array_equal(values != 9.5, expected.numpy() != 9.5)
        count += bool((values != 9.5).any())
    assert 0.3 * pictures < count < 0.7 * pictures


def test_erased_boxes_have_the_areas_and_ratios_said():
    boxes = np.array([erased_box(500, 500, draws) for draws in drawn(NONE, 3000)[:, _ERASED]], float)
    share, ratio = boxes[:, 2] * boxes[:, 3] / 500**2, np.log(boxes[:, 2] / boxes[:, 3])
    assert share.min() > 0.019 and share.max() < 0.336 and abs(ratio).max() < math.log(1 / 0.3) + 0.02
    assert abs(ratio.mean()) < 4 * ratio.std() / math.sqrt(3000)
    assert 0.16 < share.mean() < 0.18  # even between 0.02 and 1/3, but for the few that do not fit


def test_noise_is_normal_and_each_pictures_own():
    ours = only(erasing=1.0)
    noise = []
    for draws in drawn(ours, 40):
        values = np.full((3, 64, 64), np.inf, np.float32)
        ours.erase(values, draws)
        noise.append(values[np.isfinite(values)])
    assert len({part[:5].tobytes() for part in noise}) == 40
    everything = np.concatenate(noise)
    assert abs(everything.mean()) < 5 / math.sqrt(everything.size)
    assert abs(everything.std() - 1) < 5 / math.sqrt(2 * everything.size)


# ------------------------------------------------------------------------------------------------ arrays of pictures
SMALL = only(flip=0.5, vertical_flip=0.5, pad_crop=3, affine=Affine(shift=2, rotation=0.4), erasing=0.0)


def bytes_and_values(n=30, mode="RGB"):
    images = [picture(12, 10, mode, seed) for seed in range(n)]
    values = np.stack([np.asarray(image, np.float32).reshape(12, 10, -1).transpose(2, 0, 1) for image in images])
    return images, values


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "fields", [{"flip": 0.5}, {"vertical_flip": 0.4}, {"pad_crop": 3}, {"flip": 0.5, "pad_crop": 11}]
)
def test_batches_are_the_pictures_of_pixels(fields, mode):
    ours, (images, values) = only(**fields), bytes_and_values(mode=mode)
    fill = (10, 20, 30) if mode == "RGB" else 40
    draws, before = drawn(ours, 30), values.copy()
    result = ours.batch(values, draws, fill)
    assert same_bits(values, before) and result.dtype == np.float32
    for image, one, expected in zip(images, draws, result):
        pixels = np.asarray(ours.pixels(image, (12, 10), one, fill), np.float32).reshape(12, 10, -1)
        np.testing.assert_array_equal(pixels.transpose(2, 0, 1), expected)


def test_affine_maps_of_pixels_are_those_of_batches_rounded():
    images, values = bytes_and_values()
    draws = drawn(SMALL, 30)
    result = SMALL.batch(values, draws, (10, 20, 30))
    assert (result != values).any(axis=(1, 2, 3)).sum() > 20
    for image, one, expected in zip(images, draws, result):
        pixels = np.asarray(SMALL.pixels(image, (12, 10), one, (10, 20, 30)), np.float32)
        assert abs(pixels.transpose(2, 0, 1) - expected).max() <= 0.5001


def test_a_share_of_the_pictures_is_not_mapped():
    ours, values = only(affine=Affine(untouched=0.25)), np.random.default_rng(0).random((1000, 1, 5, 5), np.float32)
    same = (ours.batch(values, drawn(ours, 1000)) == values).all(axis=(1, 2, 3))
    assert 200 < same.sum() < 300


def test_pictures_do_not_depend_on_their_batch():
    ours, (_, values) = dataclasses.replace(SMALL, erasing=0.5), bytes_and_values()
    draws = drawn(ours, 30)
    together, order = ours.batch(values, draws, 7.0), np.random.default_rng(0).permutation(30)
    assert same_bits(ours.batch(values[order], draws[order], 7.0), together[order])
    for i in range(30):
        assert same_bits(ours.batch(values[i : i + 1], draws[i : i + 1], 7.0)[0], together[i])
    assert ours.batch(values[:0], draws[:0]).shape == (0, 3, 12, 10)


# --------------------------------------------------------------------------------------------------------- the whole
@pytest.mark.parametrize("ours", [Augmentation(), DEIT, dataclasses.replace(SMALL, color_jitter=0.2)], ids=str)
def test_pictures_are_the_same_in_any_order_and_on_threads(ours):
    image = picture()
    before = image.tobytes()

    def changed(index):
        draws = uniforms(5, 2, [index], ours.draws)[0]
        values = np.asarray(ours.pixels(image, 24, draws), np.float32).transpose(2, 0, 1).copy()
        ours.erase(values, draws)
        return values

    alone = [changed(index) for index in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert same_bits(list(pool.map(changed, range(39, -1, -1))), alone[::-1])
    assert len({values.tobytes() for values in alone}) == 40
    assert image.tobytes() == before


def test_a_change_leaves_the_draws_of_the_others():
    draws = drawn(DEIT, 1)[0]
    assert Augmentation().draws == len(draws) - 12 and NONE.draws == Augmentation().draws
    assert DEIT.crop_box((375, 500), draws) == Augmentation().crop_box((375, 500), draws[:-12])


CROPS = [(4, 5, 342, 382), (94, 27, 265, 353), (14, 111, 360, 350)]
ERASED = [(117, 63, 72, 80), (80, 87, 102, 61), (93, 41, 59, 66)]


def test_crops_are_fixed_for_ever():
    """Pins the slots: a picture's crop, flip and erasing must not change from one version to the next."""
    draws = uniforms(0, 0, [0, 1, 2], Augmentation().draws)
    assert [Augmentation().crop_box((375, 500), one) for one in draws] == CROPS
    assert [erased_box(224, 224, one[_ERASED]) for one in draws] == ERASED


def test_vectorised_says_whether_batch_does_it_all():
    assert NONE.vectorised and SMALL.vectorised
    assert not any(a.vectorised for a in (Augmentation(), DEIT, only(color_jitter=(0, 0, 0.1))))


@pytest.mark.parametrize("ours", [Augmentation(), DEIT, NONE, SMALL, only(color_jitter=(0.1, 0.2, 0.3))], ids=str)
def test_json_brings_it_back(ours):
    assert Augmentation.from_json(json.loads(json.dumps(ours.to_json()))) == ours


IMAGE, ROW, VALUES = picture(), drawn(NONE, 1)[0], np.zeros((1, 3, 4, 4), np.float32)
FIELDS = NONE.to_json()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: only(crop_scale=0.5), ValueError, "crop_scale must be two numbers, .* largest, got 0.5"),
        (lambda: only(crop_scale=(0.5, 0.2)), ValueError, "crop_scale must rise, within 1e-06 and 1, got"),
        (lambda: only(crop_ratio=(0, 1)), ValueError, "crop_ratio must rise"),
        (lambda: only(interpolation="cubic"), ValueError, "interpolation must be one of .*, got 'cubic'"),
        (lambda: only(flip=1.5), ValueError, "flip must be a probability, at most 1, got 1.5"),
        (lambda: only(erasing=-0.1), ValueError, "erasing must be finite and at least 0"),
        (lambda: only(vertical_flip=None), TypeError, "vertical_flip must be a number, got None"),
        (lambda: only(rand_augment="m9"), ValueError, 'rand_augment must begin with "rand"'),
        (lambda: only(rand_augment="rand", interpolation="box"), ValueError, "rand_augment needs an interpolation of"),
        (lambda: only(color_jitter=(1, 2)), ValueError, "color_jitter must be one number, or brightness, contrast"),
        (lambda: only(color_jitter=-1), ValueError, "color_jitter must be finite and at least 0"),
        (lambda: only(affine=3), TypeError, "affine must be an Affine or None, got 3"),
        (lambda: only(affine={"turn": 3}), ValueError, "affine: .*turn"),
        (lambda: Affine(untouched=2), ValueError, "untouched must be a share, at most 1, got 2.0"),
        (lambda: only(pad_crop=-1), ValueError, "pad_crop must be at least 0, got -1"),
        (lambda: Augmentation(pad_crop=4), ValueError, "pad_crop must be 0 where crop_scale is on, got 4"),
        (lambda: NONE.pixels(VALUES, 4, ROW), TypeError, "image must be a Pillow image, got 'ndarray'"),
        (lambda: NONE.pixels(IMAGE.convert("RGBA"), 4, ROW), ValueError, "image must be of mode RGB or L, got 'RGBA'"),
        (lambda: NONE.pixels(IMAGE, 0, ROW), ValueError, "size must be at least 1, got 0"),
        (lambda: NONE.pixels(IMAGE, (4, 4, 3), ROW), ValueError, r"size must be one number or \(height, width\)"),
        (lambda: NONE.pixels(IMAGE, 4, ROW[1:]), ValueError, "draws must be 61 numbers, got 60"),
        (lambda: NONE.pixels(IMAGE, 4, ROW, (1, 2)), ValueError, "fill must be one number, or 3 for a picture of mode"),
        (lambda: NONE.pixels(IMAGE, 4, ROW, 256), ValueError, "fill must be at most 255, got 256"),
        (lambda: NONE.erase(VALUES, ROW), TypeError, r"values must be a float32 array \(C, H, W\), got \(1, 3, 4, 4\)"),
        (lambda: Augmentation().batch(VALUES, ROW[None]), ValueError, "batch needs an augmentation without crop_scale"),
        (lambda: NONE.batch(VALUES[0], ROW[None]), TypeError, r"values must be float32 \(n, C, H, W\), got .* \(3"),
        (lambda: NONE.batch(VALUES, ROW), ValueError, r"draws must have shape \(1, 61\), got \(61,\)"),
        (lambda: NONE.batch(VALUES, ROW[None], (1, 2)), ValueError, "fill must be one number, or 3, one a channel"),
        (lambda: NONE.batch(VALUES, ROW[None], np.nan), ValueError, "fill must be finite"),
        (lambda: Augmentation.from_json({**FIELDS, "flip": "x"}), ValueError, "augmentation: flip must be a number"),
        (lambda: Augmentation.from_json({**FIELDS, "flop": 1}), ValueError, "augmentation has unknown keys: flop"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
