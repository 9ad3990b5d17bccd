"""`Preprocessing`: values by hand, settings from files that may be hostile, and what a model keeps of them."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest

from cvit import Preprocessing, ViT, ViTConfig, checkpoint
from cvit.pictures import pixels

pytest.importorskip("PIL.Image")

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)


# --------------------------------------------------------------------------------------------------------- settings
def test_a_picture_far_longer_than_wide_takes_no_memory(monkeypatch):
    """Only the part that the crop keeps is made: nearly the pixels of the whole way."""
    thin = np.random.default_rng(0).integers(0, 256, (300, 5, 3), np.uint8)
    squash = Preprocessing(size=(32, 50), resize="squash", resize_size=(600, 70), interpolation="bilinear")
    for how in (Preprocessing(size=64, interpolation="bilinear"), squash):
        whole = how(thin)
        monkeypatch.setattr(pixels, "MOST_PIXELS", 1)
        part = how(thin)
        monkeypatch.undo()
        assert np.abs(whole - part).max() <= 2.02 / 255  # mean and std are 0.5: one level is 2 / 255
    assert Preprocessing(size=224)(np.zeros((60_000, 1, 3), np.uint8)).shape == (1, 3, 224, 224)


def test_values_by_hand():
    how = Preprocessing(size=(13, 17), resize=None, crop=False, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    expected = (PIXELS / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    assert np.allclose(how(PIXELS)[0].transpose(1, 2, 0), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="the picture must have 13x17 pixels, got 12x17"):
        how(PIXELS[:-1])


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(size=0), "size must be at least 1"),
        (dict(size=(1, 2, 3)), r"size must be one number or \(height, width\)"),
        (dict(size=10**9), "size must be at most 32768"),
        (dict(resize="stretch"), "resize must be one of"),
        (dict(resize=None, resize_size=3), "resize_size must be None where resize is"),
        (dict(resize="short_edge", crop=False), "without a crop pictures must be squashed to size"),
        (dict(resize="squash", resize_size=256, crop=False), "without a crop pictures must be squashed to size"),
        (dict(interpolation="random"), "interpolation must be one of"),
        (dict(interpolation=[3]), "interpolation must be one of"),
        (dict(rounding="floor"), "rounding must be one of"),
        (dict(alpha="black"), "alpha must be one of"),
        (dict(crop=1), "crop must be True or False, got 1"),
        (dict(std=(0.5, 0.0, 0.5)), "std must be at least 1e-06, got 0.0"),
        (dict(mean=(0.5, float("nan"), 0.5)), "mean must be finite"),
        (dict(mean=(0.5, 0.5)), "mean and std must be as many, got 2, 3"),
        (dict(mean=(0.5,) * 4, std=(0.5,) * 4), "mean must have 1 number for grey or 3 for RGB, got 4"),
        (dict(rescale=0), "rescale must be at least 1e-06"),
    ],
)
def test_wrong_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)


SETTINGS = [
    Preprocessing(),
    Preprocessing(size=(12, 20), resize="squash", crop=False, mean=(0.3,), std=(0.2,), rounding="transformers"),
    Preprocessing(size=7, resize=None, alpha="white", rescale=1.0, rescale_first=True),
    Preprocessing(size=100, resize="long_edge", resize_size=110, interpolation="hamming"),
]


@pytest.mark.parametrize("how", SETTINGS, ids=range(len(SETTINGS)))
def test_json_round_trip(how):
    assert Preprocessing.from_json(how.to_json()) == how
    assert hash(Preprocessing.from_json(how.to_json())) == hash(how)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(format=3), "must be of format 1 to 2, got 3"),
        (dict(format=None), "must be of format 1 to 2, got None"),
        (dict(extra=1), "unknown keys: extra"),
        (dict(size="large"), "size"),
        (dict(size=[1e400, 1]), "size"),
        (dict(size=[[1], 2]), "size"),
        (dict(mean="half"), "mean"),
        (dict(mean=[{}, 1, 1]), "mean"),
        (dict(mean=[]), "mean"),
        (dict(std=[1e-300] * 3), "std"),
        (dict(rescale="1"), "rescale"),
        (dict(resize=["squash"]), "resize"),
        (dict(crop=None), "crop"),
    ],
)
def test_hostile_json(change, message):
    fields = {**json.loads(Preprocessing().to_json()), **change}
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"format": 1}', "9" * 5000, '{"format": 1, "size"'])
def test_what_is_no_json_of_preprocessing(text):
    with pytest.raises(ValueError, match="preprocessing"):
        Preprocessing.from_json(text)


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(input_size=[3, 224]), r"input_size must be \(channels, height, width\)"),
        (dict(input_size=[3, -1, 5]), "input_size must be at least 1"),
        (dict(crop_mode="fit"), "crop_mode must be one of border, center, squash"),
        (dict(crop_pct=1e-9), "crop_pct must be more than 0.001"),
        (dict(crop_pct="0.9"), "crop_pct must be a number"),
        (dict(mean=[0.5, 0.5]), "mean must have 3 numbers"),
        (dict(interpolation="random"), "interpolation must be one of"),
    ],
)
def test_wrong_settings_of_timm(config, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_timm(config)


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "so it needs the keys image_mean, image_std, resample, size"),
        (dict(image_processor_type="Other"), "class Other is not one of Beit, Bit, CLIP"),
        (dict(image_processor_type="CLIPImageProcessor", do_center_crop=False), "no fixed size"),
        (dict(image_processor_type="ViTImageProcessor", do_resize=False), "no fixed size"),
        (dict(image_processor_type="ViTImageProcessor", size={"longest_edge": 3}), "size must have height and width"),
        (dict(image_processor_type="ViTImageProcessor", size={"height": 1e9, "width": 1}), "height must be at most"),
        (dict(image_processor_type="ViTImageProcessor", size="224"), "size must be a dict or a number"),
        (dict(image_processor_type="ViTImageProcessor", resample=9), "resample must be from 0 to 5, got 9"),
        (dict(image_processor_type="ViTImageProcessor", resample=True), "resample must be from 0 to 5, got True"),
        (dict(image_processor_type="ViTImageProcessor", image_std=[0, 1, 1]), "std must be at least 1e-06"),
        (dict(image_processor_type="ViTImageProcessor", rescale_factor=[1]), "rescale must be a number"),
        (dict(image_processor_type="Siglip2ImageProcessor", max_num_patches=256), "class Siglip2"),
    ],
)
def test_wrong_settings_of_transformers(config, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_hf(config)


def test_names_of_classes_old_and_new():
    for name in ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"):
        assert Preprocessing.from_hf(dict(image_processor_type=name)).resize == "short_edge"
    old = Preprocessing.from_hf(dict(feature_extractor_type="CLIPFeatureExtractor", size=336, crop_size=336))
    assert (old.size, old.resize, old.resize_size) == ((336, 336), "short_edge", (336, 336))
    wrapped = Preprocessing.from_hf(dict(image_processor_type="TimmWrapperImageProcessor", pretrained_cfg={}))
    assert wrapped == Preprocessing.from_timm({})


def test_what_the_other_libraries_do_not_have():
    for how, target in ((SETTINGS[2], "to_timm"), (SETTINGS[3], "to_hf")):
        with pytest.raises(ValueError, match="has no such preprocessing"):
            getattr(how, target)()


def test_another_size_keeps_the_crop_fraction():
    how = Preprocessing.from_timm(dict(crop_pct=0.9)).with_size(384, 384)
    assert how == Preprocessing.from_timm(dict(crop_pct=0.9, input_size=(3, 384, 384)))
    squashed = SETTINGS[1].with_size(30, 40)
    assert squashed.size == squashed.resize_size == (30, 40)


# -------------------------------------------------------------------------------------------------------- the model
CONFIG = ViTConfig(image_size=(8, 12), patch_size=4, width=8, depth=1, heads=1, classes=3)
HOW = Preprocessing(size=(8, 12), interpolation="bilinear")
NAMES = ("cat", "dog", "\N{OWL}")


def test_the_part_that_is_kept():
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    for options in (dict(), dict(rescale_first=True, interpolation="bilinear"), dict(resize=None)):
        whole = Preprocessing(size=16, **options)
        part = dataclasses.replace(whole, keep=(12, 14))
        assert part.shape == (3, 12, 14) and np.array_equal(part(picture), whole(picture)[:, :, :12, :14])
        assert Preprocessing.from_json(part.to_json()) == part and part.with_size(16, 16) == whole
    assert Preprocessing(size=16, keep=16).keep is None
    with pytest.raises(ValueError, match="keep must be within the size"):
        Preprocessing(size=16, keep=(16, 17))


def test_a_file_of_the_first_format_keeps_all():
    fields = json.loads(Preprocessing(size=16).to_json())
    del fields["keep"]
    assert Preprocessing.from_json(json.dumps({**fields, "format": 1})) == Preprocessing(size=16)


def test_other_channels():
    how = Preprocessing(mean=(0.1, 0.2, 0.6), std=(0.5, 0.5, 0.8))
    grey = how.with_channels(1)
    np.testing.assert_allclose((grey.mean, grey.std), ((0.3,), (0.6,)))
    assert how.with_channels(3) is how and grey.with_channels(3).std == grey.std * 3


def test_a_model_keeps_preprocessing_and_names(tmp_path):
    model = ViT(CONFIG, preprocessing=HOW, class_names=list(NAMES))
    checkpoint.save(tmp_path / "m.safetensors", model, metadata={"note": "1"})
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    for same in (model, loaded, copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (same.preprocessing, same.class_names) == (HOW, NAMES)
    assert checkpoint.read_metadata(tmp_path / "m.safetensors") == {"note": "1"}
    with pytest.raises(ValueError, match="metadata must not have the key 'cvit.classes', which is cvit's own"):
        checkpoint.save(tmp_path / "m.safetensors", model, metadata={"cvit.classes": "[]"})


def test_a_model_without_either(tmp_path):
    model = ViT(CONFIG)
    checkpoint.save(tmp_path / "m.safetensors", model)
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    assert loaded.preprocessing is None and loaded.class_names is None
    x = loaded.preprocess(PIXELS)
    assert (x == Preprocessing.default((8, 12))(PIXELS)).all() and loaded.forward(x).shape == (1, 3)


def test_wrong_preprocessing_and_names():
    with pytest.raises(ValueError, match=r"must give images \(3, 8, 12\), as the configuration says, got \(3, 8, 8\)"):
        ViT(CONFIG, preprocessing=Preprocessing(size=8))
    with pytest.raises(TypeError, match="preprocessing must be a Preprocessing, got dict"):
        ViT(CONFIG, preprocessing={})
    with pytest.raises(ValueError, match="class_names must be 3, one a class, got 2"):
        ViT(CONFIG, class_names=["a", "b"])
    with pytest.raises(TypeError, match="class_names must be strings, got 1"):
        ViT(CONFIG, class_names=["a", "b", 1])
    two = ViT(ViTConfig(image_size=8, patch_size=4, channels=2, width=8, depth=1, heads=1))
    with pytest.raises(ValueError, match="channels must be 1 or 3 for pictures, got 2"):
        two.preprocess(PIXELS)


@pytest.mark.parametrize(
    "key, text",
    [
        ("cvit.preprocessing", "{}"),
        ("cvit.preprocessing", Preprocessing(size=99).to_json()),
        ("cvit.classes", "[" * 100_000),
        ("cvit.classes", '["a"]'),
        ("cvit.classes", '["a", "b", 3]'),
        ("cvit.classes", '{"0": "a"}'),
        ("cvit.classes", "not JSON"),
        ("cvit.origin", "[" * 100_000),
        ("cvit.origin", '{"family": "timm"}'),
        ("cvit.origin", '{"family": "timm", "style": [3]}'),
    ],
)
def test_hostile_metadata_name_the_file(tmp_path, key, text):
    from safetensors import numpy as safetensors

    model, path = ViT(CONFIG), tmp_path / "hostile.safetensors"
    safetensors.save_file(model.layout.views(model.weights), path, {"cvit.config": CONFIG.to_json(), key: text})
    with pytest.raises(ValueError, match=r"hostile\.safetensors(: | is not a safetensors file: its header has)"):
        checkpoint.load(path)
