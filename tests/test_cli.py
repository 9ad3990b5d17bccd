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

for module in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(module)

COMMAND = [sys.executable, "-m", "cvit"]
TINY = ["--width", "8", "--depth", "1", "--heads", "2", "--hidden", "8"]


ENDLESS = ["train", "digits", "--epochs", 100_000, *TINY, "--threads", 1, "--out"]
SHORT = ["train", "digits", "--epochs", 3, *TINY, "--threads", 1, "--out"]
ALL_FILES = ["history.csv", "history.png", "tiny.safetensors"]


def start(*arguments, stdout=subprocess.PIPE, before=lambda: None, command=COMMAND):
    """The command as a process in which `before()` was called first."""

    def prepare():  # signals may be ignored where the tests run, in a shell's background say, and a child inherits that
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        before()

    command = [*command, *map(str, arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)


def wait_for(process, begin):
    """Read the process's output up to the line that begins so."""
    while not process.stdout.readline().startswith(begin):
        assert process.poll() is None


def end(process):
    """Exit status and what is on stderr; standard output is left alone."""
    errors = process.stderr.read()
    process.stderr.close()
    return process.wait(timeout=120), errors


def assert_learnt(path):
    model = checkpoint.load(path)
    fresh = ViT(model.config, seed=0)
    assert not np.array_equal(
        model.layout.views(model.weights)["head.weight"], fresh.layout.views(fresh.weights)["head.weight"]
    )


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_what_was_learnt(tmp_path, number):
    process = start(*ENDLESS, tmp_path / "tiny.safetensors")
    wait_for(process, "epoch 2/")
    process.send_signal(number)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (128 + number, "")
    assert re.search(r"interrupted after \d+ of 100000 epochs; what was learnt is saved", printed)
    assert sorted(os.listdir(tmp_path)) == ALL_FILES
    assert_learnt(tmp_path / "tiny.safetensors")


def test_ctrl_c_saves_though_the_reader_dies_of_it(tmp_path):
    """As in `cvit train digits | tee log`, where the terminal sends the signal to both."""
    process = start(*ENDLESS, tmp_path / "tiny.safetensors")
    wait_for(process, "epoch 2/")
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "")
    assert sorted(os.listdir(tmp_path)) == ALL_FILES
    assert_learnt(tmp_path / "tiny.safetensors")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As under nohup."""
    process = start(
        *ENDLESS, tmp_path / "tiny.safetensors", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_for(process, "epoch 1/")
    process.send_signal(signal.SIGHUP)
    for number in range(2, 6):
        wait_for(process, f"epoch {number}/")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_reader_that_has_enough_costs_no_model(tmp_path):
    """As `| head -1`."""
    process = start(*SHORT, tmp_path / "tiny.safetensors")
    assert process.stdout.readline().startswith("digits: 1438 training")
    process.stdout.close()
    assert end(process) == (cli.NOT_READ, "")
    assert sorted(os.listdir(tmp_path)) == ALL_FILES
    assert_learnt(tmp_path / "tiny.safetensors")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_output_costs_no_model(tmp_path):
    with open("/dev/full", "w") as full:
        process = start(*SHORT, tmp_path / "tiny.safetensors", stdout=full)
    assert end(process) == (2, "cvit: error: standard output: No space left on device\n")
    assert_learnt(tmp_path / "tiny.safetensors")


def test_a_closed_output_costs_no_model(tmp_path):
    process = start(*SHORT, tmp_path / "tiny.safetensors", stdout=None, before=lambda: os.close(1))
    assert end(process) == (2, "cvit: error: standard output: Bad file descriptor\n")
    assert_learnt(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_closed_output_is_one_line(argument):
    process = start(argument, stdout=None, before=lambda: os.close(1))
    assert end(process) == (2, "cvit: error: standard output: Bad file descriptor\n")


def test_a_closed_stderr_is_no_fault():
    process = start("--version", before=lambda: os.close(2))
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and printed.startswith("cvit ")


def test_ctrl_c_while_numpy_is_imported_ends_without_a_traceback():
    """The signal comes in the import itself: a finder that is asked for numpy sends it."""
    code = """
import os, signal, sys, time
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
sys.meta_path.insert(0, Finder)
import cvit_command
sys.exit(cvit_command.main())
"""
    process = start("--version", command=[sys.executable, "-c", code])
    assert process.communicate(timeout=50) == ("", "")
    assert process.returncode == -signal.SIGINT


def test_a_name_of_255_bytes_and_a_link_can_be_written_to(tmp_path):
    longest = tmp_path / ("n" * 255)
    process = start(*SHORT, longest)
    assert end(process) == (0, "")
    assert_learnt(longest)
    (tmp_path / "link").symlink_to(longest.name)
    before = longest.stat().st_ino
    assert end(start(*SHORT, tmp_path / "link")) == (0, "")
    assert (tmp_path / "link").is_symlink() and longest.stat().st_ino != before
    assert sorted(os.listdir(tmp_path)) == ["history.csv", "history.png", "link", longest.name]


@pytest.mark.parametrize(
    "room, name, kept", [(500, "--out {}/tiny.safetensors", []), (8000, "{}/history.png", ALL_FILES[::2])]
)
def test_a_full_disk_is_one_line(trained, tmp_path, room, name, kept):
    """A limit on the size of files: the model's room is missing before training, or the curves' after it, when the
    model is saved."""
    resource = pytest.importorskip("resource")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    process = start(*SHORT, tmp_path / "tiny.safetensors", before=limit)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (2, f"cvit: error: {name.format(tmp_path)}: File too large\n")
    assert sorted(os.listdir(tmp_path)) == kept and ("epoch 3/3" in printed) == bool(kept)


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


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["info"], ["convert"], ["predict"], ["embed"], ["bench"]])
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
    os.mkfifo("pipe")
    for name in ("table", "folder", "picture"):
        os.mkdir(name)
    (tmp_path / "table/history.csv").write_text("date,price\n")
    (tmp_path / "folder/history.csv").mkdir()
    (tmp_path / "picture/history.png").write_bytes(b"\x89PNG of a holiday")


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
        ("train digits --out pipe", "--out pipe: Not a regular file"),
        ("train digits --out /dev/null", "--out /dev/null: Not a regular file"),
        (f"train digits --out {'n' * 256}", "nnn: File name too long"),
        ("train digits --out table/m", "table/history.csv was not written by cvit and would be overwritten"),
        ("train digits --out folder/m", "folder/history.csv: Is a directory"),
        ("train digits --out picture/m", "picture/history.png was not written by cvit and would be overwritten"),
        ("train digits --threads 3000000000", "argument --threads: must be a whole number from 1 to 4096"),
        ("info", "the following arguments are required: MODEL|VARIANT"),
        ("info none", "there is no file 'none'; give a .safetensors or .npz file, a folder with one, or a name"),
        ("info text.safetensors", "text.safetensors is not a safetensors file"),
        ("info S/17", "17"),
        (
            "info Q/16",
            "name must be one of Ti, S, M, B, L, So400m, H, g, G, e with a patch size, like 'S/16', got 'Q/16'",
        ),
        ("info other.pth", "other.pth is a pickle, which can run any code"),
        ("convert none out", "there is no file 'none'"),
        ("convert other.safetensors out.safetensors --names hf", "names 'hf' make a folder"),
        ("convert other.safetensors out --names npz", "must end in .npz"),
        ("info S/16 --batch 0", "argument --batch: must be a whole number from 1 to 2147483647, got '0'"),
        ("eval none.safetensors digits", "there is no file 'none.safetensors'"),
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


def test_info_of_a_file(trained, capsys):
    """Everything in order: configuration, notes, tensors, sizes, memory."""
    folder, _ = trained
    path = folder / "tiny.safetensors"
    assert cli.main(["info", str(path), "--batch", "3"]) == 0
    printed, errors = capsys.readouterr()
    model = checkpoint.load(path)
    assert errors == "" and re.search(r"^  width +8$", printed, re.M)
    assert re.search(r"^  dataset +digits  \(note in the file\)$", printed, re.M)
    rows = printed.partition("\ntensors\n")[2].partition("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows] == list(model.layout.entries)
    assert [row.endswith("  decay") for row in rows] == [entry.decay for entry in model.layout.entries.values()]
    assert rows[0].split("  ")[2:] and "patch matrix" in rows[0]
    assert f"{model.layout.size:,} weights, float32" in printed
    assert f"{model.config.forward_flops(3) / 1e9:,.3f} GFLOPs in a forward pass, batch 3" in printed
    assert str(model.plan(3, "train")) in printed and str(model.plan(3, "infer")) in printed


def test_convert_and_info_of_what_it_wrote(trained, tmp_path, capsys):
    folder, _ = trained
    model = checkpoint.load(folder / "tiny.safetensors")
    for out, options, family in (("m.npz", [], "flax npz"), ("own", [], None), ("hf", ["--names", "hf"], "hf_vit")):
        assert cli.main(["convert", str(folder / "tiny.safetensors"), str(tmp_path / out), *options]) == 0
        assert f"{model.layout.size:,} weights" in capsys.readouterr().out
        assert cli.main(["info", str(tmp_path / out)]) == 0
        printed = capsys.readouterr().out
        assert re.search(r"^  width +8$", printed, re.M)
        assert (re.search(rf"^  names +{family}$", printed, re.M) is not None) == (family is not None)
        assert cli.main(["eval", str(tmp_path / out), "digits"]) == 0
        assert "accuracy" in capsys.readouterr().out


def test_info_of_a_variant_needs_no_file(capsys):
    assert cli.main(["info", "S/16"]) == 0
    printed = capsys.readouterr().out
    assert "22,050,664 weights" in printed and re.search(r"^  depth +12$", printed, re.M)


def test_info_prints_the_program(trained, capsys):
    folder, _ = trained
    assert cli.main(["info", str(folder / "tiny.safetensors"), "--program"]) == 0
    program = checkpoint.load(folder / "tiny.safetensors").program()
    assert capsys.readouterr().out == program + "\n" and "attention" in program


def test_a_missing_extra_is_named_before_anything_is_done(files, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["train", "digits"]) == 2
    expected = 'cvit: error: scikit-learn, matplotlib, tqdm missing: pip install "cvit-cpu[demo]"\n'
    assert capsys.readouterr() == ("", expected)
