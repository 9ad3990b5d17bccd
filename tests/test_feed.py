"""Batches: the same bits for any number of threads and any cache, from any batch on, and equal to the preprocessing."""

import gc
import itertools
import threading
import time

import numpy as np
import pytest
from checks import same_bits
from picture_files import folder, pixels, write

from cvit.data import ArrayFeed, Augmentation, Cache, Feed, Mixing, find, from_arrays, uniforms
from cvit.data.ahead import DEPTH, Stopped, ahead
from cvit.data.cache import OVERHEAD
from cvit.pictures.preprocessing import Preprocessing

HOW = Preprocessing(size=16, resize_size=18, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
GREY = Preprocessing(size=16, mean=(0.5,), std=(0.25,))
STRONG = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.5)
FEW = Augmentation(crop_scale=None, color_jitter=0.0, flip=0.5, erasing=0.5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of several sizes, some far larger than the model's input, one of them turned by its EXIF data."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    folder(root, {"a": 5, "b": 4})
    folder(root, {"c": 4}, ending=".jpg", start=20, height=75, width=100, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    write(root / "c/turned.jpg", 40, 90, 130, quality=95, exif=exif)
    write(root / "c/large.png", 41, 90, 130)
    return find(root, validation=0).train


@pytest.fixture(scope="module")
def arrays():
    images = np.stack([pixels(seed, 16, 16, 1) for seed in range(23)])
    return from_arrays(images, np.arange(23) % 3, weights=np.arange(23.0), validation=0).train


def gathered(batches):
    """All batches of an iterator as nested tuples that `same_bits` compares."""
    return [tuple(part for part in batch if part is not None) for batch in batches]


# ------------------------------------------------------------------------------------------------ pictures
@pytest.mark.parametrize("how", [
    HOW, Preprocessing(size=16), GREY, Preprocessing(size=(12, 20), resize="long_edge", alpha="white"),
    Preprocessing(size=16, rescale_first=True, resize="squash"),
    Preprocessing(size=16, keep=14, rounding="transformers"),
])  # fmt: skip
def test_evaluation_equals_the_preprocessing(photos, arrays, how):
    for pictures, given in ((photos, photos.source.paths), (arrays, list(arrays.source.images))):
        expected, cache = how(given), Cache(1 << 20)
        for batches in (
            Feed(pictures, how, 4).plain(), Feed(pictures, how, 4, decoders=3, cache=cache).plain(7),
            Feed(pictures, how, 4, cache=cache).plain(),
        ):  # fmt: skip
            batches = list(batches)
            assert same_bits(np.concatenate([batch.images for batch in batches]), expected)
            assert np.concatenate([batch.targets for batch in batches]).tolist() == pictures.labels.tolist()
            assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(len(pictures)))
        assert same_bits(pictures.plain([2, 0], how), expected[[2, 0]])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("taken", [1, 3])
@pytest.mark.parametrize("alpha", ["drop", "white"])
def test_many_pictures_at_once_equal_one_by_one(channels, taken, alpha):
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 20, channels), np.uint8)
    pictures = from_arrays(images, np.arange(9) % 2, validation=0).train
    for first, keep in itertools.product((False, True), (None, (10, 12))):
        how = Preprocessing(size=(16, 20), resize=None, mean=(0.4,) * taken, std=(0.3,) * taken, rescale_first=first,
                            alpha=alpha, keep=keep)  # fmt: skip
        together = pictures.source.batch(np.arange(9), how)
        needs_pillow = (channels > taken == 1) or (channels == 4 and alpha == "white")
        assert (together is None) == needs_pillow
        assert same_bits(pictures.plain(range(9), how), how(list(images)))


def test_reduced_pictures(photos):
    """What an augmentation gets is upright, bounded, not smaller than the model's input, and the same with a cache."""
    cache = Cache(1 << 20)
    for index, name in enumerate(photos.names):
        whole, small = photos.decoded(index), photos.reduced(index, HOW)
        assert min(min(whole.size), 24) <= min(small.size) <= 32 and small.mode == "RGB"
        assert min(whole.size) > 32 or same_bits(np.asarray(small), np.asarray(whole))
        assert abs(small.width / small.height - whole.width / whole.height) < 0.05, name
        for _ in range(2):
            assert same_bits(np.asarray(photos.reduced(index, HOW, cache)), np.asarray(small))
        blurred = whole.resize(small.size)
        assert np.abs(np.asarray(small, float) - np.asarray(blurred, float)).mean() < 4
    assert photos.decoded(photos.names.index("c/turned.jpg")).size == (90, 130)
    assert photos.reduced(photos.names.index("c/turned.jpg"), HOW).height > 30
    assert photos.reduced(0, GREY, cache).mode == "L"
    for how in (HOW, GREY, Preprocessing(size=20)):  # which share the cache
        assert same_bits(photos.plain([0, 3], how, cache), how([photos.source.paths[0], photos.source.paths[3]]))
        large = photos.names.index("c/large.png")
        assert same_bits(np.asarray(photos.reduced(large, how, cache)), np.asarray(photos.reduced(large, how)))
    with pytest.raises(ValueError, match="index"):
        photos.decoded(len(photos))


def test_a_digest_tells_other_data(photos, tmp_path):
    root = folder(tmp_path / "d", {"a": 4, "b": 3})
    digest = lambda: find(root, validation=0).train.digest()
    first = digest()
    assert digest() == first and photos.digest() != first
    write(root / "a/0.png", 1000)
    assert digest() != first
    write(root / "a/0.png", 0)
    assert digest() == first
    (root / "a/0.png").rename(root / "b/0b.png")
    assert digest() != first
    images = np.stack([pixels(seed) for seed in range(6)])
    digests = {
        from_arrays(images, np.arange(6) % 2, validation=0, **options).train.digest()
        for options in ({}, {"weights": np.ones(6)}, {"weights": np.arange(6)}, {"class_names": ["a", "b"]})
    }
    assert len(digests) == 4


def test_a_colour_surrounds_pictures(tmp_path):
    images = np.full((4, 8, 8, 3), (250, 0, 9), np.uint8)
    images[:, 2:6, 2:6] = 77
    pictures = from_arrays(images + np.arange(4, dtype=np.uint8)[:, None, None, None], [0, 1, 0, 1], validation=0).train
    assert pictures.background(3) == (251, 1, 10)


# ------------------------------------------------------------------------------------------------ epochs
@pytest.mark.parametrize("augmentation", [None, STRONG, FEW], ids=["plain", "pillow", "vectorised"])
@pytest.mark.parametrize("data", ["photos", "arrays"])
def test_bits_depend_on_neither_threads_nor_cache_nor_the_batches_before(request, data, augmentation):
    pictures, how = request.getfixturevalue(data), HOW if data == "photos" else GREY
    make = lambda decoders=1, cache=None, seed=3: Feed(
        pictures, how, 4, augmentation=augmentation, mixing=Mixing(), seed=seed, decoders=decoders, cache=cache
    )
    expected = gathered(make().epoch(5))
    assert len(expected) == make().steps == -(-len(pictures) // 4) and make().images == len(pictures)
    for decoders, size in itertools.product((1, 2, 3), (0, 5000, 1 << 22)):
        feed = make(decoders, Cache(size))
        for skip in (0, 1, len(expected) - 1, len(expected)):
            assert same_bits(gathered(feed.epoch(5, skip)), expected[skip:])
        assert feed.cache.used <= size and (len(feed.cache) > 0) == (size > 0 and _decodes(pictures, augmentation))
    steps = len(expected)
    run = gathered(make(2).run(4 * steps + 1, 6 * steps - 1))
    assert same_bits(run, gathered(make().epoch(4, 1)) + expected[:-1])
    for other in (make().epoch(6), make(seed=4).epoch(5)):
        assert not same_bits(gathered(other), expected)


def _decodes(pictures, augmentation):
    return not pictures.source.vectorised


def test_an_epoch_takes_every_picture_once_in_the_seed_s_order(photos):
    feed = Feed(photos, HOW, 4, seed=7)
    for epoch in range(3):
        order = np.concatenate([batch.indices for batch in feed.epoch(epoch)])
        assert order.tolist() == np.random.default_rng([7, epoch]).permutation(len(photos)).tolist()
    batch = next(feed.epoch(1, skip=2))
    assert same_bits(batch.images, photos.plain(batch.indices, HOW)) and batch.weights is None
    assert batch.targets.tolist() == photos.labels[batch.indices].tolist() and feed.classes == 3


def test_augmentation_and_mixing_are_called_as_they_stand(photos, arrays):
    """By hand: a picture's draws from (seed, epoch, index), a batch's generator from (seed, epoch, number)."""
    feed = Feed(photos, HOW, 4, augmentation=STRONG, mixing=Mixing(), seed=3)
    batch = next(feed.epoch(2, skip=1))
    draws, images = uniforms(3, 2, batch.indices, STRONG.draws), []
    for index, row in zip(batch.indices.tolist(), draws):
        image = STRONG.pixels(photos.reduced(index, HOW), HOW.size, row, tuple(round(255 * x) for x in HOW.mean))
        values = (np.moveaxis(np.asarray(image), 2, 0) / 255 - np.reshape(HOW.mean, (3, 1, 1))) / np.reshape(
            HOW.std, (3, 1, 1)
        )
        images.append(values.astype(np.float32))
        STRONG.erase(images[-1], row)
    images, targets = Mixing()(np.stack(images), photos.labels[batch.indices], 3, np.random.default_rng([3, 2, 1]))
    assert np.abs(batch.images - images).max() < 1e-5 and same_bits(batch.targets, targets)

    moved = Augmentation(crop_scale=None, color_jitter=0.0, pad_crop=3, erasing=0.0)
    feed = Feed(arrays, GREY, 5, augmentation=moved, seed=3, fill=(255,))
    batch = next(feed.epoch(2))
    draws = uniforms(3, 2, batch.indices, moved.draws)
    expected = moved.batch(GREY(list(arrays.source.images[batch.indices])), draws, [(1 - 0.5) / 0.25])
    assert same_bits(batch.images, expected) and batch.weights.tolist() == batch.indices.tolist()


def test_feeds_refuse_wrong_arguments(photos):
    feed = Feed(photos, HOW, 4)
    for wrong in (
        dict(pictures=[1]), dict(how=3), dict(batch_size=0), dict(seed=-1), dict(decoders=0), dict(cache=3),
        dict(pictures=photos.take([])), dict(fill=(1,)), dict(fill=(1, 2, 300)),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            Feed(**{"pictures": photos, "how": HOW, "batch_size": 4, **wrong})
    for call, name in (
        (lambda: feed.epoch(-1), "number"), (lambda: feed.epoch(0, 5), "skip"), (lambda: feed.run(3, 2), "last"),
        (lambda: feed.plain(0), "batch_size"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            call()


# ------------------------------------------------------------------------------------------------ ahead
def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cvit-decoder")]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("augmentation", [None, STRONG])
def test_a_picture_that_breaks_during_the_run_is_named_where_it_would_have_come(tmp_path, threads, augmentation):
    root = folder(tmp_path, {"a": 8, "b": 8})
    pictures = find(root, validation=0).train
    feed = Feed(pictures, HOW, 2, decoders=threads, augmentation=augmentation)
    victim = pictures.source.paths[np.random.default_rng([0, 0]).permutation(16)[11]]
    for spoil, error, words in (
        (lambda: victim.write_bytes(victim.read_bytes()[:80]), ValueError, "cannot be decoded"),
        (victim.unlink, FileNotFoundError, "No such file"),
    ):
        spoil()
        epoch, got = feed.epoch(0), []
        with pytest.raises(error, match=words) as raised:
            got.extend(epoch)
        assert len(got) == 5 and str(victim) in str(raised.value) and not decoders()


def test_closing_ends_the_threads(photos):
    epoch = Feed(photos, HOW, 1, decoders=3, augmentation=STRONG).epoch(0)
    assert not decoders()  # none before the first batch is asked for
    next(epoch)
    assert decoders()
    epoch.close()
    assert not decoders()
    epoch = Feed(photos, HOW, 1, decoders=2).plain()
    next(epoch)
    del epoch
    gc.collect()
    assert not decoders()


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_results_come_in_order_and_few_are_made_ahead(threads):
    started, lock = [], threading.Lock()

    def make(number, stop):
        with lock:
            started.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    for count, number in enumerate(ahead(make, range(20), threads), 1):
        assert number == count - 1 and len(started) <= count + max(DEPTH, threads)
    assert sorted(started) == list(range(20))


def test_large_batches_are_not_made_far_ahead(photos, monkeypatch):
    size = 16 * 16 * 3 * 4
    for room, depth in ((0, 1), (4 * size, 1), (8 * size, 2), (1 << 30, DEPTH)):
        monkeypatch.setattr("cvit.data.feed.AHEAD", room)
        made, lock = [], threading.Lock()

        def write(index, *rest):
            with lock:
                made.append(index)

        monkeypatch.setattr(photos, "write_plain", write)
        batches = Feed(photos, HOW, 4).plain()
        next(batches)
        time.sleep(0.05)
        assert len(made) <= 4 * (1 + depth)
        batches.close()


def test_a_worker_stops_when_nobody_waits_for_it():
    ended = []

    def make(number, stop):
        if number == 0:
            raise KeyError("first")
        if not stop.wait(30):
            return number
        ended.append(number)
        raise Stopped

    start = time.monotonic()
    with pytest.raises(KeyError, match="first"):
        next(ahead(make, range(9), 3))
    assert time.monotonic() - start < 20 and len(ended) <= 3 and not decoders()


def test_a_cache_is_bounded_and_keeps_what_came_first():
    cache, made = Cache(3 * (1000 + OVERHEAD)), []

    def make(key):
        made.append(key)
        return np.full(1000, key, np.uint8)

    for _ in range(2):
        for key in range(5):
            array = cache.get(key, lambda: make(key))
            assert (array == key).all() and array.flags.writeable == (key > 2)
    assert made == [0, 1, 2, 3, 4, 3, 4] and len(cache) == 3 and cache.used == cache.limit
    large = np.zeros((100, 100), np.uint8)
    cache = Cache(1 << 16)
    assert cache.get("part", lambda: large[:10, :10]).base is None and cache.used == 100 + OVERHEAD
    with pytest.raises(ValueError, match="limit"):
        Cache(-1)


# ------------------------------------------------------------------------------------------------ arrays of floats
def test_a_feed_of_arrays():
    rng = np.random.default_rng(0)
    images, labels = rng.random((11, 1, 4, 4), np.float32), np.arange(11) % 3
    noise = lambda x, rng: x + rng.random(x.shape, np.float32)
    feed = ArrayFeed(images, labels, 4, noise, mixing=Mixing(), seed=2, weights=np.arange(11.0))
    assert (feed.images, feed.steps, feed.classes) == (11, 3, 3)
    batches = list(feed.epoch(1))
    order = np.random.default_rng([2, 1]).permutation(11)
    for number, batch in enumerate(batches):
        indices, rng = order[number * 4 : number * 4 + 4], np.random.default_rng([2, 1, number])
        expected = Mixing()(noise(images[indices], rng), labels[indices], 3, rng)
        assert same_bits((batch.images, batch.targets, batch.indices), (*expected, indices))
        assert batch.weights.tolist() == indices.tolist()
    assert same_bits(gathered(feed.epoch(1, 2)), gathered(batches[2:])) and list(feed.epoch(0, 3)) == []
    assert same_bits(gathered(feed.run(1, 5)), gathered([*feed.epoch(0, 1), *batches[:2]]))
    plain = list(feed.plain(6))
    assert same_bits(np.concatenate([batch.images for batch in plain]), images) and len(plain) == 2
    shares = np.eye(5, dtype=np.float32)[labels]
    assert ArrayFeed(images, shares, 4).classes == 5 and ArrayFeed(images, labels, 4, classes=7).classes == 7
    assert same_bits(next(ArrayFeed(images, shares, 11).plain()).targets, shares)
    for wrong in (
        dict(images=images[:0], labels=labels[:0]), dict(labels=labels[:3]), dict(batch_size=0), dict(augment=3),
        dict(weights=np.ones(3)), dict(classes=2), dict(seed=-1),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            ArrayFeed(**{"images": images, "labels": labels, "batch_size": 4, **wrong})
    for call, name in ((lambda: feed.epoch(-1), "number"), (lambda: feed.epoch(0, 4), "skip")):
        with pytest.raises(ValueError, match=name):
            call()
