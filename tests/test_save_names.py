"""Models written in other libraries' names: their own loaders find every tensor, and compute the same."""

import json
import os

import numpy as np
import pytest
from checks import assert_close, peer

import cvit
from cvit import Preprocessing, ViT, ViTConfig

torch = peer("torch")
timm = peer("timm")
transformers = peer("transformers")

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
BOUND = 1e-5
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
F = dict(intermediate_size=48)
OF_HF = [  # class, configuration, its options
    ("ViTForImageClassification", "ViTConfig", dict(**F, num_labels=3)),
    ("DeiTForImageClassificationWithTeacher", "DeiTConfig", dict(**F, num_labels=3)),
    ("Dinov2Model", "Dinov2Config", dict(mlp_ratio=2, layerscale_value=0.5)),
    ("Dinov2ForImageClassification", "Dinov2Config", dict(mlp_ratio=2, num_labels=3)),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", dict(mlp_ratio=2, num_register_tokens=3)),
    ("DINOv3ViTModel", "DINOv3ViTConfig", dict(**F, num_register_tokens=2)),
    ("CLIPVisionModelWithProjection", "CLIPVisionConfig", dict(**F, projection_dim=5)),
    ("SiglipVisionModel", "SiglipVisionConfig", F),
]
OF_TIMM = [
    ("vit_tiny_patch16_224", dict(img_size=64, depth=2, num_classes=3)),
    ("deit_tiny_distilled_patch16_224", dict(img_size=64, depth=2, num_classes=3)),
    ("eva02_tiny_patch14_336", dict(img_size=56, depth=2, num_classes=3)),
    ("vit_medium_patch16_reg4_gap_256", dict(img_size=64, depth=2)),
    ("vit_so150m_patch16_reg4_map_256", dict(img_size=64, depth=2, num_classes=3)),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shaken(module):
    """The module with random numbers in place of its initial zeros and ones."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def images_of(model):
    size = (2, model.config.channels, *model.config.image_size)
    return np.random.default_rng(0).standard_normal(size).astype(np.float32)


def result(model, images):
    return model.forward(images) if model.config.classes else model.features(images)


def hf_result(module, images):
    with torch.no_grad():
        out = module(torch.tensor(images))
    for name in ("logits", "image_embeds", "pooler_output"):
        if getattr(out, name, None) is not None:
            return getattr(out, name).numpy()
    raise AssertionError(out.keys())


def same_model(one, other):
    assert one.config == other.config and one.weights.tobytes() == other.weights.tobytes()
    assert one.preprocessing == other.preprocessing and one.class_names == other.class_names
    assert one.origin == other.origin


@pytest.mark.parametrize("kind, config, options", OF_HF, ids=[case[0] for case in OF_HF])
def test_transformers_loads_what_is_written(tmp_path, kind, config, options):
    module = shaken(getattr(transformers, kind)(getattr(transformers, config)(**{**SMALL, **options})))
    model = cvit.from_hf(module)
    images = images_of(model)
    expected = hf_result(module, images)
    if model.config.classes or kind not in ("Dinov2Model", "Dinov2WithRegistersModel"):
        assert_close(result(model, images), expected, BOUND)
    model.save(tmp_path / "folder", names="hf")
    same_model(model, cvit.load(tmp_path / "folder"))
    again, found = getattr(transformers, kind).from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    assert_close(hf_result(again.eval(), images), expected, BOUND)
    module.save_pretrained(tmp_path / "theirs")
    assert np.array_equal(cvit.load(tmp_path / "theirs").weights, model.weights)


@pytest.mark.parametrize("name, options", OF_TIMM, ids=[case[0] for case in OF_TIMM])
def test_timm_loads_what_is_written(tmp_path, name, options):
    module = shaken(timm.create_model(name, **options))
    model = cvit.from_timm(module)
    images = images_of(model)
    with torch.no_grad():
        expected = module(torch.tensor(images)).numpy()
    assert_close(result(model, images), expected, BOUND)
    model.save(tmp_path / "folder", names="timm")
    same_model(model, cvit.load(tmp_path / "folder"))
    again = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()  # its loading is strict
    with torch.no_grad():
        assert_close(again(torch.tensor(images)).numpy(), expected, BOUND)
    theirs, ours = (timm.data.resolve_model_data_config(one) for one in (module, again))
    for key in ("mean", "std", "interpolation", "crop_mode"):
        assert list(ours[key]) == list(theirs[key])
    timm.models.save_for_hf(module, tmp_path / "theirs", safe_serialization=True)
    assert np.array_equal(cvit.load(tmp_path / "theirs", image_size=model.config.image_size).weights, model.weights)


def test_a_module_of_torchvision(tmp_path):
    models = peer("torchvision.models.vision_transformer")
    options = dict(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=3)
    module = shaken(models.VisionTransformer(**options))
    model = cvit.from_torchvision(module)
    images = images_of(model)
    with torch.no_grad():
        expected = module(torch.tensor(images)).numpy()
    assert_close(model.forward(images), expected, BOUND)
    assert model.origin.family == "torchvision" and model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert cvit.from_torchvision(module, image_size=64, classes=2, channels=1).preprocessing.shape == (1, 64, 64)
    state = cvit.from_state_dict(module.state_dict(), num_heads=4)
    assert np.array_equal(state.weights, model.weights)
    model.save(tmp_path / "timm", names="timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        assert_close(again(torch.tensor(images)).numpy(), expected, BOUND)


def test_pixels_that_fill_no_patch_are_left_out(tmp_path):
    """As SigLIP's 384 pixels for patches of 14: transformers' convolution reads the first 378."""
    options = dict(SMALL, image_size=38, intermediate_size=48)
    module = shaken(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**options)))
    module.save_pretrained(tmp_path / "theirs")
    processor = transformers.SiglipImageProcessor(size={"height": 38, "width": 38})
    processor.save_pretrained(tmp_path / "theirs")
    model = cvit.load(tmp_path / "theirs")
    assert model.config.image_size == (32, 32) and model.preprocessing.size == (38, 38)
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    whole = Preprocessing(size=38, resize="squash", crop=False, alpha="white", rounding="transformers")
    assert np.array_equal(model.preprocess(picture), whole(picture)[:, :, :32, :32])
    assert_close(model.features(model.preprocess(picture)), hf_result(module, whole(picture)), BOUND)
    model.save(tmp_path / "ours", names="hf")
    again = transformers.SiglipVisionModel.from_pretrained(tmp_path / "ours").eval()
    assert again.config.image_size == 38
    assert_close(hf_result(again, whole(picture)), hf_result(module, whole(picture)), BOUND)
    same_model(model, cvit.load(tmp_path / "ours"))
    same_model(model, cvit.load(tmp_path / "ours", image_size=38))


def test_a_module_of_such_a_size(tmp_path):
    module = shaken(timm.create_model("vit_tiny_patch16_224", img_size=70, depth=1, num_classes=3))
    model = cvit.from_timm(module)
    assert model.config.image_size == (64, 64) and model.preprocessing.size == (70, 70)
    images = np.random.default_rng(0).standard_normal((1, 3, 70, 70)).astype(np.float32)
    model.save(tmp_path / "timm", names="timm")
    same_model(model, cvit.load(tmp_path / "timm"))
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        expected = again(torch.tensor(images)).numpy()
    assert_close(model.forward(images[:, :, :64, :64]), expected, BOUND)
    options = dict(SMALL, image_size=38, intermediate_size=48)
    model = cvit.from_hf(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**options)))
    assert model.preprocessing.size == (38, 38) and model.preprocessing.keep == (32, 32)


def test_a_model_of_cvit_in_the_names_of_both_libraries(tmp_path):
    config = ViTConfig(image_size=32, patch_size=8, width=64, depth=2, heads=4, classes=3, activation="gelu_erf")
    model = ViT(config, class_names=("cat", "dog", "owl"), preprocessing=Preprocessing(size=32, resize_size=40))
    images = images_of(model)
    model.save(tmp_path / "timm", names="timm")
    model.save(tmp_path / "hf", names="hf")
    module = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        assert_close(module(torch.tensor(images)).numpy(), model.forward(images), BOUND)
    module = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert_close(hf_result(module, images), model.forward(images), BOUND)
    assert module.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    for names, family in (("timm", "timm"), ("hf", "hf_vit")):
        loaded = cvit.load(tmp_path / names)
        assert loaded.config == config and np.array_equal(loaded.weights, model.weights)
        assert loaded.class_names == model.class_names and loaded.origin.family == family
        how = loaded.preprocessing
        assert (how.size, how.resize_size, how.mean) == ((32, 32), (40, 40), model.preprocessing.mean)


def test_float64_stays(tmp_path):
    model = ViT(
        ViTConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2, activation="gelu_erf"), dtype=np.float64
    )
    model.save(tmp_path / "m", names="timm")
    loaded = cvit.load(tmp_path / "m")
    assert loaded.dtype == np.float64 and np.array_equal(loaded.weights, model.weights)


def test_what_a_library_cannot_say(tmp_path):
    model = ViT(ViTConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2, gated=True, pool="cls_mean"))
    for names in ("timm", "hf", "npz"):
        out = tmp_path / ("m.npz" if names == "npz" else "m")
        with pytest.raises(ValueError, match=f"cannot be written with names '{names}': ") as caught:
            model.save(out, names=names)
        assert len(str(caught.value)) < 2200
    assert not os.listdir(tmp_path)
    with pytest.raises(ValueError, match="names must be one of"):
        model.save(tmp_path / "m", names="torch")
    with pytest.raises(ValueError, match="make a folder"):
        model.save(tmp_path / "m.safetensors", names="hf")


def test_a_folder_is_never_half_written(tmp_path, monkeypatch):
    one = ViT(ViTConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2, activation="gelu_erf"))
    two = ViT(ViTConfig(image_size=16, patch_size=8, width=8, depth=2, heads=2, activation="gelu_erf"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old/README.md").write_text("mine")
    one.save(tmp_path / "old", names="hf")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    assert before["README.md"] == b"mine" and len(before) == 4
    from cvit.formats import save

    def full_disk(path, arrays, dtype):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(save, "_write_safetensors", full_disk)
        for name in ("old", "new"):
            with pytest.raises(OSError, match="No space left"):
                two.save(tmp_path / name, names="hf")
    assert os.listdir(tmp_path) == ["old"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    two.save(tmp_path / "old", names="hf")
    assert cvit.load(tmp_path / "old").config == two.config and len(os.listdir(tmp_path / "old")) == 4
    assert json.loads((tmp_path / "old/config.json").read_text())["num_hidden_layers"] == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        one.save(tmp_path / "file", names="timm")
