"""The loss of target distributions, and of images that have weights: the kernel, the model, what is refused."""

import math
import re

import numpy as np
import pytest
import reference as ref
from checks import assert_close, assert_rounded, normal, on_all_threads, peer, same_bits, wide
from option_cases import OPTIONS, problem

from cvit import ViT, ops

HEADS = ["two heads", "two heads, no biases", "none", "none, no norm", "layer before the head", "attention pooling"]


def distributions(rng, *shape, dtype=np.float64):
    """Rows of shares that add up to 1, some of which are 0."""
    shares = rng.random(shape) * (rng.random(shape) < 0.7)
    shares[..., 0] += 0.1
    return (shares / shares.sum(axis=-1, keepdims=True)).astype(dtype)


# ------------------------------------------------------------------------------------------------------- the kernel
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("N, classes", [(1, 1), (3, 1), (1, 2), (5, 10), (40, 17), (9, 1000)])
def test_cross_entropy_of_targets(isa, rng, dtype, N, classes, smoothing):
    """Rows whose shares add up to something else than 1 are taken as they are."""
    logits = normal(rng, N, classes, dtype=dtype) * dtype(4)
    targets = distributions(rng, N, classes, dtype=dtype) * (1 + np.arange(N, dtype=dtype)[:, None] / N)
    loss, dlogits = on_all_threads(
        lambda: (ops.cross_entropy(logits, targets, smoothing), ops.cross_entropy_backward(logits, targets, smoothing))
    )
    logits, targets = wide(logits, targets)
    expected, logp = ref.cross_entropy_forward(logits, targets, smoothing)
    top = np.abs(logits).max() + abs(expected) + 1
    assert_rounded(dtype(loss), expected, 2 * top, classes + 16, "loss")
    size = (2 * np.exp(logp) + ref.smooth_targets(targets, classes, smoothing)) / N
    expected = ref.cross_entropy_backward(logp, targets, smoothing)
    assert_rounded(dlogits, expected, size, 2 * classes + 2 * top + 16, "dlogits")
    some = np.arange(0, logits.size, max(1, logits.size // 20))
    loss_of = lambda z: ref.cross_entropy_forward(z, targets, smoothing)[0]
    assert_close(expected.reshape(-1)[some], ref.numerical_gradient(loss_of, logits, some), 1e-9, floor=size.max())


def test_targets_of_one_class_each_are_labels(isa, rng, dtype):
    logits, labels = normal(rng, 7, 11, dtype=dtype), rng.integers(11, size=7)
    targets = np.eye(11, dtype=dtype)[labels]
    for smoothing in (0.0, 0.3):
        found = ops.cross_entropy(logits, targets, smoothing)
        np.testing.assert_allclose(found, ops.cross_entropy(logits, labels, smoothing), rtol=8 * np.finfo(dtype).eps)
        found = ops.cross_entropy_backward(logits, targets, smoothing)
        assert_close(found, ops.cross_entropy_backward(logits, labels, smoothing), 8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("smoothing, loss", [(0.0, 0.25 * math.log(1 + math.e) + 0.75 * math.log1p(1 / math.e)),
                                             (0.1, math.inf)])  # fmt: skip
def test_a_class_without_a_share_may_have_probability_0(isa, dtype, smoothing, loss):
    logits, target = np.array([[0, -math.inf, 1]], dtype), np.array([[0.25, 0, 0.75]], dtype)
    np.testing.assert_allclose(ops.cross_entropy(logits, target, smoothing), loss, rtol=1e-6)
    assert np.isfinite(ops.cross_entropy_backward(logits, target, smoothing)).all()


@pytest.mark.parametrize("at", [0, 7, 39])
def test_nan_is_nan(isa, dtype, at):
    logits, targets = np.zeros((1, 40), dtype), np.eye(40, dtype=dtype)[3:4]
    logits[0, at] = np.nan
    assert np.isnan(ops.cross_entropy(logits, targets))
    assert np.isnan(ops.cross_entropy_backward(logits, targets)).all()


# -------------------------------------------------------------------------------------------------------- the model
def goal(rng, config, y, soft, dtype=np.float64):
    return distributions(rng, *y.shape, config.classes, dtype=dtype) if soft else y


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "targets"])
@pytest.mark.parametrize("name", HEADS)
def test_the_model_is_the_references(isa, rng, name, soft):
    config, weights, x, y = problem(OPTIONS[name], N=5)
    y, share = goal(rng, config, y, soft), rng.random(5) * [1, 1, 0, 1, 3]
    model = ViT(config, weights)
    for sample_weight in (None, share):
        loss, gradient = ref.loss_and_grad(config, weights, x, y, 0.1, sample_weight)
        got, grad = on_all_threads(
            lambda share=sample_weight: model.loss_and_grad(x, y, label_smoothing=0.1, sample_weight=share)
        )
        assert_close(got, loss, name="loss")
        assert_close(grad, gradient, 1e-9, name="gradient")


@pytest.mark.parametrize("name", HEADS)
def test_gradient_is_the_finite_differences(rng, name):
    config, weights, x, y = problem(OPTIONS[name])
    y, share = goal(rng, config, y, True), rng.random(3)
    model = ViT(config, weights.copy())
    _, grad = model.loss_and_grad(x, y, sample_weight=share, label_smoothing=0.2)
    some = rng.choice(len(weights), size=40, replace=False)

    def loss(flat):
        model.weights[:] = flat
        return model.loss_and_grad(x, y, sample_weight=share, label_smoothing=0.2)[0]

    assert_close(grad[some], ref.numerical_gradient(loss, weights, some, 2e-4), 1e-9, floor=np.abs(grad).max())


def test_float32_is_close(isa, rng):
    config, weights, x, y = problem({}, N=7, dtype=np.float32)
    y, share = goal(rng, config, y, True, np.float32), rng.random(7).astype(np.float32)
    loss, gradient = ref.loss_and_grad(config, weights, x, y, 0.1, share)
    got, grad = ViT(config, weights).loss_and_grad(x, y, label_smoothing=0.1, sample_weight=share)
    assert_close(got, loss, 1e-5, name="loss")
    assert_close(grad, gradient, 2e-4, name="gradient")
    wider = ViT(config, weights).loss_and_grad(x, y.astype(np.float64), label_smoothing=0.1, sample_weight=share)
    assert same_bits(wider, (got, grad))  # float64 targets are rounded to the model's dtype


def test_weights_of_one_nth_are_the_mean_and_parts_add_up(rng, dtype):
    config, weights, x, y = problem({}, N=6, dtype=dtype)
    model, eps = ViT(config, weights), 50 * np.finfo(dtype).eps
    loss, grad = model.loss_and_grad(x, y)
    got, same = model.loss_and_grad(x, y, sample_weight=np.full(6, 1 / 6))
    assert_close(got, loss, eps)
    assert_close(same, grad, eps)
    total, losses = np.zeros_like(weights), 0.0
    for part in (slice(0, 2), slice(2, 6)):
        share = np.full(part.stop - part.start, 1 / 6)
        losses += model.loss_and_grad(x[part], y[part], sample_weight=share, out=total, accumulate=True)[0]
    assert_close(losses, loss, eps)
    assert_close(total, grad, eps)


def test_an_image_of_weight_0_does_not_count(rng):
    config, weights, x, y = problem({}, N=3)
    model, share = ViT(config, weights), [0.5, 0, 2]
    found = model.loss_and_grad(x, y, sample_weight=share)
    x[1] = 100 * rng.standard_normal(x[1].shape)
    y[1] = (y[1] + 1) % config.classes
    again = model.loss_and_grad(x, y, sample_weight=share)
    assert found[0] == again[0]
    assert_close(again[1], found[1], 1e-14)
    whole = np.array([2, 1, 0])  # of any real dtype
    assert same_bits(model.loss_and_grad(x, y, sample_weight=whole), model.loss_and_grad(x, y, sample_weight=whole / 1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs(rng, smoothing):
    torch = peer("torch")
    logits, targets = rng.standard_normal((9, 13)), distributions(rng, 9, 13)
    theirs = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(targets), label_smoothing=smoothing)
    loss.backward()
    assert_close(ops.cross_entropy(logits, targets, smoothing), loss.item(), 1e-14)
    assert_close(ops.cross_entropy_backward(logits, targets, smoothing), theirs.grad.numpy(), 1e-13)
    config, weights, x, _ = problem({"classes": 13}, N=9)
    share, model = rng.random(9), ViT(config, weights)
    found, _ = model.loss_and_grad(x, targets, label_smoothing=smoothing, sample_weight=share)
    each = torch.nn.functional.cross_entropy(
        torch.tensor(model.logits), torch.tensor(targets), label_smoothing=smoothing, reduction="none"
    )
    assert_close(found, (each * torch.tensor(share)).sum().item(), 1e-13)


# -------------------------------------------------------------------------------------------------- what is refused
GOOD = np.full((2, 5), 0.2)


def changed(array, at, value):
    array = np.array(array, np.float64)
    array[at] = value
    return array


BAD = [
    (dict(y=GOOD[:1]), ValueError, "y must have shape (2, 5), got (1, 5)"),
    (dict(y=GOOD[:, :4]), ValueError, "y must have shape (2, 5), got (2, 4)"),
    (dict(y=GOOD[None]), ValueError, "y must have shape (2, 5), got (1, 2, 5)"),
    (dict(y=GOOD.astype(np.float16)), TypeError, "y must be float32 or float64, got float16"),
    (dict(y=GOOD.astype(int)), ValueError, "y must have shape (2,), one label an image, got (2, 5)"),
    (dict(y=changed(GOOD, (1, 2), -0.5)), ValueError, "y must be finite and not negative in float32, got"),
    (dict(y=changed(GOOD, (1, 2), np.nan)), ValueError, "y must be finite and not negative in float32, got"),
    (dict(y=changed(GOOD, (1, 2), 1e300)), ValueError, "y must be finite and not negative in float32, got"),
    (dict(sample_weight=[1.0]), ValueError, "sample_weight must have shape (2,), one weight an image, got (1,)"),
    (dict(sample_weight=GOOD), ValueError, "sample_weight must have shape (2,), one weight an image, got (2, 5)"),
    (dict(sample_weight=[1.0, -1.0]), ValueError, "sample_weight must be finite and not negative in float32, got"),
    (dict(sample_weight=[1.0, np.inf]), ValueError, "sample_weight must be finite and not negative in float32, got"),
    (dict(sample_weight=[1.0, np.nan]), ValueError, "sample_weight must be finite and not negative in float32, got"),
    (dict(sample_weight=[1.0, 1e300]), ValueError, "sample_weight must be finite and not negative in float32, got"),
    (dict(sample_weight=["a", "b"]), TypeError, "sample_weight must hold real numbers, got <U1"),
    (dict(sample_weight=[True, False]), TypeError, "sample_weight must hold real numbers, got bool"),
]  # fmt: skip


@pytest.mark.parametrize("options, error, message", BAD)
def test_wrong_targets_and_weights_are_refused(options, error, message):
    config, weights, x, y = problem({}, N=2, dtype=np.float32)
    with pytest.raises(error, match="^" + re.escape(message)):
        ViT(config, weights).loss_and_grad(x, **{"y": y, **options})


@pytest.mark.parametrize("op", [ops.cross_entropy, ops.cross_entropy_backward])
def test_the_kernel_refuses_them_too(op):
    for targets, message in [
        (GOOD[:1], "labels must have shape (2, 5), got (1, 5)"),
        (-GOOD, "labels must be finite and not negative in float64, got values from -0.2 to -0.2"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            op(np.ones((2, 5)), targets)


def test_targets_of_a_model_that_pools_nothing_have_a_row_a_token():
    config, weights, x, y = problem(OPTIONS["none"], N=2)
    message = f"y must have shape (2, {config.tokens}, 5), got (1, 2, 5)"
    with pytest.raises(ValueError, match=re.escape(message)):
        ViT(config, weights).loss_and_grad(x, GOOD[None])
    out = np.zeros(max(len(weights), y.size * 5))
    targets = out[: y.size * 5].reshape(*y.shape, 5)
    with pytest.raises(ValueError, match="out must not overlap y"):
        ViT(config, weights).loss_and_grad(x, targets, out=out[: len(weights)])
