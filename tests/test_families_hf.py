"""Models of transformers, read and written: outputs equal, names and numbers as its own files have them.

Every class is built small with random numbers, none of which is its initial zero or one, read from its file and from
memory, and compared in float64 with the reference; then written, loaded by transformers, and compared again.
"""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference

from cvit.families.hf import class_names, label_keys
from cvit.families.hf_all import HF_FAMILIES
from cvit.families.hf_module import from_hf, module_json
from cvit.families.reading import read, write
from cvit.model.config import ViTConfig
from cvit.model.layout import Layout

pytest.importorskip("timm_import", reason="makes torchvision importable")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
TEXT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=100)
FAMILY = {family.name: family for family in HF_FAMILIES}


class Case(NamedTuple):
    """A class, the family that it is read as, its configuration, and what is asked of it."""

    kind: str
    family: str
    config: str
    options: Mapping[str, Any] = MappingProxyType({})
    init: Mapping[str, Any] = MappingProxyType({})  # of the class itself
    vision: bool = False  # whether the configuration is nested
    written: str = ""  # as what it is written, where not as itself


F = dict(intermediate_size=48)
WIDE = dict(image_size=(32, 16), patch_size=(8, 4))
CASES = [
    Case("ViTModel", "hf_vit", "ViTConfig", dict(**F, pooler_output_size=24, pooler_act="relu")),
    Case("ViTModel", "hf_vit", "ViTConfig", dict(**F, qkv_bias=False), dict(add_pooling_layer=False)),
    Case("ViTModel", "hf_vit", "ViTConfig", dict(**F, **WIDE, hidden_act="gelu_new")),
    Case("ViTForImageClassification", "hf_vit", "ViTConfig", dict(**F, num_labels=3)),
    Case("DeiTModel", "hf_deit", "DeiTConfig", F),
    Case("DeiTForImageClassification", "hf_deit", "DeiTConfig", dict(**F, num_labels=3)),
    Case("DeiTForImageClassificationWithTeacher", "hf_deit", "DeiTConfig", dict(**F, num_labels=3, **WIDE)),
    Case("ViTMSNModel", "hf_vit_msn", "ViTMSNConfig", F),
    Case("ViTMSNForImageClassification", "hf_vit_msn", "ViTMSNConfig", dict(**F, num_labels=3)),
    Case("ViTMAEModel", "hf_vit_mae", "ViTMAEConfig", dict(**F, mask_ratio=0.0)),
    Case("IJepaModel", "hf_ijepa", "IJepaConfig", F),
    Case("IJepaForImageClassification", "hf_ijepa", "IJepaConfig", dict(**F, num_labels=3, **WIDE)),
    Case("PixioModel", "hf_pixio", "PixioConfig", dict(n_cls_tokens=3, mlp_ratio=2)),
    Case("PixioModel", "hf_pixio", "PixioConfig", dict(n_cls_tokens=1)),
    Case("Dinov2Model", "hf_dinov2", "Dinov2Config", dict(mlp_ratio=2, layerscale_value=0.5)),
    Case("Dinov2Model", "hf_dinov2", "Dinov2Config", dict(use_swiglu_ffn=True, qkv_bias=False)),
    Case("Dinov2ForImageClassification", "hf_dinov2", "Dinov2Config", dict(num_labels=3, use_mask_token=False)),
    Case("Dinov2WithRegistersModel", "hf_dinov2_with_registers", "Dinov2WithRegistersConfig"),
    Case("Dinov2WithRegistersModel", "hf_dinov2_with_registers", "Dinov2WithRegistersConfig",
         dict(num_register_tokens=0, use_swiglu_ffn=True)),
    Case("Dinov2WithRegistersForImageClassification", "hf_dinov2_with_registers", "Dinov2WithRegistersConfig",
         dict(num_labels=3)),
    Case("DINOv3ViTModel", "hf_dinov3_vit", "DINOv3ViTConfig", dict(**F, num_register_tokens=2, rope_theta=50.0)),
    Case("DINOv3ViTModel", "hf_dinov3_vit", "DINOv3ViTConfig",
         dict(**F, **WIDE, use_gated_mlp=True, hidden_act="silu", query_bias=False, mlp_bias=False, proj_bias=False)),
    Case("DINOv3ViTModel", "hf_dinov3_vit", "DINOv3ViTConfig", dict(**F, key_bias=True, value_bias=False)),
    Case("CLIPVisionModel", "hf_clip", "CLIPVisionConfig", F),
    Case("CLIPVisionModelWithProjection", "hf_clip", "CLIPVisionConfig", dict(**F, projection_dim=24)),
    Case("CLIPForImageClassification", "hf_clip", "CLIPConfig", dict(**F, hidden_act="gelu"), vision=True),
    Case("CLIPModel", "hf_clip", "CLIPConfig", F, vision=True, written="CLIPVisionModelWithProjection"),
    Case("MetaClip2VisionModel", "hf_metaclip_2", "MetaClip2VisionConfig", F),
    Case("MetaClip2VisionModelWithProjection", "hf_metaclip_2", "MetaClip2VisionConfig", dict(**F, projection_dim=24)),
    Case("MetaClip2ForImageClassification", "hf_metaclip_2", "MetaClip2Config", F, vision=True),
    Case("MetaClip2Model", "hf_metaclip_2", "MetaClip2Config", F, vision=True,
         written="MetaClip2VisionModelWithProjection"),
    Case("SiglipVisionModel", "hf_siglip", "SiglipVisionConfig", F),
    Case("SiglipVisionModel", "hf_siglip", "SiglipVisionConfig", dict(**F, vision_use_head=False, image_size=34)),
    Case("SiglipForImageClassification", "hf_siglip", "SiglipConfig", F, vision=True),
    Case("SiglipModel", "hf_siglip", "SiglipConfig", F, vision=True, written="SiglipVisionModel"),
    Case("Siglip2VisionModel", "hf_siglip2", "Siglip2VisionConfig", dict(**F, num_patches=16, image_size=None)),
    Case("Siglip2ForImageClassification", "hf_siglip2", "Siglip2Config", dict(**F, num_patches=16, image_size=None),
         vision=True),
    Case("Siglip2Model", "hf_siglip2", "Siglip2Config", dict(**F, num_patches=16, image_size=None), vision=True,
         written="Siglip2VisionModel"),
    Case("Aimv2VisionModel", "hf_aimv2", "Aimv2VisionConfig", F),
    Case("Aimv2VisionModel", "hf_aimv2", "Aimv2VisionConfig", dict(**F, qkv_bias=True, mlp_bias=True, use_head=False)),
    Case("Aimv2VisionModel", "hf_aimv2", "Aimv2VisionConfig", dict(**F, qkv_bias=True, is_native=True)),
    Case("Tipsv2VisionModel", "hf_tipsv2", "Tipsv2VisionConfig", dict(num_register_tokens=2)),
    Case("Tipsv2VisionModel", "hf_tipsv2", "Tipsv2VisionConfig", dict(use_swiglu_ffn=True, num_register_tokens=0)),
    Case("Sapiens2Model", "hf_sapiens2", "Sapiens2Config", dict(**F, num_register_tokens=2)),
    Case("Sapiens2Model", "hf_sapiens2", "Sapiens2Config",
         dict(**F, **WIDE, use_gated_mlp=False, use_qk_norm=False, num_register_tokens=0, key_bias=False)),
]  # fmt: skip
# Whose files have other names in 5.24 than published ones: no prefix, or in parts.
OTHER_NAMES = ("ViTMSNForImageClassification", "CLIPVisionModel", "MetaClip2VisionModel", "SiglipVisionModel")
OTHER_NAMES += ("Siglip2VisionModel",)
EVERY = pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}-{i}" for i, case in enumerate(CASES)])


def scatter(module, seed):
    """Random numbers for all parameters and buffers of floats, away from 0 and from 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict().items()):
            if tensor.is_floating_point() and "norm_std" not in name:
                spread = 0.25 if tensor.dim() > 1 else 0.1
                middle = 0.7 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "lambda1")) else 0.05
                tensor.copy_(torch.randn(tensor.shape) * spread + middle)
    return module.eval()


def built(case):
    """The model of a case, in float32."""
    options = {key: value for key, value in {**SMALL, **case.options}.items() if value is not None}
    if case.vision:
        labels = {} if case.kind.endswith("Model") else {"num_labels": 3}
        given = dict(vision_config=options, text_config=TEXT, **labels)
        if "Clip2" in case.kind or "CLIP" in case.kind:
            given["projection_dim"] = 24
        config = getattr(transformers, case.config)(**given)
    else:
        config = getattr(transformers, case.config)(**options)
    return scatter(getattr(transformers, case.kind)(config, **case.init), 7)


def images(config: ViTConfig):
    return np.random.default_rng(3).standard_normal((2, config.channels, *config.image_size))


def theirs(module, config, x):
    """The outputs of a module in float64, by name."""
    module = module.double()
    x = torch.tensor(x)
    kind = type(module).__name__
    given: dict[str, Any] = {"pixel_values": x}
    if "MAE" in kind:
        given["noise"] = torch.arange(config.patches, dtype=torch.float64).expand(len(x), -1)
    if kind.startswith("Siglip2"):
        (down, across), (rows, columns) = config.patch, config.grid
        patches = x.reshape(len(x), config.channels, rows, down, columns, across).permute(0, 2, 4, 3, 5, 1)
        given["pixel_values"] = patches.reshape(len(x), rows * columns, -1)
        given["spatial_shapes"] = torch.tensor([[rows, columns]] * len(x))
        given["pixel_attention_mask"] = torch.ones(len(x), rows * columns, dtype=torch.int64)
    with torch.no_grad():
        if kind in ("CLIPModel", "MetaClip2Model", "SiglipModel", "Siglip2Model"):
            out = module.get_image_features(**given)
            out = out.pooler_output if hasattr(out, "pooler_output") else out
            return {"image_embeds": out.numpy()}
        out = module(**given)
    names = ("last_hidden_state", "pooler_output", "logits", "image_embeds")
    return {name: out[name].numpy() for name in names if out.get(name) is not None}


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


DECODER = dict(decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
PRETRAINED = [
    (
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        dict(**DECODER, decoder_intermediate_size=32, mask_ratio=0.0),
        "hf_vit_mae",
    ),
    ("ViTForMaskedImageModeling", "ViTConfig", dict(encoder_stride=8), "hf_vit"),
]


@pytest.mark.parametrize(("kind", "config", "options", "family"), PRETRAINED, ids=[row[0] for row in PRETRAINED])
def test_decoder_is_read_over(kind, config, options, family, tmp_path):
    config = getattr(transformers, config)(**SMALL, **F, **options)
    module = scatter(getattr(transformers, kind)(config), 1)
    model = read(published(module, tmp_path)[0], HF_FAMILIES, config.to_dict())
    assert model.family.name == family
    x = images(model.config)
    compare(theirs(module.vit, model.config, x), model.config, model.weights, x)


RESIZED = [case for case in CASES if case.family.startswith(("hf_dinov2", "hf_clip")) and case.kind != "CLIPModel"]


@pytest.mark.parametrize("case", RESIZED, ids=[case.kind for case in RESIZED])
@pytest.mark.parametrize("size", [(48, 32), (16, 24)])
def test_positions_for_another_size(case, size, tmp_path):
    module = built(case)
    model = read(*published(module, tmp_path)[:1], HF_FAMILIES, module_json(module), image_size=size)
    x = images(model.config)
    assert model.config.image_size == size
    if case.family == "hf_clip":
        module.double()
        with torch.no_grad():
            out = module(pixel_values=torch.tensor(x), interpolate_pos_encoding=True)
        names = ("last_hidden_state", "pooler_output", "logits", "image_embeds")
        expected = {name: out[name].numpy() for name in names if out.get(name) is not None}
    else:
        expected = theirs(module, model.config, x)
    compare(expected, model.config, model.weights, x)


def test_native_positions_are_computed_for_the_size(tmp_path):
    config = transformers.Aimv2VisionConfig(**{**SMALL, **F, "is_native": True})
    module = scatter(transformers.Aimv2VisionModel(config), 1)
    model = read(published(module, tmp_path)[0], HF_FAMILIES, module_json(module), image_size=(48, 16))
    x = images(model.config)
    compare(theirs(module, model.config, x), model.config, model.weights, x)


REFUSED = [
    ("BeitModel", "BeitConfig", dict(**F, use_relative_position_bias=True), "relative position bias"),
    ("BeitModel", "BeitConfig", dict(**F, use_absolute_position_embeddings=True), "relative position bias"),
    ("VideoMAEModel", "VideoMAEConfig", F, "tubelet embedding"),
    ("SwinModel", "SwinConfig", None, "shifted windows|relative position bias"),
    ("MLCDVisionModel", "MLCDVisionConfig", F, "rotary positions of the class token"),
    ("Sapiens2Model", "Sapiens2Config", dict(**F, num_key_value_heads_per_layer=[4, 2]), "grouped-query attention"),
    ("ViTForImageClassification", "ViTConfig", dict(**F, num_labels=0), "a classifier without classes"),
]


@pytest.mark.parametrize(("kind", "config", "options", "part"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_by_name_of_the_part(kind, config, options, part):
    small = dict(embed_dim=16, depths=[1, 1], num_heads=[2, 2]) if options is None else {**SMALL, **options}
    module = getattr(transformers, kind)(getattr(transformers, config)(**small))
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


TOWERS = [
    ("Aimv2Model", "Aimv2Config", dict(vision_config={**SMALL, **F}, text_config=TEXT, projection_dim=24)),
    ("Tipsv2Model", "Tipsv2Config", dict(vision_config=SMALL, text_config=TEXT)),
]


@pytest.mark.parametrize(("kind", "config", "options"), TOWERS, ids=[row[0] for row in TOWERS])
def test_tower_of_a_model_with_text(kind, config, options, tmp_path):
    module = scatter(getattr(transformers, kind)(getattr(transformers, config)(**options)), 2)
    model = from_hf(module)
    filed = read(published(module, tmp_path)[0], HF_FAMILIES, module_json(module))
    np.testing.assert_array_equal(filed.weights, model.weights)
    x = images(model.config)
    with torch.no_grad():
        out = module.double().get_image_features(pixel_values=torch.tensor(x))
    compare({"image_embeds": out.pooler_output.numpy()}, model.config, model.weights, x)


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
