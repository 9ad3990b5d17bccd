"""Stochastic depth and dropout: loss, logits and gradient against the reference with the masks of drop_masks.py, which
are those of every instruction set, number of threads and way to run a plan."""

import numpy as np
import pytest
import reference as ref
from checks import assert_close, on_all_threads, peer, same_bits
from drop_masks import Masks
from option_cases import difference, problem
from test_errors import ids, refuses

from cvit import Drop, Layout, Rope, ViT, ViTConfig
from cvit.engine import program as words
from cvit.engine.plan import Plan
from cvit.model.program import program_of

CASES = {
    "plain": {},
    "post": dict(block="post"),
    "post, inner norms": dict(block="post", qk_norm=True, attn_norm=True, mlp_norm=True),
    "parallel": dict(block="parallel", layer_scale=0.5),
    "pairs": dict(block="pairs", depth=3),
    "gated": dict(gated=True, activation="silu"),
    "gated, wide": dict(gated=True, activation="silu", hidden=400, width=132, heads=2),
    "layer scale": dict(layer_scale=0.5),
    "norms of q and k, in the MLP": dict(qk_norm=True, mlp_norm=True),
    "learned frequencies, RMS norm": dict(rope=Rope("mixed", theta=10.0), heads=5, norm="rms", pos_tokens="none"),
    "registers": dict(registers=3, dist_token=True),
    "norms before the blocks": dict(pre_norm=True, patch_norm=True),
    "map": dict(pool="map"),
    "no pooling": dict(pool="none"),
    "deep": dict(depth=5, bias=False),
    "one block": dict(depth=1),
    "no block": dict(depth=0),
    "one token, width 1": dict(width=1, heads=1, hidden=1, pool="mean", image_size=2),
    "long": dict(image_size=(20, 18), depth=3),
}
DROPS = {
    "path": Drop(path=0.6, seed=3),
    "rate": Drop(rate=0.3, seed=2**64 - 1, first=5),
    "both": Drop(0.5, 0.2, 2**32 + 7, 2**62),
}


@pytest.fixture(params=DROPS)
def drop(request):
    return DROPS[request.param]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_the_references(isa, name, drop):
    config, weights, x, y = problem(CASES[name], N=5)
    masks = Masks(config, drop)
    logits, _, _ = ref.forward(config, Layout.of(config).views(weights), x, masks)
    expected = ref.loss_and_grad(config, weights, x, y, 0.1, masks=masks)
    model = ViT(config, weights)
    loss, grad = on_all_threads(lambda: model.loss_and_grad(x, y, label_smoothing=0.1, drop=drop))
    assert_close(loss, expected[0], name="loss")
    assert_close(model.logits, logits, name="logits")
    assert_close(grad, expected[1], 1e-9, name="gradient")


@pytest.mark.parametrize(
    "name", ["plain", "post", "parallel", "pairs", "gated", "learned frequencies, RMS norm", "map"]
)
def test_gradient_is_the_finite_differences(name):
    config, weights, x, y = problem(CASES[name])
    model, drop = ViT(config, weights.copy()), DROPS["both"]
    _, grad = model.loss_and_grad(x, y, drop=drop)
    some = np.random.default_rng(2).choice(len(weights), size=min(len(weights), 12), replace=False)

    def loss(flat):
        model.weights[:] = flat
        return model.loss_and_grad(x, y, drop=drop)[0]

    h, bound = difference(config)
    assert_close(grad[some], ref.numerical_gradient(loss, weights, some, h), bound, floor=np.abs(grad).max())


@pytest.mark.parametrize("name", CASES)
def test_checkpointed_unfused_and_without_hints_are_the_same_bits(dtype, name, drop):
    config, weights, x, y = problem(CASES[name], N=9, dtype=dtype)
    expected = ViT(config, weights).loss_and_grad(x, y, drop=drop)
    assert same_bits(ViT(config, weights, checkpoint="block").loss_and_grad(x, y, drop=drop), expected)
    labels = np.ascontiguousarray(y, np.int64).reshape(-1)
    for how in ({"fused": False}, {"hints": False}, {"fused": False, "checkpoint": True}):
        grad = np.empty_like(weights)
        plan = Plan(program_of(config, *drop.steps), len(x), dtype, "train", **how)
        loss = plan.run_training(weights, x, labels, 0.0, grad, drop=drop)
        if "wide" in name and "fused" in how:  # the unfused steps add up two matrices' parts in another order
            assert_close(grad, expected[1], 1e-4 if dtype == np.float32 else 1e-10)
        else:
            assert same_bits((loss, grad), expected), how


@pytest.mark.parametrize("name", ["plain", "gated, wide", "post", "pairs"])
def test_float32_is_close(isa, name, drop):
    config, weights, x, y = problem(CASES[name], dtype=np.float32)
    _, expected = ref.loss_and_grad(config, weights, x, y, masks=Masks(config, drop))
    _, grad = ViT(config, weights).loss_and_grad(x, y, drop=drop)
    assert_close(grad, expected, 2e-4, name="gradient", floor=1e-3)


@pytest.mark.parametrize("name", ["plain", "parallel", "long"])
def test_parts_of_a_batch_drop_what_the_batch_does(dtype, name, drop):
    """`first` counts on, whole blocks or not: the logits are the same bits, the gradients' mean the same but for
    rounding."""
    config, weights, x, y = problem(CASES[name], N=12, dtype=dtype)
    model = ViT(config, weights)
    _, whole = model.loss_and_grad(x, y, drop=drop)
    logits, total = model.logits, np.zeros_like(weights)
    parts = []
    for start in range(0, 12, 4):
        here = drop._replace(first=drop.first + start)
        model.loss_and_grad(x[start : start + 4], y[start : start + 4], drop=here, out=total, accumulate=True)
        parts.append(model.logits)
    assert same_bits(np.concatenate(parts), logits)
    assert_close(total / 3, whole, 1e-5 if dtype == np.float32 else 1e-12)


def test_nothing_to_drop_is_todays_bits_and_memory(isa, dtype):
    config, weights, x, y = problem({}, dtype=dtype)
    model = ViT(config, weights)
    expected = model.loss_and_grad(x, y)
    assert same_bits(model.loss_and_grad(x, y, drop=Drop(seed=5, first=7)), expected)
    assert len(model._engines) == 1 and program_of(config, False, False) == program_of(config)
    assert model.plan(4, drop=Drop(seed=1)) == model.plan(4)
    # Stochastic depth of a model with one block, whose rate is 0.
    config, weights, x, y = problem(dict(depth=1), dtype=dtype)
    model = ViT(config, weights)
    assert same_bits(model.loss_and_grad(x, y, drop=Drop(path=0.5)), model.loss_and_grad(x, y))


def test_numbers_and_seeds_make_no_new_plan_and_other_masks():
    config, weights, x, y = problem({})
    model = ViT(config, weights)
    losses = [
        model.loss_and_grad(x, y, drop=Drop(path, rate, seed, first))[0]
        for path in (0.2, 0.7) for rate in (0.1, 0.4) for seed in (1, 2) for first in (0, 3)
    ]  # fmt: skip
    assert len(set(losses)) == len(losses) and len(model._engines) == 1
    assert same_bits(model.forward(x), ViT(config, weights).forward(x))


def test_memory_is_told_and_stochastic_depth_keeps_nothing():
    model = ViT(ViTConfig.variant("Ti/16", classes=10, image_size=64, depth=4))
    plain, path, rate = (model.plan(8, drop=drop) for drop in (None, Drop(path=0.1), Drop(rate=0.1)))
    assert (path.lent, path.buffers["hidden rows"]) == (plain.lent, plain.buffers["hidden rows"])
    assert plain.bytes <= path.bytes <= 1.1 * plain.bytes and rate.bytes < 1.5 * plain.bytes
    assert model.plan(8, "infer", drop=Drop(0.1, 0.1)) == model.plan(8, "infer")


def drops_of(program):
    return [[step for step in block.after if isinstance(step, words.Drop)] for block in program.blocks]


def test_rates_rise_with_depth_as_timms():
    """`timm` takes torch.linspace(0, drop_path_rate, depth); the first block drops nothing, and has no step for it."""
    config = ViTConfig(image_size=8, patch_size=4, width=8, heads=2, depth=5, classes=2)
    steps = drops_of(program_of(config, True, False))
    assert steps[0] == [] and all(len(block) == 2 for block in steps[1:])
    shares = [0.0] + [block[0].share for block in steps[1:]]
    np.testing.assert_allclose(shares, np.linspace(0, 1, 5))
    places = [step.place for block in drops_of(program_of(config, True, True)) for step in block]
    assert len(set(places)) == len(places) and 0 not in places
    with_rate = {step.name: step.place for step in drops_of(program_of(config, True, True))[4]}
    assert {step.name: step.place for step in steps[4]}.items() <= with_rate.items()


@pytest.mark.parametrize("block, draws", [("pre", 2), ("post", 2), ("parallel", 1), ("pairs", 4)])
def test_branches_are_drawn_as_timms_are(block, draws):
    """timm has a DropPath for each branch, and one for both of its ParallelScalingBlock."""
    vit = peer("timm").models.vision_transformer
    kinds = dict(pre="Block", post="ResPostBlock", parallel="ParallelScalingBlock", pairs="ParallelThingsBlock")
    theirs = getattr(vit, kinds[block])(16, 2, drop_path=0.1)
    assert sum(type(module).__name__ == "DropPath" for module in theirs.modules()) == draws
    config = ViTConfig(image_size=8, patch_size=4, width=8, heads=2, depth=2, classes=2, block=block)
    assert len({step.branch for step in drops_of(program_of(config, True, False))[1]}) == draws


def test_the_program_says_what_is_dropped():
    config = ViTConfig(image_size=8, patch_size=4, width=8, heads=2, depth=2, classes=2)
    text = str(program_of(config, True, True))
    for line in (
        "drop        x0 -> x",
        "drop        mid~ + x -> mid",
        "drop        g -> g",
        "drop        y~ + mid -> y",
    ):
        assert line in text
    assert "drop" not in str(program_of(config)) and "hidden" in str(program_of(config, True, False))


# ------------------------------------------------------------------------------------------------------------- errors
WRONG = [
    (dict(path=1.0), ValueError, "drop.path must be below 1, got 1.0"),
    (dict(rate=-0.1), ValueError, "drop.rate must be finite and at least 0, got -0.1"),
    (dict(rate=np.nan), ValueError, "drop.rate must be finite and at least 0, got nan"),
    (dict(rate=1 - 1e-9), ValueError, "drop.rate must be below 1, got 0.999999999 (it rounds to 1 in float32)"),
    (dict(path="a"), TypeError, "drop.path must be a number, got 'a'"),
    (dict(seed=-1), ValueError, "drop.seed must be at least 0, got -1"),
    (dict(seed=2**64), ValueError, f"drop.seed must be at most {2**64 - 1}, got {2**64}"),
    (dict(seed=0.5), ValueError, "drop.seed must be a whole number, got 0.5"),
    (dict(first=-1), ValueError, "drop.first must be at least 0, got -1"),
]


@pytest.mark.parametrize("fields, error, message", WRONG, ids=ids)
def test_wrong_fields_are_refused(fields, error, message):
    config, weights, x, y = problem({}, dtype=np.float32)
    model = ViT(config, weights)
    refuses(lambda x, y: model.loss_and_grad(x, y, drop=Drop(**fields)), (x, y), error, message)
    refuses(lambda: model.plan(3, drop=Drop(**fields)), (), error, message)
    assert not model._engines


def test_what_is_no_drop_is_refused():
    config, weights, x, y = problem({})
    call = lambda x, y: ViT(config, weights).loss_and_grad(x, y, drop=0.1)
    refuses(call, (x, y), TypeError, "drop must be a Drop or None, got float")
