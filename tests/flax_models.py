"""The ViT of `cvit.vit_forward` as Flax modules, NNX and Linen: what Flax draws from a seed, and computes from it.

Both are built from a `cvit.ViTConfig` and take one image (height, width, channels) to its logits (classes,). Besides
the plain mean-pool model they have a configuration's variants: a class token, no biases, no norm parameters, no final
norm.
"""

import jax
import jax.numpy as jnp
from flax import linen, nnx


def attend(q, k, v, heads):
    """Softmax attention of q, k, v (T, D) in `heads` heads."""
    q, k, v = (a.reshape(len(a), heads, -1) for a in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / jnp.sqrt(q.shape[-1]))
    return jnp.einsum("hqk,khd->qhd", weights, v).reshape(len(q), -1)


def pool(tokens, config):
    return tokens[0] if config.pool == "cls" else tokens.mean(axis=0)


# ------------------------------------------------------------------------------------------------------------------ NNX
def nnx_linear(config, fan_in, fan_out, rngs):
    return nnx.Linear(fan_in, fan_out, use_bias=config.bias, rngs=rngs)


def nnx_norm(config, rngs):
    affine = config.norm_affine
    return nnx.LayerNorm(config.width, epsilon=config.eps, use_bias=affine, use_scale=affine, rngs=rngs)


class NNXAttention(nnx.Module):
    def __init__(self, config, rngs):
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nnx_linear(config, config.width, config.width, rngs) for _ in range(4))

    def __call__(self, x):
        return self.o(attend(self.q(x), self.k(x), self.v(x), self.heads))


class NNXBlock(nnx.Module):
    def __init__(self, config, rngs):
        self.ln1 = nnx_norm(config, rngs)
        self.attn = NNXAttention(config, rngs)
        self.ln2 = nnx_norm(config, rngs)
        self.fc1 = nnx_linear(config, config.width, config.hidden, rngs)
        self.fc2 = nnx_linear(config, config.hidden, config.width, rngs)

    def __call__(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.fc2(nnx.gelu(self.fc1(self.ln2(x))))


class NNXViT(nnx.Module):
    def __init__(self, config, rngs):
        self.config = config
        P, D = config.patch_size, config.width
        self.patch_embed = nnx.Conv(
            config.channels, D, (P, P), strides=(P, P), padding="VALID", use_bias=config.bias, rngs=rngs
        )
        if config.pool == "cls":
            self.cls_token = nnx.Param(jnp.zeros(D))
        self.pos_embed = nnx.Param(jnp.zeros((config.tokens, D)))
        self.blocks = nnx.List([NNXBlock(config, rngs) for _ in range(config.depth)])
        if config.final_norm:
            self.ln_f = nnx_norm(config, rngs)
        self.head = nnx_linear(config, D, config.classes, rngs)

    def __call__(self, image):
        x = self.patch_embed(image).reshape(-1, self.config.width)
        if self.config.pool == "cls":
            x = jnp.vstack([self.cls_token[...], x])
        x = x + self.pos_embed[...]
        for block in self.blocks:
            x = block(x)
        if self.config.final_norm:
            x = self.ln_f(x)
        return self.head(pool(x, self.config))


# ---------------------------------------------------------------------------------------------------------------- Linen
def linen_norm(config, name):
    affine = config.norm_affine
    return linen.LayerNorm(epsilon=config.eps, use_bias=affine, use_scale=affine, name=name)


class LinenAttention(linen.Module):
    config: object

    @linen.compact
    def __call__(self, x):
        q, k, v, o = (linen.Dense(self.config.width, use_bias=self.config.bias, name=name) for name in "qkvo")
        return o(attend(q(x), k(x), v(x), self.config.heads))


class LinenBlock(linen.Module):
    config: object

    @linen.compact
    def __call__(self, x):
        config = self.config
        x = x + LinenAttention(config, name="attn")(linen_norm(config, "ln1")(x))
        hidden = linen.Dense(config.hidden, use_bias=config.bias, name="fc1")(linen_norm(config, "ln2")(x))
        return x + linen.Dense(config.width, use_bias=config.bias, name="fc2")(linen.gelu(hidden))


class LinenViT(linen.Module):
    config: object

    @linen.compact
    def __call__(self, image):
        config = self.config
        P, D = config.patch_size, config.width
        x = linen.Conv(D, (P, P), strides=(P, P), padding="VALID", use_bias=config.bias, name="patch_embed")(image)
        x = x.reshape(-1, D)
        pos_embed = self.param("pos_embed", linen.initializers.normal(0.02), (config.tokens, D))
        if config.pool == "cls":
            x = jnp.vstack([self.param("cls_token", linen.initializers.zeros, (D,)), x])
        x = x + pos_embed
        for i in range(config.depth):
            x = LinenBlock(config, name=f"block_{i}")(x)
        if config.final_norm:
            x = linen_norm(config, "ln_f")(x)
        return linen.Dense(config.classes, use_bias=config.bias, name="head")(pool(x, config))


# ---------------------------------------------------------------------------------------------------- both, from a seed
def draw(api, config, seed):
    """The parameters that `api` ("nnx" or "linen") draws from `seed`, as nested dicts of arrays."""
    if api == "nnx":
        return nnx.to_pure_dict(nnx.state(NNXViT(config, nnx.Rngs(seed))))
    return LinenViT(config).init(jax.random.key(seed), jnp.zeros((*config.image_size, config.channels)))


def forward(api, config, seed, image):
    """The logits (classes,) of `image` (height, width, channels) under the parameters drawn from `seed`."""
    image = jnp.asarray(image, jnp.float32)
    if api == "nnx":
        return NNXViT(config, nnx.Rngs(seed))(image)
    return LinenViT(config).apply(draw(api, config, seed), image)
