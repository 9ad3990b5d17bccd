"""Training behind a frozen front, `loss_and_grad(first=...)`: the bits of the whole gradient, and what it saves."""

import ctypes
import mmap
import re
import sys

import numpy as np
import pytest
from checks import on_all_threads, same_bits
from option_cases import OPTIONS, TRAINED, problem

from cvit import Layout, ViT, ViTConfig
from cvit.engine import plan as _engine
from cvit.model import vit
from cvit.model.program import tail_of

SMALL = ViTConfig(image_size=(12, 8), patch_size=4, width=24, depth=3, heads=3, hidden=300, classes=5, layer_scale=0.3)


def starts(config):
    """Every place where training can start."""
    return [*range(config.depth + 1), "head"]


def begin(config, first):
    """The first weight that is trained: those of the layout stand in the order of computation."""
    layer = config.depth + 1 if first == "head" else first + 1
    entries = [entry for entry in Layout.of(config).entries.values() if entry.row.layer >= layer]
    if first == "head":
        entries = [entry for entry in entries if entry.name.startswith(("head.", "head_dist."))]
    return entries[0].offset


def drawn(config, N, dtype=np.float32):
    rng = np.random.default_rng(0)
    weights = (0.3 * rng.standard_normal(Layout.of(config).size)).astype(dtype)
    x = rng.standard_normal((N, config.channels, *config.image_size)).astype(dtype)
    return ViT(config, weights), x, rng.integers(config.classes, size=N)


@pytest.mark.parametrize("name, long", [*[(name, False) for name in TRAINED], *[(name, True) for name in TRAINED[::4]]])
def test_trained_gradients_have_the_bits_of_the_whole(name, long):
    """Of images and of what the front leaves of them, with everything kept and with blocks computed again."""
    size = dict(image_size=(20, 18)) if long and "one token" not in name else {}
    config, weights, x, y = problem({**OPTIONS[name], **size}, N=5, dtype=np.float32)
    model, again = ViT(config, weights), ViT(config, weights, checkpoint="block")
    loss, grad = model.loss_and_grad(x, y, label_smoothing=0.1)
    logits = model.logits
    for first in starts(config):
        trained = begin(config, first)
        expected = np.concatenate([np.zeros_like(grad[:trained]), grad[trained:]])
        rows = model.front(x, first)
        for one, given in ((model, x), (model, rows), (again, x)):
            found = one.loss_and_grad(given, y, label_smoothing=0.1, first=first)
            assert same_bits(found, (loss, expected)), first
            assert same_bits(one.logits, logits)


@pytest.mark.parametrize("name", ["pairs", "DINOv3", "PE", "none", "two heads", "RoPE-ViT", "parallel, inner norms"])
def test_the_bits_are_those_of_any_number_of_threads(isa, dtype, name):
    config, weights, x, y = problem(OPTIONS[name], N=9, dtype=dtype)
    model = ViT(config, weights)
    _, whole = model.loss_and_grad(x, y)
    for first in starts(config):
        rows, (_, grad) = on_all_threads(
            lambda first=first: (model.front(x, first), model.loss_and_grad(x, y, first=first))
        )
        assert same_bits(grad[begin(config, first) :], whole[begin(config, first) :])
        assert rows.dtype == dtype


def test_targets_and_weights_go_along():
    model, x, _ = drawn(SMALL, 4)
    rng = np.random.default_rng(3)
    y, share = rng.random((4, 5)), rng.random(4)
    loss, whole = model.loss_and_grad(x, y, sample_weight=share)
    for first in starts(SMALL):
        got, grad = model.loss_and_grad(x, y, sample_weight=share, first=first)
        assert got == loss and same_bits(grad[begin(SMALL, first) :], whole[begin(SMALL, first) :])


@pytest.mark.parametrize("shift", [0, 1, 5])
def test_the_frozen_part_of_out_is_left_as_it_is(shift):
    """Wherever the vector begins, and whatever it held: activations lie in the part that is trained alone."""
    model, x, y = drawn(SMALL, 3)
    size = model.weights.size
    _, whole = model.loss_and_grad(x, y)
    whole = whole.copy()
    for first in starts(SMALL):
        trained = begin(SMALL, first)
        out = np.full(size + shift, np.nan, np.float32)[shift:]
        _, grad = model.loss_and_grad(x, y, first=first, out=out)
        assert grad is out and np.isnan(out[:trained]).all() and same_bits(out[trained:], whole[trained:])
        total = np.arange(size, dtype=np.float32)
        model.loss_and_grad(x, y, first=first, out=total, accumulate=True)
        expected = np.arange(size, dtype=np.float32)
        expected[trained:] += whole[trained:]
        assert same_bits(total, expected)
    assert model.plan(3, first=1).lent > 0


def test_a_vector_of_the_models_own_is_zero_whatever_was_written_to_the_last_one():
    model, x, y = drawn(SMALL, 3)
    for first in (1, "head", 1, 2, "head"):
        _, grad = model.loss_and_grad(x, y, first=first)
        assert not grad[: begin(SMALL, first)].any() and grad[begin(SMALL, first) :].any()
        grad += 1
        del grad
        model.loss_and_grad(x, y)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the system which pages are there")
def test_pages_of_the_frozen_part_are_never_touched():
    config = ViTConfig(
        image_size=8, patch_size=4, width=512, depth=4, heads=8, hidden=2048, classes=5, pool="mean"
    )  # 50 MB
    model, x, y = drawn(config, 2)
    _, grad = model.loss_and_grad(x, y, first=3)
    page = mmap.PAGESIZE
    start = -(-grad.ctypes.data // page) * page
    pages = (grad.ctypes.data + 4 * begin(config, 3) - start) // page
    there = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(pages * page), there) == 0
    resident = sum(byte & 1 for byte in there) * page
    assert pages * page > 30e6 and resident <= 4 << 20  # what shares a huge page with the part that is trained


def test_nothing_is_read_before_it_was_written(monkeypatch):
    allocate = _engine.allocate

    def full_of_nan(count, kind):
        memory = allocate(count, kind)
        memory.view(np.uint8)[:] = 255
        return memory

    expected = [drawn(SMALL, 3)[0].loss_and_grad(*drawn(SMALL, 3)[1:], first=first) for first in starts(SMALL)]
    monkeypatch.setattr(_engine, "allocate", full_of_nan)
    model, x, y = drawn(SMALL, 3)
    assert same_bits([model.loss_and_grad(x, y, first=first) for first in starts(SMALL)], expected)
    assert same_bits([model.loss_and_grad(x, y, first=first) for first in starts(SMALL)], expected)  # leftovers


def test_the_front_goes_in_pieces(monkeypatch):
    model, x, y = drawn(SMALL, 7)
    expected = [(model.front(x, first), model.loss_and_grad(x, y, first=first)) for first in starts(SMALL)]
    monkeypatch.setattr(vit, "PIECE_BYTES", 0)
    fresh = ViT(SMALL, model.weights)
    assert fresh._piece(7) == 1
    assert same_bits(
        [(fresh.front(x, first), fresh.loss_and_grad(x, y, first=first)) for first in starts(SMALL)], expected
    )


def test_front_is_what_other_calls_give():
    """Of a frozen model, too; and images and rows of any layout and dtype are taken."""
    model, x, y = drawn(SMALL, 4)
    assert same_bits(model.front(x, 2), model.tokens(x, layers=[1])[0])
    assert same_bits(model.front(x, 3), model.tokens(x, norm=False))
    assert same_bits(model.front(x, "head"), model.features(x))
    model.freeze()
    fronts = [model.front(x, first) for first in starts(SMALL)]
    with pytest.raises(ValueError, match=re.escape("this model is frozen: call unfreeze() before training it")):
        model.loss_and_grad(x, y, first="head")
    model.unfreeze()
    assert same_bits([model.front(x, first) for first in starts(SMALL)], fronts)
    for first, rows in zip(starts(SMALL), fronts):
        expected = model.loss_and_grad(x, y, first=first)
        for given in (x.astype(">f8"), rows.astype(np.float64), rows[::-1].copy()[::-1], np.asfortranarray(rows)):
            assert same_bits(model.loss_and_grad(given, y, first=first), expected)
    headless = ViT(ViTConfig(**{**vars(SMALL), "classes": 0}), seed=0)
    assert headless.front(x, "head").shape == (4, 24) and headless.front(x, 0).shape == (4, 7, 24)
    with pytest.raises(ValueError, match="this model has no head"):
        headless.loss_and_grad(x, y, first=0)
    with pytest.raises(ValueError, match="this model has no head"):
        headless.plan(4, first="head")


def test_a_plan_tells_the_memory_of_both(monkeypatch):
    sizes, allocate = [], _engine.allocate
    monkeypatch.setattr(_engine, "allocate", lambda count, kind: sizes.append(count * np.dtype(kind).itemsize)
                        or allocate(count, kind))  # fmt: skip
    for checkpoint in (None, "block"):
        for first in starts(SMALL):
            _, x, y = drawn(SMALL, 40)
            model = ViT(SMALL, seed=0, checkpoint=checkpoint)
            plan, out = model.plan(40, first=first), np.zeros_like(model.weights)
            assert not sizes
            for _ in range(2):
                model.loss_and_grad(x, y, first=first, out=out)
                assert sum(sizes) == plan.bytes and "frozen front, 40 at a time" in str(plan)
            rows = model.front(x, first)
            sizes.clear()
            ViT(SMALL, seed=0, checkpoint=checkpoint).loss_and_grad(rows, y, first=first, out=out)
            assert sum(sizes) == plan.bytes - plan.buffers["frozen front, 40 at a time"]
            sizes.clear()


def test_what_is_frozen_keeps_nothing():
    model = ViT(ViTConfig.variant("Ti/16"))
    whole = model.plan(8)
    kept = [model.plan(8, first=first) for first in (0, 4, 8, 11)]
    for first, plan in zip((0, 4, 8, 11), kept):
        rows = whole.buffers["hidden rows"] + whole.lent
        assert plan.buffers["hidden rows"] + plan.lent <= rows * (12 - first) / 12 + 1
    assert kept[3].bytes < 0.35 * kept[0].bytes
    assert model.plan(8, first="head").bytes < 1.4 * model.plan(8, "infer").bytes
    assert "given    tokens -> x (197, 192)" in str(tail_of(model.config, 11)) and "block 0\n" in str(
        tail_of(model.config, 11)
    )


def test_starts_take_turns():
    """Engines are kept by where training starts, too."""
    model, x, y = drawn(SMALL, 4)
    for first in (None, 2, "head", None, 0, 2, 3, 1, "head"):
        assert same_bits(model.loss_and_grad(x, y, first=first), drawn(SMALL, 4)[0].loss_and_grad(x, y, first=first))


MODEL, IMAGES, LABELS = drawn(SMALL, 2)
BAD = [
    ((IMAGES, -1), ValueError, "first must be at least 0, got -1"),
    ((IMAGES, 4), ValueError, "first must be at most 3, got 4"),
    ((IMAGES, 1.5), ValueError, "first must be a whole number, got 1.5"),
    ((IMAGES, True), TypeError, "first must be an integer, got True"),
    ((IMAGES, "all"), ValueError, "first must be a block's number or 'head', got 'all'"),
    ((IMAGES[0], 1), ValueError, "x must have shape (N, 7, 24), got (3, 12, 8)"),
    ((IMAGES[:, :2], 1), ValueError, "x must have shape (N, 3, 12, 8), got (2, 2, 12, 8)"),
    ((IMAGES[:0], 1), ValueError, "x must hold at least one image, got a batch of 0"),
    ((np.ones((2, 7, 23)), 1), ValueError, "x must have shape (N, 7, 24), got (2, 7, 23)"),
    ((np.ones((0, 7, 24)), 1), ValueError, "x must hold at least one image, got a batch of 0"),
    ((np.ones((2, 7, 24), int), 1), TypeError, "x must be float32 or float64, got int64"),
    ((np.ones((2, 7, 24)), "head"), ValueError, "x must have shape (N, 3, 12, 8), got (2, 7, 24)"),
    ((np.ones((2, 25)), "head"), ValueError, "x must have shape (N, 24), got (2, 25)"),
    ((np.ones((3, 24)), "head"), ValueError, "y must have shape (3,), one label an image, got (2,)"),
]


@pytest.mark.parametrize("given, error, message", BAD)
def test_wrong_starts_are_refused(given, error, message):
    x, first = given
    with pytest.raises(error, match="^" + re.escape(message)):
        MODEL.loss_and_grad(x, LABELS, first=first)


def test_front_and_plan_refuse_wrong_starts():
    for first, error, message in [(given[1], *rest) for given, *rest in BAD[:5]]:
        with pytest.raises(error, match="^" + re.escape(message)):
            MODEL.front(IMAGES, first)
        with pytest.raises(error, match="^" + re.escape(message)):
            MODEL.plan(2, first=first)
    with pytest.raises(TypeError, match="first must be an integer, got None"):
        MODEL.front(IMAGES, None)
    with pytest.raises(ValueError, match="first is of training: mode must be 'train', got 'infer'"):
        MODEL.plan(2, "infer", first=0)
    rows = MODEL.front(IMAGES, 1)
    room = np.zeros(MODEL.weights.size, np.float32)
    room[: rows.size] = rows.ravel()
    with pytest.raises(ValueError, match="out must not overlap x"):
        MODEL.loss_and_grad(room[: rows.size].reshape(rows.shape), LABELS, first=1, out=room)
