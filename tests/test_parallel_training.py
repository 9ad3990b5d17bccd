"""Training by several processes: the same bits as by one, stopped and resumed together, ended together by a failure.

What runs under mpiexec is in tests/mpi/train_*.py; without mpi4py or a launcher these tests are skipped.
"""

import json
import os
import signal
from pathlib import Path

import mpi_runs
import numpy as np
import pytest
from checks import same_bits
from mpi.train_cases import CONFIG, IMAGES, LABELS, PARTS, SHARED, result, results
from test_runs import archive

import cvit
from cvit.data import ArrayFeed, Augmentation, Feed, Mixing, from_arrays
from cvit.data.augment import Affine
from cvit.model.vit import ViT
from cvit.parallel.shares import own_parts, part_slices
from cvit.pictures.preprocessing import Preprocessing
from cvit.runs import train
from cvit.train import SGD, AdamW, state
from cvit.train.loop import Loop


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return archive(tmp_path / "stripes.npz", count=60)


def share_of(rank, size, parts):
    """What `Stepper.share` says: which images of a batch are a rank's."""

    def share(images):
        own, slices = own_parts(rank, size, parts), part_slices(images, parts)
        return slice(slices[own.start].start, slices[own.stop - 1].stop)

    return share


# -------------------------------------------------------------------------------------------------------- what is fed
MOVED = Augmentation(crop_scale=None, flip=0.5, erasing=0.5, color_jitter=0.0, affine=Affine())
PILLOW = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.5)


@pytest.mark.parametrize("size, parts", [(2, 2), (3, 8), (5, 5), (8, 8)])
@pytest.mark.parametrize("augmentation", [None, MOVED, PILLOW], ids=["plain", "vectorised", "pillow"])
@pytest.mark.parametrize("mixing", [None, Mixing(prob=0.6)], ids=["", "mixed"])
def test_shares_of_a_batch_are_together_the_batch(augmentation, mixing, size, parts):
    pytest.importorskip("PIL.Image")
    images = np.random.default_rng(1).integers(0, 256, (23, 10, 10, 3), np.uint8)
    found = from_arrays(images, np.arange(23) % 3, weights=np.arange(23.0), validation=0).train
    feed = Feed(found, Preprocessing(size=8), 6, augmentation=augmentation, mixing=mixing, seed=2)
    whole = list(feed.epoch(1))
    shares = [list(feed.epoch(1, share=share_of(rank, size, parts))) for rank in range(size)]
    for batch, *own in zip(whole, *shares):
        assert {each.whole for each in own} == {len(batch.images)}
        together = [np.concatenate(side) for side in zip(*(each[:4] for each in own))]
        assert same_bits(together, list(batch[:4]))
    plain = [
        np.concatenate([b.images for b in feed.plain(4, share_of(r, size, size))] or [images[:0]]) for r in range(size)
    ]
    assert same_bits(np.concatenate([p for p in plain if len(p)]), np.concatenate([b.images for b in feed.plain()]))


def test_a_share_is_decoded_with_its_partners_alone(monkeypatch):
    """The partners of mixing, where it mixes; without it the own pictures and no others."""
    images = np.random.default_rng(1).integers(0, 256, (12, 10, 10, 3), np.uint8)
    found = from_arrays(images, np.arange(12) % 3, validation=0).train
    made = []
    values = Feed._values
    monkeypatch.setattr(
        Feed, "_values", lambda self, indices, stop: made.append(len(indices)) or values(self, indices, stop)
    )
    for mixing, count in ((None, 3), (Mixing(prob=0), 3), (Mixing(), 6)):
        made.clear()
        list(Feed(found, Preprocessing(size=8), 12, mixing=mixing).epoch(0, share=share_of(0, 4, 4)))
        assert made == [count]


def test_arrays_are_shared_out_as_pictures_are():
    feed = ArrayFeed(
        IMAGES, LABELS, 13, lambda x, rng: x + rng.normal(), mixing=Mixing(), weights=np.arange(37.0), classes=3
    )
    whole, shares = list(feed.epoch(0)), [list(feed.epoch(0, share=share_of(rank, 3, 8))) for rank in range(3)]
    for batch, *own in zip(whole, *shares):
        assert same_bits([np.concatenate(side) for side in zip(*(each[:4] for each in own))], list(batch[:4]))


# ----------------------------------------------------------------------------------------------------- parts of a batch
@pytest.mark.parametrize("parts", [2, 3, 8, 40])
@pytest.mark.parametrize(
    "options", [{}, dict(accumulate=2, class_weight=[1, 2, 0.5]), dict(drop_path=0.3, dropout=0.2)]
)
def test_parts_of_a_batch_give_its_gradient(parts, options):
    """Up to rounding: (parts · passes + 1) epsilon of the sum of the parts' sizes."""

    def gradient(parts):
        model = ViT(CONFIG, seed=1, dtype=np.float64)
        model.weights[:] += 0.1 * np.random.default_rng(9).normal(size=model.layout.size)
        loop = Loop(
            model, (IMAGES.astype(np.float64), LABELS), epochs=1, batch_size=16, optimizer=SGD(model, lr=0.0),
            exact_reduction=parts, **options,
        )  # fmt: skip
        batch = next(loop.feed.epoch(0))
        return loop.stepper._loss_and_grad(batch.images, batch, 0), loop.stepper.grad

    (loss, right), grad = gradient(1)
    (part_loss, part_right), part_grad = gradient(parts)
    assert part_loss == pytest.approx(loss, rel=1e-13) and part_right == right
    np.testing.assert_allclose(part_grad, grad, rtol=0, atol=2e-13 * np.abs(grad).max() * parts)


def test_one_part_is_a_run_without():
    assert result(None, exact_reduction=1) == result(None)


def test_wrong_parts_are_named():
    with pytest.raises(ValueError, match="exact_reduction must be at least 1, got 0"):
        result(None, exact_reduction=0)
    with pytest.raises(TypeError, match="comm must be a communicator of mpi4py"):
        result(3)


# ------------------------------------------------------------------------------------------- shares of the optimizer
@pytest.mark.parametrize("make", [AdamW, SGD, lambda model, **o: SGD(model, momentum=0.9, nesterov=True, **o)])
@pytest.mark.parametrize("trained", [None, ["blocks.1.*", "head.*"]])
def test_shares_of_the_state_give_the_whole_update(make, trained):
    """Each optimizer has its share of the state, and updates its part of the weights as one that has all of it."""
    model, rng = ViT(CONFIG, seed=1), np.random.default_rng(0)
    whole, *shares = (make(model, lr=0.1, weight_decay=0.1, trained=trained) for _ in range(4))
    slices = part_slices(model.layout.size, 3)
    for optimizer, share in zip(shares, slices):
        optimizer.share = share
    expected, found = model.weights.copy(), model.weights.copy()
    for _ in range(3):
        grad = rng.normal(size=model.layout.size).astype(np.float32)
        norm = whole.step(expected, grad, clip_norm=1.0)
        for optimizer in shares:
            assert optimizer.step(found, grad, clip_norm=1.0) == norm
        assert same_bits(found, expected)
    for name, vector in whole.state_dict().items():
        if isinstance(vector, np.ndarray):
            for optimizer, share in zip(shares, slices):
                own = getattr(optimizer, name)
                assert same_bits(own[share], getattr(whole, name)[share]) and np.count_nonzero(
                    own[share]
                ) == np.count_nonzero(own)
    state = whole.state_dict()
    for optimizer, share in zip(shares, slices):
        fresh = make(model, trained=trained)
        fresh.share = share
        fresh.load_state_dict(state)
        assert all(same_bits(getattr(fresh, name), getattr(optimizer, name)) for name in fresh._VECTORS)


# ------------------------------------------------------------------------------------------------- several processes
@pytest.fixture(scope="module")
def alone():
    """What every case ends with on one process, by the number of parts."""
    return {parts: results(None, exact_reduction=parts) for parts in (2, 3, PARTS)}


@pytest.mark.parametrize("ranks, kinds", [
    (2, ["default 1", "default 2", "exact 1 split"]), (3, ["default 2 split", "exact 1"]), (4, ["exact 2"]),
])  # fmt: skip
def test_any_number_of_ranks_gives_the_bits_of_one(alone, ranks, kinds):
    """Of an exact reduction those of any other number of ranks; else those of as many parts. So for every kind of run,
    on one thread and two, with the optimizer's state on every rank or shared out."""
    for rank, output in enumerate(mpi_runs.succeeds(ranks, "train_cases.py", *kinds)):
        for kind, found in json.loads(output).items():
            assert found == alone[PARTS if kind.startswith("exact") else ranks], (rank, kind)


def test_runs_are_shared_stopped_and_resumed(data):
    """The command on 3 ranks is stopped by a signal that one of them gets, goes on on 2 and then on 1: the bits of a
    run of one process that was never stopped."""
    whole = train(data, out="whole", exact_reduction=PARTS, **SHARED)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SHARED.items() if name != "pictures"]
    begin = [str(data), "--out", "shared", "--no-pictures", "--exact-reduction", *options]
    for text in mpi_runs.succeeds(3, "train_command.py", "1", "2", *begin, cwd=os.getcwd()):
        assert text.splitlines()[-1] == str(128 + signal.SIGTERM)
    assert json.loads(Path("shared/run.json").read_text())["results"]["interrupted"]
    second = mpi_runs.succeeds(2, "train_run.py", str(data), "shared", "stop", "0", "5", cwd=os.getcwd())
    assert [json.loads(text.splitlines()[-1])["steps"] for text in second] == [5, 5]
    shared = train(None, out="shared", resume=True, pictures=False)
    for name in ("model.safetensors", "last.safetensors"):
        assert same_bits(cvit.load(f"shared/{name}").weights, cvit.load(f"whole/{name}").weights)
    assert [epoch[:6] for epoch in shared.history.epochs] == [epoch[:6] for epoch in whole.history.epochs]
    assert repr(shared.results[:6]) == repr(whole.results[:6])
    assert sorted(os.listdir("shared")) == sorted(os.listdir("whole"))


def test_a_run_keeps_its_exact_reduction(data):
    """A resumed one sums in as many parts as it did, and refuses another number."""
    train(data, out="run", exact_reduction=PARTS, **SHARED)
    lines = []
    train(None, out="run", resume=True, pictures=False, say=lines.append)
    assert not any("parts" in line for line in lines)
    with pytest.raises(ValueError, match="recipe.exact_reduction was 8, is 4"):
        train(None, out="run", resume=True, exact_reduction=4, pictures=False)


def test_a_run_says_that_it_goes_on_with_other_parts(data):
    """Without an exact reduction there are as many parts as ranks."""
    train(data, out="run", **SHARED)
    arrays, facts, _ = state.read("run/checkpoint")
    state.write("run/checkpoint", arrays, {**facts, "parts": 3})
    lines = []
    train(None, out="run", resume=True, pictures=False, say=lines.append)
    assert any("summed in 3 parts, are in 1" in line for line in lines)


def test_a_rank_that_fails_ends_the_run(data):
    """The others raise what it says; nothing is half written, and the run can be resumed."""
    finished = mpi_runs.run(3, "train_run.py", str(data), "failed", "raise", "2", "6", cwd=os.getcwd())
    assert finished.status != 0
    told = [text.splitlines()[-1] for text in finished.outputs]
    assert told[2] == "ValueError: this rank has had enough"
    for line in told[:2]:
        assert line.startswith("RankError: rank 2 (") and line.endswith("failed: ValueError: this rank has had enough")
    assert sorted(os.listdir("failed")) == ["checkpoint", "history.csv", "model.safetensors", "run.json"]
    whole = train(data, out="whole", exact_reduction=PARTS, **SHARED)
    resumed = train(None, out="failed", resume=True, exact_reduction=PARTS, pictures=False)
    assert same_bits(resumed.model.weights, whole.model.weights)


@pytest.mark.parametrize("kind, text", [
    ("data", "ranks differ in training data: rank 0"),
    ("settings", "ranks differ in epochs: rank 0"),
    ("isa", "ranks differ in isa: rank 0"),
    ("weights", "ranks differ in the checksum of the weights: rank 0"),
    ("nan", "the loss became nan in epoch 1, step 2"),
])  # fmt: skip
def test_what_all_ranks_find_out_they_raise_alike(kind, text):
    if kind == "isa" and len(cvit.available_isas()) < 2:
        pytest.skip("needs two instruction sets")
    for output in mpi_runs.succeeds(2, "train_differs.py", kind):
        assert text in output and len(output.splitlines()) == 1
        assert ("in image 15" in output) == (kind == "nan")
