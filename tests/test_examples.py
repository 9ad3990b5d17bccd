"""The scripts of examples/ run on small data, and stay short."""

import gzip
import io
import json
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import cvit
from cvit.data import find

Image = pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    """A script with these arguments, as from a command line."""
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder to stand in, with photos/ of two classes and a small model for 16 pixels."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label, colour in (("cat", 60), ("dog", 190)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(12):
            pixels = rng.normal(colour, 30, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{index}.png")
    config = cvit.ViTConfig(image_size=16, patch_size=8, width=16, depth=2, heads=2, classes=5)
    cvit.ViT(config, seed=0).save("small.safetensors")
    return tmp_path


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_they_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40


def test_arrays(photos, capsys):
    pytest.importorskip("sklearn")
    run("train_on_arrays.py", 2)
    assert "best epoch" in capsys.readouterr().out
    assert cvit.load("digits.safetensors").config.classes == 10


def test_a_folder(photos, capsys):
    run("train_on_a_folder.py", "photos", 2)
    printed = capsys.readouterr().out
    assert "runs/photos: validation accuracy" in printed and "the first picture: [('" in printed


def test_fine_tuning(photos, capsys):
    run("fine_tune.py", "small.safetensors", "photos", 2)
    printed = capsys.readouterr().out
    for line in ("the head alone", "the whole model", "the last block"):
        assert line in printed


def test_neighbours(photos, capsys):
    run("nearest_neighbours.py", "small.safetensors", "photos", "photos/cat/3.png", 4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0] == "1.000  cat/3.png"


def test_fashion_mnist(photos):
    def idx(array):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
        return gzip.compress(head + array.tobytes())

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 28, 28), np.uint8), (np.arange(30) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        Path(f"{part}-images-idx3-ubyte.gz").write_bytes(idx(x))
        Path(f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(y))
    run("fashion_mnist.py", ".", "fashion.npz")
    found = find("fashion.npz", validation=0.0)
    assert found.class_names[9] == "Ankle-boot" and found.train.size == (28, 28)
    np.testing.assert_array_equal(np.asarray(found.test.decoded(7, 1)), x[7])


def test_emoji(photos):
    def png(colour):
        file = io.BytesIO()
        Image.new("RGBA", (64, 64), colour).save(file, "PNG")
        return file.getvalue()

    emoji = [
        {
            "unified": f"{number:04X}", "image": f"{number}.png", "category": ("Flags", "Food & Drink")[number % 2],
            "skin_variations": {"1F3FB": {"image": f"{number}-light.png"}},
        }
        for number in range(40)
    ]  # fmt: skip
    emoji.append({"unified": "1F3FB", "image": "tone.png", "category": "Component"})
    with tarfile.open("emoji.tgz", "w:gz") as tar:
        files = {"package/emoji.json": json.dumps(emoji).encode()}
        for number in range(40):
            for name in (f"{number}.png", f"{number}-light.png"):
                files[f"package/img/google/64/{name}"] = png((number, 0, len(name), 255))
        files["package/img/google/64/tone.png"] = png("white")
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    run("emoji.py", "emoji.tgz", "emoji")
    parts = {part: {path.name for path in Path("emoji", part).rglob("*.png")} for part in ("train", "val")}
    assert len(parts["train"] | parts["val"]) == 80 and not parts["train"] & parts["val"] and len(parts["val"]) > 4
    for names in parts.values():  # both tones of an emoji are in one part
        assert {name.replace("-light", "") for name in names if "-light" in name} == {
            name for name in names if "-light" not in name
        }
