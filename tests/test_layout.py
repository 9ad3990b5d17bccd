"""cvit.model.parts and cvit.model.layout: the rows of a configuration, their columns, and what is derived from them."""

import dataclasses
import math

import numpy as np
import pytest

from cvit.model.config import ViTConfig
from cvit.model.initialize import draw, init_weights
from cvit.model.layout import Layout
from cvit.model.parts import LECUN, ONE, XAVIER, ZERO, Init, Kind, Law, Place, Role, Tensor, parts, rows

S16 = ViTConfig.variant("S/16")
SMALL = ViTConfig(image_size=(8, 12), patch_size=4, channels=2, width=12, depth=2, heads=3, hidden=20, classes=5)
PLAIN = ViTConfig.plain(image_size=(8, 12), patch_size=4, channels=2, width=12, depth=2, heads=3, classes=5)


def row(name, shape, role, init, flax=None):
    return Tensor(name, shape, role, False, init, None, 0, flax or Place(name), (Place(name),))


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
            assert entry.row.timm_names() == (name,) and entry.row.block == 1
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
    arrays = {name: shape for name, (shape, _) in timm_arrays(TOKENS).items()}
    assert arrays["dist_token"] == (1, 1, 12) and arrays["reg_token"] == (1, 3, 12)
    assert arrays["pos_embed"] == (1, 11, 12)
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


def test_timm_has_a_gated_mlp_packed_or_split():
    """GluMlp with the gate before the values (SwiGLUPacked), and SwiGLU (timm/layers/mlp.py)."""
    arrays = timm_arrays(GATED)
    for leaf, shape in (("weight", (40, 12)), ("bias", (40,))):
        name = f"blocks.0.mlp.fc1.{leaf}"
        assert arrays[name] == (shape, {0: f"blocks.0.mlp.fc1_gate.{leaf}", 1: name})
    tensors = {tensor.name: tensor for tensor in rows(GATED)}
    for name, split in (("fc1_gate", "fc1_g"), ("fc1", "fc1_x")):
        tensor = tensors[f"blocks.0.mlp.{name}.weight"]
        assert tensor.timm_names()[1] == f"blocks.0.mlp.{split}.weight"
        assert tensor.timm[1].shape_there(tensor.shape) == (20, 12)


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
    assert {tensor.init for tensor in rows(config)} == {
        ZERO,
        ONE,
        XAVIER,
        LECUN,
        (Law.NORMAL, 0.02),
        (Law.NORMAL, 1e-6),
    }


# ----------------------------------------------------------------------------------------------- places elsewhere: timm
def timm_arrays(config):
    """{name of the array in a state dict: (its shape, {index of the slice: cvit's name})}, by the first places."""
    arrays: dict = {}
    for tensor in rows(config):
        place, name = tensor.timm[0], tensor.timm_names()[0]
        shape, slices = arrays.setdefault(name, (place.shape_there(tensor.shape), {}))
        assert shape == place.shape_there(tensor.shape)
        assert place.index not in slices
        slices[place.index] = tensor.name
    return arrays


def test_timm_names_shapes_and_slices_of_a_small_vit():
    """The state dict of timm's vit_small_patch16_224 (timm/models/vision_transformer.py), written out."""
    D, F = 384, 1536
    block = {
        "norm1.weight": (D,), "norm1.bias": (D,), "attn.qkv.weight": (3 * D, D), "attn.qkv.bias": (3 * D,),
        "attn.proj.weight": (D, D), "attn.proj.bias": (D,), "norm2.weight": (D,), "norm2.bias": (D,),
        "mlp.fc1.weight": (F, D), "mlp.fc1.bias": (F,), "mlp.fc2.weight": (D, F), "mlp.fc2.bias": (D,),
    }  # fmt: skip
    expected = {
        "cls_token": (1, 1, D), "pos_embed": (1, 197, D),
        "patch_embed.proj.weight": (D, 3, 16, 16), "patch_embed.proj.bias": (D,),
        **{f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()},
        "norm.weight": (D,), "norm.bias": (D,), "head.weight": (1000, D), "head.bias": (1000,),
    }  # fmt: skip
    arrays = timm_arrays(S16)
    assert {name: shape for name, (shape, _) in arrays.items()} == expected
    for name, (_, slices) in arrays.items():
        leaf = name.rpartition(".")[2]
        if ".qkv." in name:
            block = name.partition(".attn.")[0]
            assert slices == {i: f"{block}.attn.{part}.{leaf}" for i, part in enumerate("qkv")}
        else:
            own = {"patch_embed.proj.weight": "patch_embed.weight", "patch_embed.proj.bias": "patch_embed.bias"}
            assert slices == {0: own.get(name, name)}


@pytest.mark.parametrize("config", [SMALL, PLAIN, TOKENS, GATED])
def test_tensors_go_to_their_places_and_back(config):
    rng = np.random.default_rng(0)
    for tensor in rows(config):
        array = rng.normal(size=tensor.shape)
        for place in (tensor.flax, *tensor.timm):
            whole = rng.normal(size=place.shape_there(tensor.shape))
            length = len(whole) // place.count
            whole[place.index * length : (place.index + 1) * length] = place.there(array)
            np.testing.assert_array_equal(place.here(whole, tensor.shape), array)


def test_a_patch_matrix_is_timm_s_convolution_and_a_matrix_its_transpose():
    tensors = {tensor.name: tensor for tensor in rows(SMALL)}
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(12, 2, 4, 4))
    patch = rng.normal(size=(2, 4, 4))
    matrix = tensors["patch_embed.weight"].timm[0].here(kernel, (32, 12))
    np.testing.assert_allclose(patch.ravel() @ matrix, np.einsum("dcij,cij->d", kernel, patch), rtol=1e-12)

    packed = rng.normal(size=(36, 12))
    key = tensors["blocks.0.attn.k.weight"].timm[0].here(packed, (12, 12))
    np.testing.assert_array_equal(key, packed[12:24].T)


# ----------------------------------------------------------------------------------------------------------------- pack
def test_errors_name_few_names_and_each_in_short():
    with pytest.raises(ValueError, match=r"tensors lacks blocks.0.attn.k.bias, .* and 32 more") as caught:
        Layout.of(SMALL).pack({})
    assert len(str(caught.value)) < 1000
    tensors = Layout.of(SMALL).views(init_weights(SMALL))
    with pytest.raises(ValueError, match="does not know: xxxx") as caught:
        Layout.of(SMALL).pack({**tensors, "x" * 100_000: 1})
    assert len(str(caught.value)) < 200
