"""`cvit train`: a run's folder, signals, outputs that fail, full disks, a terminal, resuming."""

import csv
import json
import os
import re
import signal

import numpy as np
import pytest
from command import TINY, end, start, wait_for

import cvit
from cvit import cli

for module in ("sklearn", "PIL", "tqdm"):
    pytest.importorskip(module)

PLAIN = [*TINY, "--no-pictures", "--threads", 1]
ENDLESS = ["train", "digits", "--epochs", 100_000, *PLAIN, "--out"]
SHORT = ["train", "digits", "--epochs", 3, *PLAIN, "--out"]
ALL_FILES = ["checkpoint", "history.csv", "last.safetensors", "model.safetensors", "predictions.csv", "run.json"]


def assert_learnt(folder):
    assert sorted(os.listdir(folder)) == ALL_FILES
    for name in ("model.safetensors", "last.safetensors"):
        model = cvit.load(folder / name)
        assert model.layout.views(model.weights)["head.weight"].any()  # which begins as zeros


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the run "tiny" in it, and what it printed."""
    pytest.importorskip("matplotlib"), pytest.importorskip("jinja2")
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    process = start("train", "digits", "--epochs", 2, *TINY, "--threads", 1, "--out", folder)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return folder, printed


def test_the_folder_of_a_run(trained):
    folder, printed = trained
    pictures = ["confusion.png", "curves.png", "mistakes.png", "report.html"]
    assert sorted(os.listdir(folder)) == sorted(ALL_FILES + pictures)
    for name in os.listdir(folder):
        assert name in printed.splitlines()[-1]
    for name in pictures[:3]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    with open(folder / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    model = cvit.load(folder)
    assert (model.config.width, model.config.depth, model.config.image_size) == (8, 1, (8, 8))
    assert model.class_names == tuple(map(str, range(10)))
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    share = np.mean([row["true"] == row["predicted"] for row in rows])
    assert len(rows) == 359 and f"validation accuracy {share:.2%} (best" in printed


def test_progress_is_plain_lines_without_a_terminal(trained):
    _, printed = trained
    lines = [line for line in printed.splitlines() if line.startswith("epoch")]
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(
            rf"epoch {number}/2  loss \d+\.\d+  accuracy [\d.]+%  validation [\d.]+% \(best [\d.]+%, epoch [12]\)  "
            r"[\d,]+ images/s  ETA \d+ s",
            line,
        )
    assert len(lines) == 2 and "\r" not in printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_what_was_learnt(tmp_path, number):
    process = start(*ENDLESS, tmp_path / "run")
    wait_for(process, "epoch 2/")
    process.send_signal(number)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (128 + number, "")
    assert re.search(r"interrupted after \d+ of 100000 epochs; what was learnt is saved, --resume goes on", printed)
    assert_learnt(tmp_path / "run")


def test_a_run_that_a_signal_stopped_is_resumed(tmp_path):
    """With the data and the settings of its own, to the bits of a run that was never stopped."""
    train = ["train", "digits", "--epochs", 4, *PLAIN, "--out"]
    assert end(start(*train, tmp_path / "whole")) == (0, "")
    process = start(*train, tmp_path / "parts")
    wait_for(process, "epoch 1/")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    process = start("train", "--resume", "--no-pictures", "--out", tmp_path / "parts")
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "") and re.search(
        r"resumed in epoch \d, after \d+ of its steps", printed
    )
    for name in ("model.safetensors", "last.safetensors"):
        whole, parts = (cvit.load(tmp_path / folder / name).weights for folder in ("whole", "parts"))
        np.testing.assert_array_equal(whole, parts)
    status, errors = end(start("train", "digits", "--resume", "--seed", 1, "--out", tmp_path / "parts"))
    assert status == 2 and "holds another run" in errors and "recipe.seed was 0, is 1" in errors


def test_ctrl_c_saves_though_the_reader_dies_of_it(tmp_path):
    """As in `cvit train digits | tee log`, where the terminal sends the signal to both."""
    process = start(*ENDLESS, tmp_path / "run")
    wait_for(process, "epoch 2/")
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "")
    assert_learnt(tmp_path / "run")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As under nohup."""
    process = start(*ENDLESS, tmp_path / "run", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(process, "epoch 1/")
    process.send_signal(signal.SIGHUP)
    for number in range(2, 6):
        wait_for(process, f"epoch {number}/")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_reader_that_has_enough_costs_no_model(tmp_path):
    """As `| head -1`."""
    process = start(*SHORT, tmp_path / "run")
    assert process.stdout.readline().startswith("digits: 1,438 training, 359 validation")
    process.stdout.close()
    assert end(process) == (cli.NOT_READ, "")
    assert_learnt(tmp_path / "run")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_output_costs_no_model(tmp_path):
    with open("/dev/full", "w") as full:
        process = start(*SHORT, tmp_path / "run", stdout=full)
    assert end(process) == (2, "cvit: error: standard output: No space left on device\n")
    assert_learnt(tmp_path / "run")


def test_a_closed_output_costs_no_model(tmp_path):
    process = start(*SHORT, tmp_path / "run", stdout=None, before=lambda: os.close(1))
    assert end(process) == (2, "cvit: error: standard output: Bad file descriptor\n")
    assert_learnt(tmp_path / "run")


@pytest.mark.parametrize("room, name, epochs", [(2000, "model.safetensors", 0), (8000, "checkpoint", 0)])
def test_a_full_disk_is_one_line(tmp_path, room, name, epochs):
    """A limit on the size of files: there is no room for the model before training begins, or for a checkpoint."""
    resource = pytest.importorskip("resource")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    process = start(*SHORT, tmp_path / "run", before=limit)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.startswith("cvit: error: ") and errors.count("\n") == 1
    assert f"run/{name}" in errors and "File too large" in errors and printed.count("epoch ") == epochs
    assert not [file for file in os.listdir(tmp_path / "run") if file.startswith(".")]


def test_a_terminal_gets_a_bar(tmp_path):
    termios = pytest.importorskip("termios")
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 140))
    process = start("train", "digits", "--epochs", 1, *PLAIN, "--out", tmp_path / "run", stdout=terminal)
    os.close(terminal)
    output = b""
    try:
        while part := os.read(controller, 4096):
            output += part
    except OSError:  # how Linux reports that the other end was closed
        pass
    os.close(controller)
    assert (process.wait(timeout=120), process.stderr.read()) == (0, "")
    assert b"\r" in output and b"images/s" in output and b"ETA" in output and b"100%" in output


def test_a_dry_run_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "digits", *TINY, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert os.listdir() == [] and re.search(r"time +[\d,]+ ms a step, .* in all \(60 epochs of 45 steps\)", printed)


def test_every_setting_reaches_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dict(
        epochs=1, batch_size=200, accumulate=2, lr=1e-3, final_lr=1e-5, warmup=0.2, weight_decay=0.1, layer_decay=0.9,
        label_smoothing=0.05, clip_norm=2.0, mixup=0.3, cutmix=0.5, mix_prob=0.6, drop_path=0.1, dropout=0.05, ema=0.9,
        train_blocks=1, patience=4, seed=3, optimizer="sgd", class_weight="balanced",
    )  # fmt: skip
    pictures = dict(flip=0.1, erasing=0.2)
    flags = [
        word for name, value in {**settings, **pictures}.items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    assert cli.main([*map(str, SHORT), "run", *flags, "--freeze", "norm.*"]) == 0
    with open("run/run.json") as file:
        recipe = json.load(file)["settings"]["recipe"]
    for name, value in settings.items():
        assert recipe[name] == value, name
    assert recipe["augmentation"]["flip"] == 0.1 and recipe["augmentation"]["erasing"] == 0.2
    assert recipe["freeze"] == ["norm.*"]
