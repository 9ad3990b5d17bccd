"""The engine against the same model in PyTorch, under its autograd: logits, every gradient, twenty steps of loss."""

import functools

import numpy as np
import pytest
from checks import assert_close, peer

torch = peer("torch")

from test_model import CASES, bound, rounded_problem  # noqa: E402
from test_reference import torch_forward  # noqa: E402

from cvit import SGD, AdamW, Layout, ViT, ViTConfig  # noqa: E402


def torch_loss_and_grad(config, flat, x, y, label_smoothing):
    """Loss, logits and the flat gradient in the layout's order."""
    layout = Layout.of(config)
    tensors = {name: torch.tensor(view, requires_grad=True) for name, view in layout.views(flat).items()}
    logits, _ = torch_forward(torch, config, tensors, torch.from_numpy(x))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), label_smoothing=label_smoothing)
    loss.backward()
    gradients = {name: np.zeros(t.shape) if t.grad is None else t.grad.numpy() for name, t in tensors.items()}
    return loss.item(), logits.detach().numpy(), layout.pack(gradients)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_every_gradient(dtype, case):
    """Bounds as in test_model.py, twice: both sides round.

    A key bias's gradient is exactly zero: by the whole gradient's largest.
    """
    N, config = CASES[case]
    flat, x, y = rounded_problem(config, N, dtype)
    loss, grad = (model := ViT(config, flat)).loss_and_grad(x, y, label_smoothing=0.1)
    expected_loss, expected_logits, expected_grad = torch_loss_and_grad(config, flat, x, y, 0.1)
    allowed = 2 * bound(config, N, dtype)
    assert_close(model.logits, expected_logits, allowed, "logits")
    assert_close(loss, expected_loss, allowed, "loss", floor=np.abs(expected_logits).max())
    views, expected = Layout.of(config).views(grad), Layout.of(config).views(expected_grad)
    for name in views:
        assert_close(views[name], expected[name], allowed, name, floor=np.abs(expected_grad).max())


TRAINED = ViTConfig(image_size=8, patch_size=2, channels=1, width=32, depth=3, heads=4, hidden=64, classes=10)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_twenty_steps(dtype, name):
    """The losses of twenty steps on the same batches, with momentum or moments and decay where the layout says so.

    (Not the weights: AdamW divides a key bias's gradient, which is rounding alone, by its own size.)
    """
    rng = np.random.default_rng(0)
    layout = Layout.of(TRAINED)
    flat = rounded_problem(TRAINED, 1, dtype)[0]
    # images that say what they are: a pattern for each class, and noise
    patterns = rng.standard_normal((10, 1, 8, 8))
    labels = [rng.integers(10, size=24) for _ in range(20)]
    batches = [((patterns[y] + rng.standard_normal((24, 1, 8, 8))).astype(dtype), y) for y in labels]

    tensors = {key: torch.tensor(view, requires_grad=True) for key, view in layout.views(flat).items()}
    groups = [
        {"params": [tensors[key] for key, entry in layout.entries.items() if entry.decay], "weight_decay": 0.05},
        {"params": [tensors[key] for key, entry in layout.entries.items() if not entry.decay], "weight_decay": 0.0},
    ]
    if name == "SGD":
        theirs = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
        make = functools.partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.05)
    else:
        theirs = torch.optim.AdamW(groups, lr=2e-3)
        make = functools.partial(AdamW, lr=2e-3, weight_decay=0.05)

    model = ViT(TRAINED, flat.copy())
    ours = make(model)
    losses = []
    for x, y in batches:
        theirs.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            torch_forward(torch, TRAINED, tensors, torch.from_numpy(x))[0], torch.from_numpy(y)
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(tensors.values(), 5.0).item()
        theirs.step()
        value, grad = model.loss_and_grad(x, y)
        losses.append((value, loss.item()))
        assert_close(
            ours.step(model.weights, grad, clip_norm=5.0), norm, 1e-9 if dtype == np.float64 else 1e-3, "gradient norm"
        )
    first, last = losses[0][1], losses[-1][1]
    assert last < 0.8 * first
    # what rounds differently drifts apart step by step; eps times 20 steps of a few hundred roundings each
    np.testing.assert_allclose(*zip(*losses), rtol=20 * 500 * np.finfo(dtype).eps)
