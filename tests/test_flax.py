"""cvit.flax: weights to and from the nested dicts of Flax's parameters."""

import dataclasses

import numpy as np
import pytest
from flax_cases import CASES, flatten, name

from cvit.formats.flax import from_flax, to_flax
from cvit.model.config import ViTConfig
from cvit.model.layout import Layout

CONFIG = ViTConfig(
    image_size=(6, 4), patch_size=2, channels=3, width=8, heads=2, hidden=10, depth=2, classes=5, pool="mean"
)
APIS = ["nnx", "linen"]


def numbered(config, dtype=np.float32):
    """Flat weights of which no two are equal."""
    return np.arange(1, Layout.of(config).size + 1, dtype=dtype)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_round_trip(case, api):
    for dtype in (np.float32, np.float64):
        weights = numbered(case.config, dtype)
        tree = to_flax(weights, case.config, api)
        for back in (from_flax(tree, case.config), from_flax(tree)):
            assert back.dtype == dtype
            np.testing.assert_array_equal(back, weights)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "fields",
    [
        dict(layer_scale=0.1),
        dict(layer_scale=(None, 0.1)),
        dict(layer_scale=(0.1, None)),
        dict(gated=True, hidden=11, bias=False),
        dict(class_token=True),
        dict(pool="cls", dist_token=True, registers=3),
        dict(registers=1, pos_tokens="patches"),
    ],
    ids=str,
)
def test_options(api, fields):
    config = dataclasses.replace(CONFIG, **fields)
    tree = to_flax(numbered(config), config, api)
    for back in (from_flax(tree, config), from_flax(tree)):
        np.testing.assert_array_equal(back, numbered(config))


def test_names_and_shapes():
    tree = to_flax(numbered(CONFIG), CONFIG)
    assert set(tree) == {"patch_embed", "pos_embed", "blocks", "ln_f", "head"} and set(tree["blocks"]) == {0, 1}
    block = tree["blocks"][1]
    assert set(block) == {"ln1", "attn", "ln2", "fc1", "fc2"} and set(block["attn"]) == {"q", "k", "v", "o"}
    assert block["fc1"]["kernel"].shape == (8, 10) and block["ln1"]["scale"].shape == (8,)

    linen = to_flax(numbered(CONFIG), CONFIG, "linen")["params"]
    assert set(linen) == {"patch_embed", "pos_embed", "block_0", "block_1", "ln_f", "head"}
    np.testing.assert_array_equal(linen["block_1"]["attn"]["o"]["bias"], block["attn"]["o"]["bias"])


def test_patch_kernel_order():
    """Flax's kernel is (row, column, channel, out); cvit's rows are ordered (channel, row, column)."""
    weights = numbered(CONFIG)
    kernel = to_flax(weights, CONFIG)["patch_embed"]["kernel"]
    matrix = Layout.of(CONFIG).views(weights)["patch_embed.weight"]
    assert kernel.shape == (2, 2, 3, 8) and kernel.flags.c_contiguous
    np.testing.assert_array_equal(kernel[1, 0, 2], matrix[2 * 4 + 1 * 2 + 0])


def test_to_flax_copies():
    weights = numbered(CONFIG)
    to_flax(weights, CONFIG)["head"]["bias"][:] = 0
    np.testing.assert_array_equal(weights, numbered(CONFIG))


def test_forms_that_from_flax_takes():
    weights = numbered(CONFIG)
    linen = to_flax(weights, CONFIG, "linen")
    np.testing.assert_array_equal(from_flax(linen["params"], CONFIG), weights)

    nnx = to_flax(weights, CONFIG)
    nnx["blocks"] = {str(i): block for i, block in nnx["blocks"].items()}
    np.testing.assert_array_equal(from_flax(nnx, CONFIG), weights)

    class Box:
        def __init__(self, value):
            self.value = value

    def box(tree):
        return {key: box(value) for key, value in tree.items()} if isinstance(tree, dict) else Box(tree)

    np.testing.assert_array_equal(from_flax(box(nnx), CONFIG), weights)

    nnx["head"]["bias"] = nnx["head"]["bias"].astype(np.int64)
    back = from_flax(nnx, CONFIG)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, weights)


def lose_kernel(tree):
    del tree["blocks"][1]["attn"]["q"]["kernel"]


def lose_block(tree):
    del tree["params"]["block_1"]


def add_extra(tree):
    tree["extra"] = np.ones(2)


def shorten_positions(tree):
    tree["pos_embed"] = np.ones((3, 8))


def add_channel(tree):
    tree["params"]["patch_embed"]["kernel"] = np.ones((2, 2, 4, 8))


def put_text(tree):
    tree["head"]["bias"] = np.array(["a"] * 5)


@pytest.mark.parametrize(
    "api, spoil, message",
    [
        ("nnx", lose_kernel, r"params lacks blocks\.1\.attn\.q\.kernel"),
        ("linen", lose_block, r"params lacks block_1\.attn\.k\.bias, "),
        ("nnx", add_extra, "params has what this configuration does not know: extra"),
        ("nnx", shorten_positions, r"pos_embed must have shape \(6, 8\), got \(3, 8\)"),
        ("linen", add_channel, r"patch_embed\.kernel must have shape \(2, 2, 3, 8\), got \(2, 2, 4, 8\)"),
        ("nnx", put_text, r"head\.bias must hold numbers, got <U1"),
        ("nnx", dict.clear, "params lacks blocks"),
    ],
)
def test_bad_params(api, spoil, message):
    tree = to_flax(numbered(CONFIG), CONFIG, api)
    spoil(tree)
    with pytest.raises(ValueError, match=message):
        from_flax(tree, CONFIG)


def test_params_must_be_a_mapping():
    with pytest.raises(TypeError, match="params must be a nested mapping of arrays, got ndarray"):
        from_flax(numbered(CONFIG), CONFIG)


def test_bad_params_without_config():
    tree = to_flax(numbered(CONFIG), CONFIG)
    del tree["head"]
    with pytest.raises(ValueError, match=r"params lacks head\.kernel"):
        from_flax(tree)
    tree = to_flax(numbered(CONFIG), CONFIG)
    tree["pos_embed"] = np.ones(8)
    with pytest.raises(ValueError, match=r"pos_embed must have 2 dimensions, got shape \(8,\)"):
        from_flax(tree)
    tree = to_flax(numbered(CONFIG), CONFIG)
    tree["blocks"][1]["fc2"]["bias"] = np.ones(9)
    with pytest.raises(ValueError, match=r"blocks\.1\.fc2\.bias must have shape \(8,\), got \(9,\)"):
        from_flax(tree)


def test_bad_calls_of_to_flax():
    with pytest.raises(ValueError, match=r"api must be one of .*, got 'haiku'"):
        to_flax(numbered(CONFIG), CONFIG, "haiku")
    with pytest.raises(ValueError, match="weights must have shape"):
        to_flax(np.ones(3), CONFIG)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_live_flax(api, pool):
    """The trees of live modules have exactly `to_flax`'s structure, and go both ways."""
    pytest.importorskip("flax")
    import flax_models
    from flax import nnx

    config = ViTConfig(**{**CONFIG.__dict__, "pool": pool})
    theirs = flax_models.draw(api, config, 0)
    ours = to_flax(from_flax(theirs, config), config, api)
    theirs, ours = flatten(theirs), flatten(ours)
    assert theirs.keys() == ours.keys()
    for path, array in theirs.items():
        np.testing.assert_array_equal(ours[path], array)

    if api == "nnx":
        model = flax_models.NNXViT(config, nnx.Rngs(0))
        state = nnx.state(model)
        nnx.replace_by_pure_dict(state, to_flax(numbered(config), config))
        nnx.update(model, state)
        np.testing.assert_array_equal(from_flax(nnx.state(model), config), numbered(config))
