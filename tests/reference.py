"""A Vision Transformer in NumPy and float64, forward and hand-written backward: what the engine is checked against.

In reading order: the model, each layer and part with its backward inside it, made of the ops in reference_ops.py; the
optimizers' steps; the plain architecture's functions, written a second time in the most literal way so that the two
halves of this file check each other; and the finite differences that check everything.

The derivations stand in docs/backward.md. A gradient is `d` + name, the derivative of the scalar loss. The model and
the plain functions compute in float64 whatever they are given; the ops and steps want float64. Inputs are never
modified, and nothing is validated. Letters: N images, T tokens, D width, H heads, F hidden width, C channels, P patch;
`...` in a shape is any leading dimensions.
"""

from __future__ import annotations

import math

import numpy as np
from reference_ops import *  # noqa: F403  the ops are this module's, too
from reference_ops import (
    activation_backward,
    activation_forward,
    attention_backward,
    attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    embed_backward,
    embed_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    merge_heads,
    patches_forward,
    pool_backward,
    pool_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rotate_backward,
    rotate_forward,
    split_heads,
)

from cvit.model.config import ViTConfig
from cvit.model.layout import Layout
from cvit.model.rope import angles, coordinates

# ---------------------------------------------------------------------------------------------------- the model


def part(tensors, name):
    """The weight and bias of a linear layer or norm, None for each one that this configuration lacks."""
    return tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")


class Model:
    """The layers of a configuration. Each returns its result and a function, which takes the result's gradient to the
    input's; on the way it adds those of the weights to `grads`. `masks(name, shape)` gives the factors of what is
    dropped at random, as those in drop_masks.py."""

    def __init__(self, config, weights, masks=None):
        self.config, self.masks = config, masks or (lambda name, shape: 1.0)
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        self.grads = {}
        self.maps = []  # of every attention of the blocks, the softmax's probabilities

    def add(self, name, grad):
        """Add to a tensor's gradient, if the configuration has that tensor."""
        if name in self.grads:
            self.grads[name] += grad

    def linear(self, name, x):
        weight, bias = part(self.weights, name)

        def back(dy):
            dx, dweight, dbias = linear_backward(dy, x, weight)
            self.add(f"{name}.weight", dweight)
            self.add(f"{name}.bias", dbias)
            return dx

        return linear_forward(x, weight, bias), back

    def norm(self, name, x):
        """Layer norm or RMSNorm, whichever all norms of the configuration are."""
        weight, bias = part(self.weights, name)
        if self.config.norm == "rms":
            y, *kept = rmsnorm_forward(x, weight, self.config.eps_of(name))
            norm_backward = rmsnorm_backward
        else:
            y, *kept = layernorm_forward(x, weight, bias, self.config.eps_of(name))
            norm_backward = layernorm_backward

        def back(dy):
            dx, *dparams = norm_backward(dy, x, *kept, weight)
            for leaf, grad in zip(("weight", "bias"), dparams):
                self.add(f"{name}.{leaf}", grad)
            return dx

        return y, back

    def optional_norm(self, there, name, x):
        """The norm where it is `there`, else nothing."""
        return self.norm(name, x) if there else (x, lambda dy: dy)

    def scale(self, name, x):
        """A layer scale, if the configuration has it."""
        gamma = self.weights.get(f"{name}.gamma")
        if gamma is None:
            return x, lambda dy: dy

        def back(dy):
            self.add(f"{name}.gamma", (dy * x).sum(axis=(0, 1)))
            return dy * gamma

        return x * gamma, back

    def drop(self, name, x):
        """Elements or branches dropped at random."""
        mask = self.masks(name, x.shape)
        return x * mask, lambda dy: dy * mask

    def rotate(self, name, x):
        """Rotary positions of heads (N, H, T, dh), if the configuration has them; `name` is the learned frequencies."""
        config = self.config
        if config.rope is None:
            return x, lambda dy: dy
        if config.rope.learned:
            places = coordinates(config.rope, config.grid)
            angle = np.einsum("pa,ahj->hpj", places, self.weights[name])
        else:
            angle = angles(config.rope, config.grid, config.head_width)
        y = rotate_forward(x, angle)

        def back(dy):
            dx, dangle = rotate_backward(dy, y, angle)
            if config.rope.learned:
                self.add(name, np.einsum("pa,hpj->ahj", places, dangle))
            return dx

        return y, back

    def attention(self, i, branch, x):
        """q, k and v of x, each head's q and k through its norm and turned, attention, norm, projection, layer scale.

        The second of a pair, `branch` "_2", has the first one's norms of q and k, and its frequencies.
        """
        config, at, first = self.config, f"blocks.{i}.attn{branch}", f"blocks.{i}.attn"
        heads, backs = [], []
        for name in "qkv":
            y, back_linear = self.linear(f"{at}.{name}", x)
            y, back_norm, back_rotate = split_heads(y, config.heads), lambda dy: dy, lambda dy: dy
            if name != "v":
                y, back_norm = self.optional_norm(config.qk_norm, f"{first}.{name}_norm", y)
                y, back_rotate = self.rotate(f"{first}.rope", y)
            heads.append(y)
            backs.append((back_linear, back_norm, back_rotate))
        o, lse = attention_forward(*heads)
        q, k, _ = heads
        self.maps.append(np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) - lse))
        y, back_inner = self.optional_norm(config.attn_norm, f"{at}.norm", merge_heads(o))
        y, back_proj = self.linear(f"{at}.proj", y)
        y, back_drop = self.drop(f"{at}.proj", y)
        y, back_scale = self.scale(f"blocks.{i}.ls1{branch}", y)
        y, back_branch = self.drop(at, y) if config.block != "post" else (y, lambda dy: dy)

        def back(dy):
            do = split_heads(back_inner(back_proj(back_drop(back_scale(back_branch(dy))))), config.heads)
            dheads = attention_backward(do, *heads, o, lse)
            return sum(
                back_linear(merge_heads(back_norm(back_rotate(dhead))))
                for dhead, (back_linear, back_norm, back_rotate) in zip(dheads, backs)
            )

        return y, back

    def mlp(self, name, x, scale=""):
        """fc2(norm(activation(fc1(x)))), of a gated one activation(fc1_gate(x)) · fc1(x), then the layer scale."""
        config = self.config
        u, back_u = self.linear(f"{name}.{'fc1_gate' if config.gated else 'fc1'}", x)
        value, back_value = self.linear(f"{name}.fc1", x) if config.gated else (1.0, None)
        f = activation_forward(u, config.activation)
        y, back_act = self.drop(f"{name}.act", f * value)
        y, back_inner = self.optional_norm(config.mlp_norm, f"{name}.norm", y)
        y, back_fc2 = self.linear(f"{name}.fc2", y)
        y, back_drop = self.drop(f"{name}.fc2", y)
        y, back_scale = self.scale(scale, y)
        y, back_branch = self.drop(name, y) if config.block != "post" else (y, lambda dy: dy)

        def back(dy):
            dg = back_act(back_inner(back_fc2(back_drop(back_scale(back_branch(dy))))))
            dx = back_u(activation_backward(dg * value, u, config.activation))
            return dx + back_value(dg * f) if config.gated else dx

        return y, back

    def prefix(self, tensors):
        """The tokens that stand before the patches, each tensor as rows (·, D): class tokens, distillation token,
        registers."""
        names = [name for name in ("cls_token", "dist_token", "reg_token") if name in tensors]
        return [tensors[name].reshape(-1, self.config.width) for name in names]

    def embedding(self, x):
        """Images (N, C, height, width) -> tokens (N, T, D), what the first block sees. Nothing asks for dx."""
        config, pos_embed = self.config, self.weights.get("pos_embed", np.empty((0, self.config.width)))
        patches, back_linear = self.linear("patch_embed", patches_forward(x, config.patch))
        patches, back_norm = self.optional_norm(config.patch_norm, "patch_norm", patches)
        prefix = np.concatenate([np.empty((0, config.width)), *self.prefix(self.weights)])
        tokens, back_drop = self.drop("tokens", embed_forward(patches, prefix, pos_embed))
        tokens, back_pre = self.optional_norm(config.pre_norm, "norm_pre", tokens)

        def back(dtokens):
            dpatches, dprefix, dpos_embed = embed_backward(back_drop(back_pre(dtokens)), len(prefix), len(pos_embed))
            self.add("pos_embed", dpos_embed)
            for dtoken in self.prefix(self.grads):
                dtoken += dprefix[: len(dtoken)]
                dprefix = dprefix[len(dtoken) :]
            back_linear(back_norm(dpatches))

        return tokens, back

    def block(self, i, x):
        """A block of the configuration's kind: tokens (N, T, D) -> (N, T, D)."""
        return getattr(self, f"block_{self.config.block}")(i, x)

    def block_pre(self, i, x):
        """x += attention(norm1(x)), x += mlp(norm2(x))."""
        at = f"blocks.{i}"
        a, back_norm1 = self.norm(f"{at}.norm1", x)
        a, back_attention = self.attention(i, "", a)
        m, back_norm2 = self.norm(f"{at}.norm2", x + a)
        m, back_mlp = self.mlp(f"{at}.mlp", m, f"{at}.ls2")

        def back(dy):
            dmid = dy + back_norm2(back_mlp(dy))
            return dmid + back_norm1(back_attention(dmid))

        return x + a + m, back

    def block_post(self, i, x):
        """x += norm1(attention(x)), x += norm2(mlp(x))."""
        at = f"blocks.{i}"
        a, back_attention = self.attention(i, "", x)
        a, back_norm1 = self.norm(f"{at}.norm1", a)
        a, back_drop1 = self.drop(f"{at}.attn", a)
        m, back_mlp = self.mlp(f"{at}.mlp", x + a, f"{at}.ls2")
        m, back_norm2 = self.norm(f"{at}.norm2", m)
        m, back_drop2 = self.drop(f"{at}.mlp", m)

        def back(dy):
            dmid = dy + back_mlp(back_norm2(back_drop2(dy)))
            return dmid + back_attention(back_norm1(back_drop1(dmid)))

        return x + a + m, back

    def block_parallel(self, i, x):
        """x += attention(n) + mlp(n), n = norm1(x): the first layer scale multiplies both."""
        at = f"blocks.{i}"
        n, back_norm = self.norm(f"{at}.norm1", x)
        a, back_attention = self.attention(i, "", n)
        m, back_mlp = self.mlp(f"{at}.mlp", n, f"{at}.ls1")
        return x + a + m, lambda dy: dy + back_norm(back_attention(dy) + back_mlp(dy))

    def block_pairs(self, i, x):
        """x += attention(norm1(x)) + attention_2(norm1_2(x)), then the same with two MLPs."""
        at = f"blocks.{i}"
        backs = []
        mid = x
        for branch in ("", "_2"):
            n, back_norm = self.norm(f"{at}.norm1{branch}", x)
            y, back_attention = self.attention(i, branch, n)
            mid = mid + y
            backs.append((back_norm, back_attention))
        out = mid
        for branch in ("", "_2"):
            n, back_norm = self.norm(f"{at}.norm2{branch}", mid)
            y, back_mlp = self.mlp(f"{at}.mlp{branch}", n, f"{at}.ls2{branch}")
            out = out + y
            backs.append((back_norm, back_mlp))

        def back(dy):
            dmid = dy + sum(back_norm(back_mlp(dy)) for back_norm, back_mlp in backs[2:])
            return dmid + sum(back_norm(back_attention(dmid)) for back_norm, back_attention in backs[:2])

        return out, back

    def attention_pool(self, x):
        """Tokens (N, T, D) -> (N, D): the learned query's attention over them, a projection, and an MLP beside it."""
        config = self.config
        H, latent = config.pool_heads or config.heads, self.weights["pool.latent"][None, None]
        q, back_q = self.linear("pool.q", latent) if config.pool_query else (latent, lambda dy: dy)
        k, back_k = self.linear("pool.k", x)
        v, back_v = self.linear("pool.v", x)
        heads = [split_heads(y, H) for y in (np.broadcast_to(q, (len(x), *q.shape[1:])), k, v)]
        o, lse = attention_forward(*heads)
        y, back_proj = self.linear("pool.proj", merge_heads(o)[:, 0])
        mlp, back_mlp, back_norm = 0.0, None, None
        if config.pool_hidden >= 0:
            n, back_norm = self.norm("pool.norm", y)
            u, back_fc1 = self.linear("pool.fc1", n)
            mlp, back_fc2 = self.linear("pool.fc2", activation_forward(u, config.activation))
            back_mlp = lambda dy: back_fc1(activation_backward(back_fc2(dy), u, config.activation))

        def back(dy):
            if back_mlp is not None:
                dy = dy + back_norm(back_mlp(dy))
            dq, dk, dv = (
                merge_heads(d) for d in attention_backward(split_heads(back_proj(dy)[:, None], H), *heads, o, lse)
            )
            self.add("pool.latent", back_q(dq.sum(axis=0, keepdims=True))[0, 0])
            return back_k(dk) + back_v(dv)

        return y + mlp, back

    def pool(self, x):
        """Tokens (N, T, D) -> features: what the head sees, after the norm and the layer that may stand before it."""
        config = self.config
        if config.pool == "map":
            unseen = 0 if config.pool_prefix else config.prefix_tokens
            y, back = self.attention_pool(x[:, unseen:])
            back_pool = lambda dy: np.pad(back(dy), ((0, 0), (unseen, 0), (0, 0)))
        else:
            how = ("cls_dist" if config.dist_head else config.pool, config.prefix_tokens, config.class_tokens)
            y, back_pool = pool_forward(x, *how), lambda dy: pool_backward(dy, config.tokens, *how)
        y, back_norm = self.optional_norm(config.fc_norm, "fc_norm", y)
        if not config.pre_logits:
            return y, lambda dy: back_pool(back_norm(dy))
        u, back_linear = self.linear("pre_logits", y)
        kind = config.pre_logits_activation
        return activation_forward(u, kind), lambda dy: back_pool(
            back_norm(back_linear(activation_backward(dy, u, kind)))
        )

    def head(self, features):
        """Features -> logits. Of two heads the mean: without `pre_logits` each sees its own token's half."""
        config = self.config
        if not config.dist_head:
            return self.linear("head", features)
        D = features.shape[-1] if config.pre_logits else config.width
        one, back_one = self.linear("head", features[:, :D])
        other, back_other = self.linear("head_dist", features[:, -D:])

        def back(dy):
            done, dother = back_one(0.5 * dy), back_other(0.5 * dy)
            return done + dother if config.pre_logits else np.concatenate([done, dother], axis=-1)

        return 0.5 * (one + other), back

    def tokens(self, x):
        """Images -> all tokens after the final norm, each block's output, and the backward of the first."""
        config, outputs, backs = self.config, [], []
        tokens, back = self.embedding(np.asarray(x, np.float64))
        backs.append(back)
        for i in range(config.depth):
            tokens, back = self.block(i, tokens)
            outputs.append(tokens)
            backs.append(back)
        tokens, back = self.optional_norm(config.final_norm, "norm", tokens)
        backs.append(back)
        return tokens, outputs, backs


def forward(config, weights, x, masks=None):
    """Images x (N, C, height, width) -> logits (N, classes), features, cache; `weights` by Layout's names.

    Without classes the logits are None. With `dist_head` the features are [class, distillation], 2 D wide.
    """
    model = Model(config, weights, masks)
    tokens, _, backs = model.tokens(x)
    features, back = model.pool(tokens)
    backs.append(back)
    logits = None
    if config.classes:
        logits, back = model.head(features)
        backs.append(back)
    return logits, features, (model, backs)


def backward(config, cache, dlogits):
    """The flat gradient (size,) in Layout's order, from the cache of `forward` and dlogits (N, classes).

    Without classes it is the features' gradient that is given.
    """
    model, backs = cache
    layout = Layout.of(config)
    flat_grad = np.zeros(layout.size)
    model.grads = layout.views(flat_grad)
    gradient = dlogits
    for back in reversed(backs):
        gradient = back(gradient)
    return flat_grad


def tokens_of(config, weights, x, layers=None):
    """All tokens (N, T, D) after the final norm; with `layers`, indices of blocks, also a list of those blocks' outputs
    before it."""
    tokens, outputs, _ = Model(config, weights).tokens(x)
    return tokens if layers is None else (tokens, [outputs[i] for i in layers])


def attention_maps(config, weights, x):
    """The probabilities (N, L, H, T, T) of all blocks; blocks in pairs have the heads of both attentions."""
    model = Model(config, weights)
    model.tokens(x)
    N, T = len(x), config.tokens
    shape = (N, config.depth, -1, T, T) if config.depth else (N, 0, config.heads, T, T)
    return np.concatenate([np.empty((N, 0, T, T)), *model.maps], axis=1).reshape(shape)


def loss_and_grad(config, flat_weights, x, y, label_smoothing=0.0, sample_weight=None, masks=None):
    """Softmax cross-entropy of labels or targets y as a float, the mean or a weighted sum, and its flat gradient."""
    logits, _, cache = forward(config, Layout.of(config).views(np.asarray(flat_weights, np.float64)), x, masks)
    loss, logp = cross_entropy_forward(logits, y, label_smoothing, sample_weight)
    return loss, backward(config, cache, cross_entropy_backward(logp, y, label_smoothing, sample_weight))


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
