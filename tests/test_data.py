"""The digits' split and scaling, batching, and the random maps."""

import sys

import numpy as np
import pytest

from cvit.data import batches, digits, random_affine, stratified_mask

IMAGES = np.arange(10 * 2 * 3 * 4, dtype=np.float32).reshape(10, 2, 3, 4)
LABELS = np.arange(10)
GENERATOR = np.random.default_rng(0)


def test_digits_are_all_there_scaled_and_split_by_class():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    train, test = digits()
    assert len(train.images) + len(test.images) == 1797
    for part in (train, test):
        assert part.images.dtype == np.float32 and part.images.shape == (len(part.labels), 1, 8, 8)
        assert part.labels.dtype == np.int64
        assert part.images.min() == -1 and part.images.max() == 1
    share = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert np.all(abs(share - 0.2) < 0.005)
    pixels = np.concatenate([train.images, test.images])[:, 0] * 8 + 8
    np.testing.assert_array_equal(np.unique(pixels, axis=0), np.unique(load_digits().images, axis=0))


def test_the_split_is_the_same_everywhere():
    """Pins the split: were a library's update to change it, accuracies of different runs would no longer compare."""
    pytest.importorskip("sklearn")
    _, test = digits()
    assert len(test.labels) == 359
    assert test.labels[:10].tolist() == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0]
    assert float(np.sum((test.images + 1) * 8)) == 111461


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "cvit-cpu\[demo\]"'):
        digits()


def test_stratified_mask():
    labels = np.repeat([3, 5, 9], [10, 20, 31])
    mask = stratified_mask(labels, fraction=0.2, seed=1)
    assert [mask[labels == label].sum() for label in (3, 5, 9)] == [2, 4, 6]
    np.testing.assert_array_equal(mask, stratified_mask(labels, fraction=0.2, seed=1))
    assert not np.array_equal(mask, stratified_mask(labels, fraction=0.2, seed=2))


def test_batches_in_order():
    parts = list(batches(IMAGES, LABELS, 4))
    assert [len(y) for _, y in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), IMAGES)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), LABELS)
    assert [len(y) for _, y in batches(IMAGES, LABELS, 4, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in batches(IMAGES, LABELS, 5, drop_last=True)] == [5, 5]
    assert [len(y) for _, y in batches(IMAGES, LABELS, 99)] == [10]


def test_shuffled_batches_hold_every_image_once_with_its_label():
    def run(seed):
        return list(batches(IMAGES, LABELS, 3, rng=np.random.default_rng(seed)))

    labels = np.concatenate([y for _, y in run(0)])
    assert sorted(labels) == LABELS.tolist() and labels.tolist() != LABELS.tolist()
    for x, y in run(0):
        np.testing.assert_array_equal(x, IMAGES[y])
    np.testing.assert_array_equal(labels, np.concatenate([y for _, y in run(0)]))
    assert labels.tolist() != np.concatenate([y for _, y in run(1)]).tolist()


def test_batches_of_lists_are_arrays():
    [(x, y)] = batches(IMAGES.tolist(), LABELS.tolist(), 10)
    np.testing.assert_array_equal(x, IMAGES)
    np.testing.assert_array_equal(y, LABELS)


def test_augmentation_is_applied_to_every_batch():
    negate = lambda images, rng: -images
    for x, y in batches(IMAGES, LABELS, 4, rng=np.random.default_rng(0), augment=negate):
        np.testing.assert_array_equal(x, -IMAGES[y])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: batches(IMAGES, LABELS, 0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda: batches(IMAGES, LABELS, 2.5), ValueError, "batch_size must be a whole number"),
        (lambda: batches(IMAGES, LABELS[1:], 2), ValueError, "labels must be as many as the images, 10, got 9"),
        (lambda: batches(IMAGES, LABELS, 2, augment=random_affine), ValueError, "augment needs rng"),
        (lambda: batches(IMAGES, LABELS, 2, rng=0), TypeError, "rng must be a generator, .*, got 0"),
        (lambda: batches(IMAGES, LABELS, 2, rng=GENERATOR, augment=1), TypeError, "augment must be a function"),
        (lambda: batches(None, LABELS, 2), TypeError, "images must be an array, got None"),
        (lambda: batches(IMAGES, 3, 2), ValueError, "labels must have an axis of images"),
        (lambda: batches(np.ma.masked_array(IMAGES), LABELS, 2), TypeError, "images is a masked array"),
        (lambda: random_affine(IMAGES[0], GENERATOR), ValueError, r"images must have shape \(N, C, H, W\), got"),
        (lambda: random_affine(IMAGES.astype(int), GENERATOR), TypeError, "images must be float32 or float64"),
        (lambda: random_affine(IMAGES.astype(object), GENERATOR), TypeError, "images must be float32 or float64"),
        (lambda: random_affine(IMAGES, 0), TypeError, "rng must be a generator"),
        (lambda: random_affine(IMAGES, GENERATOR, shift=-1), ValueError, "shift must be finite and at least 0"),
        (lambda: random_affine(IMAGES, GENERATOR, shear=1e308), ValueError, "shear must be at most 3.4"),
        (lambda: random_affine(IMAGES, GENERATOR, rotation="much"), TypeError, "rotation must be a number"),
        (lambda: random_affine(IMAGES, GENERATOR, zoom=1000), ValueError, "zoom must be at most 100, got 1000"),
        (lambda: random_affine(IMAGES, GENERATOR, untouched=2), ValueError, "untouched must be a share, at most 1"),
        (lambda: random_affine(IMAGES, GENERATOR, fill=np.nan), ValueError, "fill must be finite"),
        (lambda: random_affine(IMAGES, GENERATOR, fill=-1e39), ValueError, "fill must be at most 3.4.* got -1e"),
    ],
)
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def random_images(N=50):
    return np.random.default_rng(0).normal(size=(N, 2, 7, 6)).astype(np.float32)


def affine(images, **limits):
    limits = {"shift": 0, "rotation": 0, "zoom": 0, "shear": 0, "untouched": 0, **limits}
    return random_affine(images, np.random.default_rng(1), **limits)


def test_random_affine_without_any_change_is_the_identity():
    images = random_images()
    result = affine(images)
    assert result.dtype == images.dtype and result.flags.c_contiguous
    np.testing.assert_allclose(result, images, atol=1e-6)


@pytest.mark.parametrize("limits", [{"shift": 2}, {"rotation": 0.5}, {"zoom": 0.3}, {"shear": 0.5}])
def test_random_affine_samples_a_plane_exactly(limits):
    """Bilinear sampling reproduces a + b y + c x, so the result tells the map, to hold against its limits."""
    size, N = 41, 200
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    planes = affine(np.stack([y, x])[None].repeat(N, axis=0), **limits)
    inner = slice(size // 2 - 5, size // 2 + 6)  # what never leaves the image
    design = np.stack([y[inner, inner], x[inner, inner], np.ones((11, 11))], axis=-1).reshape(-1, 3)
    values = planes[:, :, inner, inner].reshape(N * 2, -1).T
    maps, residual, *_ = np.linalg.lstsq(design, values, rcond=None)
    assert np.all(residual < 1e-20)
    (yy, yx, ty), (xy, xx, tx) = maps.T.reshape(N, 2, 3).transpose(1, 2, 0)
    factor, angle = np.hypot(xx, yx), np.arctan2(-yx, xx)
    drawn = {
        "shift": np.stack([ty, tx]), "rotation": angle, "zoom": np.log(factor), "shear": xy - factor * np.sin(angle)
    }  # fmt: skip
    for name, values in drawn.items():
        limit = limits.get(name, 0)
        assert abs(values).max() <= limit + 1e-9
        assert limit == 0 or values.min() < -0.9 * limit < 0.9 * limit < values.max()


def test_random_affine_fills_what_comes_from_outside():
    images = random_images(N=400)
    moved = random_affine(images, np.random.default_rng(0), shift=20, untouched=0, fill=7.0)
    assert any((image == 7.0).all() for image in moved)
    assert affine(images * 0, shift=20, fill=7.0).min() >= 0


def test_random_affine_leaves_some_images_as_they_are():
    images = random_images(N=1000)
    same = (random_affine(images, np.random.default_rng(0), untouched=0.25) == images).all(axis=(1, 2, 3))
    assert 200 < same.sum() < 300


def test_random_affine_repeats_itself():
    images = random_images()
    a, b = (random_affine(images, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
