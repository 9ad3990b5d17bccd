"""cvit.model.config_format: configurations as JSON, of this and of earlier formats, and a model file of each.

Damaged files are in test_checkpoint.py.
"""

import dataclasses
import json
import pathlib
import runpy

import numpy as np
import pytest

from cvit.formats.checkpoint import load, read_metadata
from cvit.model.config import ViTConfig
from cvit.model.config_format import DEFAULTS, FORMAT, READER
from cvit.model.rope import Rope

DATA = pathlib.Path(__file__).parent / "data"
SMALL = dict(image_size=(8, 12), patch_size=4, channels=2, width=12, depth=2, heads=3, hidden=20, classes=5)
FIELDS = [field.name for field in dataclasses.fields(ViTConfig)]


# ----------------------------------------------------------------------------------------------------------------- JSON
CONFIGS = [
    ViTConfig(),
    ViTConfig(**SMALL, pool="mean", gelu="erf", eps=1e-3, bias=False),
    ViTConfig.plain(**SMALL),
    ViTConfig(**SMALL, layer_scale=(None, 1e-5)),
    ViTConfig(**SMALL, class_token=True, dist_token=True, registers=4, pos_tokens="patches", pool="mean_all"),
    ViTConfig(**SMALL, activation="silu", gated=True),
    ViTConfig(
        **{**SMALL, "patch_size": (2, 3)}, rope=Rope("mixed", 10.0, columns_first=True), qkv_bias=(True, False, True)
    ),
    ViTConfig(**SMALL, rope=Rope(offset=0.5, reference=(16, 8)), class_token=3, pos_tokens="none", norm="rms"),
    ViTConfig(**{**SMALL, "classes": 0}, block="pairs", pool="map", pool_heads=2, pool_hidden=-1, pool_query=False),
    ViTConfig(**SMALL, dist_token=True, dist_head=True, fc_norm=True, qk_norm=True, attn_norm=True, mlp_norm=True),
    ViTConfig(**SMALL, pre_logits=7, pre_logits_activation="relu", patch_norm=True, pre_norm=True, block="parallel"),
    ViTConfig(
        **SMALL,
        patch_bias=False,
        proj_bias=False,
        mlp_bias=True,
        pool_bias=False,
        head_bias=True,
        block="post",
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_json_there_and_back(config):
    text = config.to_json()
    assert ViTConfig.from_json(text) == config
    assert list(json.loads(text)) == ["format", "reader", *FIELDS]
    assert json.loads(text)["format"] == FORMAT and json.loads(text)["reader"] == READER


# What the keys missing in a file of each format stand for. These never change; a new format adds a row.
MEANT = {
    2: ViTConfig(
        image_size=224,
        patch_size=16,
        channels=3,
        width=192,
        depth=12,
        heads=3,
        hidden=768,
        classes=1000,
        pool="cls",
        bias=True,
        norm_affine=True,
        final_norm=True,
        activation="gelu_tanh",
        eps=1e-6,
        gated=False,
        layer_scale=None,
        class_token=None,
        dist_token=False,
        registers=0,
        pos_tokens="all",
    ),
}
MEANT[3] = dataclasses.replace(
    MEANT[2], patch_bias=None, patch_norm=False, pre_norm=False, norm="layer", block="pre", rope=None, qkv_bias=None,
    qk_norm=False, attn_norm=False, proj_bias=None, mlp_bias=None, mlp_norm=False, fc_norm=False, pool_heads=0,
    pool_hidden=0, pool_query=True, pool_bias=None, pre_logits=0, pre_logits_activation="tanh", head_bias=None,
    dist_head=False,
)  # fmt: skip
MEANT[4] = MEANT[3]


@pytest.mark.parametrize("number, config", MEANT.items())
def test_missing_keys_have_the_defaults_of_their_format(number, config):
    assert ViTConfig.from_json(json.dumps({"format": number})) == config
    assert ViTConfig.from_json(json.dumps({"format": number, "width": 24})) == dataclasses.replace(
        config, width=24, hidden=96
    )


def test_a_changed_default_does_not_change_an_old_file():
    """The dataclass has another default than format 2 had: as a later version may."""

    @dataclasses.dataclass(frozen=True)
    class Later(ViTConfig):
        final_norm: bool = False

    assert Later().final_norm is False
    assert Later.from_json('{"format": 2}').final_norm is True


def test_every_field_has_a_default_in_the_present_format():
    assert set(DEFAULTS[FORMAT]) == set(FIELDS) and set(DEFAULTS) == set(range(1, FORMAT + 1))


def test_format_1_has_no_number_and_all_keys():
    text = (
        '{"image_size": [6, 9], "patch_size": 3, "channels": 2, "width": 8, "depth": 2, "heads": 2, "hidden": 10, '
        '"classes": 3, "pool": "mean", "bias": true, "norm_affine": true, "final_norm": false, "gelu": "erf", '
        '"eps": 0.01}'
    )
    expected = ViTConfig(
        image_size=(6, 9), patch_size=3, channels=2, width=8, depth=2, heads=2, hidden=10, classes=3, pool="mean",
        final_norm=False, gelu="erf", eps=0.01,
    )  # fmt: skip
    assert ViTConfig.from_json(text) == expected
    for wrong in ('"relu"', "[]", '"' + "x" * 100_000 + '"'):
        with pytest.raises(ValueError, match="config: gelu must be 'tanh' or 'erf', got") as caught:
            ViTConfig.from_json(text.replace('"erf"', wrong))
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="must be a JSON object with all keys of format 1, it lacks classes, pool"):
        ViTConfig.from_json(text.replace('"classes": 3, "pool": "mean", ', ""))


def test_format_2():
    text = (
        '{"format": 2, "reader": "0.1.0", "image_size": [6, 9], "patch_size": 3, "channels": 2, "width": 8, '
        '"depth": 2, "heads": 2, "hidden": 10, "classes": 3, "pool": "mean_all", "bias": false, "norm_affine": false, '
        '"final_norm": false, "activation": "silu", "eps": 0.01, "gated": true, "layer_scale": [0.1, null], '
        '"class_token": true, "dist_token": true, "registers": 4, "pos_tokens": "patches"}'
    )
    expected = ViTConfig(
        image_size=(6, 9), patch_size=3, channels=2, width=8, depth=2, heads=2, hidden=10, classes=3, pool="mean_all",
        bias=False, norm_affine=False, final_norm=False, activation="silu", eps=0.01, gated=True,
        layer_scale=(0.1, None), class_token=True, dist_token=True, registers=4, pos_tokens="patches",
    )  # fmt: skip
    assert ViTConfig.from_json(text) == expected
    with pytest.raises(ValueError, match="config has keys that format 2 does not know: rope"):
        ViTConfig.from_json(text.replace('"format": 2', '"format": 2, "rope": null'))


def test_format_3():
    text = (
        '{"format": 3, "reader": "0.1.0", "image_size": [6, 9], "patch_size": [2, 3], "channels": 2, "width": 8, '
        '"depth": 2, "heads": 2, "hidden": 10, "classes": 0, "pool": "map", "bias": false, "norm_affine": false, '
        '"final_norm": false, "activation": "tanh", "eps": 0.01, "layer_scale": [0.1, null], "class_token": 3, '
        '"dist_token": true, "registers": 4, "pos_tokens": "class", "gated": true, "patch_bias": true, '
        '"patch_norm": true, "pre_norm": true, "norm": "rms", '
        '"norm_eps": [["norm1", 0.1]], "block": "parallel", "rope": {"kind": "centred", '
        '"theta": 100.0, "offset": 0.5, "reference": [3, 4], "columns_first": true}, "qkv_bias": [true, false, true], '
        '"qk_norm": true, "attn_norm": true, "proj_bias": true, "mlp_bias": true, "mlp_norm": true, "fc_norm": true, '
        '"pool_heads": 4, "pool_hidden": -1, "pool_prefix": false, "pool_query": false, "pool_bias": true, '
        '"pre_logits": 7, "pre_logits_activation": "relu", "head_bias": true, "dist_head": false}'
    )
    expected = ViTConfig(
        image_size=(6, 9), patch_size=(2, 3), channels=2, width=8, depth=2, heads=2, hidden=10, classes=0, pool="map",
        bias=False, norm_affine=False, final_norm=False, activation="tanh", eps=0.01, layer_scale=(0.1, None),
        class_token=3, dist_token=True, registers=4, pos_tokens="class", gated=True, patch_bias=True, patch_norm=True,
        pre_norm=True, norm="rms", norm_eps={"norm1": 0.1}, block="parallel",
        rope=Rope("centred", 100.0, 0.5, (3, 4), True), qkv_bias=(True, False, True), qk_norm=True, attn_norm=True,
        proj_bias=True, mlp_bias=True, mlp_norm=True,
        fc_norm=True, pool_heads=4, pool_hidden=-1, pool_prefix=False, pool_query=False, pool_bias=True, pre_logits=7,
        pre_logits_activation="relu", head_bias=True, dist_head=False,
    )  # fmt: skip
    assert ViTConfig.from_json(text) == expected
    assert json.loads(expected.to_json()) == json.loads(text) | {"format": FORMAT}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"breadth": 3, "colour": 1}, "config has keys that format 4 does not know: breadth, colour"),
        ({"embed_dim": 12}, "config has keys that format 4 does not know: embed_dim"),
        ({"format": 5, "reader": None}, "config is of format 5, which a later cvit-cpu reads; this one reads up to 4"),
        ({"format": 5, "reader": "0.4.0"}, "config is of format 5, which cvit-cpu 0.4.0 or later reads"),
        ({"format": 0}, "config: format must be a whole number of at least 1, got 0"),
        ({"format": "2"}, "config: format must be a whole number of at least 1, got '2'"),
        ({"format": 2.0}, "config: format must be a whole number of at least 1, got 2.0"),
        ({"format": True}, "config: format must be a whole number of at least 1, got True"),
        ({"format": 10**4000}, "config is of format a number of thousands|config is of format 1000"),
        ({"pool": "max"}, "config: pool must be one of"),
        ({"rope": {"kind": "spiral"}}, "config: rope: kind must be one of"),
        ({"rope": {"angle": 3}}, "config: .*angle"),
        ({"rope": "axial"}, "config: rope must be a Rope or None, got 'axial'"),
        ({"rope": {"theta": 0}}, "config: rope: theta must be above 0"),
        ({"patch_size": [4]}, "config: patch_size must be one number or"),
        ({"qkv_bias": [1, 0, 1]}, "config: qkv_bias must be None"),
        ({"eps": 1e-46}, "config: eps must be at least"),
        ({"x" * 100_000: 1}, "does not know: xxx"),
        ({"pool": "x" * 100_000}, "config: pool must be one of"),
        ({"width": "x" * 100_000}, "config: width must be an integer"),
    ],
)
def test_wrong_json(changes, message):
    text = json.dumps({**json.loads(ViTConfig(**SMALL).to_json()), **changes})
    with pytest.raises(ValueError, match=message) as caught:
        ViTConfig.from_json(text)
    assert len(str(caught.value)) < 400 and caught.value.__cause__ is None


# ------------------------------------------------------------------------------------- model files of each past version
@pytest.mark.parametrize("number", range(1, FORMAT))
def test_a_model_of_each_past_format(number):
    record = runpy.run_path(str(DATA / "record_model.py"))
    path = DATA / f"model-format{number}.safetensors"
    model = load(path)
    assert model.config == ViTConfig(**record[f"FORMAT_{number}"])
    np.testing.assert_array_equal(model.weights, record["weights"](model.layout.size))
    logits = json.loads(read_metadata(path)["logits"])
    np.testing.assert_allclose(model.forward(record["images"](model.config)), logits, rtol=1e-4)


def test_every_past_format_has_a_recorded_file():
    assert {path.name for path in DATA.glob("model-format*.safetensors")} >= {
        f"model-format{number}.safetensors" for number in range(1, FORMAT)
    }
