"""The reference against finite differences of fourth order, against itself written literally, and against torch.

Bounds are relative to the largest entry of what is compared: a key bias, for one, has a gradient of exactly zero (see
docs/backward.md), so an entry's own size is no yardstick.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import reference as ref
from checks import peer

from cvit.model.config import ViTConfig
from cvit.model.layout import Layout


def assert_close(actual, expected, bound, floor=1e-3):
    """Same shape, and no entry further off than `bound` times the largest expected one (at least `floor`)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    error, size = np.abs(actual - expected).max(initial=0.0), np.abs(expected).max(initial=floor)
    assert error <= bound * size, f"off by {error:.3e} where the largest entry is {size:.3e}"


def check_backward(op, inputs, gradients, dy, bound=1e-9):
    """`gradients` are those of Σ dy · op(*inputs) for each of `inputs`, by finite differences."""
    for i, gradient in enumerate(gradients):
        loss = lambda value: np.sum(dy * op(*inputs[:i], value, *inputs[i + 1 :]))
        assert_close(gradient, ref.numerical_gradient(loss, inputs[i]), bound)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# ------------------------------------------------------------------------------------------------------ the ops


def test_numerical_gradient_is_of_fourth_order():
    """Exact to rounding for a quartic; halving h divides the error on sin by 16."""
    x = np.array([[0.5, -1.0], [2.0, 0.1]])
    assert_close(ref.numerical_gradient(lambda t: np.sum(t**4 - t), x, h=0.1), 4 * x**3 - 1, 1e-13)
    assert_close(ref.numerical_gradient(lambda t: np.sum(t**4 - t), x, [2, 0], h=0.1), [31.0, -0.5], 1e-13)
    errors = [abs(ref.numerical_gradient(lambda t: np.sin(t[0]), [0.3], h=h)[0] - np.cos(0.3)) for h in (0.2, 0.1)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.02)
    np.testing.assert_array_equal(x, [[0.5, -1.0], [2.0, 0.1]])


@pytest.mark.parametrize("N, C, rows, cols, P", [(2, 3, 2, 3, 2), (1, 1, 1, 1, 1), (2, 2, 3, 1, 3)])
def test_patches(rng, N, C, rows, cols, P):
    x = rng.standard_normal((N, C, rows * P, cols * P))
    patches = ref.patches_forward(x, P)
    for row, col in itertools.product(range(rows), range(cols)):
        patch = x[:, :, row * P : (row + 1) * P, col * P : (col + 1) * P]
        np.testing.assert_array_equal(patches[:, row * cols + col], patch.reshape(N, C * P * P))
    np.testing.assert_array_equal(ref.patches_backward(patches, x.shape, P), x)  # a permutation: inverse and adjoint


@pytest.mark.parametrize("of_all", [True, False])
@pytest.mark.parametrize("p", [0, 1, 3])
def test_embed(rng, p, of_all):
    projected, prefix = rng.standard_normal((2, 3, 4)), rng.standard_normal((p, 4))
    pos_embed, dy = rng.standard_normal((3 + p * of_all, 4)), rng.standard_normal((2, 3 + p, 4))
    gradients = ref.embed_backward(dy, p, len(pos_embed))
    tokens = ref.embed_forward(projected, prefix, pos_embed)
    np.testing.assert_array_equal(tokens[:, p:], projected + pos_embed[-3:])
    if p:
        check_backward(ref.embed_forward, (projected, prefix, pos_embed), gradients, dy)
    else:
        check_backward(lambda x, e: ref.embed_forward(x, prefix, e), (projected, pos_embed), gradients[::2], dy)


@pytest.mark.parametrize("shape, out", [((2, 3, 4), 5), ((1, 1), 1), ((3, 7), 2)])
def test_linear(rng, shape, out):
    x, weight, bias = rng.standard_normal(shape), rng.standard_normal((shape[-1], out)), rng.standard_normal(out)
    dy = rng.standard_normal((*shape[:-1], out))
    check_backward(ref.linear_forward, (x, weight, bias), ref.linear_backward(dy, x, weight), dy)
    check_backward(ref.linear_forward, (x, weight), ref.linear_backward(dy, x, weight)[:2], dy)


@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 3), (1, 7), (4, 1)])
@pytest.mark.parametrize("affine", [True, False])
def test_layernorm(rng, shape, affine):
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    params = tuple(rng.standard_normal((2, shape[-1]))) if affine else ()
    eps = 0.1  # large, so that the function is smooth on the scale of the differences' h
    y, mean, rstd = ref.layernorm_forward(x, *params, eps=eps)
    if not affine:
        np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-15)
        np.testing.assert_allclose(np.square(y).mean(axis=-1), x.var(axis=-1) / (x.var(axis=-1) + eps), rtol=1e-13)
    gradients = ref.layernorm_backward(dy, x, mean, rstd, *params[:1])
    op = lambda *inputs: ref.layernorm_forward(*inputs, eps=eps)[0]
    check_backward(op, (x, *params), gradients[: 1 + len(params)], dy)


@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_gelu(rng, form):
    u = np.concatenate([rng.standard_normal(20) * 3, [0.0, 40.0, -40.0]])
    dy = rng.standard_normal(u.shape)
    check_backward(lambda t: ref.gelu_forward(t, form), (u,), (ref.gelu_backward(dy, u, form),), dy)
    one = {"tanh": 0.8411919906082768, "erf": 0.5 * (1 + math.erf(math.sqrt(0.5)))}[form]
    np.testing.assert_allclose(ref.gelu_forward(np.array([0.0, 1.0, 40.0, -40.0]), form), [0, one, 40, 0], rtol=1e-15)


@pytest.mark.parametrize("N, H, T, dh", [(2, 2, 3, 4), (1, 1, 1, 1), (1, 3, 5, 1), (2, 1, 1, 3)])
def test_attention(rng, N, H, T, dh):
    q, k, v, do = rng.standard_normal((4, N, H, T, dh))
    o, lse = ref.attention_forward(q, k, v)
    gradients = ref.attention_backward(do, q, k, v, o, lse)
    check_backward(lambda *qkv: ref.attention_forward(*qkv)[0], (q, k, v), gradients, do)
    if T == 1:  # one key: its probability is 1 whatever q and k are
        np.testing.assert_array_equal(o, v)
        assert not gradients[0].any() and not gradients[1].any()


def test_attention_survives_large_scores(rng):
    """Scores in the thousands make softmax a choice of the best key, not an overflow."""
    q, k, v, do = rng.standard_normal((4, 1, 1, 4, 8))
    o, lse = ref.attention_forward(1e4 * q, k, v)
    best = (q @ k.swapaxes(-1, -2)).argmax(axis=-1)[0, 0]
    assert_close(o[0, 0], v[0, 0, best], 1e-14)
    dq, dk, dv = ref.attention_backward(do, 1e4 * q, k, v, o, lse)
    assert np.isfinite(dq).all() and np.isfinite(dk).all() and np.isfinite(dv).all()


@pytest.mark.parametrize("block_q, block_k", [(1, 1), (2, 3), (5, 7), (16, 16)])
def test_tiled_attention_of_backward_md(rng, block_q, block_k):
    """The tile loops of docs/backward.md, written out for one head, against the reference's full T×T formulas."""
    T, dh = 7, 4
    q, k, v, do = rng.standard_normal((4, T, dh))
    scale = 1 / math.sqrt(dh)
    q_tiles = [slice(i, i + block_q) for i in range(0, T, block_q)]
    k_tiles = [slice(j, j + block_k) for j in range(0, T, block_k)]
    o, lse, dq, dk, dv = np.zeros((T, dh)), np.zeros((T, 1)), np.zeros((T, dh)), np.zeros((T, dh)), np.zeros((T, dh))
    for i in q_tiles:
        top, total, acc = np.full((len(q[i]), 1), -np.inf), np.zeros((len(q[i]), 1)), np.zeros((len(q[i]), dh))
        for j in k_tiles:
            s = scale * q[i] @ k[j].T
            new_top = np.maximum(top, s.max(axis=1, keepdims=True))
            e, rescale = np.exp(s - new_top), np.exp(top - new_top)
            total, acc, top = rescale * total + e.sum(axis=1, keepdims=True), rescale * acc + e @ v[j], new_top
        o[i], lse[i] = acc / total, top + np.log(total)
    delta = (do * o).sum(axis=1, keepdims=True)
    for i, j in itertools.product(q_tiles, k_tiles):
        p = np.exp(scale * q[i] @ k[j].T - lse[i])
        ds = scale * p * (do[i] @ v[j].T - delta[i])
        dq[i] += ds @ k[j]
        dk[j] += ds.T @ q[i]
        dv[j] += p.T @ do[i]
    q, k, v, do = (t[None, None] for t in (q, k, v, do))
    expected = ref.attention_forward(q, k, v)
    for actual, wanted in zip((o, lse, dq, dk, dv), expected + ref.attention_backward(do, q, k, v, *expected)):
        assert_close(actual, wanted[0, 0], 1e-14)


@pytest.mark.parametrize("pool", ["cls", "mean", "mean_all", "none"])
@pytest.mark.parametrize("T, p", [(1, 0), (4, 0), (4, 2)])
def test_pool(rng, pool, T, p):
    x = rng.standard_normal((2, T, 3))
    dy = rng.standard_normal(ref.pool_forward(x, pool, p).shape)
    check_backward(lambda t: ref.pool_forward(t, pool, p), (x,), (ref.pool_backward(dy, T, pool, p),), dy)


@pytest.mark.parametrize("N, classes, s", [(3, 5, 0.0), (3, 5, 0.1), (1, 2, 1.0), (2, 1, 0.3)])
def test_cross_entropy(rng, N, classes, s):
    logits, y = 3 * rng.standard_normal((N, classes)), rng.integers(classes, size=N)
    _, logp = ref.cross_entropy_forward(logits, y, s)
    dlogits = ref.cross_entropy_backward(logp, y, s)
    check_backward(lambda t: ref.cross_entropy_forward(t, y, s)[0], (logits,), (dlogits,), 1.0)
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-15)
    same = ref.cross_entropy_forward(np.full((N, classes), 1e4), y, s)[0]
    assert same == pytest.approx(math.log(classes), abs=1e-12)


# ---------------------------------------------------------------------------------------------------- the model

TINY = ViTConfig(image_size=(4, 2), patch_size=2, channels=1, width=4, depth=1, heads=2, hidden=3, classes=3, eps=1e-2)
BOTH = [True, False]
FLAGS = dict(pool=["cls", "mean"], bias=BOTH, norm_affine=BOTH, final_norm=BOTH, gelu=["tanh", "erf"])
COMBINATIONS = [dict(zip(FLAGS, values)) for values in itertools.product(*FLAGS.values())]
ODD = {
    "one token": dict(image_size=2, pool="mean"),
    "one patch and the class token": dict(image_size=2),
    "width 1": dict(width=1, heads=1),
    "head width 1": dict(heads=4),
    "one head": dict(heads=1),
    "depth 0": dict(depth=0),
    "depth 0, nothing but weights": dict(depth=0, pool="mean", bias=False, norm_affine=False, final_norm=False),
    "depth 3": dict(depth=3, width=2, heads=1, hidden=2),
    "hidden 1": dict(hidden=1),
    "hidden wider than 4 D": dict(hidden=17),
    "wide image, 3 channels": dict(image_size=(2, 6), channels=3),
    "patch 1": dict(image_size=(2, 3), patch_size=1, channels=2),
    "patch 3": dict(image_size=(3, 6), patch_size=3),
    "one class": dict(classes=1),
    "two classes": dict(classes=2),
}


def describe(changes):
    return "-".join(f"{name}={value}" for name, value in changes.items())


def problem(config, N=2, seed=3):
    """Random weights (0.5 times a normal, norm scales around 1), images and labels (N,)."""
    rng = np.random.default_rng(seed)
    flat = 0.5 * rng.standard_normal(Layout.of(config).size)
    for name, view in Layout.of(config).views(flat).items():
        if "norm" in name and name.endswith("weight"):
            view += 1.0
    x = rng.standard_normal((N, config.channels, *config.image_size))
    return flat, x, rng.integers(config.classes, size=N)


def check_gradient(config, N=2, label_smoothing=0.0):
    flat, x, y = problem(config, N)

    def loss(weights):
        logits = ref.forward(config, Layout.of(config).views(weights), x)[0]
        return ref.cross_entropy_forward(logits, y, label_smoothing)[0]

    value, gradient = ref.loss_and_grad(config, flat, x, y, label_smoothing)
    assert value == loss(flat)
    assert_close(gradient, ref.numerical_gradient(loss, flat), 1e-9)


@pytest.mark.parametrize("changes", COMBINATIONS[::3], ids=describe)
def test_whole_gradient_for_every_flag(changes):
    """A third of the combinations, in which every two flags still meet in all four ways."""
    check_gradient(dataclasses.replace(TINY, **changes), label_smoothing=0.1)


@pytest.mark.parametrize("case", ODD)
def test_whole_gradient_at_odd_sizes(case):
    check_gradient(dataclasses.replace(TINY, **ODD[case]))


@pytest.mark.parametrize("N", [1, 3])
def test_whole_gradient_for_other_batches(N):
    check_gradient(TINY, N=N)


def test_float32_is_computed_in_float64():
    flat, x, y = (array.astype(np.float32) for array in problem(TINY))
    y = y.astype(np.uint8)
    before = flat.copy()
    loss, gradient = ref.loss_and_grad(TINY, flat, x, y)
    assert gradient.dtype == np.float64
    np.testing.assert_array_equal(gradient, ref.loss_and_grad(TINY, flat.astype(float), x.astype(float), y)[1])
    np.testing.assert_array_equal(flat, before)


# ------------------------------------------------------------------------- the plain architecture, written literally


@pytest.mark.parametrize(
    "N, C, height, width, P, D, heads, depth, classes",
    [
        (2, 3, 4, 6, 2, 8, 2, 2, 5),
        (1, 1, 3, 3, 3, 1, 1, 1, 2),
        (3, 2, 2, 1, 1, 6, 3, 3, 4),
        (2, 1, 4, 4, 2, 4, 1, 0, 3),
    ],
)
def test_plain_functions_equal_the_model(rng, N, C, height, width, P, D, heads, depth, classes):
    config = ViTConfig.plain(
        image_size=(height, width), patch_size=P, channels=C, width=D, heads=heads, depth=depth, classes=classes
    )
    flat, x, y = problem(config, N)
    shapes = (C * P * P, D), (D,), (config.tokens, D), (depth, 6, D, D), (D, classes)
    cuts = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    unpack = lambda vector: [piece.reshape(shape) for piece, shape in zip(np.split(vector, cuts), shapes)]
    w_proj, cls_token, pos_embed, blocks, w_head = unpack(flat)

    logits, features, _ = ref.forward(config, Layout.of(config).views(flat), x)
    seq = ref.patch_embed_with_cls(x, w_proj, cls_token, pos_embed)
    for block in blocks:
        seq = ref.vit_block(seq, *block, heads)
    assert_close(seq, ref.tokens_of(config, Layout.of(config).views(flat), x), 1e-14)
    assert_close(seq[:, 0], features, 1e-14)
    assert_close(ref.vit_classify(x, *unpack(flat), heads), logits, 1e-14)

    updated = ref.vit_train_step(x, y, *unpack(flat), heads, lr=0.1)
    assert updated.shape == flat.shape and updated.dtype == np.float64
    loss = lambda vector: ref.cross_entropy_forward(ref.vit_classify(x, *unpack(vector), heads), y)[0]
    some = rng.choice(flat.size, size=min(flat.size, 60), replace=False)
    assert_close((flat - updated)[some] / 0.1, ref.numerical_gradient(loss, flat, some), 1e-9)


# ------------------------------------------------------------------------------------------------- against torch


def torch_forward(torch, config, tensors, x):
    """The same model out of torch's own operations: convolution, layer_norm, scaled_dot_product_attention, gelu."""
    F = torch.nn.functional
    C, P, D, H = config.channels, config.patch_size, config.width, config.heads
    norm = lambda t, at: F.layer_norm(t, (D,), tensors.get(f"{at}.weight"), tensors.get(f"{at}.bias"), config.eps)
    linear = lambda t, at: F.linear(t, tensors[f"{at}.weight"].T, tensors.get(f"{at}.bias"))
    heads = lambda t: t.unflatten(2, (H, D // H)).transpose(1, 2)
    kernel = tensors["patch_embed.weight"].T.reshape(D, C, P, P)
    seq = F.conv2d(x, kernel, tensors.get("patch_embed.bias"), stride=P).flatten(2).transpose(1, 2)
    if config.pool == "cls":
        seq = torch.cat([tensors["cls_token"].expand(len(x), 1, D), seq], dim=1)
    seq = seq + tensors["pos_embed"]
    for at in (f"blocks.{i}" for i in range(config.depth)):
        a = norm(seq, f"{at}.norm1")
        o = F.scaled_dot_product_attention(*(heads(linear(a, f"{at}.attn.{name}")) for name in "qkv"))
        seq = seq + linear(o.transpose(1, 2).flatten(2), f"{at}.attn.proj")
        u = linear(norm(seq, f"{at}.norm2"), f"{at}.mlp.fc1")
        seq = seq + linear(F.gelu(u, approximate="tanh" if config.gelu == "tanh" else "none"), f"{at}.mlp.fc2")
    if config.final_norm:
        seq = norm(seq, "norm")
    features = seq[:, 0] if config.pool == "cls" else seq.mean(dim=1)
    return linear(features, "head"), features


LARGER = dict(image_size=(12, 8), patch_size=4, channels=3, width=24, depth=3, heads=3, hidden=40, classes=7, eps=1e-6)


TORCH_CASES = {describe(flags): ViTConfig(**LARGER, **flags) for flags in COMBINATIONS}
TORCH_CASES |= {name: dataclasses.replace(TINY, **odd) for name, odd in ODD.items()}


@pytest.mark.parametrize("config", TORCH_CASES.values(), ids=TORCH_CASES)
def test_model_equals_torch(config):
    torch = peer("torch")
    flat, x, y = problem(config, N=3)
    views = Layout.of(config).views(flat)
    tensors = {name: torch.tensor(view, requires_grad=True) for name, view in views.items()}
    expected_logits, expected_features = torch_forward(torch, config, tensors, torch.tensor(x))
    expected_loss = torch.nn.functional.cross_entropy(expected_logits, torch.tensor(y), label_smoothing=0.1)
    expected_loss.backward()

    logits, features, _ = ref.forward(config, views, x)
    assert_close(logits, expected_logits.detach(), 1e-10)
    assert_close(features, expected_features.detach(), 1e-10)
    loss, gradient = ref.loss_and_grad(config, flat, x, y, label_smoothing=0.1)
    assert loss == pytest.approx(expected_loss.item(), rel=1e-10, abs=1e-12)
    for name, view in Layout.of(config).views(gradient).items():
        assert_close(view, tensors[name].grad, 1e-10, floor=1e-3 * np.abs(gradient).max())


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd_equals_torch(rng, momentum, nesterov, weight_decay):
    torch = peer("torch")
    options = dict(momentum=momentum, nesterov=nesterov)
    check_optimizer(
        rng,
        torch,
        lambda groups: torch.optim.SGD(groups, lr=0.1, **options),
        weight_decay,
        lambda w, g, state, step, mask: ref.sgd_step(
            w, g, *(state or [np.zeros_like(w) if momentum else None]), 0.1, **options,
            weight_decay=weight_decay, decay_mask=mask, grad_scale=0.5,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_adamw_equals_torch(rng, weight_decay):
    torch = peer("torch")
    check_optimizer(
        rng,
        torch,
        lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6),
        weight_decay,
        lambda w, g, state, step, mask: ref.adamw_step(
            w, g, *(state or [np.zeros_like(w)] * 2), 0.01, 0.8, 0.95, 1e-6, weight_decay, step, mask, grad_scale=0.5
        ),
    )


def check_optimizer(rng, torch, make, weight_decay, take_step):
    """Five steps on 7 weights, of which weight decay sees the first 4, with every gradient scaled by a half."""
    w, mask, state = rng.standard_normal(7), np.arange(7) < 4, []
    decayed, other = torch.tensor(w[:4]), torch.tensor(w[4:])
    optimizer = make([dict(params=[decayed], weight_decay=weight_decay), dict(params=[other], weight_decay=0.0)])
    for step in range(1, 6):
        g = rng.standard_normal(7)
        decayed.grad, other.grad = torch.tensor(0.5 * g[:4]), torch.tensor(0.5 * g[4:])
        optimizer.step()
        w, *state = take_step(w, g, state, step, mask)
        assert_close(w, torch.cat([decayed, other]), 1e-14)
