"""The command: a short run and its files, evaluation, Ctrl-C, a terminal, help, and one-line errors."""

import os
import re
import signal
import sys

import numpy as np
import pytest
from command import TINY, end, start

from cvit import checkpoint, cli
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT

for module in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(module)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of `cvit train digits`, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    process = start("train", "digits", "--epochs", 2, *TINY, "--no-pictures", "--threads", 1, "--out", folder)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return folder, printed


def test_eval_prints_accuracy_and_confusion_matrix(trained):
    folder, printed = trained
    process = start("eval", folder / "model.safetensors", "digits")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    accuracy = re.search(r"validation accuracy ([\d.]+%)", printed)[1]
    assert f"accuracy {accuracy} of 359 validation pictures" in output
    rows = [[int(word) for word in line.replace(".", "0").split()] for line in output.splitlines()[-10:]]
    matrix = np.array(rows)[:, 1:]
    assert matrix.shape == (10, 10) and matrix.sum() == 359
    assert f"{np.trace(matrix) / 359:.2%}" == accuracy


def test_output_that_nobody_reads_is_no_error(trained):
    folder, _ = trained
    reader, writer = os.pipe()
    os.close(reader)
    process = start("eval", folder / "model.safetensors", "digits", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (cli.NOT_READ, "")


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


@pytest.mark.parametrize(
    "command", [[], ["train"], ["eval"], ["info"], ["convert"], ["predict"], ["embed"], ["plot"], ["bench"]]
)
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
    os.mkdir("table")
    (tmp_path / "table/history.csv").write_text("date,price\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "the following arguments are required: COMMAND (see cvit --help)"),
        ("fly", "invalid choice: 'fly'"),
        ("train", "the following arguments are required: PATH, or --resume with --out"),
        ("train --resume", "--resume needs PATH, or --out with the run's folder"),
        ("train cats", "cats: No such file or directory"),
        ("train text.safetensors", "text.safetensors is no data set that can be read"),
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
        ("train digits --patch-size 3 --image-size 8", "patch_size must divide the image size 8x8, got 3"),
        ("train digits --seed -1", "argument --seed: must be a whole number from 0 to 4294967295, got '-1'"),
        ("train digits --preset probe", "preset 'probe' needs init"),
        ("train digits --init none", "there is no file 'none'"),
        ("train digits --freeze nothing.*", "'nothing.*' matches no tensor"),
        ("train digits --out m.safetensors", "--out names a folder, got m.safetensors"),
        ("train digits --out .", ".: holds files that are no run's: give another folder"),
        ("train digits --out pipe", "pipe: out must be a folder"),
        ("train digits --out /dev/null", "/dev/null: out must be a folder"),
        (f"train digits --epochs 1 --out {'n' * 256}", "nnn: File name too long"),
        ("train digits --out table", "table: holds files that are no run's: give another folder"),
        ("train digits --out table --overwrite", "table: holds files that are no run's: give another folder"),
        ("train digits --out none --resume", "none: no run was begun here, so there is none to resume"),
        ("train digits --resume --overwrite", "--resume goes on with a run, --overwrite begins anew: choose one"),
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
        ("eval other.safetensors cats", "cats: No such file or directory"),
        ("eval other.safetensors digits --part test", "digits has no test part; it has validation, train"),
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
    path = folder / "model.safetensors"
    assert cli.main(["info", str(path), "--batch", "3"]) == 0
    printed, errors = capsys.readouterr()
    model = checkpoint.load(path)
    assert errors == "" and re.search(r"^  width +8$", printed, re.M)
    assert re.search(r"^  data +digits  \(note in the file\)$", printed, re.M)
    rows = printed.partition("\ntensors\n")[2].partition("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows] == list(model.layout.entries)
    assert [row.endswith("  decay") for row in rows] == [entry.decay for entry in model.layout.entries.values()]
    assert rows[0].split("  ")[2:] and "patch matrix" in rows[0]
    assert f"{model.layout.size:,} weights, float32" in printed
    assert f"{model.config.forward_flops(3) / 1e9:,.3f} GFLOPs in a forward pass, batch 3" in printed
    assert str(model.plan(3, "train")) in printed and str(model.plan(3, "infer")) in printed


def test_convert_and_info_of_what_it_wrote(trained, tmp_path, capsys):
    folder, _ = trained
    model = checkpoint.load(folder / "model.safetensors")
    for out, options, family in (("m.npz", [], "flax npz"), ("own", [], None), ("hf", ["--names", "hf"], "hf_vit")):
        assert cli.main(["convert", str(folder / "model.safetensors"), str(tmp_path / out), *options]) == 0
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
    assert cli.main(["info", str(folder / "model.safetensors"), "--program"]) == 0
    program = checkpoint.load(folder / "model.safetensors").program()
    assert capsys.readouterr().out == program + "\n" and "attention" in program
