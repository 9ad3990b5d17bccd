"""cvit.initialize: Flax's weights number for number, recorded and live, and the ViT paper's distributions."""

import pathlib

import numpy as np
import pytest
from flax_cases import CASES, SEEDS, case, name, samples

from cvit.formats.flax import from_flax, to_flax
from cvit.model.config import ViTConfig
from cvit.model.initialize import init_weights
from cvit.model.layout import Layout

RECORDED = np.load(pathlib.Path(__file__).parent / "data" / "flax_models.npz")
SMALL = ViTConfig(image_size=(8, 12), patch_size=4, channels=2, width=16, heads=2, depth=2, classes=5)


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_weights_equal_recorded_flax(case, api):
    weights = init_weights(case.config, case.seed, f"flax-{api}")
    assert weights.dtype == np.float32
    numbers, sums = samples(to_flax(weights, case.config, api))
    np.testing.assert_allclose(numbers, RECORDED[f"{name(case)}.{api}.samples"], rtol=1e-6)
    np.testing.assert_allclose(sums, RECORDED[f"{name(case)}.{api}.sums"], rtol=1e-6)


LIVE = [
    case(seed, size, *sizes, **changes)
    for seed in SEEDS
    for size, sizes, changes in [
        ((3, 5), (1, 1, 6, 3, 5, 1, 2), {}),
        ((16, 34), (4, 16, 12, 2, 9, 1, 7), {}),
        ((8, 8), (3, 4, 8, 2, 8, 2, 3), dict(pool="cls", bias=False)),
        ((8, 8), (3, 4, 8, 2, 8, 2, 3), dict(pool="cls", norm_affine=False)),
    ]
]


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("case", LIVE, ids=name)
def test_weights_equal_live_flax(case, api):
    pytest.importorskip("flax")
    import flax_models

    theirs = from_flax(flax_models.draw(api, case.config, case.seed), case.config)
    np.testing.assert_allclose(init_weights(case.config, case.seed, f"flax-{api}"), theirs, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["flax-nnx", "flax-linen"])
def test_a_class_token_moves_no_other_draw(scheme):
    """But the positions', of which there is one more."""
    config = dict(image_size=8, patch_size=4, width=8, heads=2, depth=1, classes=3)
    cls = Layout.of(ViTConfig(**config, pool="cls")).views(init_weights(ViTConfig(**config, pool="cls"), 1, scheme))
    mean = Layout.of(ViTConfig(**config, pool="mean")).views(init_weights(ViTConfig(**config, pool="mean"), 1, scheme))
    assert not cls.pop("cls_token").any()
    np.testing.assert_array_equal(cls["pos_embed"][: len(mean["pos_embed"])], mean["pos_embed"])
    for part, tensor in mean.items():
        if part != "pos_embed":
            np.testing.assert_array_equal(cls[part], tensor)


def test_linen_kernels_do_not_depend_on_biases():
    """Linen's key comes from the module's path; NNX counts parameters, so that there the kernels move."""
    config = dict(image_size=8, patch_size=4, width=8, heads=2, depth=1, classes=3, pool="mean")
    for scheme, same in [("flax-linen", True), ("flax-nnx", False)]:
        heads = []
        for bias in (True, False):
            c = ViTConfig(**config, bias=bias)
            heads.append(Layout.of(c).views(init_weights(c, 1, scheme))["head.weight"])
        assert np.array_equal(*heads) is same


# ------------------------------------------------------------------------------------------------------------ "vit"
def test_vit_distributions():
    config = ViTConfig(image_size=64, patch_size=8, channels=3, width=192, heads=3, depth=2, classes=10)
    tensors = Layout.of(config).views(init_weights(config, 0))
    D, F = config.width, config.hidden

    fans_of = {**dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.proj"), 2 * D), "mlp.fc1": D + F, "mlp.fc2": D + F}
    for part, fans in fans_of.items():
        weight, bound = tensors[f"blocks.1.{part}.weight"], np.sqrt(6 / fans)
        assert 0.99 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)
        assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)

    patch = tensors["patch_embed.weight"]
    std = 1 / np.sqrt(config.patch_features)
    assert patch.std() == pytest.approx(std, rel=0.02)
    assert np.abs(patch).max() == pytest.approx(2 / 0.8796 * std, rel=0.01)  # cut at 2 before it was scaled

    assert tensors["pos_embed"].std() == pytest.approx(0.02, rel=0.05)
    assert tensors["blocks.0.mlp.fc1.bias"].std() == pytest.approx(1e-6, rel=0.1)
    assert tensors["blocks.0.mlp.fc2.bias"].any()
    for part in ("norm.weight", "blocks.0.norm1.weight", "blocks.1.norm2.weight"):
        assert np.all(tensors[part] == 1)
    zeros = ("cls_token", "patch_embed.bias", "head.weight", "head.bias", "norm.bias")
    for part in (*zeros, "blocks.0.norm1.bias", "blocks.0.attn.q.bias", "blocks.1.attn.proj.bias"):
        assert not tensors[part].any()


# ---------------------------------------------------------------------------------------------------- every scheme
@pytest.mark.parametrize("scheme", ["vit", "flax-nnx", "flax-linen"])
def test_seeds_and_dtypes(scheme):
    weights = init_weights(SMALL, 3, scheme)
    assert weights.shape == (Layout.of(SMALL).size,) and weights.dtype == np.float32
    np.testing.assert_array_equal(init_weights(SMALL, 3.0, scheme), weights)
    assert not np.array_equal(init_weights(SMALL, 4, scheme), weights)

    wide = init_weights(SMALL, 3, scheme, np.float64)
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide.astype(np.float32), weights)


def test_plain_architecture():
    config = ViTConfig.plain(image_size=8, patch_size=4, width=8, heads=2, depth=2, classes=3)
    for scheme in ("vit", "flax-nnx", "flax-linen"):
        assert init_weights(config, 0, scheme).shape == (Layout.of(config).size,)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(scheme="flax"), ValueError, "scheme must be one of .*'flax-nnx'.*, got 'flax'"),
        (dict(scheme=None), ValueError, "scheme must be one of"),
        (dict(dtype=np.float16), ValueError, "dtype must be float32 or float64, got float16"),
        (dict(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (dict(seed=0.5), ValueError, "seed must be a whole number, got 0.5"),
        (dict(seed=2**63, scheme="flax-nnx"), ValueError, "seed must be less than"),
        (dict(seed="0", scheme="flax-linen"), (TypeError, ValueError), "seed must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        init_weights(SMALL, **arguments)
