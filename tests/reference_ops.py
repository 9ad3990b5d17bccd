"""Every op of a Vision Transformer in NumPy and float64, as `x_forward` with `x_backward` right after it.

The derivations stand in docs/backward.md. A gradient is `d` + name, the derivative of the scalar loss. Inputs are never
modified, and nothing is validated. Letters: N images, T tokens, D width, H heads, dh head width, C channels, P patch;
`...` in a shape is any leading dimensions.
"""

from __future__ import annotations

import math

import numpy as np


def sides(P):
    """Height and width of a patch, given as one number or as two."""
    return P if isinstance(P, (tuple, list)) else (P, P)


def patches_forward(x, P):
    """Images (N, C, height, width) -> patches (N, patches, C·P·P), row by row over the grid, each as (C, P, P).

    P is one number, or the patch's height and width.
    """
    (N, C, height, width), (down, across) = x.shape, sides(P)
    grid = x.reshape(N, C, height // down, down, width // across, across)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(N, -1, C * down * across)


def patches_backward(dpatches, shape, P):
    """dpatches (N, patches, C·P·P) -> dx of `shape` (N, C, height, width): the same permutation the other way."""
    (N, C, height, width), (down, across) = shape, sides(P)
    grid = dpatches.reshape(N, height // down, width // across, C, down, across)
    return grid.transpose(0, 3, 1, 4, 2, 5).reshape(shape)


def embed_forward(projected, prefix, pos_embed):
    """Projected patches (N, patches, D) -> tokens (N, T, D): the prefix (p, D) in front, positions added.

    The last rows of pos_embed are the patches', those before them the first prefix tokens'; it may have no rows.
    """
    first = np.broadcast_to(prefix, (len(projected), *prefix.shape))
    tokens = np.concatenate([first, projected], axis=1)
    if len(pos_embed):
        patches, p = projected.shape[1], len(prefix)
        tokens[:, p:] += pos_embed[len(pos_embed) - patches :]
        tokens[:, : len(pos_embed) - patches] += pos_embed[: len(pos_embed) - patches]
    return tokens


def embed_backward(dtokens, p, pos_rows):
    """dtokens (N, T, D) -> dprojected (N, patches, D), dprefix (p, D), dpos_embed (pos_rows, D)."""
    total = dtokens.sum(axis=0)
    with_rows = max(pos_rows - (len(total) - p), 0)
    dpos_embed = np.concatenate([total[:with_rows], total[p:]]) if pos_rows else total[:0]
    return dtokens[:, p:], total[:p], dpos_embed


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


def rmsnorm_forward(x, weight=None, eps=1e-5):
    """x · rstd · weight, rstd = 1 / sqrt(mean(x²) + eps) over the last axis. Returns y, rstd (..., 1)."""
    rstd = 1.0 / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps)
    return x * rstd * (1.0 if weight is None else weight), rstd


def rmsnorm_backward(dy, x, rstd, weight=None):
    """dx = rstd · (dxhat - xhat · mean(dxhat · xhat)), dxhat = dy · weight, xhat = x · rstd; dweight (D,)."""
    xhat = x * rstd
    dxhat = dy if weight is None else dy * weight
    dx = rstd * (dxhat - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    return dx, (dy * xhat).sum(axis=tuple(range(x.ndim - 1)))


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
    """f(u): GELU in both forms, u · σ(1.702 u) for "quick_gelu", u · σ(u) for "silu", max(u, 0), tanh(u)."""
    if kind == "tanh":
        return np.tanh(u)
    if kind == "relu":
        return np.maximum(u, 0.0)
    if kind in ("quick_gelu", "silu"):
        return u * sigmoid(SIGMOID_SCALE[kind] * u)
    return gelu_forward(u, kind.removeprefix("gelu_"))


def activation_backward(dy, u, kind):
    """du = dy · f'(u); relu'(0) = 0."""
    if kind == "tanh":
        return dy * (1.0 - np.tanh(u) ** 2)
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


def rotate_forward(x, angle):
    """Rotary positions: (N, H, T, dh) with the last patches' pairs of channels j and j + dh/2 turned by `angle`.

    angle (patches, dh/2), or (H, patches, dh/2): a' = a cos - b sin, b' = b cos + a sin. The T - patches tokens before
    the patches stay as they are.
    """
    p, half = x.shape[2] - angle.shape[-2], x.shape[-1] // 2
    a, b, cos, sin = x[:, :, p:, :half], x[:, :, p:, half:], np.cos(angle), np.sin(angle)
    turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return np.concatenate([x[:, :, :p], turned], axis=2)


def rotate_backward(dy, y, angle):
    """dx: dy turned back; dangle (H, patches, dh/2) = Σ over images of db' · a' - da' · b'."""
    p, half = y.shape[2] - angle.shape[-2], y.shape[-1] // 2
    da, db = dy[:, :, p:, :half], dy[:, :, p:, half:]
    return rotate_forward(dy, -angle), (db * y[:, :, p:, :half] - da * y[:, :, p:, half:]).sum(axis=0)


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


def pool_shares(T, pool, p=0, classes=1):
    """What share of each token each D columns of the features are, (1 or 2, T).

    Of p tokens before the patches, of which the first `classes` are class tokens, "mean" takes none. "cls_mean" is the
    mean of the class tokens beside that of the patches, "cls_dist" beside the distillation token.
    """

    def mean(start, stop):
        return np.where((np.arange(T) >= start) & (np.arange(T) < stop), 1.0 / (stop - start), 0.0)

    pieces = {
        "cls": [(0, classes)], "mean": [(p, T)], "mean_all": [(0, T)], "cls_mean": [(0, classes), (p, T)],
        "cls_dist": [(0, classes), (classes, classes + 1)],
    }[pool]  # fmt: skip
    return np.stack([mean(*piece) for piece in pieces])


def pool_forward(x, pool, p=0, classes=1):
    """Tokens (N, T, D) -> features (N, D or 2 D); for "none" the tokens themselves."""
    if pool == "none":
        return x
    return (pool_shares(x.shape[1], pool, p, classes) @ x).reshape(len(x), -1)


def pool_backward(dfeatures, T, pool, p=0, classes=1):
    """dfeatures -> dx (N, T, D): to each token its share; for "none" dfeatures are dx."""
    if pool == "none":
        return dfeatures
    shares = pool_shares(T, pool, p, classes)
    return shares.T @ dfeatures.reshape(len(dfeatures), len(shares), -1)


def smooth_targets(y, classes, label_smoothing):
    """Labels (...), or target distributions (..., classes), t -> (1 - s) · t + s / classes, t = onehot(y) of labels."""
    y = np.asarray(y)
    targets = y if y.dtype.kind == "f" else np.eye(classes)[y]
    return (1.0 - label_smoothing) * targets + label_smoothing / classes


def row_weights(shape, sample_weight=None):
    """Of rows (N, ...) the weight of each: an image's share of the loss, evenly over its rows; 1 / rows without."""
    weights = np.full(shape[0], 1.0 / shape[0]) if sample_weight is None else np.asarray(sample_weight, np.float64)
    return np.broadcast_to((weights * shape[0] / np.prod(shape)).reshape(-1, *[1] * (len(shape) - 1)), shape)


def cross_entropy_forward(logits, y, label_smoothing=0.0, sample_weight=None):
    """Sum of weight · -Σ target · log softmax(logits), by default the mean. Returns it and the log-probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    losses = -(smooth_targets(y, logits.shape[-1], label_smoothing) * logp).sum(axis=-1)
    return float((row_weights(losses.shape, sample_weight) * losses).sum()), logp


def cross_entropy_backward(logp, y, label_smoothing=0.0, sample_weight=None):
    """dlogits = weight · (softmax(logits) · Σ target - target)."""
    targets = smooth_targets(y, logp.shape[-1], label_smoothing)
    weights = row_weights(logp.shape[:-1], sample_weight)[..., None]
    return weights * (np.exp(logp) * targets.sum(axis=-1, keepdims=True) - targets)
