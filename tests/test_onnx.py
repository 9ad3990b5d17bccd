"""Models as ONNX graphs: every option computes in onnxruntime what it computes here, and the file says what it is."""

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from checks import assert_close, peer
from option_cases import OPTIONS, problem

from cvit import Layout, Preprocessing, ViT, ViTConfig, checkpoint, cli
from cvit.formats import onnx_file, onnx_graph
from cvit.model import config as configs

BOUND = 1e-5
TINY = ViTConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2, classes=3)


@pytest.fixture(scope="module")
def onnx():
    return peer("onnx")


@pytest.fixture(scope="module")
def session():
    """A path to a session of onnxruntime, on one thread."""
    runtime = peer("onnxruntime")
    runtime.set_default_logger_severity(3)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return lambda path: runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def results(session, images):
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, {"images": images})))


def assert_same(session, model, images, bound, counts=(), name=""):
    """The outputs are those of `model`, of all images and of the first few: `counts` has how many."""
    expected = {"features": model.features(images)}
    if model.config.classes:
        expected = {"logits": model.forward(images), **expected}
    for count in (*counts, len(images)):
        found = results(session, images[:count])
        assert list(found) == list(expected), name
        for output, value in found.items():
            assert value.dtype == model.dtype, name
            assert_close(value, expected[output][:count], bound, f"{name}, {count} images: {output}")


def test_every_option_in_onnxruntime(onnx, session, tmp_path):
    """One file for all numbers of images, and nothing in it that the checker's full inference of shapes refuses."""
    path = tmp_path / "model.onnx"
    for name, options in OPTIONS.items():
        config, weights, images, _ = problem(options, N=5, dtype=np.float32)
        model = ViT(config, weights)
        model.save(path)
        onnx.checker.check_model(path, full_check=True)
        assert_same(session(path), model, images, BOUND, (1, 2), name)


@pytest.mark.parametrize("name", ["tanh", "gated silu", "quick_gelu", "gated relu, wide", "gated gelu"])
def test_an_activation_at_large_numbers(onnx, session, tmp_path, name):
    """Where exponentials overflow, a result is finite and the same."""
    config, weights, images, _ = problem(OPTIONS[name], dtype=np.float32)
    model = ViT(config, weights)
    model.layout.views(weights)["blocks.0.mlp.fc1.weight"][...] *= 1e3
    model.save(tmp_path / "model.onnx")
    assert_same(session(tmp_path / "model.onnx"), model, images, BOUND)


@pytest.mark.parametrize(
    "name",
    [
        "mixed, columns first, no positions",
        "EVA-02",
        "CLIP",
        "xp parallel",
        "pairs, RMS, wide",
        "two heads",
        "RMS norm",
    ],
)
def test_float64_stays(onnx, session, tmp_path, name):
    """To the eps of layer norms, which ONNX has in float32: hence 1e-7 and not 1e-10."""
    config, weights, images, _ = problem(OPTIONS[name])
    model = ViT(config, weights)
    model.save(tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    assert_same(session(tmp_path / "model.onnx"), model, images, 1e-7)


def test_the_exact_gelu_in_float64_is_refused(onnx, tmp_path):
    for options in (dict(activation="gelu_erf"), dict(pre_logits=7, pre_logits_activation="gelu_erf")):
        config, weights, _, _ = problem(options)
        with pytest.raises(ValueError, match="float64 model with the activation 'gelu_erf'"):
            ViT(config, weights).save(tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


def test_the_tables_know_every_word():
    assert tuple(onnx_graph.ACTIVATIONS) == configs.ACTIVATIONS


def test_the_file_says_what_it_is(onnx, session, tmp_path):
    """Its input and outputs, the weights by cvit's names, and whatever cvit's own file knows."""
    config = ViTConfig(image_size=(16, 24), patch_size=8, width=8, depth=2, heads=2, classes=3, layer_scale=0.1)
    how = Preprocessing(size=(16, 24), mean=(0.1, 0.2, 0.3))
    model = ViT(config, seed=1, preprocessing=how, class_names=("cat", "d\N{LATIN SMALL LETTER O WITH STROKE}g", ""))
    model.save(tmp_path / "model.onnx")
    there = session(tmp_path / "model.onnx")
    described = [(one.name, one.shape, one.type) for one in (*there.get_inputs(), *there.get_outputs())]
    kind = "tensor(float)"
    expected = [("images", ["N", 3, 16, 24], kind), ("logits", ["N", 3], kind), ("features", ["N", 8], kind)]
    assert described == expected
    notes = there.get_modelmeta().custom_metadata_map
    assert ViTConfig.from_json(notes["cvit.config"]) == config
    assert Preprocessing.from_json(notes["cvit.preprocessing"]) == how
    assert tuple(json.loads(notes["cvit.classes"])) == model.class_names and notes["cvit.version"]
    document = onnx.load(tmp_path / "model.onnx")
    assert (document.producer_name, document.ir_version, document.opset_import[0].version) == ("cvit", 8, 17)
    stored = {tensor.name: tensor for tensor in document.graph.initializer}
    tensors = model.layout.views(model.weights)
    added = {"cls_token", "pos_embed"}  # these two are one table of the prefix and one of the patches
    for name in tensors.keys() - added:
        assert stored[name].raw_data and np.array_equal(onnx.numpy_helper.to_array(stored[name]), tensors[name]), name
    patches = onnx.numpy_helper.to_array(stored["tokens.positions"])
    assert np.array_equal(patches, tensors["pos_embed"][1:])


@pytest.mark.parametrize("options", [dict(classes=0), dict(pool="none"), dict(dist_token=True, dist_head=True)])
def test_shapes_that_the_file_declares(onnx, session, tmp_path, options):
    """They are those of what it gives, also where there is no class, a row of logits a token, or a second head."""
    config, weights, images, _ = problem(options, N=4, dtype=np.float32)
    ViT(config, weights).save(tmp_path / "model.onnx")
    there = session(tmp_path / "model.onnx")
    for output, value in zip(there.get_outputs(), results(there, images).values()):
        assert [4, *output.shape[1:]] == list(value.shape) and output.shape[0] == "N"


def test_a_frozen_model_and_the_command(onnx, session, tmp_path, capsys):
    """The same file, whichever way it is written, for the same weights."""
    model = ViT(TINY, seed=3)
    checkpoint.save(tmp_path / "model.safetensors", model)
    assert cli.main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "a.onnx")]) == 0
    assert capsys.readouterr().out.endswith(f"{model.layout.size:,} weights, float32, with names of onnx\n")
    model.freeze()
    model.save(tmp_path / "b.onnx", names="onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert model.frozen and len(os.listdir(tmp_path)) == 3
    assert_same(session(tmp_path / "a.onnx"), model, np.ones((2, 3, 16, 16), np.float32), BOUND)


def test_wrong_places_and_sizes(onnx, tmp_path, monkeypatch):
    model = ViT(TINY)
    with pytest.raises(ValueError, match="names 'onnx' must end in .onnx, got"):
        model.save(tmp_path / "model", names="onnx")
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "none" / "model.onnx")
    size = Layout.of(TINY).size * 4
    for most, got in ((size - 1, f"{size:,};"), (size, "")):  # at `size` scalars and shapes are too much
        monkeypatch.setattr(onnx_file, "MOST_BYTES", most + onnx_file.GRAPH_BYTES)
        with pytest.raises(ValueError, match=f"must have at most {most:,} bytes for an ONNX file, got {got}"):
            model.save(tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


def test_a_file_is_never_half_written(onnx, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    ViT(TINY, seed=1).save(path)
    before = path.read_bytes()

    def full_disk(self, content):
        with open(self, "wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        ViT(TINY, seed=2).save(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model.onnx"] and path.read_bytes() == before


def test_without_the_package(tmp_path, monkeypatch, capsys):
    """One line that names the extra, from the command before it looks for the model."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    expected = 'an ONNX file needs onnx: pip install "cvit-cpu[onnx]"'
    with pytest.raises(ModuleNotFoundError) as caught:
        ViT(TINY).save(tmp_path / "model.onnx")
    assert str(caught.value) == expected
    for options in ([str(tmp_path / "out.onnx")], [str(tmp_path / "out"), "--names", "onnx"]):
        assert cli.main(["convert", str(tmp_path / "none"), *options]) == 2
        assert capsys.readouterr() == ("", f"cvit: error: {expected}\n")
    assert not os.listdir(tmp_path)
