"""cvit.model.parts and cvit.model.layout: the rows of a configuration, their columns, and what is derived from them."""

import dataclasses
import math
import re

import numpy as np
import pytest

from cvit.model.blocks import block, parts, rows
from cvit.model.config import ViTConfig
from cvit.model.initialize import draw, init_weights
from cvit.model.layout import Layout
from cvit.model.parts import LECUN, ONE, XAVIER, ZERO, Init, Kind, Law, Place, Role, Tensor
from cvit.model.rope import Rope

S16 = ViTConfig.variant("S/16")
SMALL = ViTConfig(image_size=(8, 12), patch_size=4, channels=2, width=12, depth=2, heads=3, hidden=20, classes=5)
PLAIN = ViTConfig.plain(image_size=(8, 12), patch_size=4, channels=2, width=12, depth=2, heads=3, classes=5)


def row(name, shape, role, init, flax=None):
    return Tensor(name, shape, role, False, init, None, 0, flax or Place(name))


# ----------------------------------------------------------------------------------------------------------- the layout
def test_the_table_of_a_small_model():
    """Names, shapes and their order: changing any of it would read saved models wrongly."""
    block = [
        ("norm1.weight", (12,)), ("norm1.bias", (12,)),
        ("attn.q.weight", (12, 12)), ("attn.q.bias", (12,)), ("attn.k.weight", (12, 12)), ("attn.k.bias", (12,)),
        ("attn.v.weight", (12, 12)), ("attn.v.bias", (12,)), ("attn.proj.weight", (12, 12)), ("attn.proj.bias", (12,)),
        ("norm2.weight", (12,)), ("norm2.bias", (12,)),
        ("mlp.fc1.weight", (12, 20)), ("mlp.fc1.bias", (20,)), ("mlp.fc2.weight", (20, 12)), ("mlp.fc2.bias", (12,)),
    ]  # fmt: skip
    expected = [
        ("patch_embed.weight", (32, 12)), ("patch_embed.bias", (12,)), ("cls_token", (12,)), ("pos_embed", (7, 12)),
        *[(f"blocks.{i}.{name}", shape) for i in (0, 1) for name, shape in block],
        ("norm.weight", (12,)), ("norm.bias", (12,)), ("head.weight", (12, 5)), ("head.bias", (5,)),
    ]  # fmt: skip
    entries = list(Layout.of(SMALL).entries.values())
    assert [(entry.name, entry.shape) for entry in entries] == expected
    assert [entry.offset for entry in entries] == [0, *np.cumsum([entry.size for entry in entries])[:-1]]
    assert Layout.of(SMALL).size == sum(math.prod(shape) for _, shape in expected)
    assert [entry.name for entry in entries if entry.decay] == [
        name for name, shape in expected if len(shape) == 2 and name != "pos_embed"
    ]


def test_the_plain_architecture_is_the_five_arrays():
    """`pack_weights` concatenates them in this order."""
    assert [entry.shape for entry in Layout.of(PLAIN).entries.values()] == [
        (32, 12), (12,), (7, 12), *[(12, 12)] * 12, (12, 5)
    ]  # fmt: skip


@pytest.mark.parametrize("config", [SMALL, PLAIN, dataclasses.replace(SMALL, depth=0)])
def test_blocks_and_layers(config):
    for tensor in rows(config):
        if tensor.name.startswith("blocks."):
            index = int(tensor.name.split(".")[1])
            assert (tensor.block, tensor.layer) == (index, index + 1)
        else:
            last = tensor.name.startswith(("norm", "head"))
            assert (tensor.block, tensor.layer) == (None, config.depth + 1 if last else 0)


@pytest.mark.parametrize("config", [SMALL, PLAIN, dataclasses.replace(SMALL, depth=0, dist_token=True, dist_head=True)])
def test_pieces_are_what_is_trained_the_last_block_first(config):
    layout = Layout.of(config)
    for first in (None, *range(config.depth + 1), "head"):
        layers = [
            {entry.row.layer for entry in layout.entries.values() if piece.start <= entry.offset < piece.stop}
            for piece in layout.pieces(first)
        ]
        blocks = [] if first == "head" else [{i} for i in range(config.depth, first or 0, -1)]
        assert layers == [*blocks, *([{0}] if first is None else []), {config.depth + 1}]
        trained = min(piece.start for piece in layout.pieces(first))
        assert sum(piece.stop - piece.start for piece in layout.pieces(first)) == layout.size - trained
    assert Layout.of(SMALL).pieces("head") == [slice(layout.offset("head.weight"), layout.size)] or config != SMALL


def test_roles():
    roles = {tensor.name: tensor.role for tensor in rows(SMALL)}
    assert roles["patch_embed.weight"] is Role.PATCH_MATRIX and roles["patch_embed.bias"] is Role.BIAS
    assert roles["cls_token"] is Role.TOKEN and roles["pos_embed"] is Role.POSITION
    assert roles["blocks.1.norm2.weight"] is roles["norm.weight"] is Role.SCALE
    assert roles["blocks.1.norm2.bias"] is roles["norm.bias"] is Role.SHIFT
    for name in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert roles[f"blocks.0.{name}.weight"] is Role.MATRIX and roles[f"blocks.0.{name}.bias"] is Role.BIAS
    assert roles["head.weight"] is Role.MATRIX and roles["head.bias"] is Role.BIAS
    assert all(Layout.of(SMALL).entries[name].role is role for name, role in roles.items())


@pytest.mark.parametrize("branches", [(0.1, 1e-5), (0.1, None), (None, 1e-5)])
def test_layer_scales_stand_behind_the_last_linear_layer_of_their_branch(branches):
    config = dataclasses.replace(SMALL, layer_scale=branches)
    entries = Layout.of(config).entries
    names = list(entries)
    with_scales = Layout.of(SMALL).entries.keys() | {
        f"blocks.{i}.ls{branch + 1}.gamma" for i in (0, 1) for branch in (0, 1) if branches[branch] is not None
    }
    assert entries.keys() == with_scales
    for branch, before in enumerate(("attn.proj.bias", "mlp.fc2.bias")):
        if branches[branch] is not None:
            name = f"blocks.1.ls{branch + 1}.gamma"
            entry = entries[name]
            assert names[names.index(name) - 1] == f"blocks.1.{before}"
            assert (entry.shape, entry.decay, entry.role) == ((12,), False, Role.GAMMA)
            assert entry.row.block == 1
            for scheme in ("vit", "flax-nnx", "flax-linen"):
                views = Layout.of(config).views(init_weights(config, 0, scheme, np.float64))
                np.testing.assert_array_equal(views[name], branches[branch])
    assert config.forward_flops() == SMALL.forward_flops()


@pytest.mark.parametrize("scheme", ["vit", "flax-nnx", "flax-linen"])
def test_layer_scales_move_no_other_draw(scheme):
    config = dataclasses.replace(SMALL, layer_scale=0.1)
    views = Layout.of(config).views(init_weights(config, 0, scheme))
    for name, tensor in Layout.of(SMALL).views(init_weights(SMALL, 0, scheme)).items():
        np.testing.assert_array_equal(views[name], tensor)


TOKENS = dataclasses.replace(SMALL, dist_token=True, registers=3)


def test_tokens_stand_before_the_positions_in_the_order_of_the_sequence():
    entries = list(Layout.of(TOKENS).entries.values())[2:6]
    assert [(entry.name, entry.shape) for entry in entries] == [
        ("cls_token", (12,)), ("dist_token", (12,)), ("reg_token", (3, 12)), ("pos_embed", (11, 12))
    ]  # fmt: skip
    assert [entry.role for entry in entries] == [Role.TOKEN] * 3 + [Role.POSITION]
    assert not any(entry.decay for entry in entries)
    patches = dataclasses.replace(TOKENS, pos_tokens="patches")
    assert Layout.of(patches).entries["pos_embed"].shape == (6, 12)
    without = dataclasses.replace(TOKENS, pool="mean", dist_token=False, registers=0)
    assert list(Layout.of(without).entries)[2] == "pos_embed"


def test_every_token_has_a_head_without_pooling():
    config = dataclasses.replace(SMALL, pool="none")
    assert config.forward_flops() == dataclasses.replace(SMALL, pool="mean").forward_flops() + 2 * 5 * 12 * 5


@pytest.mark.parametrize("scheme", ["vit", "flax-nnx", "flax-linen"])
def test_no_two_tokens_start_equal(scheme):
    """Tokens that start equal and have no positions of their own get equal gradients, and stay equal."""
    tensors = Layout.of(TOKENS).views(init_weights(TOKENS, 0, scheme))
    tokens = np.concatenate([tensors["cls_token"][None], tensors["dist_token"][None], tensors["reg_token"]])
    assert len(np.unique(tokens, axis=0)) == 5 and not tokens[0].any()
    assert np.abs(tokens[1]).max() > 1e-3 > 1e-5 > np.abs(tokens[2:]).max()


@pytest.mark.parametrize("scheme", ["flax-nnx", "flax-linen"])
def test_tokens_move_no_draw_of_flax_s_own_parameters(scheme):
    tokens = Layout.of(TOKENS).views(init_weights(TOKENS, 0, scheme))
    for name, tensor in Layout.of(SMALL).views(init_weights(SMALL, 0, scheme)).items():
        np.testing.assert_array_equal(tokens[name][: len(tensor)], tensor)


GATED = dataclasses.replace(SMALL, gated=True, activation="silu")


def test_a_gate_stands_before_the_values():
    names = [name for name in Layout.of(GATED).entries if name.startswith("blocks.1.mlp.")]
    layers = [f"blocks.1.mlp.{name}" for name in ("fc1_gate", "fc1", "fc2")]
    assert names == [f"{name}.{leaf}" for name in layers for leaf in ("weight", "bias")]
    gate = Layout.of(GATED).entries["blocks.1.mlp.fc1_gate.weight"]
    assert (gate.shape, gate.role, gate.decay, gate.row.init) == ((12, 20), Role.MATRIX, True, XAVIER)
    assert GATED.forward_flops() == SMALL.forward_flops() + 2 * 2 * 7 * 12 * 20


# ------------------------------------------------------------------------------------------------------------ the parts
def test_a_block_in_order():
    names = [(part.name, part.kind) for part in parts(SMALL) if part.name.startswith("blocks.1.")]
    assert names == [
        ("blocks.1.norm1", Kind.NORM),
        ("blocks.1.attn.q", Kind.LINEAR), ("blocks.1.attn.k", Kind.LINEAR), ("blocks.1.attn.v", Kind.LINEAR),
        ("blocks.1.attn", Kind.ATTENTION), ("blocks.1.attn.proj", Kind.LINEAR),
        ("blocks.1.norm2", Kind.NORM),
        ("blocks.1.mlp.fc1", Kind.LINEAR), ("blocks.1.mlp.act", Kind.ACTIVATION), ("blocks.1.mlp.fc2", Kind.LINEAR),
    ]  # fmt: skip


@pytest.mark.parametrize("config", [S16, SMALL, PLAIN, dataclasses.replace(SMALL, depth=0, pool="mean")])
def test_forward_flops(config):
    """Against the sum written out: a multiply-add is two operations."""
    T, D, F = config.tokens, config.width, config.hidden
    block = T * (4 * D * D + 2 * D * F) + 2 * T * T * D
    macs = config.patches * config.patch_features * D + config.depth * block + D * config.classes
    assert config.forward_flops() == 2 * macs == 2 * sum(part.macs for part in parts(config))
    assert config.forward_flops(3) == 6 * macs


def test_forward_flops_of_a_model_too_deep_to_list():
    assert ViTConfig(depth=10**12).forward_flops() > 10**12


# ------------------------------------------------------------------------------------------ options of published models
def shapes(prefix, **changes):
    """Names without `prefix`, and shapes, of the tensors whose names begin with it."""
    entries = Layout.of(dataclasses.replace(SMALL, **changes)).entries.values()
    return {entry.name[len(prefix) :]: entry.shape for entry in entries if entry.name.startswith(prefix)}


def added(**changes):
    """Names of the tensors that a change of SMALL brings, without the second block's, and of those it takes."""
    before, after = (
        [name for name in Layout.of(config).entries if not name.startswith("blocks.1.")]
        for config in (SMALL, dataclasses.replace(SMALL, **changes))
    )
    return [name for name in after if name not in before], [name for name in before if name not in after]


MAP = [
    f"pool.{name}"
    for name in (
        "latent",
        "q.weight",
        "q.bias",
        "k.weight",
        "k.bias",
        "v.weight",
        "v.bias",
        "proj.weight",
        "proj.bias",
        "norm.weight",
        "norm.bias",
        "fc1.weight",
        "fc1.bias",
        "fc2.weight",
        "fc2.bias",
    )
]
SHIFTS = ["blocks.0.norm1.bias", "blocks.0.norm2.bias", "norm.bias"]


@pytest.mark.parametrize(
    "changes, new, gone",
    [
        (dict(patch_norm=True), ["patch_norm.weight", "patch_norm.bias"], []),
        (dict(pre_norm=True), ["norm_pre.weight", "norm_pre.bias"], []),
        (dict(pos_tokens="none"), [], ["pos_embed"]),
        (dict(norm="rms"), [], SHIFTS),
        (dict(qk_norm=True), [f"blocks.0.attn.{n}_norm.{leaf}" for n in "qk" for leaf in ("weight", "bias")], []),
        (dict(qk_norm=True, norm="rms"), ["blocks.0.attn.q_norm.weight", "blocks.0.attn.k_norm.weight"], SHIFTS),
        (dict(attn_norm=True), ["blocks.0.attn.norm.weight", "blocks.0.attn.norm.bias"], []),
        (dict(mlp_norm=True), ["blocks.0.mlp.norm.weight", "blocks.0.mlp.norm.bias"], []),
        (dict(rope=Rope()), [], []),
        (dict(rope=Rope("mixed")), ["blocks.0.attn.rope"], []),
        (dict(block="post"), [], []),
        (dict(block="parallel"), [], ["blocks.0.norm2.weight", "blocks.0.norm2.bias"]),
        (dict(fc_norm=True, final_norm=False), ["fc_norm.weight", "fc_norm.bias"], ["norm.weight", "norm.bias"]),
        (dict(pre_logits=7), ["pre_logits.weight", "pre_logits.bias"], []),
        (dict(dist_token=True, dist_head=True), ["dist_token", "head_dist.weight", "head_dist.bias"], []),
        (dict(classes=0), [], ["head.weight", "head.bias"]),
        (dict(pool="map"), MAP, ["cls_token"]),
        (dict(pool="map", pool_hidden=-1), MAP[:9], ["cls_token"]),
        (dict(pool="map", pool_query=False, pool_bias=False, pool_hidden=-1), [MAP[i] for i in (0, 3, 5, 7, 8)],
            ["cls_token"]),
        (dict(patch_bias=False), [], ["patch_embed.bias"]),
        (dict(head_bias=False), [], ["head.bias"]),
        (dict(proj_bias=False), [], ["blocks.0.attn.proj.bias"]),
        (dict(mlp_bias=False), [], ["blocks.0.mlp.fc1.bias", "blocks.0.mlp.fc2.bias"]),
        (dict(qkv_bias=(True, False, True)), [], ["blocks.0.attn.k.bias"]),
    ],
    ids=str,
)  # fmt: skip
def test_tensors_that_an_option_brings_and_takes(changes, new, gone):
    assert added(**changes) == (new, gone)


def test_the_second_of_a_pair_has_the_first_one_s_tensors_with_another_name():
    pairs = shapes("blocks.1.", block="pairs", layer_scale=0.1)
    single = shapes("blocks.1.", layer_scale=0.1)
    second = {re.sub(r"^(attn|mlp|norm1|norm2|ls1|ls2)\b", r"\1_2", name): shape for name, shape in single.items()}
    assert pairs == {**single, **second} and len(pairs) == 2 * len(single)


@pytest.mark.parametrize(
    "changes, name, shape",
    [
        (dict(class_token=3), "cls_token", (3, 12)),
        (dict(class_token=3, registers=4, pos_tokens="class"), "pos_embed", (9, 12)),
        (dict(patch_size=(2, 3)), "patch_embed.weight", (12, 12)),
        (dict(qk_norm=True), "blocks.1.attn.q_norm.weight", (4,)),
        (dict(mlp_norm=True), "blocks.1.mlp.norm.weight", (20,)),
        (dict(rope=Rope("mixed")), "blocks.1.attn.rope", (2, 3, 2)),
        (dict(pool="cls_mean"), "head.weight", (24, 5)),
        (dict(pool="cls_mean", fc_norm=True), "fc_norm.weight", (24,)),
        (dict(pool="cls_mean", pre_logits=7), "pre_logits.weight", (24, 7)),
        (dict(pre_logits=7), "head.weight", (7, 5)),
        (dict(dist_token=True, dist_head=True), "head_dist.weight", (12, 5)),
        (dict(pool="map", pool_hidden=31), "pool.fc1.weight", (12, 31)),
        (dict(pool="map"), "pool.latent", (12,)),
    ],
)
def test_shapes(changes, name, shape):
    assert shapes("", **changes)[name] == shape


@pytest.mark.parametrize("scheme", ["vit", "flax-nnx", "flax-linen"])
def test_frequencies_start_as_axes_turned_by_each_head(scheme):
    """RoPE-ViT's: pair j of the first half has the two axes' (cos t, sin t) times 10^(-2 j / 2), t each head's own."""
    config = dataclasses.replace(SMALL, width=24, rope=Rope("mixed", theta=10.0))
    entry = Layout.of(config).entries["blocks.0.attn.rope"]
    assert (entry.role, entry.decay, entry.shape) == (Role.FREQUENCY, False, (2, 3, 4))
    tensors = Layout.of(config).views(init_weights(config, 0, scheme, np.float64))
    first, second = tensors["blocks.0.attn.rope"], tensors["blocks.1.attn.rope"]
    np.testing.assert_allclose(np.hypot(*first), np.tile([1, 10**-0.5, 1, 10**-0.5], (3, 1)), rtol=1e-6)
    turn = np.arctan2(first[1], first[0])
    np.testing.assert_allclose(np.cos(turn[:, 2:] - turn[:, :2]), 0, atol=1e-6)
    assert len(np.unique(turn[:, 0].round(3))) == 3 and not np.allclose(first, second)


@pytest.mark.parametrize("changes", [dict(block="pairs"), dict(block="parallel"), dict(block="post"), dict(pool="map")])
def test_macs_of_the_options(changes):
    """Against the sum written out."""
    config = dataclasses.replace(SMALL, **changes)
    T, D, F = config.tokens, config.width, config.hidden
    one = T * (4 * D * D + 2 * D * F) + 2 * T * T * D
    total = config.patches * config.patch_features * D + D * config.classes
    total += config.depth * one * (2 if config.block == "pairs" else 1)
    if config.pool == "map":
        total += 2 * D * D + 2 * T * D * D + 2 * T * D + 2 * D * F
    assert config.forward_flops() == 2 * total
    assert sum(part.macs for part in block(config, 0)) == one * (2 if config.block == "pairs" else 1)


# ---------------------------------------------------------------------------------------- initialisation by the columns
TRAPS = [
    row("blocks.0.attn.q_norm.weight", (4,), Role.SCALE, ONE),
    row("fc_norm.weight", (4,), Role.SCALE, ONE),
    row("blocks.0.ls1.gamma", (4,), Role.GAMMA, Init(Law.CONSTANT, 1e-4)),
    row("blocks.0.norm.mlp.weight", (4,), Role.SHIFT, ZERO),
    row("blocks.0.mlp.weight", (4,), Role.BIAS, ZERO),
]


@pytest.mark.parametrize("scheme", ["vit", "flax-nnx", "flax-linen"])
def test_a_tensor_is_drawn_by_its_role_whatever_its_name(scheme):
    arrays = [np.zeros(tensor.shape) for tensor in TRAPS]
    draw(scheme, 0, list(zip(TRAPS, arrays)))
    for array, value in zip(arrays, [1, 1, 1e-4, 0, 0]):
        np.testing.assert_array_equal(array, value)


@pytest.mark.parametrize("scheme", ["vit", "flax-nnx", "flax-linen"])
def test_a_matrix_is_drawn_as_one_whatever_its_name(scheme):
    place = Place("norm1.scale")
    matrices = [row(name, (200, 300), Role.MATRIX, XAVIER, place) for name in ("norm1.weight", "pos_embed", "mlp.bias")]
    for matrix in matrices:
        array = np.zeros(matrix.shape)
        draw(scheme, 0, [(matrix, array)])
        assert array.std() == pytest.approx(math.sqrt(2 / 500) if scheme == "vit" else math.sqrt(1 / 200), rel=0.02)


def test_laws():
    config = dataclasses.replace(SMALL, width=192, hidden=256)
    for tensor in rows(config):
        array = np.zeros(tensor.shape)
        draw("vit", 5, [(tensor, array)])
        match tensor.init:
            case Init(Law.CONSTANT, value):
                assert (array == value).all()
            case Init(Law.NORMAL, value):
                assert array.std() == pytest.approx(value, rel=0.2)
            case _:
                assert array.std() > 0
    laws = {ZERO, ONE, XAVIER, LECUN, (Law.NORMAL, 0.02), (Law.NORMAL, 1e-6)}
    assert {tensor.init for tensor in rows(config)} == laws


# ----------------------------------------------------------------------------------------------- places elsewhere: Flax
@pytest.mark.parametrize("config", [SMALL, PLAIN, TOKENS, GATED])
def test_tensors_go_to_their_places_and_back(config):
    rng = np.random.default_rng(0)
    for tensor in rows(config):
        array = rng.normal(size=tensor.shape)
        place = tensor.flax
        whole = rng.normal(size=place.shape_there(tensor.shape))
        length = len(whole) // place.count
        whole[place.index * length : (place.index + 1) * length] = place.there(array)
        np.testing.assert_array_equal(place.here(whole, tensor.shape), array)


def test_a_place_may_be_a_slice_and_an_order_of_axes():
    """As other libraries have it: q, k and v packed and transposed, a patch matrix as a convolution."""
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(12, 2, 4, 3)), rng.normal(size=(2, 4, 3))
    matrix = Place("conv", (2, 4, 3, 12), (3, 0, 1, 2)).here(kernel, (24, 12))
    np.testing.assert_allclose(patch.ravel() @ matrix, np.einsum("dcij,cij->d", kernel, patch), rtol=1e-12)

    packed = rng.normal(size=(36, 12))
    place = Place("qkv", None, (1, 0), 1, 3)
    assert place.shape_there((12, 12)) == (36, 12)
    np.testing.assert_array_equal(place.here(packed, (12, 12)), packed[12:24].T)
    np.testing.assert_array_equal(place.there(packed[12:24].T), packed[12:24])


# ----------------------------------------------------------------------------------------------------------------- pack
def test_errors_name_few_names_and_each_in_short():
    with pytest.raises(ValueError, match=r"tensors lacks blocks.0.attn.k.bias, .* and 32 more") as caught:
        Layout.of(SMALL).pack({})
    assert len(str(caught.value)) < 1000
    tensors = Layout.of(SMALL).views(init_weights(SMALL))
    with pytest.raises(ValueError, match="does not know: xxxx") as caught:
        Layout.of(SMALL).pack({**tensors, "x" * 100_000: 1})
    assert len(str(caught.value)) < 200
