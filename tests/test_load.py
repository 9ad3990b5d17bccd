"""`cvit.load` and its like: every place that a model comes from, what it is changed to, and what is refused."""

import copy
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checks import peer
from hub_server import Hub, serving
from safetensors import numpy as safetensors_numpy

import cvit
from cvit import Preprocessing, ViT, ViTConfig
from cvit.formats.load import fitted
from cvit.formats.safetensors_file import INDEX

SMALL = dict(image_size=32, patch_size=8, width=32, depth=2, heads=4, hidden=48, classes=3)
NAMES = ("cat", "dog", "owl")


def small(**changes):
    """A model as transformers' ViT has it, with random weights."""
    model = ViT(ViTConfig(**{**SMALL, "activation": "gelu_erf", "eps": 1e-12, **changes}), class_names=NAMES)
    model.weights[:] = np.random.default_rng(0).normal(size=model.weights.size)
    return model


@pytest.fixture
def folder(tmp_path):
    """A folder of transformers' ViT."""
    small().save(tmp_path / "vit", names="hf")
    return tmp_path / "vit"


def edit(path, **changes):
    """Change keys of a JSON file; None takes one away."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_folder_and_its_file(folder):
    model = small()
    for where in (folder, str(folder) + "/", folder / "model.safetensors", str(folder / "model.safetensors")):
        loaded = cvit.load(where)
        assert loaded.config == model.config and np.array_equal(loaded.weights, model.weights)
        assert loaded.class_names == NAMES and loaded.origin.family == "hf_vit"
        assert loaded.preprocessing.size == (32, 32) and loaded.weights.dtype == np.float32
        assert loaded.weights.flags.writeable


def test_shards(folder):
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for i in range(2):
        safetensors_numpy.save_file({name: tensors[name] for name in names[i::2]}, folder / f"{i}.safetensors")
    index = {"weight_map": {name: f"{i}.safetensors" for i in range(2) for name in names[i::2]}}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert np.array_equal(cvit.load(folder).weights, small().weights)
    (folder / "1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.safetensors"):
        cvit.load(folder)


def test_cvits_own_file_and_folder(tmp_path, folder):
    model = cvit.load(folder)
    model.preprocessing = Preprocessing(size=32, resize_size=36)
    model.save(tmp_path / "own.safetensors")
    model.save(tmp_path / "own")
    cvit.save(tmp_path / "without a suffix", model)
    for name in ("own.safetensors", "own", "own/model.safetensors", "without a suffix"):
        loaded = cvit.load(tmp_path / name)
        assert loaded.config == model.config and np.array_equal(loaded.weights, model.weights)
        for attribute in ("preprocessing", "class_names", "origin"):
            assert getattr(loaded, attribute) == getattr(model, attribute) is not None
    (tmp_path / "config.json").write_text("of another program")
    assert cvit.load(tmp_path / "own.safetensors").config == model.config
    changed = cvit.load(tmp_path / "own", image_size=64, classes=5, channels=1, dtype=np.float64)
    assert changed.config.image_size == (64, 64) and changed.config.classes == 5 and changed.config.channels == 1
    assert changed.class_names is None and changed.dtype == np.float64
    assert changed.preprocessing.size == (64, 64) and changed.preprocessing.resize_size == (73, 73)
    same = cvit.load(folder, image_size=64, classes=5, channels=1, dtype=np.float64)
    assert np.array_equal(changed.weights, same.weights)
    with pytest.raises(ValueError, match="num_heads must be 4"):
        cvit.load(tmp_path / "own", num_heads=8)


def test_the_origin_goes_along(folder):
    model = cvit.load(folder)
    for other in (pickle.loads(pickle.dumps(model)), copy.copy(model), copy.deepcopy(model)):
        assert other.origin == model.origin
    with pytest.raises(TypeError, match="origin must be an Origin or None, got str"):
        model.origin = "timm"


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_floats(folder, kind):
    path = folder / "model.safetensors"
    tensors = safetensors_numpy.load_file(path)
    if kind == "bfloat16":
        torch_numpy = peer("safetensors.torch")
        torch = peer("torch")
        rounded = {name: torch.tensor(value).bfloat16() for name, value in tensors.items()}
        torch_numpy.save_file(rounded, path)
        tensors = {name: value.float().numpy() for name, value in rounded.items()}
    else:
        tensors = {name: value.astype(kind) for name, value in tensors.items()}
        safetensors_numpy.save_file(tensors, path)
    model = cvit.load(path)
    assert model.dtype == (np.float64 if kind == "float64" else np.float32)
    weight = tensors["vit.encoder.layer.1.output.dense.weight"]
    assert np.array_equal(model.layout.views(model.weights)["blocks.1.mlp.fc2.weight"], weight.T)
    assert cvit.load(path, dtype=np.float32).dtype == np.float32


def test_another_size_other_classes_and_channels(folder):
    model = cvit.load(folder)
    wide = cvit.load(folder, image_size=(48, 64))
    assert wide.config.image_size == (48, 64) and wide.preprocessing.size == (48, 64) and wide.class_names == NAMES
    assert wide.forward(wide.preprocess(np.zeros((50, 60, 3), np.uint8))).shape == (1, 3)
    cut = cvit.load(folder, image_size=37)
    assert cut.config == model.config and cut.preprocessing.size == (37, 37)
    assert cut.preprocessing.keep == (32, 32) and cut.preprocess(np.zeros((50, 60, 3), np.uint8)).shape[2:] == (32, 32)
    fresh = cvit.load(folder, classes=7)
    views = fresh.layout.views(fresh.weights)
    assert fresh.class_names is None and not views["head.weight"].any() and views["norm.bias"].any()
    assert cvit.load(folder, classes=3).class_names == NAMES and cvit.load(folder, classes=0).config.classes == 0
    grey = cvit.load(folder, channels=1)
    assert grey.preprocessing.channels == 1 and grey.preprocess(np.zeros((9, 9), np.uint8)).shape == (1, 1, 32, 32)
    image = np.random.default_rng(1).random((2, 1, 32, 32), np.float32)
    np.testing.assert_allclose(grey(image), model(np.repeat(image, 3, 1)), rtol=1e-4, atol=1e-4)
    assert cvit.load(folder, channels=4).preprocessing is None
    for arguments, error in ((dict(image_size=7), ValueError), (dict(classes=-1), ValueError),
                             (dict(dtype="float16"), ValueError), (dict(num_heads="4"), TypeError),
                             (dict(image_size=(1, 2, 3)), ValueError)):  # fmt: skip
        with pytest.raises(error, match=next(iter(arguments))):
            cvit.load(folder, **arguments)


def test_the_first_pixels_of_a_size_that_patches_do_not_divide(folder):
    edit(folder / "config.json", image_size=38)
    edit(folder / "preprocessor_config.json", do_center_crop=False, size={"height": 38, "width": 38})
    model = cvit.load(folder)
    assert model.config.image_size == (32, 32) and model.preprocessing.size == (38, 38)
    picture = np.random.default_rng(2).integers(0, 255, (38, 38, 3), np.uint8)
    whole = Preprocessing(size=38, resize="squash", crop=False)(picture)
    np.testing.assert_allclose(model.preprocess(picture), whole[:, :, :32, :32], atol=1e-6)
    assert cvit.load(folder, image_size=38).preprocessing == model.preprocessing
    model.save(folder.parent / "own.safetensors")
    assert cvit.load(folder.parent / "own.safetensors").preprocessing == model.preprocessing
    model.save(folder.parent / "again", names="hf")
    assert json.loads((folder.parent / "again/config.json").read_text())["image_size"] == 38
    assert cvit.load(folder.parent / "again").preprocessing == model.preprocessing


def test_preprocessing_without_a_file_is_that_of_the_family(folder):
    (folder / "preprocessor_config.json").unlink()
    how = cvit.load(folder).preprocessing
    assert how.size == (32, 32) and how.interpolation == "bilinear" and how.resize == "squash"
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "OtherImageProcessor"}')
    with pytest.warns(UserWarning, match="is a default one: the preprocessor config's class Other"):
        assert cvit.load(folder).preprocessing == how
    assert fitted(None, ViTConfig()) is None


def test_state_dicts(folder):
    tensors, config = safetensors_numpy.load_file(folder / "model.safetensors"), small().config
    said = json.loads((folder / "config.json").read_text())
    assert np.array_equal(cvit.from_state_dict(tensors, said).weights, small().weights)
    guessed = cvit.from_state_dict(tensors, num_heads=4)
    assert guessed.config == config and guessed.class_names is None
    assert cvit.from_state_dict(tensors, said, image_size=64, classes=2).config.tokens == 65
    with pytest.raises(ValueError, match="the weights: num_heads must be given"):
        cvit.from_state_dict(tensors)
    with pytest.raises(TypeError, match="config must be the dict of a config.json, got str"):
        cvit.from_state_dict(tensors, "config.json")
    with pytest.raises(TypeError, match="must be an array, got list"):
        cvit.from_state_dict({"w": [1.0]})


def test_an_npz_file(tmp_path):
    model = ViT(ViTConfig(**SMALL))
    model.save(tmp_path / "vit.npz", names="npz")
    loaded = cvit.load(tmp_path / "vit.npz")
    assert loaded.config == model.config and np.array_equal(loaded.weights, model.weights)
    assert loaded.preprocessing.resize == "squash" and loaded.origin.family == "flax npz"


# ------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize("name", ["model.pth", "model.pt", "pytorch_model.bin", "model.ckpt"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system")
    for where in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match="is a pickle, which can run any code"):
            cvit.load(where)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_hidden_layers=10**9), "num_hidden_layers"),
        (dict(num_attention_heads=10**9), "heads"),
        (dict(num_attention_heads="four"), "num_attention_heads"),
        (dict(image_size=10**9), "image_size"),
        (dict(image_size=64), "image_size"),
        (dict(layer_norm_eps=-1.0), "eps"),
        (dict(hidden_act="x" * 100_000), "hidden_act"),
        (dict(model_type="bert"), "bert"),
    ],
)
def test_a_hostile_config_is_refused_at_once(folder, changes, message):
    edit(folder / "config.json", **changes)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as caught:
        cvit.load(folder)
    assert time.perf_counter() - start < 1 and len(str(caught.value)) < 2000 and str(folder) in str(caught.value)


def test_an_own_file_of_too_many_blocks_is_refused_at_once(tmp_path):
    small().save(tmp_path / "own.safetensors")
    tensors = safetensors_numpy.load_file(tmp_path / "own.safetensors")
    config = {**json.loads(small().config.to_json()), "depth": 10**9}
    safetensors_numpy.save_file(tensors, tmp_path / "own.safetensors", {"cvit.config": json.dumps(config)})
    with pytest.raises(ValueError, match="too few for the 1000000000 blocks"):
        cvit.load(tmp_path / "own.safetensors")


def test_missing_unknown_and_misshapen_tensors(folder):
    path, name = folder / "model.safetensors", "vit.encoder.layer.1.output.dense.weight"
    tensors = safetensors_numpy.load_file(path)
    for changed, message in (
        ({name: None}, "lacks encoder.layer.1.output.dense.weight"),
        ({"vit.encoder.layer.1.output.denes.weight": np.ones(3, np.float32)}, "denes.weight"),
        ({name: np.ones((3, 4), np.float32)}, r"must have shape \(32, 48\), got \(3, 4\)"),
        ({name: np.ones((32, 48), bool)}, "must hold numbers, got bool"),
    ):
        kept = {key: value for key, value in {**tensors, **changed}.items() if value is not None}
        safetensors_numpy.save_file(kept, path)
        with pytest.raises(ValueError, match=message) as caught:
            cvit.load(folder)
        assert str(folder) in str(caught.value)
    safetensors_numpy.save_file({**tensors, "extra": np.ones(1, np.float32)}, path)
    with pytest.raises(ValueError, match="what this model does not know: extra"):
        cvit.load(folder)
    assert np.array_equal(cvit.load(folder, strict=False).weights, small().weights)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        cvit.load(tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match="where must be"):
        cvit.load(3)
    with pytest.raises(ValueError, match="revision is for names on the Hub"):
        cvit.load(tmp_path, revision="main")


def test_the_hub(folder, tmp_path):
    pytest.importorskip("huggingface_hub")
    hub = Hub()
    hub.repositories["some/vit"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    program = "import cvit, sys; m = cvit.load('some/vit', revision='main'); print(m.class_names, m.origin.family)"
    with serving(hub) as address:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        settings = dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"), HF_HUB_DISABLE_PROGRESS_BARS="1")
        settings |= dict(no_proxy="127.0.0.1", NO_PROXY="127.0.0.1", PYTHONPATH=str(Path(cvit.__file__).parents[1]))
        done = subprocess.run(
            [sys.executable, "-c", program], env={**clean, **settings}, cwd=tmp_path, capture_output=True, text=True
        )
    assert done.stdout == f"{NAMES} hf_vit\n", done.stderr


def test_weights_that_are_not_finite(folder):
    path = folder / "model.safetensors"
    tensors = safetensors_numpy.load_file(path)
    name = next(name for name in tensors if name.endswith("norm.weight"))
    tensors[name][0] = np.nan
    safetensors_numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=f"model.safetensors.*{name}"):
        cvit.load(folder)
    assert np.isnan(cvit.load(folder, strict=False).weights).sum() == 1


def test_dinov2_is_loaded_at_the_size_of_its_pictures(tmp_path):
    """Its own library resamples positions for whatever pictures its processor makes, 224 pixels of a model for 518."""
    config = ViTConfig(32, 8, width=16, depth=1, heads=2, classes=0, layer_scale=0.1, activation="gelu_erf")
    model = ViT(
        config, preprocessing=Preprocessing.from_hf({"image_processor_type": "BitImageProcessor"}).with_size(32, 32)
    )
    model.save(tmp_path / "dinov2", names="hf")
    assert json.loads((tmp_path / "dinov2" / "config.json").read_text())["model_type"].startswith("dinov2")
    edit(
        tmp_path / "dinov2" / "preprocessor_config.json",
        size={"shortest_edge": 28},
        crop_size={"height": 24, "width": 24},
    )
    loaded = cvit.load(tmp_path / "dinov2")
    assert loaded.config.image_size == loaded.preprocessing.size == (24, 24)
    kept = cvit.load(tmp_path / "dinov2", image_size=32)
    assert np.array_equal(kept.weights, model.weights) and kept.preprocessing.size == (32, 32)
