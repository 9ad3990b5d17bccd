"""Whole passes of precision "bf16": how far rounded operands take them, and what must not change a bit.

Logits and gradients are those of float64 but for what bfloat16 operands explain, 2^-9 of each, which a few layers of
large random weights make some per cent of; and they are the same bits on every instruction set of this machine, with
any number of threads, fused or not, with or without hints, checkpointed, frozen, behind a frozen front.
docs/bfloat16.md says what is computed.
"""

import functools

import numpy as np
import pytest
import reference as ref
from checks import distance, on_all_isas, on_all_threads, same_bits
from option_cases import OPTIONS, SMALL, problem

import cvit
from cvit import Layout, ViTConfig
from cvit.bench.cases import Case
from cvit.engine import program, team, update
from cvit.engine.plan import Plan
from cvit.engine.sines import cosines_sines
from cvit.engine.slots import half_slots
from cvit.model.program import program_of, tail_of

# The options that change what a block does, and sizes: one token, width 1, one head, widths that are no multiple of 32,
# hidden rows of more than one block, more than a block of keys, blocks of one image and of several.
CASES = {name: OPTIONS[name] for name in (
    "wide and gated", "width 1, one token", "all tokens", "patch norm, registers", "norm of q and k, RMS",
    "norm in the MLP, RMS, gated, wide", "inner norms, width 1, one token", "post, gated, no weights",
    "parallel, inner norms", "pairs, gated, no biases", "axial, columns first, from another grid", "RoPE-ViT",
    "attention pooling, wide", "layer before the head, wide", "DeiT, distilled", "EVA-02", "DeiT III, pairs", "none",
    "relu",
)} | {
    "long": dict(image_size=(20, 18), width=36, heads=1, hidden=70, pool="mean"),
    "wide": dict(width=132, heads=2, hidden=450, depth=1, image_size=10, layer_scale=0.3),
    "wide, gated": dict(width=66, heads=1, hidden=400, gated=True, activation="silu"),
    "many keys": dict(image_size=21, patch_size=1, channels=1, width=12, heads=2, hidden=8, depth=1),
}  # fmt: skip
LONG = ("long", "many keys")
DROPS = (0.3, 0.2, 7, 5)


@functools.cache
def case(name, N):
    """A configuration, float32 weights, images and labels: one for every pooled row."""
    config, weights, x, y = problem(CASES[name], N=N, dtype=np.float32)
    return config, weights, x, np.ascontiguousarray(y, np.int64).reshape(-1)


def plan_of(config, N, mode="train", made=program_of, **how):
    return Plan(made(config), N, np.float32, mode, precision="bf16", **how)


def train(config, weights, x, y, smoothing=0.1, sample_weight=None, drop=(0, 0, 0, 0), made=program_of, **how):
    """(loss, gradient, logits) of a training pass."""
    plan, grad = plan_of(config, len(x), made=made, **how), np.full_like(weights, 7)
    loss = plan.run_training(weights, x, y, smoothing, grad, sample_weight, drop)
    return loss, grad, plan.logits().copy()


def infer(config, weights, x, **how):
    return plan_of(config, len(x), "infer", **how).forward(weights, x)[0].copy()


# ------------------------------------------------------------------------------------------------ what is computed
@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("name", [name for name in CASES if name not in LONG])
def test_logits_and_gradients_are_float64s_but_for_rounded_operands(name, N):
    config, weights, x, y = case(name, N)
    loss, grad, logits = train(config, weights, x, y)
    wide = weights.astype(np.float64)
    exact, _, _ = ref.forward(config, Layout.of(config).views(wide), x.astype(np.float64))
    rows = y.reshape(exact.shape[:-1])
    exact_loss, gradient = ref.loss_and_grad(config, wide, x.astype(np.float64), rows, label_smoothing=0.1)
    tiny = config.width == 1  # norms of one number: the tokens are zeros, and the logits biases
    assert distance(logits, exact) < 0.04 and distance(grad, gradient) < 0.08
    assert tiny or (distance(logits, exact) > 1e-6 and distance(grad, gradient) > 1e-6)
    assert abs(loss - exact_loss) < 0.02 * (1 + exact_loss)


@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_and_number_of_threads_computes_the_same_bits(name):
    config, weights, x, y = case(name, 3 if name in LONG else 5)
    names = cvit.available_isas() if name not in LONG else cvit.available_isas()[-2:]

    def both():
        return *train(config, weights, x, y), infer(config, weights, x)

    *_, kept, forgotten = on_all_isas(lambda: on_all_threads(both), names)
    assert same_bits(kept, forgotten)


def test_twenty_steps_of_adamw_are_the_same_bits_on_every_instruction_set():
    """Clipping, decay and the average of the weights included."""
    config, start, x, y = case("wide and gated", 5)
    runs = update.run_of(0, start.size, decay=True)

    def trained():
        weights, m, v, average, grad = start.copy(), *np.zeros((2, start.size), np.float32), start.copy(), start.copy()
        plan, norms = plan_of(config, len(x)), []
        for step in range(1, 21):
            norms.append(plan.run_training(weights, x, y, 0.1, grad))
            norms.append(update.sum_of_squares(grad, runs, precision="bf16"))
            scale = 1 / max(1, norms[-1] ** 0.5)
            update.adamw(weights, grad, m, v, 3e-3, 0.9, 0.999, 1e-8, 0.05, step, runs, scale, precision="bf16")
            update.average(average, weights, 0.1, runs, precision="bf16")
        update.sgd(weights, grad, m, 0.1, 0.9, True, 0.01, runs, 0.5, precision="bf16")
        return weights, average, m, v, norms

    assert np.isfinite(on_all_isas(lambda: on_all_threads(trained))[0]).all()


# ----------------------------------------------------------------------------------------- what must not change a bit
@pytest.mark.parametrize("name", CASES)
def test_fused_steps_hints_and_checkpointing_change_no_bit(name):
    """A gated MLP wider than a block of hidden columns adds up its two matrices' parts of dx in another order."""
    config, weights, x, y = case(name, 5)
    plain = train(config, weights, x, y)
    for how in ({"hints": False}, {"checkpoint": True}, {"fused": False}, {"fused": False, "checkpoint": True}):
        other_order = config.gated and config.hidden > 384 and "fused" in how
        result = train(config, weights, x, y, **how)
        assert same_bits(result[2], plain[2])
        assert distance(result[1], plain[1]) < 1e-2 if other_order else same_bits(result, plain)
        if "checkpoint" not in how:
            assert same_bits(infer(config, weights, x, **how), plain[2])


@pytest.mark.parametrize("name", CASES)
def test_batch_mates_do_not_matter_and_frozen_is_the_same(name):
    config, weights, x, _ = case(name, 5)
    logits = infer(config, weights, x)
    assert same_bits(np.concatenate([infer(config, weights, image[None]) for image in x]), logits)
    assert same_bits(infer(config, weights, x[1:3]), logits[1:3])
    packed = plan_of(config, 1, "infer", frozen=True)
    packed.freeze(weights)
    assert same_bits(infer(config, weights, x, frozen=True, owner=packed), logits)


@pytest.mark.parametrize("name", ["wide and gated", "wide", "none"])
def test_whole_blocks_or_not(name):
    """It depends on batch and threads which stages a task takes; the bits do not. T is odd, so a unit of whole images
    is an even number of them: two tasks share no pair of rows of a panel."""
    config, seen = case(name, 1)[0], set()
    for N in (1, 4, 9, 33):
        _, weights, x, y = case(name, N)
        results = []
        for threads in (1, 2, 3, 5, 8):
            cvit.set_num_threads(threads)
            seen.add(plan_of(config, N).whole_blocks)
            results.append((*train(config, weights, x, y), infer(config, weights, x)))
        assert all(same_bits(result, results[0]) for result in results)
    assert seen == {False, True}


@pytest.mark.parametrize("first", [1, "head"])
def test_a_frozen_front(first):
    """The trained part's gradient is the whole pass's, from tokens that inference gives."""
    config, weights, x, y = case("all tokens", 5)
    loss, grad, logits = train(config, weights, x, y)
    infers = plan_of(config, len(x), "infer" if first == "head" else "tokens")
    if first == "head":
        tokens = infers.forward(weights, x)[1][:, None]
    else:
        (tokens,) = (view.copy() for view in infers.layers(weights, x, [first - 1], False))

    def tail():
        plan, part = plan_of(config, len(x), made=lambda config: tail_of(config, first)), np.zeros_like(weights)
        plan.given[...] = tokens
        return plan.run_training(weights, x, y, 0.1, part), part[plan.trained :], plan.logits().copy()

    found = on_all_isas(lambda: on_all_threads(tail))
    trained = len(found[1])
    assert 0 < trained < len(weights) and same_bits(found, (loss, grad[-trained:], logits))


@pytest.mark.parametrize("how", ["drop", "targets", "sample weights"])
@pytest.mark.parametrize("name", ["post, gated, no weights", "wide, gated", "parallel, inner norms"])
def test_what_else_a_training_step_takes(name, how):
    config, weights, x, y = case(name, 5)
    rng, options = np.random.default_rng(3), {}
    if how == "drop":
        options = dict(drop=DROPS, made=lambda config: program_of(config, True, True))
    elif how == "targets":
        y = rng.dirichlet(np.ones(config.classes), len(x)).astype(np.float32)
    else:
        options = dict(sample_weight=np.array([0.2, 0.0, 1.5, 0.3, 0.1]))
    result = on_all_isas(lambda: on_all_threads(lambda: train(config, weights, x, y, **options)))
    plain = train(config, weights, x, case(name, 5)[3])
    assert np.isfinite(result[1]).all() and not same_bits(result[1], plain[1])
    assert same_bits(train(config, weights, x, y, checkpoint=True, **options), result)
    if not (config.gated and config.hidden > 384):
        assert same_bits(train(config, weights, x, y, fused=False, **options), result)


def test_attention_reads_what_the_maps_see():
    """q, k and v between the stages are bfloat16, unless something has turned or normalised them."""
    for name, rounded in (("wide", True), ("RoPE-ViT", False), ("norm of q and k, RMS", False)):
        config, weights, x, _ = case(name, 3)
        plan = plan_of(config, len(x), "tokens", staged=True)
        for qkv in plan.queries_keys(weights, x, range(config.depth)):
            assert qkv.dtype == np.float32 and qkv.shape == (3, config.tokens, 3 * config.width)
            assert (not np.any(qkv.view(np.uint32) & 0xFFFF)) == rounded
    f32 = Plan(program_of(config), len(x), np.float32, "tokens", staged=True)
    for exact, rough in zip(f32.queries_keys(weights, x, [1]), plan.queries_keys(weights, x, [1])):
        assert distance(rough, exact) < 0.02


# ---------------------------------------------------------------------------------------------------- what it takes
def names_of(options, drops=(False, False)):
    config = ViTConfig(**{**SMALL, **options})
    return half_slots(
        section
        for block in program_of(config, *drops).blocks
        for section in (block.before, (block.heads,), block.after)
    )


def test_which_slots_are_half():
    plain = {"qkv", "o", "u", "g"}
    assert names_of({}) == names_of({}, (True, True)) == names_of(dict(gated=True)) == plain
    assert names_of(dict(qk_norm=True)) == names_of(dict(rope=OPTIONS["axial"]["rope"], heads=5)) == plain - {"qkv"}
    assert names_of(dict(attn_norm=True, mlp_norm=True)) == {"qkv", "u"}
    assert names_of(dict(block="pairs")) == plain | {"u_2", "g_2"}
    step = program.Drop("drop", 4, 0, "y~", "y", "mid")
    assert half_slots([[step]]) == set()


@pytest.mark.parametrize("name, most", [("ti16", 0.6), ("s16", 0.6), ("b16", 0.6), ("cifar-s", 0.61)])
def test_a_training_step_takes_three_fifths_of_float32s_memory(name, most):
    """Of a hidden width of twice the tokens' that is as much as a block keeps at the least: x and what follows the
    attention stay float32."""
    cvit.set_num_threads(2)
    config, N = Case.named(name).config, Case.named(name).batch

    def bytes_of(precision):
        plan = Plan(program_of(config), N, np.float32, "train", precision=precision, dry=True)
        buffers = plan.buffers
        return sum(buffers.values()) + buffers["scratch of a thread"] * (plan.threads() - 1)

    assert bytes_of("bf16") <= most * bytes_of("f32")


def test_packed_weights_of_a_frozen_model_take_half():
    config = Case.named("ti16").config
    sizes = [
        Plan(program_of(config), 1, np.float32, "infer", frozen=True, precision=precision, dry=True).buffers[
            "packed weights"
        ]
        for precision in ("f32", "bf16")
    ]
    assert sizes[1] == sizes[0] / 2


def test_cosines_and_sines():
    eighths = np.pi / 4 * np.arange(-9, 9)
    angles = np.concatenate([np.linspace(-40, 40, 8001), np.linspace(-1e6, 1e6, 7001), eighths, [0]])
    cos, sin = cosines_sines(angles)
    assert np.abs(cos - np.cos(angles)).max() <= 2**-52 and np.abs(sin - np.sin(angles)).max() <= 2**-52
    far = np.array([1e7, -1e300, 2.0**80])
    assert np.abs(np.square(cosines_sines(far)).sum(0) - 1).max() < 1e-15
    assert np.isnan(cosines_sines(np.array([np.nan, np.inf, -np.inf]))).all()


# ------------------------------------------------------------------------------------------------------------ its name
def test_precisions_have_names():
    with pytest.raises(ValueError, match="precision must be one of 'f32', 'f64', 'bf16', 'bf16-fast', got 'fp8'"):
        Plan(program_of(ViTConfig(**SMALL)), 1, np.float32, "infer", precision="fp8")
    assert team.has_precision("bf16") and not team.has_precision("fp8")
    assert team.bf16_is_faster() == (cvit.get_isa() == "amx")
    cvit.set_isa("portable")
    assert not team.has_precision("bf16-fast") and not team.bf16_is_faster()
    with pytest.raises(ValueError, match="precision 'bf16-fast' needs a CPU with AVX512-BF16"):
        team.table_address(precision="bf16-fast")


def test_an_optimizers_precision_fits_its_vectors():
    x = np.ones(70000)
    with pytest.raises(TypeError, match="vectors of precision 'bf16' must be float32, got float64"):
        update.sum_of_squares(x, update.run_of(0, x.size), precision="bf16")
    with pytest.raises(ValueError, match="precision must be one of"):
        update.average(x, x, 0.1, update.run_of(0, x.size), precision="half")
    assert update.sum_of_squares(x, update.run_of(0, x.size), precision="f64") == 70000
    assert update.sum_of_squares(x.astype(np.float32), update.run_of(0, x.size), precision="bf16") == 70000
