"""Options of the architecture: forward and gradient against the reference and against finite differences.

Every option goes through the same tests: odd sizes, both element types, every instruction set, several threads,
gradient checkpointing, a frozen model, and the unfused steps, which must give the bits of the fused ones.
"""

import numpy as np
import pytest
import reference as ref
from checks import assert_close, on_all_threads, same_bits

from cvit import Layout, ViT, ViTConfig
from cvit.engine.plan import Plan
from cvit.model.program import program_of

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
OPTIONS = {
    **LAYER_SCALES,
    **TOKENS,
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


def problem(options, N=3, dtype=np.float64):
    """A configuration, its weights, images and labels."""
    config = ViTConfig(**{**SMALL, **options})
    rng = np.random.default_rng(1)
    weights = 0.3 * rng.standard_normal(Layout.of(config).size)
    for name, tensor in Layout.of(config).views(weights).items():
        if "norm" in name and name.endswith("weight"):
            tensor += 1
        if name.endswith("gamma") and options["layer_scale"] == 0.0:
            tensor[...] = 0
    x = rng.standard_normal((N, config.channels, *config.image_size))
    y = rng.integers(config.classes, size=(N, config.tokens) if config.pool == "none" else N)
    return config, weights.astype(dtype), x.astype(dtype), y


@pytest.mark.parametrize("name", OPTIONS)
def test_forward_and_gradient_are_the_references(isa, name):
    config, weights, x, y = problem(OPTIONS[name])
    model = ViT(config, weights)
    logits, features, _ = ref.forward(config, Layout.of(config).views(weights), x)
    loss, gradient = ref.loss_and_grad(config, weights, x, y, label_smoothing=0.1)
    assert_close(on_all_threads(lambda: model.forward(x)), logits, name="logits")
    assert_close(model.features(x), features, name="features")
    got, grad = on_all_threads(lambda: model.loss_and_grad(x, y, label_smoothing=0.1))
    assert_close(got, loss, name="loss")
    assert_close(grad, gradient, 1e-9, name="gradient")


@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_is_the_finite_differences(name):
    config, weights, x, y = problem(OPTIONS[name])
    model = ViT(config, weights.copy())
    _, grad = model.loss_and_grad(x, y)
    some = np.random.default_rng(2).choice(len(weights), size=min(len(weights), 60), replace=False)

    def loss(flat):
        model.weights[:] = flat
        return model.loss_and_grad(x, y)[0]

    h = 1e-6 if config.activation == "relu" else 5e-4  # few of relu's kinks lie within reach
    bound = 1e-7 if config.activation == "relu" else 1e-9
    assert_close(grad[some], ref.numerical_gradient(loss, weights, some, h), bound, floor=np.abs(grad).max())


@pytest.mark.parametrize("name", OPTIONS)
def test_float32_is_close(isa, name):
    config, weights, x, y = problem(OPTIONS[name], dtype=np.float32)
    _, gradient = ref.loss_and_grad(config, weights, x, y)
    _, grad = ViT(config, weights).loss_and_grad(x, y)
    assert_close(grad, gradient, 2e-4, name="gradient", floor=1e-3)


@pytest.mark.parametrize("name", OPTIONS)
def test_checkpointed_frozen_and_batched_are_the_same_bits(dtype, name):
    config, weights, x, y = problem(OPTIONS[name], N=9, dtype=dtype)
    model = ViT(config, weights)
    loss, grad = model.loss_and_grad(x, y)
    again = ViT(config, weights, checkpoint="block").loss_and_grad(x, y)
    assert same_bits(again, (loss, grad))
    logits = model.forward(x)
    assert same_bits(np.concatenate([model.forward(image[None]) for image in x]), logits)
    assert same_bits(model.freeze().forward(x), logits)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_fused_steps_and_hints_change_no_bit(isa, name, long):
    """The general path is the fused steps' oracle; and a prefetch is a prefetch.

    A gated MLP wider than a block of packed columns adds up its two matrices' parts of dx in another order.
    """
    size = dict(image_size=(20, 18)) if long and "one token" not in name else {}
    config, weights, x, y = problem({**OPTIONS[name], **size}, N=5, dtype=np.float32)
    labels = np.ascontiguousarray(y, np.int64).reshape(-1)
    results = []
    other_order = config.gated and config.hidden > 256
    for how in ({}, {"hints": False}, {"fused": False}, {"fused": False, "hints": False}):
        grad = np.empty_like(weights)
        plan = Plan(program_of(config), len(x), np.float32, "train", **how)
        loss = plan.run_training(weights, x, labels, 0.0, grad)
        logits, _ = Plan(program_of(config), len(x), np.float32, "infer", **how).forward(weights, x)
        results.append((loss, grad, plan.logits().copy(), logits.copy()))
    assert same_bits(results[1], results[0]) and same_bits(results[3], results[2])
    if other_order:
        assert_close(results[2][1], results[0][1], 1e-5, name="gradient")
    else:
        assert same_bits(results[2], results[0])
