"""The command: a short run and its files, evaluation, Ctrl-C, a terminal, help, and one-line errors."""

import csv
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from cvit import checkpoint, cli
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT

for module in ("sklearn", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(module)

COMMAND = [sys.executable, "-m", "cvit"]
TINY = ["--width", "8", "--depth", "1", "--heads", "2", "--hidden", "8"]


def start(*arguments, stdout=subprocess.PIPE):
    def default_sigint():  # ignored where the tests run in a shell's background, and a child would inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, preexec_fn=default_sigint)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with what `cvit train digits` wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    process = start("train", "digits", "--epochs", 2, *TINY, "--threads", 1, "--out", folder / "tiny.safetensors")
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return folder, printed


def test_train_writes_model_history_and_curves(trained):
    folder, printed = trained
    assert sorted(os.listdir(folder)) == ["history.csv", "history.png", "tiny.safetensors"]
    for name in os.listdir(folder):
        assert str(folder / name) in printed.splitlines()[-1]
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    with open(folder / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    model = checkpoint.load(folder / "tiny.safetensors")
    assert (model.config.width, model.config.depth, model.config.image_size) == (8, 1, (8, 8))
    assert checkpoint.read_metadata(folder / "tiny.safetensors")["dataset"] == "digits"


def test_progress_is_plain_lines_without_a_terminal(trained):
    _, printed = trained
    lines = [line for line in printed.splitlines() if line.startswith("epoch")]
    for number, line in enumerate(lines, start=1):
        pattern = rf"epoch {number}/2  loss \d+\.\d+  accuracy [\d.]+%  test [\d.]+%  [\d,]+ images/s  ETA \d+ s"
        assert re.fullmatch(pattern, line)
    assert len(lines) == 2 and "\r" not in printed


def test_eval_prints_accuracy_and_confusion_matrix(trained):
    folder, printed = trained
    process = start("eval", folder / "tiny.safetensors", "digits")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    accuracy = re.search(r"test accuracy ([\d.]+%)", printed)[1]
    assert f"accuracy {accuracy} of 359 test images" in output
    rows = [[int(word) for word in line.replace(".", "0").split()] for line in output.splitlines()[-10:]]
    matrix = np.array(rows)[:, 1:]
    assert matrix.shape == (10, 10) and matrix.sum() == 359
    assert f"{np.trace(matrix) / 359:.2%}" == accuracy


def test_output_that_nobody_reads_is_no_error(trained):
    folder, _ = trained
    reader, writer = os.pipe()
    os.close(reader)
    process = start("eval", folder / "tiny.safetensors", "digits", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (cli.NOT_READ, "")


def test_ctrl_c_saves_what_was_learnt(tmp_path):
    out = tmp_path / "stopped.safetensors"
    process = start("train", "digits", "--epochs", 100_000, *TINY, "--threads", 1, "--out", out)
    while not process.stdout.readline().startswith("epoch 2/"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "")
    assert re.search(r"interrupted after \d+ of 100000 epochs; what was learnt is saved", printed)
    assert sorted(os.listdir(tmp_path)) == ["history.csv", "history.png", "stopped.safetensors"]
    fresh = ViT(checkpoint.load(out).config, seed=0)
    assert not np.array_equal(checkpoint.load(out).weights, fresh.weights)


def test_a_terminal_gets_a_bar(tmp_path):
    termios = pytest.importorskip("termios")
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    process = start("train", "digits", "--epochs", 1, *TINY, "--out", tmp_path / "tiny.safetensors", stdout=terminal)
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


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["info"], ["bench"]])
def test_help_is_complete(command, capsys):
    assert cli.main([*command, "--help"]) == 0
    assert "example: cvit" in capsys.readouterr().out
    parser = cli.parser_for([*command])
    for name in command:
        parser = next(action for action in parser._actions if action.choices and name in action.choices).choices[name]
    for action in parser._actions:
        assert action.help, f"{action.dest} has no help"


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"cvit \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to stand in, with a text file, and a model for other images than the digits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no weights")
    config = ViTConfig(image_size=16, patch_size=8, width=8, depth=1, heads=1, classes=10)
    checkpoint.save("other.safetensors", ViT(config))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "the following arguments are required: COMMAND (see cvit --help)"),
        ("fly", "invalid choice: 'fly'"),
        ("train", "the following arguments are required: dataset (see cvit train --help)"),
        ("train cats", "invalid choice: 'cats'"),
        ("train digits --epochs many", "argument --epochs: must be a whole number from 1 to 1000000000, got 'many'"),
        ("train digits --epochs 0", "argument --epochs: must be a whole number from 1 to 1000000000, got '0'"),
        ("train digits --batch-size 0", "argument --batch-size: must be a whole number from 1 to 2147483647, got '0'"),
        ("train digits --lr -1", "argument --lr: must be a number, at least 0 and at most 1e+06, got '-1'"),
        ("train digits --lr nan", "argument --lr: must be a number, at least 0 and at most 1e+06, got 'nan'"),
        ("train digits --clip-norm 0", "argument --clip-norm: must be a number, above 0 and at most 1e+30, got '0'"),
        (
            "train digits --label-smoothing 1",
            "argument --label-smoothing: must be a number, at least 0 and below 1, got '1'",
        ),
        ("train digits --heads 5", "heads must divide the width 64, got 5"),
        ("train digits --patch-size 3", "patch_size must divide the image size 8x8, got 3"),
        ("train digits --seed -1", "argument --seed: must be a whole number from 0 to 4294967295, got '-1'"),
        ("train digits --out none/model.safetensors", "--out none/model.safetensors: No such file or directory"),
        ("train digits --out .", "--out .: Is a directory"),
        ("train digits --out history.csv", "--out must name a file for the model"),
        ("eval none.safetensors digits", "none.safetensors: No such file or directory"),
        ("eval text.safetensors digits", "text.safetensors is not a safetensors file"),
        ("eval other.safetensors digits", "images must have shape (N, 3, 16, 16), got (359, 1, 8, 8)"),
    ],
)
def test_an_error_is_one_line_and_status_2(files, capsys, arguments, message):
    before = sorted(os.listdir())
    assert cli.main(arguments.split()) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("cvit: error: ") and message in errors and errors.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_a_missing_extra_is_named_before_anything_is_done(files, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["train", "digits"]) == 2
    expected = 'cvit: error: scikit-learn, matplotlib, tqdm, safetensors missing: pip install "cvit-cpu[demo]"\n'
    assert capsys.readouterr() == ("", expected)
