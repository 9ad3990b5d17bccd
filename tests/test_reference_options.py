"""The reference's gradient of every option against finite differences of fourth order, and its forward where an option
equals a simpler model.

Bounds are relative to the largest entry of the whole gradient; see test_reference.py.
"""

import dataclasses

import numpy as np
import pytest
import reference as ref
from test_reference import assert_close, problem

from cvit.model.config import ViTConfig
from cvit.model.layout import Layout
from cvit.model.rope import Rope

# eps is large, so that a norm of one or two numbers is smooth on the scale of the differences' h
TINY = ViTConfig(image_size=(4, 2), patch_size=2, channels=1, width=4, depth=1, heads=2, hidden=3, classes=3, eps=0.1)
STEP = 2e-4  # norms behind norms bend more than what test_reference.py has, so that its step is too long
ROPED = dict(heads=1, registers=1)
CASES = {
    "patch of two numbers": dict(image_size=(2, 9), patch_size=(1, 3)),
    "patch norm": dict(patch_norm=True),
    "norm before the blocks": dict(pre_norm=True, patch_bias=False),
    "class tokens": dict(class_token=3),
    "class tokens, mean": dict(class_token=2, pool="mean", dist_token=True),
    "class and mean": dict(class_token=2, pool="cls_mean", registers=1),
    "positions of class and patches": dict(pos_tokens="class", class_token=2, dist_token=True, registers=2),
    "positions of class and patches, none of class": dict(pos_tokens="class", pool="mean", registers=2),
    "positions of patches": dict(pos_tokens="patches", registers=1),
    "no positions": dict(pos_tokens="none", registers=1),
    "no positions, no prefix": dict(pos_tokens="none", pool="mean"),
    "RMS norm": dict(norm="rms"),
    "RMS norm, everywhere": dict(
        norm="rms", patch_norm=True, pre_norm=True, qk_norm=True, attn_norm=True, mlp_norm=True, fc_norm=True
    ),
    "RMS norm, no weights": dict(norm="rms", norm_affine=False, qk_norm=True),
    "post": dict(block="post"),
    "post, depth 2, gated": dict(block="post", depth=2, width=2, heads=1, hidden=2, gated=True),
    "parallel": dict(block="parallel"),
    "parallel, layer scale, no biases": dict(block="parallel", layer_scale=0.3, bias=False, qk_norm=True),
    "parallel, layer scale of the MLP alone": dict(block="parallel", layer_scale=(None, 0.3)),
    "pairs": dict(block="pairs"),
    "pairs, everything": dict(
        block="pairs", layer_scale=0.3, qk_norm=True, attn_norm=True, mlp_norm=True, gated=True, rope=Rope("mixed"),
        **ROPED,
    ),
    "biases of q and v": dict(qkv_bias=(True, False, True)),
    "biases of k": dict(bias=False, qkv_bias=(False, True, False)),
    "no biases but in the MLP": dict(bias=False, mlp_bias=True),
    "no biases but of the projection and the patches": dict(bias=False, proj_bias=True, patch_bias=True),
    "no biases but in the head": dict(bias=False, head_bias=True, pre_logits=3),
    "biases but in the head and the MLP": dict(head_bias=False, mlp_bias=False, proj_bias=False, qkv_bias=False),
    "norm of q and k": dict(qk_norm=True),
    "norm of q and k, no weights": dict(qk_norm=True, norm_affine=False),
    "inner norms": dict(attn_norm=True, mlp_norm=True, gated=True, activation="silu"),
    "axial rope": dict(rope=Rope(theta=3.0, offset=0.5, reference=(3, 5), columns_first=True), **ROPED),
    "centred rope": dict(rope=Rope("centred", theta=10.0), qk_norm=True, **ROPED),
    "mixed rope": dict(rope=Rope("mixed"), width=8, heads=2, hidden=2, image_size=4),
    "mixed rope, no positions": dict(rope=Rope("mixed", columns_first=True), pos_tokens="none", **ROPED),
    "tanh": dict(activation="tanh"),
    "tanh, gated": dict(activation="tanh", gated=True),
    "no final norm": dict(final_norm=False, fc_norm=True),
    "attention pooling": dict(pool="map"),
    "attention pooling, without a class token's rest": dict(
        pool="map", class_token=True, final_norm=False, norm="rms", fc_norm=True, gated=True, activation="tanh"
    ),
    "attention pooling, other heads, hidden width": dict(pool="map", pool_heads=4, pool_hidden=5, pool_bias=False),
    "attention pooling, no MLP, no query": dict(pool="map", pool_hidden=-1, pool_query=False, heads=1),
    "attention pooling, one token": dict(pool="map", image_size=2, bias=False, pool_bias=True),
    "norm behind the pooling": dict(fc_norm=True, pool="cls_mean"),
    "layer before the head": dict(pre_logits=5),
    "layer before the head, gelu": dict(pre_logits=2, pre_logits_activation="gelu_erf", fc_norm=True, pool="mean"),
    "two heads": dict(dist_token=True, dist_head=True),
    "two heads, class tokens, norm": dict(dist_token=True, dist_head=True, class_token=2, registers=1, fc_norm=True),
    "every token": dict(pool="none", registers=1, norm="rms"),
    "width 1, one token": dict(width=1, heads=1, hidden=1, pool="mean", image_size=2, qk_norm=True, attn_norm=True),
    "width 1, attention pooling": dict(width=1, heads=1, hidden=1, pool="map", block="pairs", mlp_norm=True),
}  # fmt: skip


def losses(config, N=2):
    """Weights, and a loss of them: of the logits, or without classes a weighted sum of the features."""
    flat, x, y = problem(dataclasses.replace(config, classes=config.classes or 1), N)
    flat = flat[: Layout.of(config).size].copy()
    if config.pool == "none":
        y = np.random.default_rng(4).integers(max(config.classes, 1), size=(N, config.tokens))
    return flat, x, y


@pytest.mark.parametrize("case", CASES)
def test_whole_gradient(case):
    config = dataclasses.replace(TINY, **CASES[case])
    flat, x, y = losses(config)

    def loss(weights):
        logits = ref.forward(config, Layout.of(config).views(weights), x)[0]
        return ref.cross_entropy_forward(logits, y, 0.1)[0]

    value, gradient = ref.loss_and_grad(config, flat, x, y, 0.1)
    assert value == loss(flat)
    assert_close(gradient, ref.numerical_gradient(loss, flat, h=STEP), 1e-9)
