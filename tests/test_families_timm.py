"""timm's names: read from modules and by name alone, equal in float64, written and read again bit by bit."""

import json

import numpy as np
import pytest
from checks import assert_close, peer

torch = peer("torch")
timm_models = peer("cvit.families.census.timm_models")

import reference as ref  # noqa: E402
import timm  # noqa: E402

from cvit import families  # noqa: E402
from cvit.families import timm_module, timm_table  # noqa: E402
from cvit.model.config import ViTConfig  # noqa: E402
from cvit.model.layout import Layout  # noqa: E402

REFUSED = {  # and the part that the message names
    "vit_dlittle_patch16_reg1_gap_256": "differential attention",
    "vit_dwee_patch16_reg1_gap_256": "differential attention",
    "vit_dpwee_patch16_reg1_gap_256": "differential attention",
}
WRITTEN = [  # one of each combination of options; `python -m cvit.families.census` asks for all
    "aimv2_large_patch14_224", "beit3_base_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224",
    "eva02_base_patch14_448", "eva02_base_patch16_clip_224", "eva02_enormous_patch14_clip_224",
    "eva02_tiny_patch14_336", "eva_giant_patch14_clip_224", "eva_large_patch14_196", "test_vit", "test_vit2",
    "test_vit3", "test_vit4", "vit_base_patch14_reg4_dinov2", "vit_base_patch16_18x2_224", "vit_base_patch16_224_miil",
    "vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_dinov3", "vit_base_patch16_lingbot",
    "vit_base_patch16_radio_v3", "vit_base_patch16_rope_224", "vit_base_patch16_rope_ape_224",
    "vit_base_patch16_rope_mixed_224", "vit_base_patch16_rope_mixed_ape_224", "vit_base_patch16_rope_reg1_gap_256",
    "vit_base_patch16_rpn_224", "vit_base_patch16_sapiens2", "vit_base_patch16_siglip_224",
    "vit_base_patch16_siglip_gap_224", "vit_base_patch16_xp_224", "vit_giant_patch14_dinov2",
    "vit_giant_patch16_lingbot", "vit_huge_plus_patch16_dinov3_qkvb", "vit_pe_core_tiny_patch16_384",
    "vit_pe_lang_large_patch14_448", "vit_pe_spatial_tiny_patch16_512", "vit_pwee_patch16_reg1_gap_256",
    "vit_so150m2_patch16_reg1_gap_256", "vit_so150m_patch16_reg4_gap_256", "vit_so150m_patch16_reg4_map_256",
    "vit_so400m_patch16_siglip_256",
]  # fmt: skip


def views(model):
    return Layout.of(model.config).views(model.weights)


@pytest.mark.parametrize("name", WRITTEN)
def test_equal_to_timm(name):
    module = timm_models.small(name)
    model = families.from_timm(module)
    config = model.config
    images = np.random.default_rng(1).standard_normal((2, config.channels, *config.image_size))
    tokens, result = timm_models.results(module, images)
    assert_close(ref.tokens_of(config, views(model), images), tokens, 1e-6, name="tokens")
    logits, features, _ = ref.forward(config, views(model), images)
    assert_close(logits if config.classes else features, result, 1e-6, name="logits")

    arrays, _ = families.write(config, model.weights, model.family, model.style)
    state = module.state_dict()
    assert arrays.keys() == state.keys()
    for key, array in arrays.items():
        assert np.array_equal(array, state[key].float().numpy()), key
    again = families.read(arrays, [model.family], config=config, style=model.style)
    assert np.array_equal(again.weights, model.weights)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("style", ["as read", "as written"])
def test_timm_makes_the_model_of_what_is_written(name, style):
    module = timm_models.small(name)
    model = families.from_timm(module)
    style = model.style if style == "as read" else None
    arrays, said = families.write(model.config, model.weights, model.family, style)
    again = timm.create_model(said["architecture"], **said["model_args"])
    again.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()}, strict=True)
    images = np.random.default_rng(1).standard_normal((2, model.config.channels, *model.config.image_size))
    for got, wanted in zip(timm_models.results(again.double().eval(), images), timm_models.results(module, images)):
        assert_close(got, wanted, 1e-6, name=name)
    found = families.read(arrays, families.FAMILIES, said)
    assert np.array_equal(found.weights, model.weights)
    assert families.from_timm(again).config == found.config
    assert found.config == model.config or found.config.rope != model.config.rope  # whose reference may be the grid


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "test_vit3"])
def test_hub_folders_both_ways(name, tmp_path):
    """A folder that timm writes is read, and timm reads a folder of what is written."""
    numpy = peer("safetensors.numpy")
    module = timm_models.small(name)
    model = families.from_timm(module)
    args = dict(depth=2, embed_dim=module.embed_dim, img_size=list(model.config.image_size))
    timm.models.save_for_hf(module, tmp_path, safe_serialization=True, model_args=args)
    said = json.loads((tmp_path / "config.json").read_text())
    tensors = numpy.load_file(tmp_path / "model.safetensors")
    found = families.read(tensors, families.FAMILIES, said, num_heads=model.config.heads)
    assert found.config == model.config
    assert np.array_equal(found.weights, model.weights)

    arrays, said = families.write(model.config, model.weights, model.family, model.style)
    numpy.save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(said))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).double().eval()
    images = np.random.default_rng(1).standard_normal((2, model.config.channels, *model.config.image_size))
    for got, wanted in zip(timm_models.results(again, images), timm_models.results(module, images)):
        assert_close(got, wanted, 1e-6, name=name)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_name_says_what_the_module_says(name):
    """At full width, so that the heads of the table are those of the architecture; without numbers."""
    timm_models.check_name(name, timm_models.empty(name))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    module = timm_models.empty(name)
    with pytest.raises(ValueError, match=f"does not compute: {REFUSED[name]}"):
        timm_module.describe(module)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=f"does not compute: {REFUSED[name]}"):
        family = families.recognise(list(shapes), {"architecture": name}, families.FAMILIES)
        families.configuration(family, families.given(family, shapes, {"architecture": name})[0])


@pytest.mark.parametrize(
    "name, part",
    {
        "test_vit_relpos": "relative position bias",
        "beit_base_patch16_224": "relative position bias",
        "vit_base_r26_s32_224": "a convolutional stem",
    }.items(),
)
def test_other_modules_are_refused(name, part):
    with torch.device("meta"):
        module = timm.create_model(name)
    with pytest.raises(ValueError, match=f"does not compute: {part}"):
        families.from_timm(module)
    with pytest.raises(ValueError, match=f"does not compute: {part}"):
        families.recognise(list(module.state_dict()), None, families.FAMILIES)


def test_a_module_of_another_class():
    with pytest.raises(TypeError, match="module must be one of timm's VisionTransformer"):
        families.from_timm(torch.nn.Linear(2, 2))


def test_grouped_queries_are_refused():
    with torch.device("meta"):
        module = timm.create_model("vit_5b_patch16_sapiens2")
    with pytest.raises(ValueError, match="does not compute: grouped-query attention"):
        timm_module.describe(module)


def test_the_table_is_what_timm_says():
    record = peer("data.record_timm_table")
    recorded = timm_table.TABLE
    rows = {kind: [(fields, " ".join(names.split())) for fields, names in rows] for kind, rows in recorded.items()}
    try:
        assert record.table() == rows
    finally:
        timm_table.TABLE = recorded


def state(name="vit_tiny_patch16_224", **options):
    module = timm_models.small(name, **options)
    return module, {key: tensor.float() for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "eva02_tiny_patch14_336"])
def test_another_image_size(name):
    """Positions as timm's own `set_input_size` resamples them."""
    module = timm_models.small(name)
    model = families.from_timm(module)
    down, across = model.config.patch
    size = (6 * down, 5 * across)
    tensors = {key: tensor.detach() for key, tensor in module.state_dict().items()}
    got = families.read(tensors, [model.family], config=model.config, style=model.style, image_size=size)
    module.float().set_input_size(size)
    assert got.config.image_size == size
    assert_close(views(got)["pos_embed"], module.pos_embed.detach().numpy()[0], 1e-6, name="positions")


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels(channels):
    module, tensors = state()
    got = families.read(tensors, families.FAMILIES, num_heads=3, image_size=(64, 48), channels=channels)
    expected = timm.models._manipulate.adapt_input_conv(channels, module.patch_embed.proj.weight.detach().float())
    width = got.config.width
    assert got.config.channels == channels
    assert_close(views(got)["patch_embed.weight"].T, expected.numpy().reshape(width, -1), 1e-6, name="patch_embed")


@pytest.mark.parametrize("classes", [0, 3])
def test_other_classes(classes):
    _, tensors = state()
    got = families.read(tensors, families.FAMILIES, num_heads=3, image_size=(64, 48), classes=classes)
    assert got.config == ViTConfig(
        image_size=(64, 48), width=24, depth=2, heads=3, classes=classes, activation="gelu_erf",
    )  # fmt: skip
    assert not any(view.any() for key, view in views(got).items() if key.startswith("head"))
    assert np.array_equal(views(got)["norm.weight"], tensors["norm.weight"].numpy())


FAULTS = {  # what is done to the file, and what the message says
    "missing": (lambda t: t.pop("blocks.1.norm1.bias"), "lacks blocks.1.norm1.bias"),
    "unknown": (lambda t: t.update(extra=t["norm.bias"]), "does not know: extra"),
    "misspelt": (
        lambda t: t.update({"blocks.1.nrom1.bias": t.pop("blocks.1.norm1.bias")}),
        r"lacks blocks.1.norm1.bias \(closest: blocks.1.nrom1.bias\)",
    ),
    "misshapen": (lambda t: t.update({"norm.bias": t["norm.bias"][:-1]}), r"norm.bias must have shape \(24,\), got"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    change, message = FAULTS[fault]
    _, tensors = state()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        families.read(tensors, families.FAMILIES, num_heads=3, image_size=(64, 48))


def test_heads_must_be_known():
    _, tensors = state()
    with pytest.raises(ValueError, match="give num_heads="):
        families.read(tensors, families.FAMILIES, image_size=(64, 48))


def test_rotary_positions_must_be_known():
    _, tensors = state("vit_small_patch16_dinov3")
    with pytest.raises(ValueError, match="do not say which rotary positions it has"):
        families.read(tensors, families.FAMILIES, num_heads=6, image_size=(64, 48))
    said = {"architecture": "vit_small_patch16_dinov3"}
    model = families.read(tensors, families.FAMILIES, said, num_heads=6, image_size=(64, 48))
    assert model.config.rope.kind == "centred"


JSON = {  # what is no config.json of timm's, and what the message says
    "pool": (dict(global_pool="max"), "global_pool must be one of"),
    "pool of another type": (dict(global_pool=["avg"]), "global_pool must be one of"),
    "activation": (dict(model_args=dict(act_layer="mish")), "act_layer must be one of"),
    "arguments": (dict(model_args=[1]), "model_args must be an object"),
    "pretrained": (dict(pretrained_cfg="x"), "pretrained_cfg must be an object"),
    "heads": (dict(model_args=dict(num_heads=5)), "heads must divide the width 24"),
}


@pytest.mark.parametrize("fault", JSON)
def test_wrong_config_json(fault):
    said, message = JSON[fault]
    _, tensors = state()
    with pytest.raises(ValueError, match=message):
        families.read(tensors, families.FAMILIES, {"architecture": "vit_tiny_patch16_224", **said}, image_size=(64, 48))


def test_extra_tensors_may_be_read_over():
    _, tensors = state()
    tensors["extra"] = tensors["norm.bias"]
    families.read(tensors, families.FAMILIES, num_heads=3, image_size=(64, 48), strict=False)
