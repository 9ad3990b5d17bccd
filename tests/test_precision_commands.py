"""--precision and its like: commands, runs and the estimators in bfloat16, from training to what reads the result."""

import json

import numpy as np
import pytest
from checks import same_bits
from test_runs import TINY as RUN
from test_runs import archive, stop_after, weights_in

import cvit
from cvit import ViT, cli
from cvit.cli.options import PRECISIONS
from cvit.formats import checkpoint
from cvit.model.precision import NAMES
from cvit.runs import prepare, train

pytest.importorskip("PIL.Image")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return archive(tmp_path / "stripes.npz")


def command(capsys, *arguments):
    """Exit status, and what was printed to the two streams."""
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_the_commands_know_every_precision():
    assert set(PRECISIONS) == set(NAMES)


# ---------------------------------------------------------------------------------------------------------------- runs
def test_a_run_in_bf16_goes_on_to_the_same_bits(data):
    options = {**RUN, "precision": "bf16", "ema": 0.9}
    whole = train(data, out="whole", **options)
    assert whole.model.precision == "bf16"
    train(data, out="parts", **options, on_step=stop_after(3, 2))
    train(data, out="parts", resume=True, pictures=False)
    for one, other in zip(weights_in("whole"), weights_in("parts")):
        assert same_bits(one, other)
    facts = json.loads((data.parent / "whole" / "run.json").read_text())
    assert facts["settings"]["recipe"]["precision"] == facts["arguments"]["precision"] == "bf16"
    single = train(data, out="single", **RUN, ema=0.9)
    assert single.model.precision == "f32" and not same_bits(single.model.weights, whole.model.weights)


def test_a_run_is_not_resumed_in_another_precision(data):
    train(data, out="run", **{**RUN, "epochs": 1}, precision="bf16")
    message = "holds another run, which cannot be resumed with these arguments: recipe.precision was 'bf16', is 'f32'"
    with pytest.raises(ValueError, match=message):
        train(data, out="run", resume=True, precision="f32")


def test_a_run_begun_before_there_were_precisions_is_resumed(data):
    train(data, out="run", **RUN, on_step=stop_after(3, 2))
    path = data.parent / "run" / "run.json"
    facts = json.loads(path.read_text())
    del facts["settings"]["recipe"]["precision"], facts["arguments"]["precision"]
    path.write_text(json.dumps(facts))
    assert len(train(data, out="run", resume=True, pictures=False).history.epochs) == RUN["epochs"]


@pytest.mark.parametrize("given, wanted", [(None, "bf16"), ("f32", "f32"), ("f64", "f64")])
def test_a_run_takes_the_precision_of_the_model_it_goes_on_from(data, given, wanted):
    first = train(data, out="first", **{**RUN, "epochs": 1}, precision="bf16")
    for init in ("first", first.model, ViT(first.model.config, first.model.weights, precision="bf16")):
        job = prepare(data, init=init, precision=given, epochs=1)
        assert (job.model.precision, job.recipe.precision) == (wanted, wanted)
        assert job.recipe.make_optimizer(job.model, None).precision == wanted


# ------------------------------------------------------------------------------------------------------------ commands
@pytest.fixture
def trained(data, capsys):
    """A run of `cvit train --precision bf16`, as a folder."""
    shape = ["--image-size", 8, "--patch-size", 4, "--width", 8, "--depth", 1, "--heads", 2, "--hidden", 16]
    status, _, errors = command(
        capsys, "train", data, *shape, "--epochs", 2, "--batch-size", 16, "--precision", "bf16", "--no-pictures",
        "--out", "run",
    )  # fmt: skip
    assert (status, errors) == (0, "")
    return data.parent / "run"


def test_eval_computes_in_the_precision_of_the_file(trained, capsys):
    assert cvit.load(trained).precision == "bf16"
    said = {}
    for precision in (None, "bf16", "f32", "f64", "auto"):
        options = [] if precision is None else ["--precision", precision]
        status, printed, _ = command(capsys, "eval", trained, "stripes.npz", "--csv", "said.csv", *options)
        assert status == 0 and "of 96 train pictures" in printed
        said[precision] = (trained.parent / "said.csv").read_text()
    assert said[None] == said["bf16"] != said["f32"]


def test_predict_embed_plot_and_info(trained, capsys):
    from PIL import Image

    folder = trained
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save("a.png")
    features = {}
    for precision in ("bf16", "f32"):
        status, printed, _ = command(capsys, "predict", folder, "a.png", "--precision", precision, "--json")
        assert status == 0 and len(json.loads(printed)[0]["classes"]) == 3
        out = f"{precision}.npz"
        assert command(capsys, "embed", folder, "a.png", "--precision", precision, "--out", out)[0] == 0
        features[precision] = np.load(out)["features"]
        model = cvit.load(folder, precision=precision)
        assert same_bits(features[precision], model.features(model.preprocess("a.png"))[None][0])
    assert not np.array_equal(features["bf16"], features["f32"])
    status, printed, _ = command(capsys, "info", folder)
    assert status == 0 and f"precision bf16, by the kernels for {cvit.get_isa()}" in printed
    for precision in ("f32", "f64"):
        printed = command(capsys, "info", "Ti/16", "--precision", precision)[1]
        assert f"precision {precision}, by the kernels for " in printed


def test_plot_takes_a_precision(trained, capsys):
    pytest.importorskip("matplotlib")
    folder = trained
    assert command(capsys, "plot", folder, "--precision", "f32", "--out", "plots")[0] == 0


def test_convert_rounds_the_weights_and_keeps_the_precision(trained, capsys):
    folder = trained
    model = cvit.load(folder)
    status, printed, _ = command(capsys, "convert", folder, "half.safetensors", "--dtype", "bf16")
    assert status == 0 and "weights, bfloat16, with names of cvit" in printed
    half = cvit.load("half.safetensors")
    assert (half.precision, half.dtype) == ("bf16", np.float32)
    assert 0 < np.abs(half.weights - model.weights).max() <= 2.0**-8 * np.abs(model.weights).max()
    assert command(capsys, "convert", folder, "double.safetensors", "--dtype", "f64")[0] == 0
    assert cvit.load("double.safetensors").precision == "f64"
    assert command(capsys, "convert", folder, "single.safetensors", "--precision", "f32")[0] == 0
    assert same_bits(cvit.load("single.safetensors").weights, model.weights)
    assert cvit.load("single.safetensors").precision == "f32"
    assert checkpoint.read_metadata("single.safetensors") == {}


@pytest.mark.parametrize("arguments, message", [
    (["train", "digits", "--precision", "half"], "argument --precision: invalid choice: 'half'"),
    (["eval", "m.safetensors", "digits", "--precision", "BF16"], "argument --precision: invalid choice: 'BF16'"),
    (["predict", "m.safetensors", "a.png", "--precision", ""], "argument --precision: invalid choice: ''"),
    (["convert", "m.safetensors", "out", "--dtype", "f16"], "argument --dtype: invalid choice: 'f16'"),
    (["convert", "m.safetensors", "out.npz", "--dtype", "bf16"], "dtype must be None for names 'npz'"),
    (["convert", "m.safetensors", "out", "--dtype", "f64", "--precision", "bf16"],
     "dtype must be float32 for precision 'bf16', got float64"),
])  # fmt: skip
def test_an_error_is_one_line_and_status_2(data, capsys, arguments, message):
    cvit.save("m.safetensors", ViT(cvit.ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, classes=3)))
    status, printed, errors = command(capsys, *arguments)
    assert (status, printed) == (2, "") and message in errors
    assert errors.startswith("cvit: error: ") and errors.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------- ONNX
def test_onnx_carries_the_float32_weights(tmp_path):
    """A graph of bf16's model is that of float32's, and a note that cvit alone reads says the precision."""
    onnx = pytest.importorskip("onnx")
    graphs = []
    config = cvit.ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, classes=3)
    weights = ViT(config, seed=1).weights
    for precision in ("bf16", "f32"):
        ViT(config, weights.copy(), precision=precision).save(tmp_path / "a.onnx")
        file = onnx.load(tmp_path / "a.onnx")
        graphs.append(file.graph)
        notes = {entry.key: entry.value for entry in file.metadata_props}
        assert notes.get("cvit.precision") == ("bf16" if precision == "bf16" else None)
    assert graphs[0] == graphs[1]


# ---------------------------------------------------------------------------------------------------------- estimators
def test_estimators_in_bf16():
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.datasets import load_digits

    from cvit import ViTClassifier, ViTFeatures

    digits = load_digits(n_class=4)
    X, y = digits.images[:120], digits.target[:120]
    options = dict(width=16, depth=1, heads=2, epochs=8, learning_rate=5e-3, random_state=0)
    half, whole = (ViTClassifier(**options, precision=precision).fit(X, y) for precision in ("bf16", None))
    assert (half.model_.precision, whole.model_.precision) == ("bf16", "f32")
    assert half.score(X, y) > 0.7 and not same_bits(half.model_.weights, whole.model_.weights)
    assert clone(half).fit(X, y).model_.weights.tobytes() == half.model_.weights.tobytes()
    further = {**options, "epochs": 1, "init": half.model_}
    assert ViTClassifier(**further).fit(X, y).model_.precision == "bf16"
    assert ViTClassifier(**further, precision="f32").fit(X, y).model_.precision == "f32"
    assert half.model_.precision == "bf16"
    with pytest.raises(ValueError, match="precision must be one of"):
        ViTClassifier(**options, precision="half").fit(X, y)
    assert ViTFeatures(precision="bf16").fit(X).model_.precision == "bf16"
    given = ViTFeatures(whole.model_, white=None, precision="bf16").fit(X)
    assert given.model_.precision == "bf16" and np.shares_memory(given.model_.weights, whole.model_.weights)
