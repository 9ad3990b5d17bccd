"""Small models with every option that files have, and what is done with one that was read."""

from __future__ import annotations

import functools
import itertools
from random import Random

import numpy as np

from cvit import ViT, ViTConfig
from cvit.model.rope import Rope
from cvit.pictures.preprocessing import Preprocessing

SMALL = dict(image_size=8, patch_size=4, channels=3, width=8, depth=1, heads=2, hidden=8, classes=3)
OPTIONS: tuple[dict, ...] = (
    {},
    dict(channels=1, pool="mean", depth=2, layer_scale=0.1),
    dict(registers=2, dist_token=True, dist_head=True, pos_tokens="class"),
    dict(gated=True, activation="silu", norm="rms", qk_norm=True, bias=False),
    dict(pool="map", pool_heads=2, classes=0),
    dict(rope=Rope("centred", theta=100.0), pos_tokens="none", layer_scale=1.0, eps=1e-5),
    dict(rope=Rope("axial", reference=(2, 2)), pre_norm=True, pool="mean_all", class_token=2),
    dict(rope=Rope("mixed", theta=10.0), block="parallel", mlp_norm=True),
    dict(block="post", norm_eps={"norm1": 1e-3}, fc_norm=True, pool="mean"),
    dict(block="pairs", qkv_bias=(True, False, True), pre_logits=5, final_norm=False, layer_scale=0.5),
)
EACH = 3  # files of a family
MOST = 1 << 22  # multiply-adds of a forward pass that is tried


@functools.cache
def models() -> tuple[ViT, ...]:
    """A model for each of `OPTIONS`."""
    made = []
    for number, options in enumerate(OPTIONS):
        config = ViTConfig(**{**SMALL, **options})
        how = Preprocessing.default(config.image_size, config.channels) if number % 2 else None
        names = [f"class {i}" for i in range(config.classes)] if number % 3 and config.classes else None
        made.append(ViT(config, seed=number, preprocessing=how, class_names=names))
    return tuple(made)


@functools.cache
def published() -> tuple[tuple[str, dict[str, np.ndarray], dict], ...]:
    """(family, arrays, config.json) of each family of other libraries that can say one of many options."""
    from cvit import families

    tried: list[dict] = [*OPTIONS]
    for first, pool, gelu in itertools.product(
        (1, None), ("cls", "mean", "map", "cls_mean"), ("gelu_erf", "gelu_tanh")
    ):
        tried.append(dict(class_token=first, pool=pool, activation=gelu))
    clip = dict(pre_norm=True, patch_bias=False, activation="quick_gelu")
    tried += [
        {**clip, "head_bias": False}, {**clip, "pool": "mean", "class_token": 1, "final_norm": False},
        dict(dist_token=True, dist_head=True, activation="gelu_erf"), dict(dist_token=True, activation="gelu_erf"),
        dict(registers=1, pos_tokens="class", layer_scale=1.0),
        dict(norm="rms", patch_norm=True, gated=True, activation="silu", qkv_bias=False, proj_bias=False,
             mlp_bias=False, pool="map", pool_query=False, pool_hidden=-1, pool_bias=False),
        dict(rope=Rope("centred", theta=100.0), pos_tokens="none", layer_scale=(1.0, None), gated=True, norm="rms",
             activation="silu"),
    ]  # fmt: skip
    extra: tuple[dict, ...] = (
        {}, dict(classes=0), dict(layer_scale=1.0), dict(pre_norm=True, patch_bias=False), dict(final_norm=False),
        dict(registers=2, pos_tokens="class", layer_scale=1.0), dict(gated=True, layer_scale=1.0),
        dict(rope=Rope("centred", theta=100.0), pos_tokens="none", registers=2, layer_scale=1.0, classes=0),
    )  # fmt: skip
    found = []
    count: dict[str, int] = {}
    for options, more in itertools.product(tried, extra):
        try:
            config = ViTConfig(**{**SMALL, **options, **more})
            weights = np.full(_size(config), 0.01, np.float32)
        except ValueError:
            continue
        for family in families.FAMILIES:
            if count.get(family.name, 0) >= EACH:
                continue
            try:
                arrays, json = families.write(config, weights, family)
            except (ValueError, KeyError):
                continue
            count[family.name] = count.get(family.name, 0) + 1
            found.append((family.name, arrays, json))
    return tuple(found)


def _size(config: ViTConfig) -> int:
    from cvit import Layout

    return Layout.of(config).size


def use(rng: Random, model: ViT) -> None:
    """What a model that was read is for: now and then a pass, and a picture, where both are small."""
    if rng.random() < 0.9:
        return
    config = model.config
    macs = config.forward_flops() // 2 + config.tokens**2 * config.width
    if macs + config.image_size[0] * config.image_size[1] * config.channels > MOST:
        return
    model.forward(np.zeros((1, config.channels, *config.image_size), np.float32).astype(model.dtype))
    if model.preprocessing is not None:
        model.preprocess(np.zeros((5, 7, 3), np.uint8))
