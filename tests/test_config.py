"""cvit.model.config: fields and their other names, variants, and what follows from the fields.

Wrong values of fields are in test_errors.py, configurations as JSON in test_config_format.py.
"""

import copy
import dataclasses
import inspect
import pickle
import re

import numpy as np
import pytest

from cvit.model.config import ALIASES, ViTConfig
from cvit.model.layout import Layout
from cvit.model.rope import Rope

SMALL = dict(image_size=(8, 12), patch_size=4, channels=2, width=12, depth=2, heads=3, hidden=20, classes=5)
FIELDS = [field.name for field in dataclasses.fields(ViTConfig)]


# --------------------------------------------------------------------------------------------------- the field's words
@pytest.mark.parametrize("alias, field", ALIASES.items())
def test_an_alias_is_its_field(alias, field):
    given = {"image_size": (4, 8), "eps": 1e-3, "heads": 6, "layer_scale": 0.1, "activation": "gelu_erf"}.get(field, 24)
    meant = given
    if alias == "gelu":
        given = "erf"
    without = {name: SMALL[name] for name in SMALL if name != field}
    expected = ViTConfig(**without, **{field: meant})
    assert ViTConfig(**without, **{alias: given}) == expected
    one, other = sorted((field, alias))
    with pytest.raises(TypeError, match=f"{one} and {other} are two names of one field, {field}: give one of them"):
        ViTConfig(**without, **{field: meant, alias: given})
    small = ViTConfig(**SMALL)
    assert dataclasses.replace(small, **{alias: given}) == dataclasses.replace(small, **{field: meant}) != small


def test_two_aliases_of_one_field():
    with pytest.raises(TypeError, match="embed_dim and hidden_size are two names of one field, width"):
        ViTConfig(embed_dim=12, hidden_size=12, num_heads=3)


def test_an_alias_beside_a_positional_argument():
    with pytest.raises(TypeError, match="multiple values for argument 'image_size'"):
        ViTConfig(32, img_size=32)


def test_unknown_arguments():
    with pytest.raises(TypeError, match="unexpected keyword argument 'breadth'"):
        ViTConfig(breadth=12)


def test_variants_and_the_plain_architecture_take_aliases():
    assert ViTConfig.variant("S/16", embed_dim=192, num_classes=10) == ViTConfig.variant("S/16", width=192, classes=10)
    plain = dict(width=12, depth=2, heads=3, classes=5)
    theirs = dict(embed_dim=12, num_hidden_layers=2, num_heads=3, num_classes=5, layer_norm_eps=1e-3)
    assert ViTConfig.plain(**theirs) == ViTConfig.plain(**plain, eps=1e-3)
    assert ViTConfig.plain(**plain).hidden == 12 and ViTConfig.plain(**plain).eps == 1e-5


def test_the_class_stays_a_dataclass():
    config = ViTConfig(**SMALL)
    assert dataclasses.replace(config, width=24).width == 24
    with pytest.raises(TypeError, match="embed_dim and hidden_size are two names of one field, width"):
        dataclasses.replace(config, embed_dim=24, hidden_size=24)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert hash(copy.deepcopy(config)) == hash(config)
    assert list(inspect.signature(ViTConfig).parameters) == FIELDS
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 24


def test_every_alias_is_documented_and_names_a_field():
    assert set(ALIASES.values()) <= set(FIELDS) and not set(ALIASES) & set(FIELDS)
    assert all(f"`{alias}`" in ViTConfig.__doc__ for alias in ALIASES)


# ------------------------------------------------------------------------------------------------------------- variants
@pytest.mark.parametrize(
    "name, millions",
    [
        ("Ti/16", 5.7), ("S/16", 22.1), ("M/16", 38.9), ("B/16", 86.6), ("L/16", 304.3), ("So400m/14", 413.8),
        ("H/14", 632.0), ("g/14", 1012.6), ("G/14", 1844.4),
        ("e/14", 3926 - 68 - 53),  # the paper counts an attention pooling and a head of 29593 classes
    ],
)  # fmt: skip
def test_variants_have_their_published_sizes(name, millions):
    """Weights with a class token and a head of 1000 classes, as in timm's model cards and the papers' tables."""
    assert Layout.of(ViTConfig.variant(name)).size / 1e6 == pytest.approx(millions, rel=0.005)


# ------------------------------------------------------------------------------------------------------------------ eps
def test_eps_is_a_normal_number_in_float32():
    tiny = np.finfo(np.float32).tiny
    assert np.float32(ViTConfig(eps=float(tiny)).eps) == tiny
    for eps in (float(tiny) / 2, 1e-46):
        with pytest.raises(ValueError, match=r"eps must be at least 1\.2e-38, the smallest normal float32"):
            ViTConfig(eps=eps)


# ---------------------------------------------------------------------------------------------------------- layer scale
@pytest.mark.parametrize(
    "given, kept",
    [
        (None, None), ((None, None), None), (0.1, (0.1, 0.1)), ([1e-5, None], (1e-5, None)), ((None, 0), (None, 0.0)),
        (np.float32(0.5), (0.5, 0.5)), (-1, (-1.0, -1.0)),
    ],
)  # fmt: skip
def test_layer_scale(given, kept):
    config = ViTConfig(**SMALL, layer_scale=given)
    assert config.layer_scale == kept and config.layer_scales == (kept or (None, None))
    assert dataclasses.replace(config, depth=1).layer_scale == kept


# ---------------------------------------------------------------------------------------------------------- activations
@pytest.mark.parametrize("form, activation", [("tanh", "gelu_tanh"), ("erf", "gelu_erf")])
def test_gelu_is_another_name_of_two_activations(form, activation):
    config = ViTConfig(**SMALL, gelu=form)
    assert config == ViTConfig(**SMALL, activation=activation) and config.gelu == form
    assert ViTConfig.variant("S/16", gelu=form).activation == activation
    with pytest.raises(AttributeError):
        config.gelu = "tanh"


def test_gelu_of_other_activations():
    assert ViTConfig(**SMALL).gelu == "tanh" and ViTConfig(**SMALL, activation="silu").gelu is None
    for wrong in ("relu", None, []):
        with pytest.raises(ValueError, match=re.escape(f"gelu must be one of ('tanh', 'erf'), got {wrong!r}")):
            ViTConfig(**SMALL, gelu=wrong)


# --------------------------------------------------------------------------------------------------------------- tokens
@pytest.mark.parametrize(
    "fields, class_tokens, prefix, rows",
    [
        (dict(), 1, 1, 7),
        (dict(pool="cls_mean"), 1, 1, 7),
        (dict(pool="mean"), 0, 0, 6),
        (dict(pool="map"), 0, 0, 6),
        (dict(pool="mean", class_token=True), 1, 1, 7),
        (dict(class_token=True, pos_tokens="patches"), 1, 1, 6),
        (dict(class_token=3), 3, 3, 9),
        (dict(class_token=0, pool="mean"), 0, 0, 6),
        (dict(dist_token=True), 1, 2, 8),
        (dict(registers=4), 1, 5, 11),
        (dict(registers=4, pos_tokens="patches"), 1, 5, 6),
        (dict(registers=4, pos_tokens="class"), 1, 5, 7),
        (dict(class_token=3, dist_token=True, registers=4, pos_tokens="class"), 3, 8, 10),
        (dict(registers=4, pos_tokens="none"), 1, 5, 0),
        (dict(pool="none", registers=3), 0, 3, 9),
        (dict(pool="mean_all", class_token=True, dist_token=True, registers=3), 1, 5, 11),
    ],
)
def test_tokens(fields, class_tokens, prefix, rows):
    config = ViTConfig(**SMALL, **fields)
    assert (config.class_tokens, config.prefix_tokens, config.pos_rows) == (class_tokens, prefix, rows)
    assert config.tokens == prefix + 6
    assert config.pos_prefix == max(rows - 6, 0)


def test_the_class_token_follows_the_pooling_unless_it_is_given():
    """As `dataclasses.replace` shows, which passes every field on."""
    config = ViTConfig(**SMALL)
    assert not dataclasses.replace(config, pool="mean").class_tokens
    assert dataclasses.replace(config, class_token=True, pool="mean").class_tokens == 1


# -------------------------------------------------------------------------------------- options of published models
@pytest.mark.parametrize("given, kept", [(4, 4), ((4, 4), 4), ([2, 4], (2, 4)), ((np.int64(8), 12), (8, 12))])
def test_a_patch_has_one_side_or_two(given, kept):
    config = ViTConfig(**{**SMALL, "patch_size": given})
    assert config.patch_size == kept and config.patch == (kept if isinstance(kept, tuple) else (kept, kept))
    assert config.grid == (8 // config.patch[0], 12 // config.patch[1])
    assert config.patches == config.grid[0] * config.grid[1]
    assert config.patch_features == 2 * config.patch[0] * config.patch[1]
    assert hash(config) == hash(ViTConfig(**{**SMALL, "patch_size": kept}))


@pytest.mark.parametrize("bias", [True, False])
def test_each_bias_is_that_of_all_unless_it_is_given(bias):
    config = ViTConfig(**SMALL, bias=bias)
    for name in ("patch", "proj", "mlp", "pool", "head"):
        assert config.has_bias(name) is bias
        for own in (True, False):
            assert dataclasses.replace(config, **{f"{name}_bias": own}).has_bias(name) is own
    assert config.qkv_biases == (bias,) * 3
    assert dataclasses.replace(config, qkv_bias=not bias).qkv_biases == (not bias,) * 3
    assert dataclasses.replace(config, qkv_bias=[True, False, True]).qkv_biases == (True, False, True)


@pytest.mark.parametrize(
    "fields, pooled, features",
    [
        (dict(), 12, 12), (dict(pool="map"), 12, 12), (dict(pool="cls_mean"), 24, 24), (dict(classes=0), 12, 12),
        (dict(dist_token=True, dist_head=True), 24, 24), (dict(pool="cls_mean", pre_logits=7), 24, 7),
        (dict(pool="none"), 12, 12),
    ],
)  # fmt: skip
def test_widths_behind_the_pooling(fields, pooled, features):
    config = ViTConfig(**{**SMALL, **fields})
    assert (config.pooled_width, config.feature_width) == (pooled, features)


def test_a_rope_is_kept_and_compared_by_its_values():
    config = ViTConfig(**SMALL, rope=Rope(reference=[16, np.int64(16)]))
    assert config.rope == Rope(reference=(16, 16)) and hash(config) == hash(dataclasses.replace(config))
    assert config != dataclasses.replace(config, rope=None) != dataclasses.replace(config, rope=Rope("centred"))
