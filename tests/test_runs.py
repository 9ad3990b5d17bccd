"""Runs: from a path to a folder, killed and resumed to the same bits, refused where something changed."""

import contextlib
import json
import math
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

import cvit
from cvit.runs import prepare, train
from cvit.runs.folder import Folder, differences, folder_for
from cvit.runs.forecast import duration, forecast
from cvit.runs.recipe import PRESETS, Recipe, recipe_of

pytest.importorskip("PIL.Image")

SHAPE = dict(image_size=8, patch_size=4, width=8, depth=2, heads=2, hidden=16)
TINY = dict(**SHAPE, epochs=3, batch_size=16, pictures=False)


def archive(path, seed=0, count=96):
    """An .npz of 8 x 8 pictures of three classes that are easy to tell apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = rng.integers(0, 100, (count, 8, 8))
    x[y == 0, ::2] += 100
    x[y == 1, :, ::2] += 100
    np.savez(path, x=x.astype(np.uint8), y=y, classes=np.array(["rows", "columns", "neither"]))
    return path


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return archive(tmp_path / "stripes.npz")


def weights_in(folder):
    return [cvit.load(f"{folder}/{name}").weights for name in ("model.safetensors", "last.safetensors")]


# ----------------------------------------------------------------------------------------------------- a whole run
def test_a_run_fills_its_folder(data):
    done = train(data, **{**TINY, "epochs": 12}, lr=5e-3)
    assert done.folder == os.path.join("runs", "stripes")
    assert sorted(os.listdir(done.folder)) == [
        "checkpoint", "history.csv", "last.safetensors", "model.safetensors", "predictions.csv", "run.json",
    ]  # fmt: skip
    assert done.results.validation_accuracy > 0.8
    assert done.model.class_names == ("rows", "columns", "neither")
    for name in (done.folder, f"{done.folder}/model.safetensors"):
        loaded = cvit.load(name)
        np.testing.assert_array_equal(loaded.weights, done.model.weights)
        assert loaded.preprocessing == done.model.preprocessing
    facts = json.loads((Folder(done.folder).file("run.json")).read_text())
    assert facts["results"]["validation_accuracy"] == done.results.validation_accuracy
    assert facts["settings"]["recipe"]["lr"] == 5e-3 and facts["machine"]["isa"] == cvit.get_isa()


def test_folders_are_numbered_and_nothing_is_overwritten(data):
    first, second = (train(data, **TINY) for _ in range(2))
    assert [first.folder, second.folder] == [os.path.join("runs", name) for name in ("stripes", "stripes-2")]
    before = [os.stat(f"{first.folder}/model.safetensors").st_mtime_ns]
    with pytest.raises(FileExistsError, match="holds a run already: resume it, overwrite it"):
        train(data, out=first.folder, **TINY)
    os.makedirs("mine")
    open("mine/notes.txt", "w").close()
    with pytest.raises(FileExistsError, match="holds files that are no run's"):
        train(data, out="mine", overwrite=True, **TINY)
    assert before == [os.stat(f"{first.folder}/model.safetensors").st_mtime_ns]
    again = train(data, out=first.folder, overwrite=True, **TINY)
    assert again.folder == first.folder


def test_two_processes_do_not_share_a_folder(data):
    first, second = Folder("runs/held"), Folder("runs/held")
    refused = pytest.raises(BlockingIOError, match="another process trains in this folder")
    with first.held(), refused, second.held():
        pass


# ---------------------------------------------------------------------------------------------------------- resume
def stop_after(step, epoch):
    def on_step(now):
        if (now.epoch, now.step) == (epoch, step):
            raise KeyboardInterrupt

    return on_step


SETTINGS = {
    "plain": dict(),
    "everything": dict(
        ema=0.9, mixup=0.2, cutmix=1.0, drop_path=0.1, accumulate=2, erasing=0.5, layer_decay=0.8, optimizer="sgd"
    ),
    "frozen": dict(train_blocks=1, flip=0.0),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("epoch, step", [(1, 2), (2, 6), (3, 1)])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(data, name, epoch, step):
    options = {**TINY, **SETTINGS[name]}
    whole = train(data, out="whole", **options)
    stopped = train(data, out="parts", **options, on_step=stop_after(step, epoch))
    assert stopped.history.interrupted and len(stopped.history.epochs) == epoch - 1
    resumed = train(None, out="parts", resume=True, pictures=False)  # data and settings are the run's own
    assert not resumed.history.interrupted
    for one, other in zip(weights_in("whole"), weights_in("parts")):
        np.testing.assert_array_equal(one, other)
    assert [e[:6] for e in whole.history.epochs] == [e[:6] for e in resumed.history.epochs]


def test_resuming_what_is_finished_changes_nothing(data):
    done = train(data, **TINY)
    before = weights_in(done.folder)
    again = train(data, resume=True, pictures=False)
    assert again.folder == done.folder
    for one, other in zip(before, weights_in(done.folder)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(seed=1), "recipe.seed was 0, is 1"),
        (dict(lr=1e-4), "recipe.lr was"),
        (dict(epochs=9), "recipe.epochs was 3, is 9"),
        (dict(width=16), "model.config was"),
        (dict(erasing=0.5), "recipe.augmentation.erasing was"),
    ],
)
def test_another_setting_is_refused_and_named(data, changed, message):
    train(data, out="run", **TINY)
    with pytest.raises(ValueError, match=f"run holds another run, .*{message}"):
        train(data, out="run", resume=True, pictures=False, **changed)


def test_other_data_is_refused(data, tmp_path):
    train(data, out="run", **TINY)
    other = archive(tmp_path / "other.npz", seed=1)
    with pytest.raises(ValueError, match=r"run holds another run, .*data\.digest was"):
        train(other, out="run", resume=True, pictures=False)


def test_nothing_to_resume(data):
    with pytest.raises(FileNotFoundError, match="no run was begun here, so there is none to resume"):
        train(data, out="nowhere", resume=True, pictures=False)


KILLED = """
import sys, cvit
from cvit.runs import train
cvit.set_num_threads(1)
train("stripes.npz", out=sys.argv[1], resume=sys.argv[2] == "resume", save_minutes=0.0005, **eval(sys.argv[3]))
"""


def start(data, out, how, options):
    command = [sys.executable, "-c", KILLED, out, how, options]
    return subprocess.Popen(command, cwd=data.parent, stderr=subprocess.PIPE, text=True)


def killed_after(process, out, seconds) -> bool:
    """Whether the run was still going on so many seconds after it had made its folder; it is not any more."""
    while not os.path.isdir(out) and process.poll() is None:
        time.sleep(0.002)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
        return False
    process.kill()
    process.communicate()
    return True


def test_killed_at_any_moment_a_run_ends_with_the_same_bits(data):
    """SIGKILL at 30 random moments, in one run after the other: each is resumed until it ends."""
    options = repr({**TINY, "epochs": 6, "ema": 0.9, "mixup": 0.2})
    assert start(data, "whole", "new", options).wait() == 0
    expected, draw, kills, attempt = weights_in("whole"), random.Random(0), 0, 0
    while kills < 30:
        attempt += 1
        out, how = f"killed-{attempt}", "new"
        for seconds in (draw.uniform(0, 0.25) for _ in range(10)):
            process = start(data, out, how, options)
            if not killed_after(process, out, seconds):
                break
            kills += 1
            how = "resume" if os.path.exists(f"{out}/run.json") else "new"  # killed before it had begun
        else:
            process = start(data, out, how, options)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        for one, other in zip(expected, weights_in(out)):
            np.testing.assert_array_equal(one, other)
        names = os.listdir(out) + os.listdir(f"{out}/checkpoint")
        assert not [name for name in names if name.startswith(".") or "writing" in name]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(data):
    whole = train(data, out="whole", **TINY)
    train(data, out="run", **TINY, on_step=stop_after(2, 3))
    path = Folder("run").file("checkpoint") / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    told = []
    train(data, out="run", resume=True, pictures=False, say=told.append)
    assert any("state.safetensors" in text for text in told)
    np.testing.assert_array_equal(weights_in("run")[1], weights_in(whole.folder)[1])


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(data):
    with pytest.raises(FloatingPointError) as error:
        train(data, **{**TINY, "epochs": 30}, optimizer="sgd", lr=1e30, warmup=0.0, clip_norm=None)
    text = str(error.value)
    assert "(learning rate 9.9" in text and "the pictures were finite" in text and "checkpoint" in text


# --------------------------------------------------------------------------------------- recipes, folders, forecasts
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("edge", [8, 28, 64, 224])
def test_presets_are_valid_and_keep_in_json(preset, edge):
    recipe = recipe_of(preset, edge, 1000, {})
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    changed = recipe_of(preset, edge, 1000, dict(lr=0.5, flip=0.25))
    assert changed.lr == 0.5 and changed.augmentation.flip == 0.25


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(epochs=0), "epochs must be at least 1"),
        (dict(warmup=1), "warmup must be below 1"),
        (dict(optimizer="adam"), "optimizer must be one of"),
        (dict(layer_decay=0), "layer_decay must be above 0"),
        (dict(speed=1), "a recipe has no setting speed"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        recipe_of("scratch", 8, 100, wrong)


def test_init_takes_over_weights_and_preprocessing(data):
    first = train(data, **TINY)
    again = prepare(data, init=first.folder, preset="finetune", epochs=1)
    np.testing.assert_array_equal(again.model.weights, first.model.weights)  # the same classes: the head stays
    probe = prepare(data, init=first.folder, preset="probe")
    assert probe.first == "head" and probe.trained == {"head.weight", "head.bias"}
    with pytest.raises(ValueError, match="preset 'probe' needs init"):
        prepare(data, preset="probe")
    with pytest.raises(ValueError, match="init brings its own shape: width cannot be chosen"):
        prepare(data, init=first.folder, width=16)


def test_a_probe_trains_the_head_alone(data):
    first = train(data, **TINY)
    probe = train(data, init=first.folder, preset="probe", epochs=5, pictures=False)
    before, after = (m.layout.views(m.weights) for m in (first.model, probe.model))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_forecast_leaves_no_trace(data):
    options = {name: value for name, value in TINY.items() if name != "pictures"}
    job = prepare(data, **options)
    before = job.model.weights.copy()
    lines = list(forecast(job, folder_for(None, "stripes", resume=False, overwrite=False)))
    np.testing.assert_array_equal(job.model.weights, before)
    assert not os.path.exists("runs")
    for word in ("data", "classes", "model", "recipe", "memory", "time", "disk", "folder"):
        assert any(line.startswith(word) for line in lines)


@pytest.mark.parametrize("seconds, text", [(0.44, "0.4 s"), (42, "42 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_differences_are_sentences():
    assert differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": (1,)}}) == ["a.b was 1, is 2"]
    assert math.isfinite(len(differences({}, {"x": None})))


def test_tensorboard_reads_the_figures_of_every_epoch(data):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train(data, **TINY, tensorboard=True)
    events = EventAccumulator(f"{done.folder}/tensorboard")
    events.Reload()
    for tag in ("train_loss", "test_accuracy", "lr"):
        values = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(epoch.epoch, np.float32(getattr(epoch, tag))) for epoch in done.history.epochs]
        assert values == expected


def test_data_of_several_kinds_in_one_line(data, tmp_path):
    """A folder of pictures, and arrays in memory; a broken picture is left out and said."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, colour in (("a", 60), ("b", 190)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.normal(colour, 20, (12, 10, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number}.png")
    (tmp_path / "set/a/broken.png").write_bytes(b"no picture")
    told = []
    done = train(tmp_path / "set", **TINY, say=told.append)
    assert done.model.class_names == ("a", "b") and done.folder == os.path.join("runs", "set")
    assert "broken.png" in json.loads(Folder(done.folder).file("run.json").read_text())["remarks"][0]
    with pytest.raises(ValueError, match=r"broken\.png"):
        train(tmp_path / "set", **TINY, strict=True)
