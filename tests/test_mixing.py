"""Mixup, CutMix and smoothed targets equal timm's for the same draws, and leave their input as it is."""

from types import SimpleNamespace

import numpy as np
import pytest
from checks import peer, same_bits

from cvit.data import Mixing
from cvit.data.mixing import cut_box

CLASSES = 5


def batch(n=6, shape=(3, 9, 7), seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *shape)).astype(np.float32), rng.integers(CLASSES, size=n)


def timms(monkeypatch, mixing, images, labels, rng):
    """What timm's Mixup makes of the batch when its draws come from `rng`."""
    torch, mixup = peer("torch"), peer("timm.data.mixup")
    draws = SimpleNamespace(
        rand=rng.random, beta=rng.beta, randint=lambda low, high, size=None: rng.integers(low, high, size)
    )
    monkeypatch.setattr(mixup, "np", SimpleNamespace(random=draws, sqrt=np.sqrt, clip=np.clip))
    mix = mixup.Mixup(
        mixing.mixup, mixing.cutmix, prob=mixing.prob, switch_prob=mixing.switch, label_smoothing=mixing.smoothing,
        num_classes=CLASSES,
    )  # fmt: skip
    mixed, targets = mix(torch.from_numpy(images.copy()), torch.from_numpy(labels))
    return mixed.numpy(), targets.numpy()


SETTINGS = [
    Mixing(),
    Mixing(cutmix=0),
    Mixing(mixup=0),
    Mixing(mixup=0.2, cutmix=0.3, prob=0.5, switch=0.3, smoothing=0),
    Mixing(prob=0),
]


@pytest.mark.parametrize("mixing", SETTINGS, ids=str)
def test_batches_equal_timms(monkeypatch, mixing):
    unlike = 0
    for seed in range(40):
        images, labels = batch(seed=seed)
        ours = mixing(images, labels, CLASSES, np.random.default_rng(seed))
        theirs = timms(monkeypatch, mixing, images, labels, np.random.default_rng(seed))
        assert same_bits(ours, theirs)
        unlike += not np.array_equal(ours[0], images)
    assert unlike == 0 if mixing.prob == 0 else unlike > 10


def test_boxes_equal_timms(monkeypatch):
    mixup = peer("timm.data.mixup")
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 40, size=2).tolist()
        share, row, column = rng.random(), int(rng.integers(height)), int(rng.integers(width))
        places = iter((row, column))
        monkeypatch.setattr(np.random, "randint", lambda low, high, size: next(places))
        assert cut_box(height, width, share, row, column) == mixup.rand_bbox((1, 1, height, width), share)


def test_what_comes_in_stays_as_it_is():
    images, labels = batch()
    before = images.copy(), labels.copy()
    for seed in range(10):
        mixed, targets = Mixing()(images, labels, CLASSES, np.random.default_rng(seed))
        mixed *= 2
        assert same_bits((images, labels), before)


def test_targets_are_distributions_and_tell_the_shares_of_the_pixels():
    """Image k is k everywhere, so that a mixed image's mean tells how much of its partner it holds."""
    images = np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 8, 8), np.float32)
    labels = np.arange(4)
    for seed in range(30):
        mixed, targets = Mixing(smoothing=0)(images, labels, 4, np.random.default_rng(seed))
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), targets @ np.arange(4), atol=1e-5)
        assert np.all(targets == targets[::-1, ::-1])


def test_smoothing_without_mixing():
    images, labels = batch()
    mixed, targets = Mixing(mixup=0, cutmix=0, smoothing=0.1)(images, labels, CLASSES, np.random.default_rng(0))
    assert same_bits(mixed, images)
    expected = np.full((6, CLASSES), np.float32(0.1 / CLASSES))
    expected[np.arange(6), labels] = 0.9 + 0.1 / CLASSES
    assert same_bits(targets, expected)


def test_a_batch_of_an_odd_number_keeps_its_middle():
    images, labels = batch(n=5)
    mixed, targets = Mixing(cutmix=0)(images, labels, CLASSES, np.random.default_rng(1))
    np.testing.assert_allclose(mixed[2], images[2], rtol=1e-6)
    assert not np.allclose(mixed[1], images[1])
    assert targets[2].argmax() == labels[2]


def test_batches_of_none_and_of_one():
    for n in (0, 1):
        images, labels = batch(n=n)
        mixed, targets = Mixing()(images, labels, CLASSES, np.random.default_rng(0))
        assert mixed.shape == images.shape and targets.shape == (n, CLASSES)
        np.testing.assert_allclose(mixed, images, rtol=1e-6)


def test_float64_stays_float64():
    images, labels = batch()
    for seed in range(4):
        wide, _ = Mixing()(images.astype(np.float64), labels, CLASSES, np.random.default_rng(seed))
        narrow, _ = Mixing()(images, labels, CLASSES, np.random.default_rng(seed))
        assert wide.dtype == np.float64
        np.testing.assert_allclose(narrow, wide, atol=1e-6)


def test_json_brings_it_back():
    mixing = Mixing(mixup=0.2, prob=0.5)
    assert mixing.to_json() == {
        "format": 1, "mixup": 0.2, "cutmix": 1.0, "prob": 0.5, "switch": 0.5, "smoothing": 0.1
    }  # fmt: skip
    assert Mixing.from_json(mixing.to_json()) == mixing


IMAGES, LABELS = batch()
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Mixing(mixup=-1), ValueError, "mixup must be finite and at least 0, got -1"),
        (lambda: Mixing(mixup=1e-9), ValueError, "mixup must be 0 or from 1e-06 to 1e.06, got 1e-09"),
        (lambda: Mixing(cutmix="1"), TypeError, "cutmix must be a number, got '1'"),
        (lambda: Mixing(prob=1.5), ValueError, "prob must be a probability, at most 1, got 1.5"),
        (lambda: Mixing(switch=2), ValueError, "switch must be a probability"),
        (lambda: Mixing(smoothing=1), ValueError, "smoothing must be below 1, got 1.0"),
        (lambda: Mixing()(IMAGES[0], LABELS, 5, RNG), ValueError, r"images must have shape \(N, C, H, W\)"),
        (lambda: Mixing()(IMAGES, LABELS[1:], 5, RNG), ValueError, r"labels must have shape \(6,\)"),
        (lambda: Mixing()(IMAGES, LABELS, 1, RNG), ValueError, r"labels must lie in \[0, 1\)"),
        (lambda: Mixing()(IMAGES, LABELS, 0, RNG), ValueError, "classes must be at least 1, got 0"),
        (lambda: Mixing()(IMAGES, LABELS, 5, 0), TypeError, "rng must be a generator"),
        (lambda: Mixing.from_json({"format": 2}), ValueError, "mixing must be of format 1, got 2"),
        (lambda: Mixing.from_json([]), ValueError, r"mixing must be a JSON object, got \[\]"),
        (lambda: Mixing.from_json({"format": 1}), ValueError, "mixing lacks cutmix, mixup, prob, smoothing, switch"),
        (lambda: Mixing.from_json({**Mixing().to_json(), "a": 1}), ValueError, "mixing has unknown keys: a"),
        (lambda: Mixing.from_json({**Mixing().to_json(), "mixup": None}), ValueError, "mixing: mixup must be a number"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
