"""`cvit predict`, `cvit embed` and what `cvit info` says of pictures."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from cvit import Preprocessing, ViT, ViTConfig, checkpoint, cli
from cvit.cli.progress import Pictures

Image = pytest.importorskip("PIL.Image")

CONFIG = ViTConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2, classes=4)
NAMES = ["tabby cat", "dog", "\N{OWL}", "line\nbreak"]


def model_with(**options):
    model = ViT(CONFIG, preprocessing=Preprocessing(size=16, resize_size=18), **options)
    model.layout.views(model.weights)["head.weight"][...] = np.random.default_rng(0).normal(size=(8, 4))
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to stand in: a model, and pictures in two folders of which two are broken."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save("m.safetensors", model_with(class_names=NAMES))
    checkpoint.save("nameless.safetensors", model_with())
    rng = np.random.default_rng(0)
    for index, name in enumerate(["b.png", "a.jpg", "sub/c.png", "sub/d.jpg", "sub/e.png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + index, 40, 3), np.uint8)).save(path)
    content = (tmp_path / "photos/a.jpg").read_bytes()
    (tmp_path / "photos/cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "photos/text.png").write_text("no picture")
    return tmp_path


GOOD = ["a.jpg", "b.png", "sub/c.png", "sub/d.jpg", "sub/e.png"]


def features_of(names):
    model = checkpoint.load("m.safetensors").freeze()
    return model.features(model.preprocess([f"photos/{name}" for name in names]))


# --------------------------------------------------------------------------------------------------------- predict
def test_predict_prints_the_best_classes_by_name(folder, capsys):
    assert cli.main(["predict", "m.safetensors", "photos/a.jpg", "photos/b.png", "--top", "3", "--threads", "1"]) == 0
    printed, errors = capsys.readouterr()
    lines = printed.splitlines()
    assert errors == "" and [lines[0], lines[4]] == ["photos/a.jpg", "photos/b.png"] and len(lines) == 8
    model = checkpoint.load("m.safetensors")
    logits = model.forward(model.preprocess("photos/a.jpg"))[0]
    best = np.argsort(-logits)[:3]
    assert [line.split("  ")[-1] for line in lines[1:4]] == [NAMES[i].replace("\n", " ") for i in best]
    share = np.exp(logits[best[0]]) / np.exp(logits).sum()
    assert lines[1].split()[0] == f"{share:.2%}"


def test_predict_json(folder, capsys):
    assert cli.main(["predict", "m.safetensors", "photos/a.jpg", "photos/b.png", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["image"] for result in results] == ["photos/a.jpg", "photos/b.png"]
    for result in results:
        assert len(result["classes"]) == 4  # all there are, of the default 5
        assert sum(entry["probability"] for entry in result["classes"]) == pytest.approx(1)
        assert all(entry["name"] == NAMES[entry["class"]] for entry in result["classes"])


def test_predict_a_folder_as_csv(folder, capsys):
    """Broken pictures of a folder are named and left out; those given by their names are an error."""
    assert cli.main(["predict", "m.safetensors", "photos", "--csv", "--top", "2"]) == 0
    printed, errors = capsys.readouterr()
    rows = list(csv.DictReader(printed.splitlines()))
    assert [row["image"] for row in rows[::2]] == GOOD and [row["rank"] for row in rows] == ["1", "2"] * 5
    model = checkpoint.load("m.safetensors")
    for name, row in zip(GOOD, rows[::2]):
        [(best, probability)] = model.predict(f"photos/{name}", top=1)
        assert row["name"] == best and float(row["probability"]) == pytest.approx(probability, abs=1e-6)
    assert "cvit: left out: photos/cut.jpg" in errors and "cvit: left out: photos/text.png" in errors


def test_predict_and_embed_in_python(folder):
    """A path, a Pillow image, an array, a list or a folder: one reader."""
    model = checkpoint.load("m.safetensors")
    paths = [f"photos/{name}" for name in GOOD]
    one = model.predict(paths[0], top=3)
    assert (
        len(one) == 3 and one[0][0] in NAMES and sum(share for _, share in model.predict(paths[0])) == pytest.approx(1)
    )
    with Image.open(paths[1]) as image:
        pixels = np.asarray(image)
        assert model.predict(image) == model.predict(pixels) == model.predict(paths[1])
    assert model.predict(paths, top=3)[0] == one
    np.testing.assert_array_equal(model.embed(paths), features_of(GOOD))
    for name in ("cut.jpg", "text.png"):
        os.remove(f"photos/{name}")
    np.testing.assert_array_equal(model.embed("photos"), features_of(GOOD))
    assert model.predict("photos", top=1) == model.predict(paths, top=1)
    nameless = checkpoint.load("nameless.safetensors")
    assert isinstance(nameless.predict(paths[0], top=1)[0][0], int)


def test_predict_without_names_prints_numbers(folder, capsys):
    assert cli.main(["predict", "nameless.safetensors", "photos/a.jpg", "--top", "1"]) == 0
    assert "  class " in capsys.readouterr().out
    assert cli.main(["predict", "nameless.safetensors", "photos/a.jpg", "--top", "1", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["classes"][0]) == {"class", "probability"}


def test_predict_of_more_than_a_batch(folder, capsys):
    assert cli.main(["predict", "m.safetensors", *["photos/a.jpg", "photos/b.png"] * 20, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 40 and results[0] == results[38] and results[1] == results[39]


# ----------------------------------------------------------------------------------------------------------- embed
@pytest.mark.parametrize("ending", [".npz", ".npy", ".csv"])
def test_embed_writes_features_in_the_order_of_names(folder, capsys, ending):
    command = f"embed m.safetensors photos --out f{ending} --batch 2 --threads 1"
    assert cli.main(command.split()) == 0
    printed, errors = capsys.readouterr()
    last = f"f{ending}: 5 pictures, 8 features, 2 left out that could not be decoded"
    assert printed.splitlines()[-1] == last
    assert printed.startswith("7/7 images  ") and "images/s  ETA 0 s" in printed
    assert sorted(line.split()[3] for line in errors.splitlines()) == ["photos/cut.jpg", "photos/text.png"]
    expected = features_of(GOOD)
    if ending == ".npz":
        with np.load("f.npz", allow_pickle=False) as arrays:
            assert arrays["names"].tolist() == GOOD and (arrays["features"] == expected).all()
    elif ending == ".npy":
        assert (np.load("f.npy", allow_pickle=False) == expected).all()
    else:
        with open("f.csv", newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["name", *(f"f{i}" for i in range(8))] and [row[0] for row in rows] == GOOD
        assert (np.array([row[1:] for row in rows], np.float32) == expected).all()  # every bit
    assert not [name for name in os.listdir() if name.startswith(".cvit")]


def test_embed_of_files_and_folders_has_paths_as_names(folder):
    assert cli.main(["embed", "m.safetensors", "photos/b.png", "photos/sub", "photos/a.jpg", "--out", "f.npz"]) == 0
    with np.load("f.npz") as arrays:
        assert arrays["names"].tolist() == [f"photos/{name}" for name in GOOD]
        assert (arrays["features"] == features_of(GOOD)).all()


def test_embed_strict_stops_and_leaves_the_old_file(folder, capsys):
    with open("f.npy", "w") as file:
        file.write("old")
    assert cli.main(["embed", "m.safetensors", "photos", "--out", "f.npy", "--strict"]) == 2
    assert "cvit: error: photos/cut.jpg cannot be decoded: image file is truncated" in capsys.readouterr().err
    with open("f.npy") as file:
        assert file.read() == "old"


def test_embed_reads_no_more_than_two_batches_ahead(folder, monkeypatch):
    from cvit.cli import embed

    begun = []

    class Model:
        def preprocess(self, path):
            begun.append(path)
            return path

    decoded = embed._decoded(Model(), list(range(100)), threads=2, batch=3)
    taken = [next(decoded) for _ in range(10)]
    assert taken == list(range(10))
    assert len(begun) <= 10 + 2 * 3 + 1
    decoded.close()
    assert len(begun) < 20


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_output_costs_no_features(folder):
    with open("/dev/full", "w") as full:
        process = run("embed m.safetensors photos --out f.npy", stdout=full)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and errors.endswith("cvit: error: standard output: No space left on device\n")
    assert np.load("f.npy").shape == (5, 8)


def test_a_full_disk_names_the_file(folder):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    for ending in ("npz", "npy", "csv"):
        process = run(f"embed m.safetensors photos/sub --out f.{ending}", preexec_fn=limit)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (2, f"cvit: error: f.{ending}: File too large\n")
    assert not [name for name in os.listdir() if name.startswith((".cvit", "f."))]


def test_ctrl_c_leaves_nothing(folder):
    for index in range(3000):
        os.symlink("../b.png", f"photos/sub/link{index:05}.png")
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it for what runs in its background
    process = run("embed m.safetensors photos --out f.npy --batch 1", preexec_fn=heard)
    process.stderr.readline()  # the first picture that is left out
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.endswith("cvit: interrupted\n")
    assert sorted(os.listdir()) == ["m.safetensors", "nameless.safetensors", "photos"]


def run(command, stdout=subprocess.PIPE, **options):
    command = [sys.executable, "-m", "cvit", *command.split()]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, **options)


def test_progress_on_a_terminal_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with Pictures(4) as progress:
        progress.pause = 0
        progress.advance(2)
        progress.say("left out")
        progress.advance(2)
    printed, errors = capsys.readouterr()
    assert errors == "left out\n" and printed.count("\n") == 1 and printed.endswith("\n")
    assert "\r\x1b[K2/4 images  " in printed and "4/4 images" in printed and "ETA 0 s" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("predict", "the following arguments are required: MODEL, IMAGE|DIR (see cvit predict --help)"),
        ("predict none photos/a.jpg", "there is no file 'none'"),
        ("predict m.safetensors none.jpg", "none.jpg: No such file or directory"),
        ("predict m.safetensors photos/a.jpg photos/cut.jpg", "photos/cut.jpg cannot be decoded: image file is trunc"),
        ("predict m.safetensors photos/text.png", "photos/text.png is not a picture in a format that is read here"),
        ("predict m.safetensors none", "none: No such file or directory"),
        ("predict m.safetensors photos --csv --json", "argument --json: not allowed with argument --csv"),
        ("predict m.safetensors photos/a.jpg --top 0", "argument --top: must be a whole number from 1"),
        ("embed m.safetensors photos", "the following arguments are required: --out"),
        ("embed m.safetensors photos --out f.parquet", "--out must end in .npz, .npy or .csv, got 'f.parquet'"),
        ("embed m.safetensors photos --out none/f.npz", "none/f.npz: No such file or directory"),
        ("embed m.safetensors photos --out photos.npz/", "photos.npz"),
        ("embed m.safetensors none --out f.npz", "none: No such file or directory"),
        ("embed m.safetensors empty --out f.npz", "empty has no pictures in it"),
        ("embed m.safetensors photos/text.png --out f.npz", "none of the 1 pictures could be decoded"),
        (
            "embed photos/text.png photos --out f.npz",
            "photos/text.png must be a .safetensors or .npz file, or a folder with one",
        ),
        ("embed m.safetensors photos --out f.npz --batch 0", "argument --batch: must be a whole number from 1"),
    ],
)
def test_an_error_is_one_line_and_status_2(folder, capsys, arguments, message):
    os.mkdir("empty")
    if arguments.endswith("photos.npz/"):
        os.mkdir("photos.npz")
    before = sorted(os.listdir())
    assert cli.main(arguments.split()) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("cvit: left out: ")]
    assert len(errors) == 1 and errors[0].startswith("cvit: error: ") and message in errors[0]
    assert sorted(os.listdir()) == before


# ------------------------------------------------------------------------------------------------------------ info
def test_info_shows_preprocessing_and_classes(folder, capsys):
    assert cli.main(["info", "m.safetensors"]) == 0
    printed = capsys.readouterr().out
    section = printed.partition("\npreprocessing of pictures\n")[2].partition("\n\n")[0]
    assert "  interpolation   bicubic\n" in section and "  resize_size     (18, 18)\n" in section
    assert "\nclasses\n  0 tabby cat, 1 dog, 2 \N{OWL}, 3 line break\n" in printed


def test_info_without_either(capsys):
    assert cli.main(["info", "Ti/16"]) == 0
    printed = capsys.readouterr().out
    assert "preprocessing of pictures, not in the file: the default\n  size            (224, 224)\n" in printed
    assert "\nclasses\n" not in printed
