"""Weights from the Hub, with huggingface_hub as it is and a small Hub on this machine.

huggingface_hub reads its environment when it is imported, so every test asks in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub, serving
from safetensors import numpy as safetensors_numpy

import cvit
from cvit.formats import hub as hub_module
from cvit.formats.safetensors_file import INDEX

pytest.importorskip("huggingface_hub")

PROGRAM = """
import json, os, sys
from cvit.formats.source import open_source
for where, revision in json.loads(sys.argv[1]):
    try:
        source = open_source(where, revision)
        values = {name: tensor.read(strict=True).tolist() for name, tensor in source.tensors.items()}
        answer = [values, source.config, source.preprocessor, source.label, str(source.path)]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print("ANSWER" + json.dumps(answer))
"""
WEIGHTS = {"w": np.arange(3, dtype=np.float32)}
MODEL = {
    "config.json": b'{"model_type": "vit"}',
    "preprocessor_config.json": b'{"size": 224}',
    "model.safetensors": safetensors_numpy.save(WEIGHTS),
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# a model",
    "onnx/model.onnx": b"another model",
}
READ = [{"w": [0, 1, 2]}, {"model_type": "vit"}, {"size": 224}]


@pytest.fixture
def hub():
    return Hub()


@pytest.fixture
def ask(hub, tmp_path):
    """A function that opens sources one after the other in a new process, and gives what each is, or its error."""
    with serving(hub) as address:

        def ask(*places, revision=None, **environment):
            clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
            settings = dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"), HF_HUB_DISABLE_TELEMETRY="1")
            settings |= dict(HF_HUB_DISABLE_PROGRESS_BARS="1", PYTHONPATH=str(Path(cvit.__file__).parents[1]))
            proxies = dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1")
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, json.dumps([(where, revision) for where in places])],
                env={**clean, **settings, **proxies, **environment},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
            )
            answers = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("ANSWER")]
            assert len(answers) == len(places), done.stderr
            return answers[0] if len(places) == 1 else answers

        yield ask


def downloaded(hub):
    return [request.rpartition("/")[2] for request in hub.asked if request.startswith("GET") and "/resolve/" in request]


def test_only_what_is_needed_comes_and_only_once(hub, ask):
    hub.repositories["some/vit"] = MODEL
    hub.revisions.add("v1.0")
    *answer, label, path = ask("some/vit")
    assert answer == READ and label == "some/vit" and Path(path).name == "model.safetensors"
    assert downloaded(hub) == ["config.json", "preprocessor_config.json", "model.safetensors"]
    commit = hub.commit("some/vit")
    names = ["some/vit", "hf-hub:some/vit", "some/vit@v1.0", f"hf-hub:some/vit@{commit}"]
    for name, answer in zip(names, ask(*names)):
        assert answer[:3] == READ and answer[3] == name.removeprefix("hf-hub:") and answer[4] == path
    assert ask("some/vit", revision="v1.0")[3] == "some/vit@v1.0"
    assert len(downloaded(hub)) == 3


def test_without_a_network_the_cache_is_what_there_is(hub, ask):
    hub.repositories["some/vit"] = MODEL
    closed = "http://127.0.0.1:9"
    kind, text = ask("some/vit", HF_ENDPOINT=closed)
    assert kind == "OSError" and "some/vit@main cannot be had" in text and "the cache has nothing of it" in text
    kind, text = ask("some/vit", HF_HUB_OFFLINE="1")
    assert kind == "OSError" and "the cache has nothing of it" in text and not hub.asked
    assert ask("some/vit")[:3] == READ
    for settings in (dict(HF_ENDPOINT=closed), dict(HF_HUB_OFFLINE="1")):
        assert ask("some/vit", **settings)[:3] == READ
    assert ask("some/vit", revision="v2", HF_HUB_OFFLINE="1")[0] == "OSError"
    hub.down = True
    assert ask("some/vit")[:3] == READ


def test_shards_and_a_file_of_another_name(hub, ask):
    index = json.dumps({"weight_map": {"w": "1.safetensors", "v": "2.safetensors"}}).encode()
    shards = {
        f"{i}.safetensors": safetensors_numpy.save({name: np.ones(1, np.float32)}) for i, name in ((1, "w"), (2, "v"))
    }
    hub.repositories["some/large"] = {INDEX: index, **shards, "config.json": b"{}"}
    hub.repositories["some/clip"] = {
        "open_clip_model.safetensors": MODEL["model.safetensors"],
        "open_clip_config.json": b"{}",
    }
    large, clip = ask("some/large", "some/clip")
    assert large[:3] == [{"w": [1], "v": [1]}, {}, None]
    assert clip[:3] == [READ[0], {}, None]
    hub.repositories["some/large"] = {INDEX: index.replace(b"1.safe", b"../../1.safe"), **shards}
    hub.repositories["some/torn"] = {INDEX: index, "1.safetensors": shards["1.safetensors"]}
    (kind, text), torn = ask("some/large", "some/torn")
    assert kind == "ValueError" and "some/large@main/model.safetensors.index.json: 'w' must be in a" in text
    assert torn[0] == "OSError" and "some/torn@main: '2.safetensors' could not be downloaded" in torn[1]


def test_what_the_hub_refuses(hub, ask):
    hub.repositories.update({"some/vit": MODEL, "some/gated": MODEL, "some/code": {"model.py": b""}})
    hub.repositories["some/pickle"] = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
    hub.repositories["some/two"] = {"a.safetensors": b"", "b.npz": b""}
    hub.gated.add("some/gated")
    expected = {
        "some/none": ("ValueError", "some/none is neither a path here nor a model on the Hub"),
        "some/vit@v9": ("ValueError", "some/vit has no revision 'v9'"),
        "some/gated": ("PermissionError", "some/gated is gated: accept its terms at http"),
        "some/pickle": ("ValueError", "some/pickle@main/pytorch_model.bin is a pickle"),
        "some/code": ("ValueError", "some/code@main must have a model.safetensors"),
        "some/two": ("ValueError", "got 2: 'a.safetensors', 'b.npz'"),
        "a--b/c..d": ("ValueError", "a--b/c..d is no name of a repository"),
    }
    for (kind, text), (wanted, part) in zip(ask(*expected), expected.values()):
        assert kind == wanted and part in text and len(text) < 1000
    assert all(file == "config.json" for file in downloaded(hub))


def test_a_download_that_breaks_off_leaves_nothing_behind(hub, ask, tmp_path):
    hub.repositories["some/vit"] = MODEL
    hub.cut["model.safetensors"] = 20
    kind, text = ask("some/vit")
    assert kind == "OSError" and "some/vit@main: 'model.safetensors' could not be downloaded" in text
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    kind, text = ask("some/vit", HF_HUB_OFFLINE="1")
    assert kind == "OSError" and "the cache has only part of it" in text
    hub.cut.clear()
    assert ask("some/vit")[:3] == READ


def test_a_path_that_exists_wins(hub, ask, tmp_path):
    hub.repositories["some/vit"] = {}
    (tmp_path / "some/vit").mkdir(parents=True)
    for name, content in MODEL.items():
        (tmp_path / "some/vit" / Path(name).name).write_bytes(content)
    assert ask("some/vit")[:4] == [*READ, "some/vit"] and not hub.asked
    assert ask("hf-hub:some/vit")[0] == "ValueError" and hub.asked


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r'need huggingface_hub: pip install "cvit-cpu\[hub\]"'):
        hub_module.fetch("some/vit")
