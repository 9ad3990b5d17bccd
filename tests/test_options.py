"""Options of the architecture: forward and gradient against the reference and against finite differences.

Every option goes through the same tests: odd sizes, both element types, every instruction set, several threads,
gradient checkpointing, a frozen model, and the unfused steps, which must give the bits of the fused ones.
"""

import numpy as np
import pytest
import reference as ref
from checks import assert_close, on_all_threads, same_bits
from option_cases import OPTIONS, TRAINED, difference, problem

from cvit import Layout, ViT
from cvit.engine import slots
from cvit.engine.plan import Plan
from cvit.model.program import program_of


def mean_of_heads(config, features):
    """Two heads see a token each; what `ViT.features` gives is their mean."""
    D = config.width
    return (features[:, :D] + features[:, D:]) / 2 if config.dist_head else features


@pytest.mark.parametrize("name", TRAINED)
def test_forward_and_gradient_are_the_references(isa, name):
    config, weights, x, y = problem(OPTIONS[name])
    model = ViT(config, weights)
    logits, features, _ = ref.forward(config, Layout.of(config).views(weights), x)
    loss, gradient = ref.loss_and_grad(config, weights, x, y, label_smoothing=0.1)
    assert_close(on_all_threads(lambda: model.forward(x)), logits, name="logits")
    assert_close(model.features(x), mean_of_heads(config, features), name="features")
    got, grad = on_all_threads(lambda: model.loss_and_grad(x, y, label_smoothing=0.1))
    assert_close(got, loss, name="loss")
    assert_close(grad, gradient, 1e-9, name="gradient")


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in TRAINED])
def test_features_of_a_model_without_a_head_are_the_references(isa, name):
    config, weights, x, _ = problem(OPTIONS[name])
    logits, features, _ = ref.forward(config, Layout.of(config).views(weights), x)
    assert logits is None
    features = mean_of_heads(config, features)
    assert_close(on_all_threads(lambda: ViT(config, weights).features(x)), features, name="features")
    weights, x = weights.astype(np.float32), x.astype(np.float32)
    _, features, _ = ref.forward(config, Layout.of(config).views(weights), x)
    assert_close(ViT(config, weights).features(x), mean_of_heads(config, features), 2e-4, name="features")


@pytest.mark.parametrize("name", TRAINED)
def test_gradient_is_the_finite_differences(name):
    config, weights, x, y = problem(OPTIONS[name])
    model = ViT(config, weights.copy())
    _, grad = model.loss_and_grad(x, y)
    some = np.random.default_rng(2).choice(len(weights), size=min(len(weights), 60), replace=False)

    def loss(flat):
        model.weights[:] = flat
        return model.loss_and_grad(x, y)[0]

    h, bound = difference(config)
    assert_close(grad[some], ref.numerical_gradient(loss, weights, some, h), bound, floor=np.abs(grad).max())


@pytest.mark.parametrize("name", TRAINED)
def test_float32_is_close(isa, name):
    config, weights, x, y = problem(OPTIONS[name], dtype=np.float32)
    _, gradient = ref.loss_and_grad(config, weights, x, y)
    _, grad = ViT(config, weights).loss_and_grad(x, y)
    assert_close(grad, gradient, 2e-4, name="gradient", floor=1e-3)


@pytest.mark.parametrize("name", TRAINED)
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
@pytest.mark.parametrize("name", TRAINED)
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
    grad = np.empty_like(weights)
    plan = Plan(program_of(config), len(x), np.float32, "train", fused=False, checkpoint=True)
    assert same_bits((plan.run_training(weights, x, labels, 0.0, grad), grad), results[2][:2])
    if other_order:
        assert_close(results[2][1], results[0][1], 1e-5, name="gradient")
    else:
        assert same_bits(results[2], results[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_and_layers_are_the_references_frozen_or_not(name):
    config, weights, x, _ = problem(OPTIONS[name])
    model = ViT(config, weights)
    numbers = list(range(config.depth))
    views = Layout.of(config).views(weights)
    expected, outputs = ref.tokens_of(config, views, x, layers=numbers)
    tokens, layers = model.tokens(x), model.tokens(x, layers=numbers)
    assert_close(tokens, expected, name="tokens")
    for number, output in zip(numbers, outputs):
        assert_close(layers[number], output, name=f"block {number}")
    if numbers:
        assert same_bits(model.tokens(x, layers=[-1], norm=True)[0], tokens)
        assert same_bits(model.tokens(x, norm=False), layers[-1])
    model.freeze()
    assert same_bits([model.tokens(x), *model.tokens(x, layers=numbers)], [tokens, *layers])


@pytest.mark.parametrize("name", ["layer scale", "SigLIP with a head", "RoPE-ViT"])
def test_a_program_is_read_once_for_all_batch_sizes(monkeypatch, name):
    """A new batch size makes one plan, and reads nothing off the program again."""
    config, weights, x, y = problem(OPTIONS[name])
    model = ViT(config, weights)
    expected = model.forward(x[:2])
    model.loss_and_grad(x[:2], y[:2])
    made, make = [], ViT._make_engine
    monkeypatch.setattr(slots, "Outline", None)
    monkeypatch.setattr(ViT, "_make_engine", lambda *args, **kwargs: made.append(args) or make(*args, **kwargs))
    assert same_bits(model.forward(x)[:2], expected)
    model.loss_and_grad(x, y)
    assert len(made) == 2
