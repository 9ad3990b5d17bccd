"""What a path means: files, folders, the JSON files beside them, and what is no source at all."""

import json
import os

import numpy as np
import pytest
from checks import peer
from safetensors import numpy as safetensors_numpy

from cvit.formats.safetensors_file import INDEX
from cvit.formats.source import open_source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function that writes a folder "model": files of weights, whose "w" is their number, and JSON."""
    monkeypatch.chdir(tmp_path)

    def write(*names, **objects):
        (tmp_path / "model").mkdir(exist_ok=True)
        for number, name in enumerate(names):
            weights = {"w": np.full(2, number, np.float32)}
            path = tmp_path / "model" / name
            if name.endswith(".npz"):
                np.savez(path, **weights)
            else:
                safetensors_numpy.save_file(weights, path, {"format": "pt"})
        for name, value in objects.items():
            (tmp_path / "model" / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
        return tmp_path / "model"

    return write


def number(source):
    return source.tensors["w"].read()[0]


def test_a_file_or_its_folder(folder):
    path = folder("model.safetensors", config={"hidden_size": 3}, preprocessor_config={"size": 8})
    for where in (path, str(path), path / "model.safetensors", "model", "model/", "model/model.safetensors"):
        source = open_source(where)
        assert (number(source), source.config, source.preprocessor) == (0, {"hidden_size": 3}, {"size": 8})
        assert source.metadata == {"format": "pt"} and source.path.name == "model.safetensors"
        assert source.label == os.fspath(where) and len(repr(source)) < 500


def test_the_first_choice_of_a_folder(folder):
    names = ["b.npz", "a.safetensors", "model.safetensors"]
    path = folder(*names, open_clip_config={"clip": 1})
    assert number(open_source(path)) == 2
    (path / INDEX).write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    assert number(open_source(path)) == 2 and open_source(path).config == {"clip": 1}
    (path / "model.safetensors").unlink()
    assert number(open_source(path)) == 1 and number(open_source(path / INDEX)) == 1
    (path / INDEX).unlink()
    with pytest.raises(ValueError, match=r"one file of weights, .*, got 2: 'a\.safetensors', 'b\.npz'"):
        open_source(path)
    (path / "a.safetensors").unlink()
    source = open_source(path)
    assert number(source) == 0 and source.metadata == {} and source.preprocessor is None


def test_links_are_followed(folder, tmp_path):
    """The cache of the Hub has links in its folders."""
    path = folder("model.safetensors", config={})
    (tmp_path / "linked").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "linked" / name).symlink_to(path / name)
    assert open_source(tmp_path / "linked").config == {}


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".ckpt", ".pkl", ".PTH"])
def test_pickles_are_never_opened(folder, suffix):
    path = folder() / f"weights{suffix}"
    os.mkfifo(path)  # whoever opened it would wait
    for where in (path, f"none{suffix}", *([path.parent] if suffix.islower() else [])):
        with pytest.raises(ValueError, match=r"is a pickle, .*never opened") as caught:
            open_source(where)
        lines = str(caught.value).splitlines()
        assert len(lines) == 3 and "weights_only=True" in lines[1] and "save_file(" in lines[2]


def test_the_conversion_of_a_pickle_works(folder, tmp_path, monkeypatch):
    torch = peer("torch")
    safetensors_torch = peer("safetensors.torch")
    monkeypatch.chdir(folder())
    shared = torch.arange(4.0)
    torch.save({"w": shared, "tied": shared, "part": shared.reshape(2, 2).T}, "weights.pth")
    with pytest.raises(ValueError) as caught:
        open_source("weights.pth")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    exec("\n".join(lines), {"torch": torch, "safetensors": type("", (), {"torch": safetensors_torch})})
    tensors = open_source("weights.safetensors").tensors
    assert tensors["tied"].read().tolist() == [0, 1, 2, 3] and tensors["part"].read().tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "must be a JSON object, got list"),
        ("", "not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        (" " * 4_000_001, "more than the 4000000"),
    ],
    ids=["list", "empty", "digits", "deep", "twice", "large"],
)
@pytest.mark.parametrize("name", ["config", "preprocessor_config"])
def test_damaged_json(folder, name, text, message):
    path = folder("model.safetensors", **{name: text})
    with pytest.raises(ValueError, match=rf"{name}\.json.*{message}") as caught:
        open_source(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "where, error, message",
    [
        ("none", FileNotFoundError, "there is no file 'none'; give a .safetensors or .npz file, a folder"),
        ("none.safetensors", FileNotFoundError, "there is no file"),
        ("some/none.npz", FileNotFoundError, "there is no file"),
        ("./some/vit", FileNotFoundError, "there is no file"),
        ("/some/vit", FileNotFoundError, "there is no file"),
        ("../vit", FileNotFoundError, "there is no file"),
        ("a/b/c", FileNotFoundError, "there is no file"),
        ("", FileNotFoundError, "there is no file"),
        ("x\0y", FileNotFoundError, "there is no file"),
        ("größe/vit", FileNotFoundError, "there is no file"),
        ("https://huggingface.co/some/vit", FileNotFoundError, "there is no file"),
        ("n" * 100_000, FileNotFoundError, "there is no file"),
        ("hf-hub:some", ValueError, "'hf-hub:some' must be hf-hub:owner/name"),
        ("hf-hub:a/b/c", ValueError, "must be hf-hub:owner/name"),
        (b"model", TypeError, "where must be a .safetensors"),
        (3, TypeError, "where must be a .safetensors"),
        ("model", ValueError, r"model must have a model\.safetensors, .*: it has no weights"),
        ("model/notes.txt", ValueError, r"notes\.txt must be a \.safetensors or \.npz file"),
    ],
)
def test_what_is_no_source(folder, where, error, message):
    (folder() / "notes.txt").write_text("notes")
    with pytest.raises(error, match=message) as caught:
        open_source(where)
    assert len(str(caught.value)) < 500


def test_a_revision_is_for_the_hub(folder):
    path = folder("model.safetensors")
    with pytest.raises(ValueError, match="revision is for names on the Hub"):
        open_source(path, revision="main")
    with pytest.raises(ValueError, match="revision must be given once"):
        open_source("some/vit@v1", revision="v2")
