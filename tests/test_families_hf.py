"""Models of transformers, read and written: outputs equal, names and numbers as its own files have them.

Every class is built small with random numbers, none of which is its initial zero or one, read from its file and from
memory, and compared in float64 with the reference; then written, loaded by transformers, and compared again.
"""

import dataclasses
import json

import numpy as np
import pytest
import reference
from checks import peer

from cvit.families.census.hf_cases import CASES, PRETRAINED, REFUSED, SMALL, TOWERS, F
from cvit.families.hf import class_names, label_keys
from cvit.families.hf_all import HF_FAMILIES
from cvit.families.hf_module import from_hf, module_json
from cvit.families.reading import read, write
from cvit.model.config import ViTConfig
from cvit.model.layout import Layout

torch = peer("torch")
hf_models = peer("cvit.families.census.hf_models")
transformers = peer("transformers")
safetensors_numpy = peer("safetensors.numpy")
built, theirs = hf_models.built, hf_models.theirs

FAMILY = {family.name: family for family in HF_FAMILIES}
# Whose files have other names in 5.24 than published ones: no prefix, or in parts.
OTHER_NAMES = ("ViTMSNForImageClassification", "CLIPVisionModel", "MetaClip2VisionModel", "SiglipVisionModel")
OTHER_NAMES += ("Siglip2VisionModel",)
EVERY = pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}-{i}" for i, case in enumerate(CASES)])


def images(config: ViTConfig):
    return np.random.default_rng(3).standard_normal((2, config.channels, *config.image_size))


def compare(expected, config, weights, x):
    """Raise unless the reference's outputs equal the module's."""
    views = Layout.of(config).views(weights)
    logits, features, _ = reference.forward(config, views, x)
    assert expected
    for name, value in expected.items():
        if name == "last_hidden_state":
            normed = config if config.pre_norm is False else dataclasses.replace(config, final_norm=False)  # CLIP
            ours = reference.tokens_of(normed, views, x)
        else:
            ours = features if logits is None else logits
            if name == "pooler_output" and logits is not None:
                continue
        assert ours.shape == value.shape, name
        np.testing.assert_allclose(ours, value, rtol=0, atol=1e-5, err_msg=name)


def published(module, folder):
    """The tensors and the config.json that `save_pretrained` writes."""
    module.save_pretrained(folder)
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    return tensors, json.loads((folder / "config.json").read_text())


def loaded(kind, folder, arrays, config_json, init):
    """What transformers loads from files of these contents; raises where a name is missing or unknown."""
    folder.mkdir()
    safetensors_numpy.save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_json))
    assert config_json["architectures"] == [kind]
    module, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **init)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return module.eval()


@EVERY
def test_file_memory_and_back(case, tmp_path):
    module = built(case)
    again = from_hf(module)
    tensors, config_json = published(module, tmp_path)
    model = read(tensors, HF_FAMILIES, config_json)
    assert model.family.name == case.family
    x = images(model.config)
    expected = theirs(module, model.config, x)
    compare(expected, model.config, model.weights, x)

    assert again.config == model.config
    np.testing.assert_array_equal(again.weights, model.weights)

    arrays, written = write(model.config, model.weights, model.family)
    copy = read(arrays, HF_FAMILIES, written)
    assert copy.config == model.config
    np.testing.assert_array_equal(copy.weights, model.weights)
    other = loaded(case.written or case.kind, tmp_path / "written", arrays, written, case.init)
    compare(theirs(other, model.config, x), model.config, model.weights, x)

    arrays, _ = write(model.config, model.weights, model.family, model.style)
    for name in arrays.keys() & tensors.keys():
        if "mask_token" not in name and "post_layernorm" not in name:
            np.testing.assert_array_equal(arrays[name], tensors[name], err_msg=name)
    if not case.written and case.kind not in OTHER_NAMES:
        assert arrays.keys() <= tensors.keys()


def test_names_of_version_4():
    """The towers' names without the prefix, and with it, are the same model."""
    for case in CASES:
        if case.kind in ("CLIPVisionModel", "SiglipVisionModel", "MetaClip2VisionModel"):
            module = built(case)
            memory = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
            plain = read(memory, HF_FAMILIES, module_json(module))
            prefixed = read({f"vision_model.{k}": v for k, v in memory.items()}, HF_FAMILIES, module_json(module))
            np.testing.assert_array_equal(plain.weights, prefixed.weights)


@pytest.mark.parametrize("case", PRETRAINED, ids=[case.kind for case in PRETRAINED])
def test_decoder_is_read_over(case, tmp_path):
    module = built(case)
    model = read(published(module, tmp_path)[0], HF_FAMILIES, module.config.to_dict())
    assert model.family.name == case.family
    x = images(model.config)
    compare(theirs(module, model.config, x), model.config, model.weights, x)


RESIZED = [case for case in CASES if case.family.startswith(("hf_dinov2", "hf_clip")) and case.kind != "CLIPModel"]


@pytest.mark.parametrize("case", RESIZED, ids=[case.kind for case in RESIZED])
@pytest.mark.parametrize("size", [(48, 32), (16, 24)])
def test_positions_for_another_size(case, size, tmp_path):
    module = built(case)
    model = read(*published(module, tmp_path)[:1], HF_FAMILIES, module_json(module), image_size=size)
    x = images(model.config)
    assert model.config.image_size == size
    if case.family == "hf_clip":
        expected = theirs(module, model.config, x, interpolate_pos_encoding=True)
    else:
        expected = theirs(module, model.config, x)
    compare(expected, model.config, model.weights, x)


def test_native_positions_are_computed_for_the_size(tmp_path):
    config = transformers.Aimv2VisionConfig(**{**SMALL, **F, "is_native": True})
    module = hf_models.draw(transformers.Aimv2VisionModel(config)).eval()
    model = read(published(module, tmp_path)[0], HF_FAMILIES, module_json(module), image_size=(48, 16))
    x = images(model.config)
    compare(theirs(module, model.config, x), model.config, model.weights, x)


@pytest.mark.parametrize(("case", "part"), REFUSED, ids=[case.kind for case, _ in REFUSED])
def test_refused_by_name_of_the_part(case, part):
    module = built(case)
    memory = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=part):
        read(memory, HF_FAMILIES, module_json(module))


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "hf_refused"])
def test_a_model_that_no_class_computes_is_not_written(name):
    """Each family refuses what it has no key for, before anything is written."""
    config = ViTConfig(image_size=32, patch_size=8, width=32, depth=1, heads=2, classes=0, block="post")
    with pytest.raises(ValueError, match="no place|no model with|no class|cannot say"):
        write(config, np.ones(Layout.of(config).size, np.float32), FAMILY[name])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "mish"), ("hidden_act", 3), ("layer_norm_eps", "x"), ("num_attention_heads", 0),
        ("num_attention_heads", 5), ("image_size", [32]), ("image_size", 64), ("hidden_size", 48),
        ("num_hidden_layers", 3), ("num_attention_heads", None), ("pooler_act", []),
    ],
)  # fmt: skip
def test_wrong_values_are_value_errors(key, value):
    module = built(CASES[0])
    memory = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError):
        read(memory, HF_FAMILIES, {**module_json(module), key: value})


def test_without_a_config_file():
    """Marks tell the family; heads must be given, the rest is the class's default."""
    for case in CASES:
        family = FAMILY[case.family]
        if not family.marks or case.options.keys() - {"intermediate_size", "mlp_ratio", "num_labels"}:
            continue
        module = built(case)
        memory = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        with pytest.raises(ValueError, match="num_heads"):
            read(memory, HF_FAMILIES)
        model = read(memory, HF_FAMILIES, num_heads=4)
        whole = read(memory, HF_FAMILIES, module_json(module))
        assert model.family is whole.family
        if case.family not in ("hf_dinov3_vit", "hf_sapiens2"):
            assert model.config == whole.config


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "hf_refused"])
def test_defaults_are_those_of_the_class(name):
    """What a config.json lacks has the default of transformers' class."""
    family = FAMILY[name]
    config = next(case.config for case in CASES if case.family == name and not case.vision)
    own = getattr(transformers, config)()
    for key, value in family.defaults.items():
        assert getattr(own, key, "lacks it") == value or (name, key) == ("hf_siglip2", "image_size"), key  # it has none
    assert own.model_type in family.model_types


@pytest.mark.parametrize("case", TOWERS, ids=[case.kind for case in TOWERS])
def test_tower_of_a_model_with_text(case, tmp_path):
    module = built(case)
    model = from_hf(module)
    filed = read(published(module, tmp_path)[0], HF_FAMILIES, module_json(module))
    np.testing.assert_array_equal(filed.weights, model.weights)
    x = images(model.config)
    compare(theirs(module, model.config, x), model.config, model.weights, x)


def test_what_is_no_known_module():
    with pytest.raises(TypeError, match="must be a model of transformers"):
        from_hf(torch.nn.Linear(2, 2))
    config = transformers.YolosConfig(**{**SMALL, **F, "image_size": [32, 32]})
    with pytest.raises(ValueError, match="of no known family"):
        from_hf(transformers.YolosModel(config))


def test_class_names():
    names = ("cat", "dog", "emu")
    assert class_names(label_keys(3, names), 3) == names
    assert class_names({"id2label": dict(enumerate(names))}, 3) == names
    assert class_names(label_keys(3), 3) is None
    assert class_names(label_keys(3, names), 2) is None
    assert class_names({"id2label": ["cat"]}, 1) is None
    assert class_names({}, 3) is None
