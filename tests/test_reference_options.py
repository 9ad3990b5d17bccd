"""The reference's gradient of every option against finite differences of fourth order, its forward against the formulas
written another way.

Bounds are relative to the largest entry of the whole gradient; see test_reference.py.
"""

import dataclasses

import numpy as np
import pytest
import reference as ref
from test_reference import assert_close, check_backward, problem

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
    "pairs, layer scale, norm in the MLP": dict(block="pairs", layer_scale=0.3, mlp_norm=True, gated=True),
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


@pytest.mark.parametrize("case", CASES)
def test_whole_gradient(case):
    config = dataclasses.replace(TINY, **CASES[case])
    flat, x, y = problem(config)
    if config.pool == "none":
        y = np.random.default_rng(4).integers(config.classes, size=(len(x), config.tokens))

    def loss(weights):
        logits = ref.forward(config, Layout.of(config).views(weights), x)[0]
        return ref.cross_entropy_forward(logits, y, 0.1)[0]

    value, gradient = ref.loss_and_grad(config, flat, x, y, 0.1)
    assert value == loss(flat)
    assert_close(gradient, ref.numerical_gradient(loss, flat, h=STEP), 1e-9)


@pytest.mark.parametrize("changes", [dict(), dict(pool="map"), dict(pre_logits=5), dict(pool="none", fc_norm=False)])
def test_gradient_of_features_without_a_head(changes):
    config = dataclasses.replace(TINY, **changes)
    flat, x, _ = problem(config)
    config = dataclasses.replace(config, classes=0)
    flat = flat[: Layout.of(config).size]
    logits, features, cache = ref.forward(config, Layout.of(config).views(flat), x)
    assert logits is None and features.shape[-1] == config.feature_width
    dy = np.random.default_rng(5).standard_normal(features.shape)
    loss = lambda weights: np.sum(dy * ref.forward(config, Layout.of(config).views(weights), x)[1])
    assert_close(ref.backward(config, cache, dy), ref.numerical_gradient(loss, flat, h=STEP), 1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 3), (4, 1)])
@pytest.mark.parametrize("affine", [True, False])
def test_rmsnorm(shape, affine):
    rng = np.random.default_rng(7)
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    weight = (rng.standard_normal(shape[-1]),) if affine else ()
    y, rstd = ref.rmsnorm_forward(x, *weight, eps=0.1)
    expected = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 0.1) * (weight[0] if affine else 1)
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    op = lambda *inputs: ref.rmsnorm_forward(*inputs, eps=0.1)[0]
    check_backward(op, (x, *weight), ref.rmsnorm_backward(dy, x, rstd, *weight)[: 1 + affine], dy)


@pytest.mark.parametrize("shape", [(3, 2), (4, 3, 2)])
def test_rotate(shape):
    """Two tokens before three patches stay as they are; angles of all heads or each head's own."""
    rng = np.random.default_rng(7)
    x, dy = rng.standard_normal((2, 2, 4, 5, 4))
    angle = rng.standard_normal(shape)
    y = ref.rotate_forward(x, angle)
    np.testing.assert_array_equal(y[:, :, :2], x[:, :, :2])
    as_numbers = lambda t: t[..., :2] + 1j * t[..., 2:]
    np.testing.assert_allclose(as_numbers(y[:, :, 2:]), as_numbers(x[:, :, 2:]) * np.exp(1j * angle), rtol=1e-13)
    dx, dangle = ref.rotate_backward(dy, y, angle)
    check_backward(ref.rotate_forward, (x, angle), (dx, dangle if len(shape) == 3 else dangle.sum(axis=0)), dy)


@pytest.mark.parametrize("pool", ["cls", "mean", "mean_all", "cls_mean", "cls_dist"])
def test_pool_of_two_class_tokens(pool):
    """Two class tokens, a distillation token, a register and three patches."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, 7, 3))
    pieces = {"cls": [x[:, :2]], "mean": [x[:, 4:]], "mean_all": [x], "cls_mean": [x[:, :2], x[:, 4:]]}
    pieces["cls_dist"] = [x[:, :2], x[:, 2:3]]
    expected = np.concatenate([piece.mean(axis=1) for piece in pieces[pool]], axis=-1)
    np.testing.assert_allclose(ref.pool_forward(x, pool, 4, 2), expected, rtol=1e-14)
    dy = rng.standard_normal(expected.shape)
    check_backward(lambda t: ref.pool_forward(t, pool, 4, 2), (x,), (ref.pool_backward(dy, 7, pool, 4, 2),), dy)


def test_tokens_of_each_block():
    config = dataclasses.replace(TINY, depth=3)
    flat, x, _ = problem(config)
    weights = Layout.of(config).views(flat)
    tokens, (first, last) = ref.tokens_of(config, weights, x, layers=[0, 2])
    np.testing.assert_array_equal(ref.forward(config, weights, x)[1], tokens[:, 0])
    normed = ref.layernorm_forward(last, weights["norm.weight"], weights["norm.bias"], config.eps)[0]
    np.testing.assert_array_equal(tokens, normed)
    short = dataclasses.replace(config, depth=1, final_norm=False)
    kept = {name: weights[name] for name in Layout.of(short).entries}
    np.testing.assert_array_equal(ref.tokens_of(short, kept, x), first)
