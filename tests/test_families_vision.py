"""torchvision's modules and Flax's .npz files, each against the library's own reading or computing."""

import numpy as np
import pytest
from checks import assert_close, peer

torch = peer("torch")
timm_models = peer("cvit.families.census.timm_models")

import reference as ref  # noqa: E402
import timm  # noqa: E402

from cvit import families  # noqa: E402
from cvit.model.config import ViTConfig  # noqa: E402
from cvit.model.layout import Layout  # noqa: E402

TORCHVISION = dict(image_size=12, patch_size=4, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=40, num_classes=5)


def torchvision_module(**options):
    vision = peer("torchvision.models.vision_transformer")
    return timm_models.draw(vision.VisionTransformer(**{**TORCHVISION, **options}).double().eval())


@pytest.mark.parametrize("options", [{}, dict(representation_size=16)], ids=str)
def test_torchvision(options):
    module = torchvision_module(**options)
    model = families.from_torchvision(module)
    images = np.random.default_rng(1).standard_normal((2, 3, 12, 12))
    with torch.no_grad():
        wanted = module(torch.from_numpy(images)).numpy()
    tensors = Layout.of(model.config).views(model.weights)
    assert_close(ref.forward(model.config, tensors, images)[0], wanted, 1e-6, name="logits")
    arrays, _ = families.write(model.config, model.weights, model.family)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    again = families.read(arrays, families.FAMILIES, num_heads=3)
    assert again.config == model.config
    assert np.array_equal(again.weights, model.weights)
    older = {name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): a for name, a in arrays.items()}
    assert np.array_equal(families.read(older, families.FAMILIES, num_heads=3).weights, model.weights)


def test_torchvision_positions():
    """Another image size, as torchvision's own `interpolate_embeddings` has it."""
    vision = peer("torchvision.models.vision_transformer")
    module = torchvision_module()
    wanted = vision.interpolate_embeddings(20, 4, module.state_dict())["encoder.pos_embedding"].numpy()[0]
    got = families.read(module.state_dict(), families.FAMILIES, num_heads=3, image_size=20)
    assert_close(Layout.of(got.config).views(got.weights)["pos_embed"], wanted, 1e-6, name="positions")


def test_torchvision_convolutional_stem():
    vision = peer("torchvision.models.vision_transformer")
    stem = [vision.ConvStemConfig(8, 3, 2), vision.ConvStemConfig(8, 3, 2)]
    module = vision.VisionTransformer(**TORCHVISION, conv_stem_configs=stem)
    with pytest.raises(ValueError, match="does not compute: a convolutional stem"):
        families.from_torchvision(module)
    with pytest.raises(ValueError, match="does not compute: a convolutional stem"):
        families.read(module.state_dict(), families.FAMILIES)


NPZ = dict(image_size=(12, 12), patch_size=4, width=24, depth=3, heads=3, hidden=40, classes=5)
FILES = {  # configuration, style, prefix
    "vit_jax": ({}, [], ""),
    "vit_jax, first paper": ({}, [], "opt/target/"),
    "vit_jax, pre-logits": (dict(pre_logits=16), [], ""),
    "vit_jax, mean": (dict(pool="mean"), [], ""),
    "big_vision": (dict(pos_tokens="patches"), ["big_vision"], "params/"),
    "big_vision, map": (dict(pool="map"), ["big_vision"], "params/"),
    "big_vision, map of other shape": (dict(pool="map", pool_heads=6, pool_hidden=16), ["big_vision"], ""),
    "big_vision, scanned": (dict(pool="map"), ["big_vision", "scanned"], "params/"),
}


def npz(name):
    fields, style, prefix = FILES[name]
    config = ViTConfig(**{**NPZ, **fields})
    weights = np.random.default_rng(0).standard_normal(Layout.of(config).size).astype(np.float32)
    weights *= 0.3
    arrays, _ = families.write(config, weights, families.family_named("flax npz"), frozenset(style))
    return config, weights, {prefix + key: array for key, array in arrays.items()}


@pytest.mark.parametrize("name", FILES)
def test_npz_round_trip(name):
    config, weights, arrays = npz(name)
    model = families.read({**arrays, "opt/state/step": np.zeros(())}, families.FAMILIES)
    assert model.config == config
    assert np.array_equal(model.weights, weights)


@pytest.mark.parametrize("name", [name for name in FILES if "pre-logits" not in name and "other" not in name])
def test_npz_is_what_timm_reads(name, tmp_path):
    """timm's loader of these files is written by others: it puts every number where ours says."""
    config, weights, arrays = npz(name)
    np.savez(tmp_path / "model.npz", **arrays)
    pool = {"cls": "token", "mean": "avg", "map": "map"}[config.pool]
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=12, patch_size=4, embed_dim=24, depth=3, num_heads=3, mlp_ratio=40 / 24, num_classes=5,
        global_pool=pool, class_token=pool == "token", fc_norm=False, no_embed_class=config.pos_tokens == "patches",
        act_layer="gelu_tanh",
    )  # fmt: skip
    module.load_pretrained(str(tmp_path / "model.npz"))
    got = families.from_timm(module)
    wanted, found = (Layout.of(c).views(w) for c, w in ((config, weights), (got.config, got.weights)))
    assert got.config.activation == config.activation
    assert wanted.keys() == found.keys()
    for key in wanted:
        assert np.array_equal(found[key], wanted[key]), key
