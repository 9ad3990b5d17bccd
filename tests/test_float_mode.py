"""The floating-point mode of a pass: whatever the caller's is, results have the same bits, and the caller's stays."""

import numpy as np
import pytest
from checks import normal, on_all_threads, same_bits
from float_modes import FLUSH, UPWARD, mode, needed

import cvit
from cvit import Layout, Rope, ViT, ViTConfig, ops
from cvit.engine import update

pytestmark = needed


def calls(rng, dtype):
    """Each kernel of cvit.ops and of the optimizers, as functions of no arguments."""
    x, dy, w, bias = (normal(rng, *shape, dtype=dtype) for shape in ((70, 40), (70, 33), (40, 33), (33,)))
    q, k, v, do = normal(rng, 4, 2, 3, 90, 8, dtype=dtype)
    o, lse = ops.attention(q, k, v)
    _, mean, rstd = ops.layernorm(x)
    angles = normal(rng, 90, 4, dtype=dtype)
    labels, runs = np.arange(70) % 40, update.run_of(5, 900, decay=True)

    def step(kernel, *state):
        weights, gradient = x.flatten(), dy.flatten()[: x.size].repeat(2)[: x.size]
        kernel(weights, gradient, *state)
        return weights, *(array for array in state if isinstance(array, np.ndarray))

    def model(rope):
        """The logits, loss and gradient of a new model: the tables of its rotary positions are made in the call."""
        config = ViTConfig(
            image_size=16, patch_size=4, channels=1, width=16, depth=2, heads=2, classes=3, rope=rope, norm="rms",
            pool="map",
        )  # fmt: skip
        weights = normal(np.random.default_rng(5), Layout.of(config).size, dtype=dtype)
        images = normal(np.random.default_rng(6), 2, 1, 16, 16, dtype=dtype)

        def call():
            made = ViT(config, weights)
            return made.forward(images), *made.loss_and_grad(images, [0, 2])

        return call

    zeros = lambda: np.zeros(x.size, dtype)
    return {
        "linear": lambda: ops.linear(x, w, bias),
        "linear_backward": lambda: ops.linear_backward(dy, x, w),
        "layernorm": lambda: ops.layernorm(x, w[:, 0], w[:, 1]),
        "layernorm_backward": lambda: ops.layernorm_backward(x, x, mean, rstd, w[:, 0]),
        "rmsnorm": lambda: ops.rmsnorm(x, w[:, 0]),
        "rmsnorm_backward": lambda: ops.rmsnorm_backward(x, x, rstd, w[:, 0]),
        "activation": lambda: [ops.activation(x, kind, x[::-1]) for kind in ops.ACTIVATIONS],
        "activation_backward": lambda: [ops.activation_backward(x, x, kind, x[::-1]) for kind in ops.ACTIVATIONS],
        "attention": lambda: ops.attention(q, k, v),
        "attention_backward": lambda: ops.attention_backward(do, q, k, v, o, lse),
        "attend": lambda: ops.attend(q[:, :, 0], k, v),
        "attend_backward": lambda: ops.attend_backward(do[:, :, 0], q[:, :, 0], k, v),
        "rotate": lambda: ops.rotate(q, angles),
        "rotate_backward": lambda: ops.rotate_backward(do, angles),
        "rotate_frequencies": lambda: ops.rotate_frequencies(do, q, angles[:, :2]),
        "drop": lambda: ops.drop(q[0], 5, path=0.1, rate=0.3, add=q[0]),
        "cross_entropy": lambda: ops._cross_entropy(x, labels, 0.1, True),
        "exp": lambda: ops.exp(x),
        "sgd": lambda: step(update.sgd, zeros(), 0.1, 0.9, True, 0.01, runs, 0.3),
        "adamw": lambda: step(update.adamw, zeros(), zeros(), 1e-3, 0.9, 0.999, 1e-8, 0.01, 3, runs, 0.3),
        "average": lambda: step(update.average, 0.3, runs),
        "sum_of_squares": lambda: update.sum_of_squares(x, update.run_of(3, x.size)),
        "model, fixed angles": model(Rope()),
        "model, learned angles": model(Rope("mixed", theta=10.0)),
    }


@pytest.mark.parametrize("name", list(calls(np.random.default_rng(0), np.float32)))
@pytest.mark.parametrize("bits", [UPWARD, FLUSH, UPWARD | FLUSH], ids=["upward", "flush", "both"])
def test_the_callers_mode_changes_nothing_and_stays(rng, dtype, name, bits):
    call = calls(rng, dtype)[name]
    expected = call()
    for threads in (1, 2, 5):
        cvit.set_num_threads(threads)
        with mode(0):
            call()
        with mode(bits):
            found = call()
        assert same_bits(found, expected), f"{threads} threads"


def test_the_mode_of_this_test_is_one_that_arithmetic_shows():
    numbers, two = np.arange(1, 200, dtype=np.float32), np.float32(2)
    tiny = np.full(1, np.finfo(np.float32).tiny)
    with mode(UPWARD):
        up = two / numbers
    with mode(FLUSH):
        flushed = tiny / two
    assert (up > two / numbers).any() and flushed == 0 != tiny / two


def test_subnormal_numbers_count_as_zero(isa, dtype):
    """As inputs and as results, with 1, 2, 3 and 5 threads alike."""
    tiny = np.finfo(dtype).tiny
    subnormal = np.full((70, 40), tiny / 4, dtype)
    small = np.full((70, 40), tiny, dtype)
    weights = np.full((40, 33), 0.25, dtype)
    assert not on_all_threads(lambda: ops.linear(subnormal, weights)).any()
    assert not on_all_threads(lambda: ops.activation(small, "silu")).any()  # half of the smallest normal number
    assert not on_all_threads(lambda: ops.activation(subnormal, "relu")).any()
    assert on_all_threads(lambda: update.sum_of_squares(subnormal, update.run_of(0, subnormal.size))) == 0


def test_moments_do_not_stick_where_arithmetic_is_slow(isa, dtype):
    """AdamW's moments and SGD's velocity decay to zero without gradients: subnormal ones would slow all later steps."""
    tiny = np.finfo(dtype).tiny
    whole = update.run_of(0, 100)
    weights, gradient = np.ones(100, dtype), np.zeros(100, dtype)
    m, v, velocity = (np.full(100, 1.05 * tiny, dtype) for _ in range(3))
    update.adamw(weights, gradient, m, v, 1e-3, 0.9, 0.9, 1e-8, 0.0, 5, whole, 1.0)
    update.sgd(weights, gradient, velocity, 1e-3, 0.9, False, 0.0, whole, 1.0)
    assert not m.any() and not v.any() and not velocity.any()
