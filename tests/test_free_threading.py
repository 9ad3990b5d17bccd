"""Many Python threads at once, while one more changes the instruction set and the number of threads: the bits of one
thread alone.

Without Python's lock the threads run side by side in everything, and every test takes more rounds; with it they take
turns, and results are the same. A call sees a change as a whole: what it gives is of one instruction set.
"""

import contextlib
import itertools
import queue
import sys
import threading

import numpy as np
import pytest
from checks import same_bits
from test_threads import batch, run_together

import cvit
from cvit import SGD, AdamW, Drop, ViT, ViTConfig, ops
from cvit.data import ArrayFeed, Augmentation, Cache, Feed, Mixing, find, from_arrays
from cvit.engine import team, update
from cvit.model.rope import Rope
from cvit.pictures.preprocessing import Preprocessing

FREE = hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled()
ROUNDS = 30 if FREE else 10

CONFIGS = (
    ViTConfig(image_size=8, patch_size=2, channels=1, width=48, depth=2, heads=4, hidden=96, classes=10),
    ViTConfig(image_size=6, patch_size=3, channels=3, width=32, depth=1, heads=2, classes=4, rope=Rope("mixed")),
)


@contextlib.contextmanager
def changes():
    """Another thread changes what is chosen for the process, all the while."""
    done, failed = threading.Event(), []

    def change():
        try:
            for threads, isa in itertools.cycle(itertools.product((1, 3, None, 2, 5), cvit.available_isas())):
                cvit.set_isa(isa)
                cvit.set_num_threads(threads)
                assert cvit.get_isa() == isa and cvit.get_num_threads() >= 1
                if done.is_set():
                    return
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=60)
    assert not thread.is_alive() and not failed, failed


def of_each_isa(call):
    """What `call()` gives under each instruction set."""
    before, results = cvit.get_isa(), []
    for isa in cvit.available_isas():
        cvit.set_isa(isa)
        results.append(call())
    cvit.set_isa(before)
    return results


def check_beside_changes(calls, each=1):
    """Every call, `each` times at once, gives what it gives alone under one of the instruction sets."""
    allowed = [of_each_isa(call) for call in calls]

    def many(call, allowed):
        for _ in range(ROUNDS):
            result = call()
            assert any(same_bits(result, one) for one in allowed)

    with changes():
        run_together([lambda call=c, a=a: many(call, a) for c, a in zip(calls, allowed) for _ in range(each)])


def together(calls, rounds=ROUNDS):
    """Every call in a thread of its own, again and again, gives what it gives alone."""
    expected = [call() for call in calls]

    def many(call, wanted):
        for _ in range(rounds):
            assert same_bits(call(), wanted)

    run_together([lambda call=c, e=e: many(call, e) for c, e in zip(calls, expected)])


# -------------------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "rotary"])
def test_a_call_keeps_to_one_instruction_set(config, precision):
    """Of models that two threads share; a frozen one packs its weights anew after a change, a frozen front and what
    is trained behind it are two passes."""
    model, frozen, half = (ViT(config, seed=seed, precision=precision) for seed in range(3))
    for one in (model, frozen, half):
        one.weights += np.float32(0.03)
    frozen.freeze()
    x, y = batch(9, config=config)
    calls = [
        lambda: model.loss_and_grad(x, y), lambda: frozen.forward(x), lambda: frozen.features(x[:4]),
        lambda: half.loss_and_grad(x, y, first=1, drop=Drop(0.2, 0.1, 7)), lambda: half.attention(x),
    ]  # fmt: skip
    check_beside_changes(calls, each=2)
    if precision == "bf16":  # the same bits on every instruction set: also of a loss and an inference after it
        together([lambda: (model.loss_and_grad(x, y)[0], model.logits, model.forward(x), frozen.forward(x))] * 3)


@pytest.mark.skipif(not team.has_precision("bf16-fast"), reason="needs AVX512-BF16")
def test_a_precision_that_another_thread_takes_away():
    """ "bf16-fast" exists with AVX-512 alone: a call has its kernels, or says that they are not there."""
    model = ViT(CONFIGS[0], precision="bf16-fast")
    x, y = batch(5)
    wanted = model.loss_and_grad(x, y)
    refused = []

    def many():
        for _ in range(2 * ROUNDS):
            try:
                assert same_bits(model.loss_and_grad(x, y), wanted)
            except ValueError as error:
                refused.append(str(error))

    with changes():
        run_together([many, many])
    assert all(message.startswith("precision 'bf16-fast' needs a CPU with AVX512-BF16") for message in refused)


def test_new_models_of_new_configurations():
    """Layouts and programs are kept for all models: several threads ask for the same new one at once."""
    seeds = itertools.count()

    def make(width):
        config = ViTConfig(image_size=4, patch_size=2, channels=1, width=width, depth=1, heads=2, classes=3)
        model, x = ViT(config, seed=1), np.ones((2, 1, 4, 4), np.float32)
        return model.loss_and_grad(x, [0, 2]), model.freeze().forward(x), model.plan(8).bytes

    for _ in range(ROUNDS):
        width = 8 + 4 * next(seeds)
        first, *others = run_together([lambda w=width: make(w)] * 4)
        assert all(same_bits(other, first) for other in others)


def test_gradients_that_other_threads_still_hold():
    """A model uses a gradient's memory again when nothing refers to it, whichever thread has let go of it last."""
    model = ViT(CONFIGS[0], seed=1)
    model.weights += np.float32(0.03)
    data = [batch(5, seed) for seed in range(3)]
    expected = [model.loss_and_grad(*d)[1].copy() for d in data]
    given = queue.SimpleQueue()

    def make(i):
        for _ in range(3 * ROUNDS):
            given.put((i, model.loss_and_grad(*data[i])[1][3:]))

    def look():
        for _ in range(3 * ROUNDS):
            i, view = given.get(timeout=60)
            assert same_bits(view, expected[i][3:])
            assert same_bits(view.reshape(1, -1)[0], expected[i][3:])

    run_together([lambda i=i: make(i) for i in range(3)] + [look] * 3)


# ------------------------------------------------------------------------------------------ kernels, optimizers, files
def test_ops_beside_changes(rng, dtype):
    x, w = rng.standard_normal((70, 60)).astype(dtype), rng.standard_normal((60, 90)).astype(dtype)
    q, k, v = rng.standard_normal((3, 2, 3, 17, 8)).astype(dtype)
    dy, one, labels = x @ w, np.ones(60, dtype), np.arange(70) % 60
    check_beside_changes([
        lambda: ops.linear(x, w), lambda: ops.linear_backward(dy, x, w), lambda: ops.layernorm(x, one, one),
        lambda: ops.gelu(x), lambda: ops.attention(q, k, v), lambda: ops.cross_entropy(x, labels),
        lambda: ops.drop(x[None], 3, rate=0.3),
    ])  # fmt: skip


def test_updates_beside_changes(rng):
    n = 200_000
    w, g, m, v = rng.random((4, n), np.float32)
    run = update.run_of(7, n, 1.0, True)

    def sgd():
        weights, velocity = w.copy(), m.copy()
        update.sgd(weights, g, velocity, 0.1, 0.9, True, 0.01, run, 1.0)
        return weights, velocity

    def adamw():
        vectors = w.copy(), m.copy(), v.copy()
        update.adamw(vectors[0], g, *vectors[1:], 1e-3, 0.9, 0.999, 1e-8, 0.05, 3, run, 1.0)
        return vectors

    def average():
        mean = m.copy()
        update.average(mean, w, 0.1, run)
        return mean

    check_beside_changes([sgd, adamw, average, lambda: update.sum_of_squares(g, run)])


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_whole_trainings_side_by_side(make):
    """Each of a model, an optimizer and a feed of its own, on the same images."""
    config = CONFIGS[0]
    x, y = batch(24, config=config)

    def train(seed):
        model = ViT(config, seed=seed)
        cvit.train.fit(
            model, (x, y), (x[:7], y[:7]), epochs=2, batch_size=7, optimizer=make(model, 1e-3), clip_norm=1.0
        )
        return model.weights, model.forward(x)

    together([lambda seed=seed: train(seed) for seed in (1, 2, 3)], rounds=1 + ROUNDS // 5)


def test_files_side_by_side(tmp_path):
    """One file that all read, and a file each that is written and read."""
    model = ViT(CONFIGS[0], seed=1, class_names=[f"class {i}" for i in range(10)])
    x, _ = batch(3)
    model.save(tmp_path / "shared")
    (tmp_path / "shared").rename(tmp_path / "model")

    def read(mmap):
        loaded = cvit.load(tmp_path / "model", mmap=mmap)
        return loaded.weights, loaded.forward(x), loaded.class_names

    def write(name):
        model.save(tmp_path / name)
        return cvit.load(tmp_path / name).weights

    together([lambda: read(False), lambda: read(True), lambda: write("a"), lambda: write("b")], 1 + ROUNDS // 3)


# --------------------------------------------------------------------------------------------------------------- feeds
def test_feeds_side_by_side(tmp_path):
    """Epochs of one feed of pictures in several threads, each with decoders of its own, and one store of pictures."""
    from picture_files import folder

    how = Preprocessing(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pictures = find(folder(tmp_path, {"a": 5, "b": 4, "c": 4}), validation=0).train
    strong = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.5)
    feed = Feed(pictures, how, 4, augmentation=strong, mixing=Mixing(), seed=3, decoders=2, cache=Cache(6000))

    def epoch(number):
        return [tuple(part for part in made if part is not None) for made in feed.epoch(number)]

    def plain():
        return [made.images for made in Feed(pictures, how, 4, decoders=2, cache=feed.cache).plain()]

    together([lambda: epoch(0), lambda: epoch(1), lambda: epoch(1), plain], 1 + ROUNDS // 3)
    assert 0 < feed.cache.used <= feed.cache.limit


def test_feeds_of_arrays_side_by_side(rng):
    pytest.importorskip("PIL")
    images, labels = rng.integers(0, 256, (40, 9, 9, 3), np.uint8), np.arange(40) % 4
    how = Preprocessing(size=9, resize=None)
    few = Augmentation(crop_scale=None, color_jitter=0.0, pad_crop=2, erasing=0.5)
    pictures = from_arrays(images, labels, validation=0).train
    feed = Feed(pictures, how, 8, augmentation=few, mixing=Mixing(), seed=1, decoders=2)
    arrays = ArrayFeed(how(list(images)), labels, 8, seed=1, mixing=Mixing())

    def epoch(feed, number):
        return [tuple(part for part in made if part is not None) for made in feed.epoch(number)]

    together([lambda f=f, n=n: epoch(f, n) for f in (feed, arrays) for n in (0, 1)], 1 + ROUNDS // 3)
