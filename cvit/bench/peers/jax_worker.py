"""The benchmark's model in JAX, jitted: forward, and a training step with weights and moments donated."""

import os

from serve import Worker, serve


def forward(weights, images, config):
    """Logits (N, classes); `weights` have cvit's names and shapes, but q, k and v are one matrix `attn.qkv`."""
    import jax
    import jax.numpy as jnp

    N, C, height, width = images.shape
    P, D, H = config["patch_size"], config["width"], config["heads"]
    linear = lambda x, name: x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        xhat = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + config["eps"])
        return xhat * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = images.reshape(N, C, height // P, P, width // P, P).transpose(0, 2, 4, 1, 3, 5)
    x = linear(x.reshape(N, -1, C * P * P), "patch_embed")
    x = jnp.concatenate([jnp.broadcast_to(weights["cls_token"], (N, 1, D)), x], axis=1) + weights["pos_embed"]
    for i in range(config["depth"]):
        block = f"blocks.{i}."
        q, k, v = jnp.moveaxis(linear(norm(x, block + "norm1"), block + "attn.qkv").reshape(N, -1, 3, H, D // H), 2, 0)
        p = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) * (D // H) ** -0.5)
        x = x + linear(jnp.einsum("nhqk,nkhd->nqhd", p, v).reshape(N, -1, D), block + "attn.proj")
        h = linear(norm(x, block + "norm2"), block + "mlp.fc1")
        x = x + linear(jax.nn.gelu(h, approximate=True), block + "mlp.fc2")
    return linear(norm(x[:, 0], "norm"), "head")


def sgd(w, g, moments, lr, t):
    return w - lr * g, moments


def adamw(w, g, moments, lr, t, beta1=0.9, beta2=0.999, eps=1e-8):
    import jax.numpy as jnp

    m, v = beta1 * moments[0] + (1 - beta1) * g, beta2 * moments[1] + (1 - beta2) * g * g
    return w - lr * (m / (1 - beta1**t)) / (jnp.sqrt(v / (1 - beta2**t)) + eps), (m, v)


class JAXWorker(Worker):
    name = "jax"

    def setup(self, threads, variant):
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["NPROC"] = str(threads)  # the size of XLA's thread pools; the CPUs of this process bound it, too
        import jax

        self.jax = jax
        return jax.__version__

    def load(self, config, weights, images, labels, tasks, optimizer, lr):
        import numpy as np

        jax, jnp = self.jax, self.jax.numpy
        for i in range(config["depth"]):
            for part in ("weight", "bias"):
                names = [f"blocks.{i}.attn.{name}.{part}" for name in "qkv"]
                weights[f"blocks.{i}.attn.qkv.{part}"] = np.concatenate([weights.pop(name) for name in names], axis=-1)
        self.images, self.labels = jnp.asarray(images), jnp.asarray(labels)
        # Two copies: the training step's weights are donated, that is, written over.
        self.weights, self.frozen = (jax.tree.map(lambda array: jnp.array(array), weights) for _ in range(2))

        def loss(weights, images, labels):
            logits = jax.nn.log_softmax(forward(weights, images, config))
            return -jnp.take_along_axis(logits, labels[:, None], axis=1).mean()

        update = {"sgd": sgd, "adamw": adamw}[optimizer]

        def step(weights, moments, t, images, labels):
            value, grads = jax.value_and_grad(loss)(weights, images, labels)
            new = {name: update(w, grads[name], moments[name], lr, t) for name, w in weights.items()}
            return {name: pair[0] for name, pair in new.items()}, {name: pair[1] for name, pair in new.items()}, value

        self.forward = jax.jit(lambda weights, images: forward(weights, images, config))
        self.value_and_grad = jax.jit(jax.value_and_grad(loss))
        self.step, self.steps = jax.jit(step, donate_argnums=(0, 1)), 0
        fresh = lambda w: (jnp.zeros_like(w), jnp.zeros_like(w)) if optimizer == "adamw" else ()
        self.moments = {name: fresh(w) for name, w in self.weights.items()}

    def logits(self):
        return self.forward(self.frozen, self.images)

    def forward_step(self):
        self.forward(self.frozen, self.images).block_until_ready()

    def gradients(self):
        loss, fused = self.value_and_grad(self.weights, self.images, self.labels)
        grads = {}
        for name, grad in fused.items():
            if ".qkv." in name:
                thirds = self.jax.numpy.split(grad, 3, axis=-1)
                grads.update((name.replace("qkv", part), third) for part, third in zip("qkv", thirds))
            else:
                grads[name] = grad
        return loss, grads

    def train_step(self):
        self.steps += 1
        t = float(self.steps)
        self.weights, self.moments, loss = self.step(self.weights, self.moments, t, self.images, self.labels)
        self.jax.block_until_ready(self.weights)
        return loss


if __name__ == "__main__":
    serve(JAXWorker())
