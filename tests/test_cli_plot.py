"""`cvit plot`: of a run's folder, of a model, of pictures; what is left out, and what is refused."""

import os

import numpy as np
import pytest

from cvit import Preprocessing, Rope, ViT, ViTConfig, checkpoint, cli
from cvit.plots.figure import is_own
from cvit.train import Epoch, History
from cvit.train.predictions import Prediction, write_predictions

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

CONFIG = dict(image_size=16, patch_size=8, width=8, depth=2, heads=2, classes=2)
PREDICTIONS = [
    Prediction("sub/a.png", "cat", "dog", 0.9),
    Prediction("gone.png", "dog", "cat", 0.8),
    Prediction("b.png", "dog", "dog", 0.7),
]


def even(self, x, layers=None):
    """Maps of a model that attends to everything alike."""
    T = self.config.tokens
    return np.full((len(x), self.config.depth if layers is None else len(layers), 2, T, T), 1 / T, np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to stand in: a run, a model alone, and pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ViT, "attention", even, raising=False)
    os.makedirs("run")
    os.makedirs("photos/sub")
    model = ViT(ViTConfig(**CONFIG), preprocessing=Preprocessing(size=16), class_names=["cat", "dog"])
    for path in ("run/model.safetensors", "m.safetensors"):
        checkpoint.save(path, model)
    History([Epoch(1, 0.1, 2.0, 0.5, 2.0, 0.5, 10.0)]).write_csv("run/history.csv")
    write_predictions("run/predictions.csv", PREDICTIONS)
    for name in ("photos/a.png", "photos/sub/a.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(name)
    return tmp_path


def wrote(capsys):
    """The files that were written by the lines of the command, all of them plots of ours; and its standard error."""
    printed, errors = capsys.readouterr()
    assert all(line.startswith("wrote ") for line in printed.splitlines())
    files = [line.removeprefix("wrote ") for line in printed.splitlines()]
    assert all(map(is_own, files))
    return files, errors


def test_a_run_is_drawn_into_its_folder(folder, capsys):
    assert cli.main(["plot", "run", "--data", "photos", "--threads", "1"]) == 0
    files, errors = wrote(capsys)
    assert files == [f"run/{name}.png" for name in ("curves", "confusion", "mistakes", "positions", "filters")]
    assert errors == "cvit: 1 of the pictures that predictions.csv names are not found; --data names their folder\n"
    assert cli.main(["plot", "run", "--data", "photos"]) == 0  # cvit's own files are replaced


def test_what_a_run_lacks_is_left_out_and_told(folder, capsys):
    os.remove("run/model.safetensors")
    assert cli.main(["plot", "run", "--out", "new/folder"]) == 0
    files, errors = wrote(capsys)
    assert files == ["new/folder/curves.png", "new/folder/confusion.png"]
    assert errors.splitlines()[0] == "cvit: run has no model in it" and "2 of the pictures" in errors
    os.remove("run/predictions.csv")
    assert cli.main(["plot", "run"]) == 0
    files, errors = wrote(capsys)
    assert files == ["run/curves.png"] and "run has no predictions.csv: confusion and mistakes are left out" in errors


def test_a_model_is_drawn_where_one_stands_with_its_attention(folder, capsys):
    assert cli.main(["plot", "m.safetensors", "photos/a.png", "photos/sub/a.png"]) == 0
    files, errors = wrote(capsys)
    assert files == ["positions.png", "filters.png", "attention-a.png", "attention-a-2.png"] and errors == ""


def test_plots_that_a_model_has_nothing_for_are_left_out(folder, capsys):
    checkpoint.save("rope.safetensors", ViT(ViTConfig(**CONFIG, pos_tokens="none", rope=Rope())))
    assert cli.main(["plot", "rope.safetensors"]) == 0
    files, errors = wrote(capsys)
    assert files == ["filters.png"] and "positions.png is left out: the model must have a learned position" in errors
    checkpoint.save("none.safetensors", ViT(ViTConfig(**CONFIG, pos_tokens="none", rope=Rope(), channels=4)))
    assert cli.main(["plot", "none.safetensors"]) == 2
    assert "none.safetensors has nothing that can be drawn" in capsys.readouterr()[1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("plot missing", "there is no file 'missing'"),
        ("plot m.safetensors photos/none.png", "photos/none.png: No such file or directory"),
        ("plot m.safetensors run/history.csv", "run/history.csv is not a picture in a format that is read here"),
        ("plot bare photos/a.png", "bare must have a model for the attention on pictures"),
        ("plot m.safetensors --out mine", "mine/filters.png was not written by cvit and would be overwritten"),
        ("plot broken", "broken/predictions.csv, line 2: probability must lie in [0, 1], got 'x'"),
        ("plot empty", "empty/predictions.csv must have a line for at least one picture"),
        ("plot", "the following arguments are required: DIR|MODEL"),
    ],
)
def test_errors_are_one_line(folder, capsys, line, message):
    for name in ("bare", "mine", "broken", "empty"):
        os.makedirs(name)
    History().write_csv("bare/history.csv")
    Image.new("L", (2, 2)).save("mine/filters.png")
    head = "name,true,predicted,probability\n"
    (folder / "broken/predictions.csv").write_text(head + "a,b,c,x\n")
    (folder / "empty/predictions.csv").write_text(head)
    assert cli.main(line.split()) == 2
    errors = capsys.readouterr()[1].splitlines()
    assert len(errors) == 1 and errors[0].startswith("cvit: error: ") and message in errors[0]
    assert Image.open("mine/filters.png").size == (2, 2) and not os.path.exists("mine/positions.png")
