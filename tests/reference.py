"""A Vision Transformer in NumPy and float64, forward and hand-written backward: what the engine is checked against.

In reading order: every op as `x_forward` with `x_backward` right after it; the model, forward and the same calls
reversed; the optimizers' steps; the plain architecture's functions, written a second time in the most literal way so
that the two halves of this file check each other; and the finite differences that check everything above.

The derivations stand in docs/backward.md. A gradient is `d` + name, the derivative of the scalar loss. The model and
the plain functions compute in float64 whatever they are given; the ops and steps want float64. Inputs are never
modified, and nothing is validated. Letters: N images, T tokens, D width, H heads, F hidden width, C channels, P patch;
`...` in a shape is any leading dimensions.
"""

from __future__ import annotations

import math

import numpy as np

from cvit.model.config import ViTConfig
from cvit.model.layout import Layout

# ------------------------------------------------------------------------------------------------------ the ops


def patches_forward(x, P):
    """Images (N, C, height, width) -> patches (N, patches, C·P·P), row by row over the grid, each as (C, P, P)."""
    N, C, height, width = x.shape
    grid = x.reshape(N, C, height // P, P, width // P, P)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(N, -1, C * P * P)


def patches_backward(dpatches, shape, P):
    """dpatches (N, patches, C·P·P) -> dx of `shape` (N, C, height, width): the same permutation the other way."""
    N, C, height, width = shape
    grid = dpatches.reshape(N, height // P, width // P, C, P, P)
    return grid.transpose(0, 3, 1, 4, 2, 5).reshape(shape)


def embed_forward(projected, prefix, pos_embed):
    """Projected patches (N, patches, D) -> tokens (N, T, D): the prefix (p, D) in front, positions added.

    pos_embed has T rows, one for each token, or one for each patch.
    """
    if len(pos_embed) == projected.shape[1]:
        projected, pos_embed = projected + pos_embed, 0.0
    first = np.broadcast_to(prefix, (len(projected), *prefix.shape))
    return np.concatenate([first, projected], axis=1) + pos_embed


def embed_backward(dtokens, p, pos_rows):
    """dtokens (N, T, D) -> dprojected (N, patches, D), dprefix (p, D), dpos_embed (pos_rows, D)."""
    total = dtokens.sum(axis=0)
    return dtokens[:, p:], total[:p], total[len(total) - pos_rows :]


def linear_forward(x, weight, bias=None):
    """y = x @ weight + bias: x (..., in), weight (in, out), bias (out,) or None."""
    return x @ weight + (0.0 if bias is None else bias)


def linear_backward(dy, x, weight):
    """dx = dy @ weightᵀ, dweight = xᵀ dy and dbias = sum of dy, the last two over all rows."""
    rows_x, rows_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ weight.T, rows_x.T @ rows_dy, rows_dy.sum(axis=0)


def layernorm_apply(x, mean, rstd, weight=None, bias=None):
    """(x - mean) · rstd · weight + bias; the backward pass calls it to rebuild what forward did not keep."""
    xhat = (x - mean) * rstd
    return xhat if weight is None else xhat * weight + bias


def layernorm_forward(x, weight=None, bias=None, eps=1e-5):
    """Layer norm over the last axis with the biased variance, eps inside the root. Returns y, mean, rstd (..., 1)."""
    mean = x.mean(axis=-1, keepdims=True)
    rstd = 1.0 / np.sqrt(np.square(x - mean).mean(axis=-1, keepdims=True) + eps)
    return layernorm_apply(x, mean, rstd, weight, bias), mean, rstd


def layernorm_backward(dy, x, mean, rstd, weight=None):
    """dx = rstd · (dxhat - mean(dxhat) - xhat · mean(dxhat · xhat)), dxhat = dy · weight; dweight, dbias (D,)."""
    xhat = layernorm_apply(x, mean, rstd)
    dxhat = dy if weight is None else dy * weight
    dx = rstd * (dxhat - dxhat.mean(axis=-1, keepdims=True) - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return dx, (dy * xhat).sum(axis=rows), dy.sum(axis=rows)


erf = np.vectorize(math.erf, otypes=[np.float64])
TANH_SCALE, TANH_CUBIC = math.sqrt(2.0 / math.pi), 0.044715


def gelu_forward(u, form):
    """GELU: u · Φ(u) for form "erf", 0.5 u (1 + tanh(√(2/π) (u + 0.044715 u³))) for form "tanh"."""
    if form == "erf":
        return 0.5 * u * (1.0 + erf(u / math.sqrt(2.0)))
    return 0.5 * u * (1.0 + np.tanh(TANH_SCALE * (u + TANH_CUBIC * u**3)))


def gelu_backward(dy, u, form):
    """du = dy · (Φ(u) + u φ(u)) for "erf"; the product rule on the tanh form for "tanh"."""
    if form == "erf":
        return dy * (0.5 * (1.0 + erf(u / math.sqrt(2.0))) + u * np.exp(-0.5 * u**2) / math.sqrt(2.0 * math.pi))
    t = np.tanh(TANH_SCALE * (u + TANH_CUBIC * u**3))
    return dy * 0.5 * (1.0 + t + u * (1.0 - t**2) * TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * u**2))


def sigmoid(u):
    return 0.5 * (1.0 + np.tanh(0.5 * u))


def activation_forward(u, kind):
    """f(u): GELU in both forms, u · σ(1.702 u) for "quick_gelu", u · σ(u) for "silu", max(u, 0) for "relu"."""
    if kind == "relu":
        return np.maximum(u, 0.0)
    if kind in ("quick_gelu", "silu"):
        return u * sigmoid(SIGMOID_SCALE[kind] * u)
    return gelu_forward(u, kind.removeprefix("gelu_"))


def activation_backward(dy, u, kind):
    """du = dy · f'(u); relu'(0) = 0."""
    if kind == "relu":
        return dy * (u > 0)
    if kind in ("quick_gelu", "silu"):
        a = SIGMOID_SCALE[kind]
        s = sigmoid(a * u)
        return dy * s * (1.0 + a * u * (1.0 - s))
    return gelu_backward(dy, u, kind.removeprefix("gelu_"))


SIGMOID_SCALE = {"quick_gelu": 1.702, "silu": 1.0}


def split_heads(x, H):
    """(N, T, D) -> (N, H, T, D/H); `merge_heads` is its inverse and, a permutation, its backward."""
    N, T, D = x.shape
    return x.reshape(N, T, H, D // H).transpose(0, 2, 1, 3)


def merge_heads(x):
    """(N, H, T, D/H) -> (N, T, D)."""
    N, H, T, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(N, T, H * width)


def attention_forward(q, k, v):
    """o = softmax(q kᵀ / √dh) v, all (N, H, T, dh). Returns o and the scores' log-sum-exp, lse (N, H, T, 1)."""
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    top = scores.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(scores - top).sum(axis=-1, keepdims=True))
    return np.exp(scores - lse) @ v, lse


def attention_backward(do, q, k, v, o, lse):
    """dq, dk, dv: the probabilities come back from lse, delta = rowsum(do · o) (Dao et al. 2022, arXiv:2205.14135)."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    p = np.exp(q @ k.swapaxes(-1, -2) * scale - lse)
    delta = (do * o).sum(axis=-1, keepdims=True)
    ds = p * (do @ v.swapaxes(-1, -2) - delta) * scale
    return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ do


def pool_shares(T, pool, p=0):
    """What share of each token (T,) the pooled features are: of p tokens before the patches "mean" takes none."""
    if pool == "cls":
        return np.eye(T)[0]
    first = p if pool == "mean" else 0
    return np.where(np.arange(T) >= first, 1.0 / (T - first), 0.0)


def pool_forward(x, pool, p=0):
    """Tokens (N, T, D) -> features (N, D); for "none" the tokens themselves."""
    if pool == "none":
        return x
    return x[:, 0] if pool == "cls" else x[:, p if pool == "mean" else 0 :].mean(axis=1)


def pool_backward(dfeatures, T, pool, p=0):
    """dfeatures (N, D) -> dx (N, T, D): to each token its share; for "none" dfeatures are dx."""
    return dfeatures if pool == "none" else pool_shares(T, pool, p)[:, None] * dfeatures[:, None, :]


def smooth_targets(y, classes, label_smoothing):
    """Labels (...) -> target distributions (..., classes): (1 - s) · onehot + s / classes."""
    return (1.0 - label_smoothing) * np.eye(classes)[y] + label_smoothing / classes


def cross_entropy_forward(logits, y, label_smoothing=0.0):
    """Mean over the batch of -Σ target · log softmax(logits). Returns it and the log-probabilities (N, classes)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return float(-(smooth_targets(y, logits.shape[-1], label_smoothing) * logp).sum(axis=-1).mean()), logp


def cross_entropy_backward(logp, y, label_smoothing=0.0):
    """dlogits = (softmax(logits) - target) / N, N the number of labels."""
    return (np.exp(logp) - smooth_targets(y, logp.shape[-1], label_smoothing)) / np.size(y)


# ---------------------------------------------------------------------------------------------------- the model


def part(tensors, name):
    """The weight and bias of a linear layer or norm, None for each one that this configuration lacks."""
    return tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")


def put(grads, name, dweight, dbias):
    """Store a layer's two gradients in the views `grads`, each only if the configuration has that tensor."""
    for view, value in zip(part(grads, name), (dweight, dbias)):
        if view is not None:
            view[...] = value


def scale(weights, name):
    """A layer scale (D,), 1 where there is none."""
    return weights.get(f"{name}.gamma", 1.0)


def block_forward(config, weights, i, x):
    """x_mid = x + proj(MHA(norm1(x))), x_out = x_mid + fc2(gelu(fc1(norm2(x_mid)))). Returns x_out (N, T, D), cache."""
    at = f"blocks.{i}"
    a, mean1, rstd1 = layernorm_forward(x, *part(weights, f"{at}.norm1"), config.eps)
    q, k, v = (split_heads(linear_forward(a, *part(weights, f"{at}.attn.{name}")), config.heads) for name in "qkv")
    o, lse = attention_forward(q, k, v)
    x_mid = x + scale(weights, f"{at}.ls1") * linear_forward(merge_heads(o), *part(weights, f"{at}.attn.proj"))
    b, mean2, rstd2 = layernorm_forward(x_mid, *part(weights, f"{at}.norm2"), config.eps)
    u = linear_forward(b, *part(weights, f"{at}.mlp.{'fc1_gate' if config.gated else 'fc1'}"))
    value = linear_forward(b, *part(weights, f"{at}.mlp.fc1")) if config.gated else 1.0
    g = activation_forward(u, config.activation) * value
    x_out = x_mid + scale(weights, f"{at}.ls2") * linear_forward(g, *part(weights, f"{at}.mlp.fc2"))
    return x_out, (x, mean1, rstd1, q, k, v, o, lse, x_mid, mean2, rstd2, u, value)


def block_backward(config, weights, grads, i, dx_out, cache):
    """dx of block i from dx_out (N, T, D), in the engine's order; the block's weight gradients go into `grads`."""
    x, mean1, rstd1, q, k, v, o, lse, x_mid, mean2, rstd2, u, value = cache

    def linear(name, dy, x_in):
        dx_in, *dparams = linear_backward(dy, x_in, weights[f"blocks.{i}.{name}.weight"])
        put(grads, f"blocks.{i}.{name}", *dparams)
        return dx_in

    def norm(name, dy, x_in, mean, rstd):
        dx_in, *dparams = layernorm_backward(dy, x_in, mean, rstd, part(weights, f"blocks.{i}.{name}")[0])
        put(grads, f"blocks.{i}.{name}", *dparams)
        return dx_in

    def scaled(name, dy, x_in, linear_name):
        """Through a layer scale (its gradient: the sum of dy · branch over all rows), then through its linear layer."""
        gamma = scale(weights, f"blocks.{i}.{name}")
        if f"blocks.{i}.{name}.gamma" in weights:
            branch = linear_forward(x_in, *part(weights, f"blocks.{i}.{linear_name}"))
            grads[f"blocks.{i}.{name}.gamma"][...] = (dy * branch).sum(axis=(0, 1))
        return linear(linear_name, dy * gamma, x_in)

    # rows: back through the MLP and the output projection
    f = activation_forward(u, config.activation)
    dg = scaled("ls2", dx_out, f * value, "mlp.fc2")
    du = activation_backward(dg * value, u, config.activation)
    b = layernorm_apply(x_mid, mean2, rstd2, *part(weights, f"blocks.{i}.norm2"))
    db = linear("mlp.fc1_gate", du, b) + linear("mlp.fc1", dg * f, b) if config.gated else linear("mlp.fc1", du, b)
    dx_mid = dx_out + norm("norm2", db, x_mid, mean2, rstd2)
    do = split_heads(scaled("ls1", dx_mid, merge_heads(o), "attn.proj"), config.heads)
    # heads
    dqkv = attention_backward(do, q, k, v, o, lse)
    # rows: back through the projections to q, k, v
    a = layernorm_apply(x, mean1, rstd1, *part(weights, f"blocks.{i}.norm1"))
    da = sum(linear(f"attn.{name}", merge_heads(dhead), a) for name, dhead in zip("qkv", dqkv))
    return dx_mid + norm("norm1", da, x, mean1, rstd1)


def prefix(config, tensors):
    """The tokens that stand before the patches, each tensor as rows (·, D): class token, distillation token,
    registers."""
    names = [name for name in ("cls_token", "dist_token", "reg_token") if name in tensors]
    return [tensors[name].reshape(-1, config.width) for name in names]


def forward(config, weights, x):
    """Images x (N, C, height, width) -> logits (N, classes), features (N, D), cache; `weights` by Layout's names."""
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    patches = patches_forward(np.asarray(x, np.float64), config.patch_size)
    projected = linear_forward(patches, *part(weights, "patch_embed"))
    x = embed_forward(
        projected, np.concatenate([np.empty((0, config.width)), *prefix(config, weights)]), weights["pos_embed"]
    )
    blocks = []
    for i in range(config.depth):
        x, kept = block_forward(config, weights, i, x)
        blocks.append(kept)
    h, mean, rstd = layernorm_forward(x, *part(weights, "norm"), config.eps) if config.final_norm else (x, None, None)
    features = pool_forward(h, config.pool, config.prefix_tokens)
    logits = linear_forward(features, *part(weights, "head"))
    return logits, features, (weights, patches, blocks, x, mean, rstd, features)


def backward(config, cache, dlogits):
    """The flat gradient (size,) in Layout's order, from the cache of `forward` and dlogits (N, classes)."""
    weights, patches, blocks, x, mean, rstd, features = cache
    layout = Layout.of(config)
    flat_grad = np.zeros(layout.size)
    grads = layout.views(flat_grad)
    dfeatures, *dparams = linear_backward(dlogits, features, weights["head.weight"])
    put(grads, "head", *dparams)
    dx = pool_backward(dfeatures, config.tokens, config.pool, config.prefix_tokens)
    if config.final_norm:
        dx, *dparams = layernorm_backward(dx, x, mean, rstd, part(weights, "norm")[0])
        put(grads, "norm", *dparams)
    for i in reversed(range(config.depth)):
        dx = block_backward(config, weights, grads, i, dx, blocks[i])
    dprojected, dprefix, grads["pos_embed"][...] = embed_backward(dx, config.prefix_tokens, len(grads["pos_embed"]))
    for tokens in prefix(config, grads):
        tokens[...], dprefix = dprefix[: len(tokens)], dprefix[len(tokens) :]
    _, *dparams = linear_backward(dprojected, patches, weights["patch_embed.weight"])
    put(grads, "patch_embed", *dparams)
    return flat_grad


def loss_and_grad(config, flat_weights, x, y, label_smoothing=0.0):
    """Mean softmax cross-entropy of labels y (N,) as a float, and its flat gradient (size,)."""
    logits, _, cache = forward(config, Layout.of(config).views(np.asarray(flat_weights, np.float64)), x)
    loss, logp = cross_entropy_forward(logits, y, label_smoothing)
    return loss, backward(config, cache, cross_entropy_backward(logp, y, label_smoothing))


# ----------------------------------------------------------------------------------------------- the optimizers


def sgd_step(w, g, velocity, lr, momentum=0.0, nesterov=False, weight_decay=0.0, decay_mask=True, grad_scale=1.0):
    """One step as torch.optim.SGD takes it. Returns w, velocity; velocity starts as zeros, None means no momentum."""
    d = g * grad_scale + weight_decay * np.where(decay_mask, w, 0.0)
    if velocity is None:
        return w - lr * d, None
    velocity = momentum * velocity + d
    return w - lr * (d + momentum * velocity if nesterov else velocity), velocity


def adamw_step(w, g, m, v, lr, beta1, beta2, eps, weight_decay, step, decay_mask=True, grad_scale=1.0):
    """One step as torch.optim.AdamW takes it; step = 1, 2, …, moments start as zeros. Returns w, m, v."""
    g = g * grad_scale
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g**2
    mhat, vhat = m / (1.0 - beta1**step), v / (1.0 - beta2**step)
    w = w * (1.0 - lr * weight_decay * np.where(decay_mask, 1.0, 0.0))
    return w - lr * mhat / (np.sqrt(vhat) + eps), m, v


# ------------------------------------------------------------------------- the plain architecture, written literally


def patch_embed_with_cls(x, w_proj, cls_token, pos_embed):
    """Images (N, C, height, width) -> tokens (N, T, D), one patch at a time."""
    x, w_proj = np.asarray(x, np.float64), np.asarray(w_proj, np.float64)
    N, C, height, width = x.shape
    P = math.isqrt(w_proj.shape[0] // C)
    tokens = np.zeros((N, *pos_embed.shape))
    for n in range(N):
        rows = [cls_token]
        for top in range(0, height, P):
            for left in range(0, width, P):
                rows.append(x[n, :, top : top + P, left : left + P].ravel() @ w_proj)
        tokens[n] = np.stack(rows) + pos_embed
    return tokens


def vit_block(x, w_q, w_k, w_v, w_o, w_mlp1, w_mlp2, num_heads):
    """One plain block on tokens x (N, T, D), one image and one head at a time."""
    w_q, w_k, w_v, w_o, w_mlp1, w_mlp2 = (np.asarray(w, np.float64) for w in (w_q, w_k, w_v, w_o, w_mlp1, w_mlp2))
    norm = lambda t: (t - t.mean(axis=-1, keepdims=True)) / np.sqrt(t.var(axis=-1, keepdims=True) + 1e-5)
    out = np.zeros(x.shape)
    for n, tokens in enumerate(np.asarray(x, np.float64)):
        a = norm(tokens)
        heads = []
        for w_qh, w_kh, w_vh in zip(*(np.split(w, num_heads, axis=1) for w in (w_q, w_k, w_v))):
            scores = (a @ w_qh) @ (a @ w_kh).T / np.sqrt(w_qh.shape[1])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ (a @ w_vh))
        tokens = tokens + np.concatenate(heads, axis=1) @ w_o
        u = norm(tokens) @ w_mlp1
        out[n] = tokens + 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))) @ w_mlp2
    return out


def vit_classify(x, w_proj, cls_token, pos_embed, blocks_weights, w_head, num_heads):
    """Images -> logits (N, classes): plain blocks, no final norm, the class token times w_head."""
    seq = patch_embed_with_cls(x, w_proj, cls_token, pos_embed)
    for block in blocks_weights:
        seq = vit_block(seq, *block, num_heads)
    return seq[:, 0, :] @ np.asarray(w_head, np.float64)


def vit_train_step(x, y, w_proj, cls_token, pos_embed, blocks_weights, w_head, num_heads, lr):
    """w - lr · dw for every weight, flat in the order of the arguments, dw from `loss_and_grad` above."""
    P = math.isqrt(w_proj.shape[0] // x.shape[1])
    config = ViTConfig.plain(
        image_size=x.shape[2:], patch_size=P, channels=x.shape[1], width=w_proj.shape[1], heads=num_heads,
        depth=len(blocks_weights), classes=w_head.shape[1],
    )  # fmt: skip
    arrays = (w_proj, cls_token, pos_embed, blocks_weights, w_head)
    flat = np.concatenate([np.ravel(array) for array in arrays], dtype=np.float64)
    return flat - lr * loss_and_grad(config, flat, x, y)[1]


# --------------------------------------------------------------------------------------------- finite differences


def numerical_gradient(f, x, indices=None, h=5e-4):
    """Gradient of the scalar f(x) by central differences of fourth order, error O(h⁴) + O(1e-16 |f| / h).

    x: array of any shape; f gets a float64 array of that shape. Returns the gradient in x's shape, or, for given flat
    `indices` (K,), its values there (K,).
    """
    point = np.array(x, np.float64, order="C")
    flat = point.reshape(-1)
    grad = np.empty(flat.size if indices is None else len(indices))
    for i, at in enumerate(range(flat.size) if indices is None else indices):
        start, total = flat[at], 0.0
        for shift, factor in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
            flat[at] = start + shift * h
            total += factor * f(point)
        flat[at] = start
        grad[i] = total / (12.0 * h)
    return grad.reshape(point.shape) if indices is None else grad
