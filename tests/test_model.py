"""The whole model against tests/reference.py and against finite differences, for every part a configuration can have.

float32's bound: a value goes through depth + 2 stages (embedding, blocks, head), each of which sums at most `longest`
terms; the gradient comes back the same way. So many roundings, relative to the largest entry, are allowed.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import reference as ref
from checks import assert_close, on_all_threads, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reference import problem

import cvit
from cvit import Layout, ViT, ViTConfig

TINY = ViTConfig(image_size=(4, 6), patch_size=2, channels=2, width=12, depth=2, heads=3, hidden=20, classes=5)

# name: (batch, configuration). Tokens of width 1 have no variance, so that their norm multiplies rounding by
# 1/sqrt(eps): a larger eps.
CASES = {
    "digits": (5,
               ViTConfig(image_size=8, patch_size=2, channels=1, width=64, depth=2, heads=4, hidden=128, classes=10)),
    "everything 1": (1,
                     ViTConfig(image_size=1, patch_size=1, channels=1, width=1, depth=1, heads=1, hidden=1, classes=1,
                               pool="mean", eps=0.01)),
    "one token": (3, dataclasses.replace(TINY, image_size=2, pool="mean")),
    "width 1": (2, dataclasses.replace(TINY, width=1, heads=1, eps=0.01)),
    "odd widths": (3,
                   ViTConfig(image_size=(6, 9), patch_size=3, channels=2, width=21, depth=2, heads=3, hidden=35,
                             classes=7, gelu="erf")),
    "head width 1": (2, dataclasses.replace(TINY, width=5, heads=5, hidden=3)),
    "depth 0, class token": (4, dataclasses.replace(TINY, depth=0)),
    "depth 0, mean": (4, dataclasses.replace(TINY, depth=0, pool="mean", final_norm=False)),
    "depth 3": (2, dataclasses.replace(TINY, depth=3)),
    "plain": (3, ViTConfig.plain(image_size=8, patch_size=4, channels=3, width=24, depth=2, heads=2, classes=6)),
    "290 tokens": (2,
                   ViTConfig(image_size=17, patch_size=1, channels=1, width=18, depth=1, heads=2, hidden=36,
                             classes=3)),
    "576 tokens, mean": (1,
                         ViTConfig(image_size=24, patch_size=1, channels=1, width=8, depth=1, heads=1, hidden=9,
                                   classes=3, pool="mean")),
    "width 261, hidden 515": (2,
                              ViTConfig(image_size=4, patch_size=2, width=261, depth=1, heads=3, hidden=515,
                                        classes=11)),
    "patch of 300 values": (2,
                            ViTConfig(image_size=20, patch_size=10, width=16, depth=1, heads=2, hidden=16, classes=4)),
    "1000 classes": (2, dataclasses.replace(TINY, classes=1000)),
    "130 images": (130, dataclasses.replace(TINY, depth=1)),
    "130 images, mean": (130, dataclasses.replace(TINY, depth=1, pool="mean", gelu="erf")),
}  # fmt: skip

FLAGS = dict(
    pool=["cls", "mean"], bias=[True, False], norm_affine=[True, False], final_norm=[True, False], gelu=["tanh", "erf"]
)
COMBINATIONS = [dict(zip(FLAGS, values)) for values in itertools.product(*FLAGS.values())]


def describe(changes):
    return "-".join(f"{name}={value}" for name, value in changes.items())


def bound(config, N, dtype):
    if dtype == np.float64:
        return 1e-10
    # The longest sum of a pass; the head's backward sums over the classes.
    longest = max(config.width, config.hidden, config.patch_features, config.tokens * N, config.classes)
    return (config.depth + 2) * longest * np.finfo(np.float32).eps / 2


def rounded_problem(config, N, dtype):
    """Weights, images, labels of `problem`, rounded to dtype.

    Entries of 0.5 would let wide models saturate: 1/sqrt(fan in) instead.
    """
    flat, x, y = problem(config, N)
    for name, view in Layout.of(config).views(flat).items():
        if view.ndim == 2 and name != "pos_embed":
            view *= 2 / np.sqrt(view.shape[0])
    return flat.astype(dtype), x.astype(dtype), y


def spread(config, flat, x, y, label_smoothing, expected):
    """How far the gradient moves, in float64, when weights and pixels move by a last place of float32 or none: what
    cancels in a small model, and a norm that multiplies what is left, make that far more than the gradient's own."""
    rng, worst = np.random.default_rng(3), np.zeros(flat.size)
    for _ in range(4):
        moved, pixels = (array * (1 + rng.choice([-1.0, 0.0, 1.0], size=array.shape) * 2.0**-23) for array in (flat, x))
        gradient = ref.loss_and_grad(config, moved, pixels, y, label_smoothing)[1]
        worst = np.maximum(worst, np.abs(gradient - expected))
    return worst


def check_model(config, N, dtype, label_smoothing=0.1):
    flat, x, y = rounded_problem(config, N, dtype)
    model = ViT(config, flat)
    before = flat.copy(), x.copy(), y.copy()

    def everything():
        loss, grad = model.loss_and_grad(x, y, label_smoothing=label_smoothing)
        return loss, grad.copy(), model.logits.copy(), model.forward(x), model.features(x)

    loss, grad, train_logits, logits, features = on_all_threads(everything)
    assert same_bits((flat, x, y), before)
    assert same_bits(train_logits, logits)  # training and inference run the same kernels

    allowed = bound(config, N, dtype)
    expected_logits, expected_features, _ = ref.forward(config, model.layout.views(flat), x)
    expected_loss, expected_grad = ref.loss_and_grad(config, flat, x, y, label_smoothing)
    # The terms that are summed may be larger than what is left: positions are among the features' terms, and so on to
    # the logits.
    weights = model.layout.views(flat)
    terms = np.abs(expected_features) + np.abs(weights["pos_embed"]).max()
    logit_terms = terms @ np.abs(weights["head.weight"]) + np.abs(weights.get("head.bias", 0))
    assert_close(features, expected_features, allowed, "features", floor=terms.max())
    assert_close(logits, expected_logits, allowed, "logits", floor=logit_terms.max())
    assert_close(loss, expected_loss, allowed, "loss", floor=np.abs(expected_logits).max())
    # every tensor by its own largest entry, but a key bias's gradient, which is zero: by the whole gradient's
    # (with one class all of it is zero: the difference of terms of up to 1 / N)
    whole = np.abs(expected_grad).max() if config.classes > 1 else 1 / N
    slack = np.zeros(flat.size)
    if dtype == np.float32:
        slack = spread(config, flat, x, y, label_smoothing, expected_grad)
    slack = model.layout.views(slack)
    views, expected = model.layout.views(grad), model.layout.views(expected_grad)
    for name in views:
        floor = whole if dtype == np.float32 or name.endswith("k.bias") else 1e-3 * whole
        floor = max(floor, 2 * slack[name].max() / allowed)
        assert_close(views[name], expected[name], allowed, name, floor=floor)
    assert loss.__class__ is float and logits.dtype == features.dtype == grad.dtype == dtype


@pytest.mark.parametrize("case", CASES)
def test_model_equals_the_reference(isa, dtype, case):
    N, config = CASES[case]
    check_model(config, N, dtype)


@pytest.mark.parametrize("changes", COMBINATIONS, ids=describe)
def test_every_combination_of_parts(changes):
    check_model(dataclasses.replace(TINY, **changes), 3, np.float64)
    check_model(dataclasses.replace(TINY, **changes), 3, np.float32, label_smoothing=0.0)


@st.composite
def configs(draw):
    P, heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    flags = draw(st.sampled_from(COMBINATIONS))
    return ViTConfig(
        image_size=(P * draw(st.integers(1, 6)), P * draw(st.integers(1, 6))), patch_size=P,
        channels=draw(st.integers(1, 4)),
        width=heads * draw(st.integers(1, 20)), depth=draw(st.integers(0, 3)), heads=heads,
        hidden=draw(st.integers(1, 80)),
        classes=draw(st.integers(1, 40)), eps=0.01, **flags,
    )  # fmt: skip


@settings(max_examples=25)
@given(configs(), st.integers(1, 9), st.sampled_from([np.float32, np.float64]))
def test_any_configuration(config, N, dtype):
    check_model(config, N, dtype)


# ---------------------------------------------------------------------------------------- against finite differences


@pytest.mark.parametrize("changes", COMBINATIONS[::3], ids=describe)
def test_gradient_of_every_part_by_finite_differences(isa, changes):
    """A third of the combinations, in which every two flags meet in all four ways; every single weight."""
    cvit.set_num_threads(1)  # thousands of calls too small to share
    config = dataclasses.replace(TINY, width=4, heads=2, hidden=6, classes=3, image_size=(2, 4), **changes)
    flat, x, y = problem(config, 2)
    model = ViT(config, flat.copy())
    grad = model.loss_and_grad(x, y, label_smoothing=0.1, out=np.empty_like(flat))[1]

    def loss(weights):
        model.weights[:] = weights
        return model.loss_and_grad(x, y, label_smoothing=0.1)[0]

    assert_close(grad, ref.numerical_gradient(loss, flat), 1e-9)


@pytest.mark.parametrize(
    "case", ["digits", "odd widths", "290 tokens", "width 261, hidden 515", "patch of 300 values", "1000 classes"]
)
def test_gradient_at_size_by_finite_differences(case, rng):
    """Larger models: thirty weights picked at random."""
    N, config = CASES[case]
    flat, x, y = rounded_problem(config, N, np.float64)
    model = ViT(config, flat.copy())
    grad = model.loss_and_grad(x, y)[1].copy()

    def loss(weights):
        model.weights[:] = weights
        return model.loss_and_grad(x, y)[0]

    some = rng.choice(flat.size, size=30, replace=False)
    assert_close(grad[some], ref.numerical_gradient(loss, flat, some), 1e-9, floor=np.abs(grad).max())
