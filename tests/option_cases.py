"""The table of options that tests/test_options.py goes through: odd sizes, and what published families have together.

Odd are one token, width 1, one head, widths that are no multiple of a vector, and an odd hidden width. A norm of so few
numbers that it is nearly a step has a larger eps.
"""

import numpy as np

from cvit import Layout, ViTConfig
from cvit.model.parts import Role
from cvit.model.rope import Rope

SMALL = dict(image_size=(6, 4), patch_size=2, channels=2, width=20, depth=2, heads=4, hidden=23, classes=5)

TOKENS = {
    "registers": dict(registers=3),
    "registers without class token": dict(registers=2, pool="mean"),
    "distillation token": dict(dist_token=True),
    "all tokens": dict(dist_token=True, registers=4, pos_tokens="patches"),
    "positions of patches": dict(pos_tokens="patches"),
    "mean with class token": dict(class_token=True, pool="mean"),
    "mean over all": dict(registers=1, class_token=True, pool="mean_all"),
    "mean over all, no final norm": dict(registers=1, class_token=True, pool="mean_all", final_norm=False),
    "none": dict(pool="none", class_token=True),
    "none, no norm": dict(pool="none", registers=1, final_norm=False),
    "one patch": dict(image_size=2, registers=2, pool="mean", class_token=True),
    "width 1": dict(width=1, heads=1, hidden=1, registers=2, pos_tokens="patches"),
}
LAYER_SCALES = {
    "layer scale": dict(layer_scale=0.1),
    "of the attention": dict(layer_scale=(0.2, None)),
    "of the MLP": dict(layer_scale=(None, 1e-5)),
    "of zero": dict(layer_scale=0.0),
    "without biases": dict(layer_scale=0.1, bias=False, norm_affine=False),
    "width 1, one token": dict(layer_scale=0.1, width=1, heads=1, hidden=1, pool="mean", image_size=2),
    "wide": dict(layer_scale=0.5, width=132, hidden=300, depth=1),
    "wide and gated": dict(layer_scale=0.5, hidden=150, gated=True, activation="silu"),
    "long": dict(layer_scale=0.5, image_size=(20, 18), depth=3),
}
# ---------------------------------------------------------------------------------------- before the blocks
EMBEDDING = {
    "patch of two numbers": dict(patch_size=(2, 1)),
    "patch of two numbers, wide": dict(image_size=(5, 9), patch_size=(1, 3), channels=3, patch_bias=False),
    "patch bias alone": dict(bias=False, patch_bias=True),
    "patch norm": dict(patch_norm=True),
    "patch norm, registers": dict(patch_norm=True, registers=2, pos_tokens="class"),
    "norm before the blocks": dict(pre_norm=True),
    "norms before the blocks, depth 0": dict(pre_norm=True, patch_norm=True, depth=0, norm="rms"),
    "three class tokens": dict(class_token=3),
    "class tokens, mean over patches": dict(class_token=2, dist_token=True, pool="mean"),
    "class and mean": dict(pool="cls_mean"),
    "class tokens and mean, registers": dict(pool="cls_mean", class_token=3, registers=2, fc_norm=True),
    "class and mean, one patch": dict(pool="cls_mean", image_size=2),
    "positions of class and patches": dict(pos_tokens="class", dist_token=True, registers=3),
    "positions of class and patches, no class": dict(pos_tokens="class", registers=3, pool="mean"),
    "no positions": dict(pos_tokens="none"),
    "no positions, one token": dict(pos_tokens="none", pool="mean", image_size=2),
}
# --------------------------------------------------------------------------------------------- in the blocks
INNER = {
    "RMS norm": dict(norm="rms"),
    "RMS norm without weights": dict(norm="rms", norm_affine=False, final_norm=False),
    "RMS norm, wide": dict(norm="rms", width=132, hidden=301, depth=1),
    "RMS norm, width 1, one token": dict(norm="rms", width=1, heads=1, hidden=1, pool="mean", image_size=2, eps=0.1),
    "biases of q and v": dict(qkv_bias=(True, False, True)),
    "bias of k alone": dict(bias=False, qkv_bias=(False, True, False)),
    "no biases of q, k and v": dict(qkv_bias=False),
    "no bias of the projection": dict(proj_bias=False, layer_scale=0.3),
    "bias of the projection alone": dict(bias=False, proj_bias=True),
    "no biases in the MLP": dict(mlp_bias=False),
    "biases in the MLP alone": dict(bias=False, mlp_bias=True, gated=True, activation="silu"),
    "no bias of the head": dict(head_bias=False),
    "bias of the head alone": dict(bias=False, head_bias=True),
    "tanh": dict(activation="tanh"),
    "gated tanh, one head": dict(activation="tanh", gated=True, heads=1),
    "norm of q and k": dict(qk_norm=True),
    "norm of q and k, RMS": dict(qk_norm=True, norm="rms", qkv_bias=False),
    "norm of q and k, no weights, one head": dict(qk_norm=True, norm_affine=False, heads=1),
    "norm of q and k, head width 1": dict(qk_norm=True, width=5, heads=5),
    "norm of q and k, one token": dict(qk_norm=True, pool="mean", image_size=2),
    "norm of q and k, wide heads": dict(qk_norm=True, width=132, heads=2, depth=1),
    "norm before the projection": dict(attn_norm=True),
    "norm before the projection, layer scale": dict(attn_norm=True, layer_scale=0.3, heads=1),
    "norm in the MLP": dict(mlp_norm=True),
    "norm in the MLP, RMS, gated, wide": dict(mlp_norm=True, norm="rms", gated=True, hidden=301, activation="silu"),
    "norm in the MLP, hidden 1": dict(mlp_norm=True, hidden=1),
    "inner norms without weights": dict(attn_norm=True, mlp_norm=True, norm_affine=False, bias=False),
    "inner norms, width 1, one token": dict(
        attn_norm=True, mlp_norm=True, qk_norm=True, width=1, heads=1, hidden=1, pool="mean", image_size=2
    ),
}
BLOCKS = {
    "post": dict(block="post"),
    "post, gated, no weights": dict(block="post", gated=True, norm_affine=False),
    "post, RMS, no final norm, wide": dict(block="post", norm="rms", final_norm=False, width=132, hidden=301, depth=1),
    "post, width 1, one token": dict(block="post", width=1, heads=1, hidden=1, pool="mean", image_size=2),
    "post, inner norms": dict(block="post", qk_norm=True, attn_norm=True, mlp_norm=True),
    "norms' own epsilons": dict(
        norm_eps={
            "norm1": 0.1,
            "norm2": 0.3,
            "norm": 0.2,
            "attn.norm": 0.05,
            "mlp.norm": 0.01,
            "fc_norm": 0.5,
            "attn.qk_norm": 0.2,
            "norm_pre": 0.4,
            "patch_norm": 0.02,
            "pool.norm": 0.07,
        },
        attn_norm=True,
        mlp_norm=True,
        fc_norm=True,
        qk_norm=True,
        pre_norm=True,
        patch_norm=True,
        pool="map",
    ),
    "norms' own epsilons, pairs": dict(block="pairs", norm_eps={"norm1": 0.1, "norm2": 0.3}, mlp_norm=True),
    "parallel": dict(block="parallel"),
    "parallel, gated, layer scale": dict(block="parallel", gated=True, layer_scale=0.3, activation="silu"),
    "parallel, layer scale of the MLP": dict(block="parallel", layer_scale=(None, 0.3)),
    "parallel, RMS, no biases, wide": dict(block="parallel", norm="rms", bias=False, width=132, hidden=301, depth=1),
    "parallel, one head, one token": dict(block="parallel", heads=1, pool="mean", image_size=2),
    "parallel, inner norms": dict(block="parallel", attn_norm=True, mlp_norm=True),
    "pairs": dict(block="pairs"),
    "pairs, gated, no biases": dict(block="pairs", gated=True, bias=False),
    "pairs, RMS, wide": dict(block="pairs", norm="rms", width=132, hidden=301, depth=1),
    "pairs, width 1, one token": dict(block="pairs", width=1, heads=1, hidden=1, pool="mean", image_size=2),
}
ROTARY = {
    "axial": dict(rope=Rope(), heads=5),
    "axial, columns first, from another grid": dict(
        rope=Rope(theta=100.0, offset=1.0, reference=(5, 7), columns_first=True), heads=5, registers=3
    ),
    "axial, wide heads, no positions": dict(rope=Rope(), width=132, heads=3, depth=1, pos_tokens="none"),
    "axial, one head, one token": dict(rope=Rope(offset=1.0), heads=1, pool="mean", image_size=2),
    "axial, width 4": dict(rope=Rope(), width=4, heads=1, pool="mean", eps=0.1),
    "centred": dict(rope=Rope("centred", theta=100.0), heads=5, registers=2),
    "centred, columns first": dict(rope=Rope("centred", theta=100.0, columns_first=True), width=12, heads=1),
    "mixed": dict(rope=Rope("mixed", theta=10.0), heads=5),
    "mixed, columns first, no positions": dict(
        rope=Rope("mixed", columns_first=True), width=12, heads=1, registers=2, pos_tokens="none"
    ),
    "mixed, one token": dict(rope=Rope("mixed"), heads=5, pool="mean", image_size=2),
}  # fmt: skip
# ------------------------------------------------------------------------------------------ behind the blocks
BEHIND = {
    "attention pooling": dict(pool="map"),
    "attention pooling, no MLP": dict(pool="map", pool_hidden=-1),
    "attention pooling, no query": dict(pool="map", pool_query=False, pool_bias=False),
    "attention pooling, other heads and width": dict(pool="map", pool_heads=1, pool_hidden=31, class_token=True),
    "attention pooling, biases there alone": dict(pool="map", bias=False, pool_bias=True, pool_heads=20),
    "attention pooling, RMS, no final norm": dict(pool="map", norm="rms", final_norm=False, activation="silu"),
    "attention pooling, wide": dict(pool="map", width=132, hidden=301, depth=1),
    "attention pooling, width 1, one token": dict(pool="map", width=1, heads=1, hidden=1, image_size=2),
    "attention pooling of patches": dict(pool="map", pool_prefix=False, registers=3, class_token=True),
    "attention pooling, depth 0": dict(pool="map", depth=0),
    "norm behind the pooling": dict(fc_norm=True, final_norm=False, pool="mean"),
    "norm behind attention pooling": dict(fc_norm=True, pool="map", norm="rms"),
    "norm behind the class token": dict(fc_norm=True, norm_affine=False),
    "layer before the head": dict(pre_logits=7),
    "layer before the head, wide": dict(pre_logits=131, pre_logits_activation="gelu_erf", pool="cls_mean"),
    "layer of width 1 before the head": dict(pre_logits=1, fc_norm=True, head_bias=False),
    "two heads": dict(dist_token=True, dist_head=True),
    "two heads, no biases": dict(dist_token=True, dist_head=True, bias=False, class_token=2, registers=1),
    # Of width 1 every token is alike behind its norm, so that the second norm multiplies rounding by 1 / sqrt(eps).
    "two heads, norm before them": dict(
        dist_token=True, dist_head=True, fc_norm=True, width=1, heads=1, hidden=1, eps=0.1
    ),
    "no head": dict(classes=0),
    "no head, mean": dict(classes=0, pool="mean", fc_norm=True),
    "no head, every token": dict(classes=0, pool="none", registers=1, final_norm=False),
    "no head, attention pooling": dict(classes=0, pool="map", pool_hidden=-1),
    "no head, a layer": dict(classes=0, pre_logits=7),
    "no head, class and mean": dict(classes=0, pool="cls_mean"),
    "no head, two tokens": dict(classes=0, dist_token=True, dist_head=True),
}
# --------------------------------------------------------- what published families have together, at small sizes
FAMILIES = {
    "CLIP": dict(pre_norm=True, patch_bias=False, activation="quick_gelu", head_bias=False, eps=1e-5),
    "AIMv2": dict(
        norm="rms", bias=False, patch_bias=True, patch_norm=True, gated=True, activation="silu", pool="mean",
        head_bias=True, eps=1e-5,
    ),
    "DINOv2": dict(layer_scale=1e-2, registers=4, pos_tokens="class", gated=True, activation="silu", pool="cls_mean"),
    "DINOv3": dict(
        rope=Rope("centred", theta=100.0), pos_tokens="none", registers=4, layer_scale=0.3,
        qkv_bias=(True, False, True), heads=5, activation="gelu_erf", eps=1e-5,
    ),
    "EVA": dict(qkv_bias=(True, False, True), activation="gelu_erf", pool="mean", class_token=True, fc_norm=True,
        final_norm=False),
    "EVA-02": dict(
        rope=Rope(reference=(16, 16)), qkv_bias=(True, False, True), gated=True, activation="silu", mlp_norm=True,
        attn_norm=True, heads=5, pool="mean", class_token=True, fc_norm=True, final_norm=False,
    ),
    "ViT-22B": dict(block="parallel", qk_norm=True, qkv_bias=False, proj_bias=False, mlp_bias=False),
    "xp parallel": dict(block="parallel", qk_norm=True, bias=False, mlp_bias=True, pre_norm=True, layer_scale=0.1),
    "SigLIP": dict(pool="map", activation="gelu_tanh", classes=0),
    "SigLIP with a head": dict(pool="map", activation="gelu_tanh"),
    "PE": dict(
        rope=Rope(offset=1.0, columns_first=True), pre_norm=True, pool="map", pool_heads=2, class_token=True, heads=5,
        patch_bias=False, head_bias=False, layer_scale=0.1, activation="gelu_erf", eps=1e-5,
    ),
    "DeiT, distilled": dict(dist_token=True, dist_head=True, activation="gelu_erf"),
    "DeiT III, pairs": dict(block="pairs", layer_scale=0.3, pos_tokens="patches", activation="gelu_erf"),
    "RoPE-ViT": dict(rope=Rope("mixed", theta=10.0), layer_scale=0.3, pos_tokens="patches", heads=5),
    "RoPE-ViT, mixed alone": dict(rope=Rope("mixed", columns_first=True), pos_tokens="none", pool="mean", heads=5),
    "ResPost": dict(block="post", pool="mean", activation="gelu_erf", class_token=True),
    "Pixio": dict(class_token=8, activation="gelu_erf", pool="cls"),
    "Pixio, mean beside it": dict(class_token=8, activation="gelu_erf", pool="cls_mean"),
    "pre-logits of the first ViT": dict(pre_logits=20, pre_logits_activation="tanh", activation="gelu_erf"),
    "BEiT": dict(qkv_bias=(True, False, True), layer_scale=0.1, pos_tokens="none", pool="mean", class_token=True,
        fc_norm=True, final_norm=False),
}  # fmt: skip
OPTIONS = {
    **LAYER_SCALES,
    **TOKENS,
    **EMBEDDING,
    **INNER,
    **BLOCKS,
    **ROTARY,
    **BEHIND,
    **FAMILIES,
    "gelu_erf": dict(activation="gelu_erf"),
    "quick_gelu": dict(activation="quick_gelu"),
    "silu": dict(activation="silu"),
    "relu": dict(activation="relu"),
    "gated gelu": dict(gated=True),
    "gated silu": dict(activation="silu", gated=True),
    "gated relu, wide": dict(activation="relu", gated=True, hidden=400),
    "gated, no bias": dict(activation="silu", gated=True, bias=False, norm_affine=False),
    "gated, one head, width 1": dict(activation="silu", gated=True, width=1, heads=1, hidden=1),
    "gated, one token": dict(activation="quick_gelu", gated=True, pool="mean", image_size=2),
}


TRAINED = [name for name in OPTIONS if OPTIONS[name].get("classes") != 0]  # a model without a head has no loss


def problem(options, N=3, dtype=np.float64):
    """A configuration, its weights, images and labels, which are None without classes. Norms' scales lie around 1."""
    config = ViTConfig(**{**SMALL, **options})
    rng = np.random.default_rng(1)
    weights = 0.3 * rng.standard_normal(Layout.of(config).size)
    for entry, tensor in zip(Layout.of(config).entries.values(), Layout.of(config).views(weights).values()):
        if entry.role is Role.SCALE:
            tensor += 1
        if entry.role is Role.GAMMA and options["layer_scale"] == 0.0:
            tensor[...] = 0
    x = rng.standard_normal((N, config.channels, *config.image_size))
    y = rng.integers(config.classes or 1, size=(N, config.tokens) if config.pool == "none" else N)
    return config, weights.astype(dtype), x.astype(dtype), y if config.classes else None


def difference(config):
    """The step of finite differences, and the bound of what they are off by, relative to the largest entry.

    relu has kinks, of which few lie within reach of a small step; at a small step rounding counts. A learned frequency
    acts through its product with a patch's index, whose powers the differences' error grows with.
    """
    if "relu" in (config.activation, config.pre_logits_activation if config.pre_logits else ""):
        return 1e-6, 1e-7
    if config.rope is not None and config.rope.learned:
        return 2e-4 / max(config.grid), 1e-9
    return 2e-4, 1e-9
