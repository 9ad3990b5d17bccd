"""How far bfloat16 is from float64: what is rounded is what docs/bfloat16.md names, and no more is lost than by others.

The whole model in NumPy and float64 (tests/reference.py) with the operands of its products rounded says what the error
is, entry by entry. cvit's results lie there but for float32's own roundings, which now and then carry an operand to its
other neighbour. A value that is rounded twice, not at all or in another way is further away.
"""

import math

import numpy as np
import pytest
import reference
import reference_ops
from checks import distance, normal, peer
from reference_bf16 import nearest
from test_reference import torch_forward

from cvit import AdamW, Layout, ViT, ViTConfig

SHAPE = dict(image_size=12, patch_size=3, channels=2, width=48, heads=3, hidden=80, classes=7)
CASES = {
    "plain": dict(activation="gelu_tanh"),
    "gated": dict(activation="silu", gated=True, norm="rms", pool="mean"),
    "registers, in parallel": dict(activation="gelu_erf", registers=2, block="parallel"),
}


def truncated(x):
    """The upper half of a float32, as a careless conversion takes it."""
    return (np.asarray(x, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)


class Rounded:
    """The reference's functions with what docs/bfloat16.md says rounded by `rounded`."""

    def __init__(self, rounded):
        self.rounded = rounded

    def install(self, patch):
        for name in ("attention_forward", "attention_backward", "linear_forward", "linear_backward"):
            patch.setattr(reference, name, getattr(self, name))
        exact, rounded = reference.Model.linear, self.rounded

        def linear(model, name, x):
            y, back = exact(model, name, x)
            return rounded(y) if name.endswith((".q", ".k", ".v", ".fc1", ".fc1_gate")) else y, back

        patch.setattr(reference.Model, "linear", linear)

    def linear_forward(self, x, weight, bias):
        return self.rounded(x) @ self.rounded(weight) + bias

    def linear_backward(self, dy, x, weight):
        return reference_ops.linear_backward(*map(self.rounded, (dy, x, weight)))

    def attention_forward(self, q, k, v):
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        top = scores.max(axis=-1, keepdims=True)
        p = np.exp(scores - top)
        total = p.sum(axis=-1, keepdims=True)
        return self.rounded(self.rounded(p) @ v / total), top + np.log(total)

    def attention_backward(self, do, q, k, v, o, lse):
        scale = 1 / math.sqrt(q.shape[-1])
        p = np.exp(q @ k.swapaxes(-1, -2) * scale - lse)
        do = self.rounded(do)
        delta = (do * o).sum(axis=-1, keepdims=True)
        ds = self.rounded(p * scale * (do @ v.swapaxes(-1, -2) - delta))
        return ds @ k, ds.swapaxes(-1, -2) @ q, self.rounded(p).swapaxes(-1, -2) @ do


def problem(config, seed, N):
    """Weights as large as trained ones, images and labels."""
    rng, layout = np.random.default_rng(seed), Layout.of(config)
    flat = np.empty(layout.size, np.float32)
    for name, view in layout.views(flat).items():
        matrix = view.ndim == 2 and name.endswith("weight")
        view[...] = rng.standard_normal(view.shape) * (len(view) ** -0.5 if matrix else 0.1)
        view += "norm" in name and name.endswith("weight")
    x = normal(rng, N, config.channels, *config.image_size, dtype=np.float32)
    return flat, x, rng.integers(config.classes, size=N)


def of_reference(config, flat, x, y, rounded=None):
    """Logits and gradient in float64."""
    with pytest.MonkeyPatch.context() as patch:
        if rounded is not None:
            Rounded(rounded).install(patch)
        logits = reference.forward(config, Layout.of(config).views(flat.astype(np.float64)), x)[0]
        return logits, reference.loss_and_grad(config, flat, x, y)[1]


def of_cvit(config, flat, x, y, precision="bf16"):
    """Logits and gradient in cvit."""
    model = ViT(config, flat, precision=precision)
    grad = model.loss_and_grad(x, y)[1]
    return model.forward(x).astype(np.float64), grad.astype(np.float64)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_what_is_rounded_and_how(bf16_isa, options):
    """One block, in which a neighbour taken for float32's sake moves little: within 5 % of what rounding changes.

    A hidden row or an attention's output that was left in float32 moves the gradient by a tenth of that or more, and
    truncated operands by more than all of it.
    """
    config = ViTConfig(**SHAPE, depth=1, **options)
    arrays = problem(config, 0, N=2)
    results = zip(
        ("logits", "gradient"), of_cvit(config, *arrays), of_reference(config, *arrays),
        of_reference(config, *arrays, nearest), of_reference(config, *arrays, truncated),
    )  # fmt: skip
    for name, ours, exact, expected, careless in results:
        assert distance(ours, expected) < 0.05 * distance(expected, exact), name
        assert distance(ours, careless) > distance(expected, exact), name
        assert distance(careless, exact) > 1.5 * distance(expected, exact), name


def of_autocast(torch, config, flat, x, y):
    """Logits and gradient of PyTorch under autocast, on one thread: products this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tensors = {name: torch.tensor(view, requires_grad=True) for name, view in Layout.of(config).views(flat).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = torch_forward(torch, config, tensors, torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    loss.backward()
    torch.set_num_threads(threads)
    grad = Layout.of(config).pack({name: tensor.grad.numpy() for name, tensor in tensors.items()})
    return logits.detach().double().numpy(), grad.astype(np.float64)


def test_no_further_from_float64_than_torch_under_autocast():
    """The root mean square of eight models' errors is 0.85 of PyTorch's, which rounds results, too. That of the same
    models with truncated operands is 2 of PyTorch's."""
    torch = peer("torch")
    config = ViTConfig(**SHAPE, depth=3, activation="gelu_tanh")
    errors = {"ours": [], "theirs": [], "truncated": []}
    for seed in range(8):
        flat, x, y = problem(config, seed, N=6)
        exact = of_cvit(config, flat.astype(np.float64), x, y, "f64")
        found = {"ours": of_cvit(config, flat, x, y), "theirs": of_autocast(torch, config, flat, x, y)}
        found["truncated"] = of_reference(config, flat, x, y, truncated)
        for who, pair in found.items():
            errors[who].append([distance(array, truth) for array, truth in zip(pair, exact)])
    size = {who: np.sqrt(np.square(pairs).mean(axis=0)) for who, pairs in errors.items()}
    assert (size["ours"] < size["theirs"]).all()
    assert (size["truncated"] > 1.5 * size["theirs"]).all()


CURVE = ViTConfig(image_size=8, patch_size=2, channels=1, width=32, depth=2, heads=4, hidden=64, classes=10)
STEPS, N = 50, 24


def curve(seed, precision):
    """The losses of AdamW's steps on images that say what they are: a pattern for each class, and noise."""
    rng = np.random.default_rng(seed)
    patterns, losses = rng.standard_normal((10, 1, 8, 8)), []
    model = ViT(CURVE, problem(CURVE, seed, 1)[0], precision=precision)
    optimizer = AdamW(model, 1e-3)
    for _ in range(STEPS):
        y = rng.integers(10, size=N)
        loss, grad = model.loss_and_grad((patterns[y] + rng.standard_normal((N, 1, 8, 8))).astype(np.float32), y)
        optimizer.step(model.weights, grad)
        losses.append(loss)
    return np.array(losses), model.logits


@pytest.mark.parametrize("seed", range(2))
def test_fifty_steps_follow_float32(seed):
    """A rounding to 8 bits is off by at most 2^-9 of the number, evenly distributed: by 2^-9 / sqrt(3) in the root mean
    square. Independent ones add up as squares: 6 in a block's attention (x, Wv, v, p, o, Wo), 5 in its MLP (x, W1, u,
    f, W2), 2 in the embedding and 2 in the head make a relative error e of the logits, and of the gradient as much.

    An image's loss has the derivative softmax - target by the logits, at most sqrt(2) long, so that a batch's mean loss
    is off by e · sqrt(2 / N) times the logits' root mean square. Steps that are off by e of their length change by e
    what steps have taken from the loss. Fifty numbers stay within three times the root mean square of both.
    """
    exact, logits = curve(seed, "f32")
    rough, _ = curve(seed, "bf16")
    e = 2**-9 / math.sqrt(3) * math.sqrt((6 + 5) * CURVE.depth + 2 + 2)
    once, fallen = math.sqrt(2 / N) * np.sqrt(np.square(logits).mean()), exact[0] - exact[-10:].mean()
    assert fallen > 0.8
    assert 0 < np.abs(rough - exact).max() < 3 * e * math.hypot(once, fallen)
