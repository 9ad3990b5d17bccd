"""Attention maps: the softmax probabilities of every head, which the engine never stores."""

import re

import numpy as np
import pytest
import reference as ref
from checks import assert_close, on_all_threads, peer, same_bits
from option_cases import OPTIONS, problem

from cvit import Layout, ViT, ViTConfig
from cvit.model import vit


@pytest.mark.parametrize("name", OPTIONS)
def test_maps_are_the_references(name):
    config, weights, x, _ = problem(OPTIONS[name])
    expected = ref.attention_maps(config, Layout.of(config).views(weights), x)
    maps = ViT(config, weights).attention(x)
    assert_close(maps, expected, 1e-12, name="maps", floor=1)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-14)
    narrow = ViT(config, weights.astype(np.float32)).attention(x.astype(np.float32))
    assert narrow.dtype == np.float32
    if "one token" not in name:  # whose norms of nearly nothing multiply rounding; the maps are 1 in any case
        assert_close(narrow, expected, 1e-4 if "width 1" in name else 1e-5, name="maps, float32", floor=1)


@pytest.mark.parametrize(
    "name", ["pairs", "DINOv3", "norm of q and k", "post", "long", "parallel, one head, one token"]
)
def test_maps_are_the_same_bits_on_any_number_of_threads(isa, dtype, name):
    """Short images, which tasks take through whole blocks otherwise, and long ones; frozen models, too."""
    config, weights, x, _ = problem(OPTIONS[name], N=7, dtype=dtype)
    model = ViT(config, weights)
    maps = on_all_threads(lambda: model.attention(x))
    assert same_bits(np.concatenate([model.attention(image[None]) for image in x]), maps)
    expected = ref.attention_maps(config, Layout.of(config).views(weights), x)
    assert_close(maps, expected, 1e-12 if dtype == np.float64 else 1e-5, floor=1)
    model.freeze()
    assert same_bits(on_all_threads(lambda: model.attention(x)), maps)


def test_some_layers_in_any_order(monkeypatch):
    config, weights, x, _ = problem(dict(depth=4), N=5)
    model = ViT(config, weights)
    maps = model.attention(x)
    assert maps.shape == (5, 4, 4, config.tokens, config.tokens)
    assert same_bits(model.attention(x, [2]), maps[:, 2:3])
    assert same_bits(model.attention(x, [-1, 0, 3, 0]), maps[:, [3, 0, 3, 0]])
    assert model.attention(x, []).shape == (5, 0, 4, config.tokens, config.tokens)
    monkeypatch.setattr(vit, "PIECE_BYTES", 0)
    pieces = ViT(config, weights)
    assert pieces._piece(5) == 1 and same_bits(pieces.attention(x.astype(">f8"), (3, 1)), maps[:, [3, 1]])
    assert same_bits(pieces.attention(x), maps) and same_bits(model.tokens(x), pieces.tokens(x))


def test_scores_of_any_size_are_finite():
    config, weights, x, _ = problem({}, dtype=np.float32)
    maps = ViT(config, weights * np.float32(1e4)).attention(x)
    assert np.isfinite(maps).all()
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-6)


def test_wrong_arguments_are_refused():
    config, weights, x, _ = problem({})
    model = ViT(config, weights)
    for layers, error, message in [
        ([2], ValueError, "layers must be below the depth 2, got 2"),
        ([-3], ValueError, "layers must be at least -2, got -3"),
        (["last"], TypeError, "layers must be an integer, got 'last'"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            model.attention(x, layers)
    with pytest.raises(ValueError, match=re.escape("x must have shape (N, 2, 6, 4), got (2, 6, 4)")):
        model.attention(x[0])


def test_maps_are_timms():
    torch = peer("torch")
    timm_models = peer("cvit.families.census.timm_models")
    import timm

    from cvit.families import from_timm

    options = dict(img_size=(8, 12), patch_size=4, in_chans=2, embed_dim=24, depth=3, num_heads=3, mlp_ratio=1.5)
    module = timm.models.vision_transformer.VisionTransformer(**options, num_classes=5, qk_norm=True, reg_tokens=2)
    module = timm_models.draw(module.double().eval())
    seen = []
    for block in module.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(
            lambda _module, _inputs, output: seen.append(output.detach().numpy())
        )
    x = np.random.default_rng(0).standard_normal((4, 2, 8, 12))
    module(torch.from_numpy(x))
    found = from_timm(module)
    assert isinstance(found.config, ViTConfig)
    maps = ViT(found.config, found.weights.astype(np.float64)).attention(x)
    assert_close(maps, np.stack(seen, axis=1), 1e-12)
