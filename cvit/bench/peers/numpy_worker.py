"""The benchmark's model in plain NumPy float32, forward and backward: a peer, and the one that checks cvit."""

import numpy as np
from serve import Worker, serve

GELU_SCALE, GELU_CUBIC = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)


def layernorm(x, scale, shift, eps):
    """Rows of x (..., D) normalised, scaled and shifted; and what backward needs."""
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(eps))
    xhat = centred * rstd
    return xhat * scale + shift, (xhat, rstd, scale)


def layernorm_backward(dy, cache):
    """dx, dscale, dshift."""
    xhat, rstd, scale = cache
    dxhat = dy * scale
    dx = rstd * (dxhat - dxhat.mean(-1, keepdims=True) - xhat * (dxhat * xhat).mean(-1, keepdims=True))
    return dx, (dy * xhat).sum(0), dy.sum(0)


def gelu(x):
    """0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3); and tanh(u)."""
    tanh = np.tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x))
    return 0.5 * x * (1 + tanh), tanh


def gelu_backward(dy, x, tanh):
    du = GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x)
    return dy * 0.5 * (1 + tanh + x * (1 - tanh * tanh) * du)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class NumPyWorker(Worker):
    name = "numpy"

    def setup(self, threads, variant):
        return np.__version__  # its BLAS takes the number of threads from the environment

    def load(self, config, weights, images, labels, tasks, optimizer, lr):
        self.config, self.weights, self.images, self.labels, self.lr = config, weights, images, labels, np.float32(lr)
        self.moments = {name: np.zeros((2, *w.shape), np.float32) for name, w in weights.items()}
        self.update, self.steps = {"sgd": self.sgd, "adamw": self.adamw}[optimizer], 0

    def patches(self):
        """Images (N, C, H, W) cut to (N·G, C·P·P), G patches each."""
        N, C, height, width = self.images.shape
        P = self.config["patch_size"]
        x = self.images.reshape(N, C, height // P, P, width // P, P)
        return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, C * P * P)

    def split_heads(self, x):
        """(N·T, D) to (N, H, T, D/H)."""
        N, H = len(self.images), self.config["heads"]
        return np.ascontiguousarray(x.reshape(N, -1, H, x.shape[1] // H).transpose(0, 2, 1, 3))

    def join_heads(self, x):
        """(N, H, T, D/H) to (N·T, D)."""
        return x.transpose(0, 2, 1, 3).reshape(-1, self.config["width"])

    def forward(self, keep=None):
        """Logits (N, classes). What backward needs is appended to `keep`, block by block."""
        w, config = self.weights, self.config
        N, D, eps = len(self.images), config["width"], config["eps"]
        linear = lambda x, name: x @ w[f"{name}.weight"] + w[f"{name}.bias"]
        norm = lambda x, name: layernorm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)

        x = linear(self.patches(), "patch_embed").reshape(N, -1, D)
        x = np.concatenate([np.broadcast_to(w["cls_token"], (N, 1, D)), x], axis=1) + w["pos_embed"]
        x = x.reshape(-1, D)
        for i in range(config["depth"]):
            block = f"blocks.{i}."
            a, norm1 = norm(x, block + "norm1")
            q, k, v = (self.split_heads(linear(a, f"{block}attn.{part}")) for part in "qkv")
            p = softmax(q @ k.swapaxes(2, 3) * np.float32(q.shape[-1] ** -0.5))
            o = self.join_heads(p @ v)
            x = x + linear(o, block + "attn.proj")
            b, norm2 = norm(x, block + "norm2")
            h = linear(b, block + "mlp.fc1")
            g, tanh = gelu(h)
            x = x + linear(g, block + "mlp.fc2")
            if keep is not None:
                keep.append((a, norm1, q, k, v, p, o, b, norm2, h, tanh, g))
        pooled, norm_f = norm(x.reshape(N, -1, D)[:, 0], "norm")
        if keep is not None:
            keep.append((pooled, norm_f))
        return linear(pooled, "head")

    def gradients(self):
        w, config, N, D = self.weights, self.config, len(self.images), self.config["width"]
        kept, grads = [], {}
        logits = self.forward(kept)
        p = softmax(logits)
        rows = np.arange(N)
        loss = -np.log(p[rows, self.labels]).mean()
        p[rows, self.labels] -= 1
        dlogits = p / np.float32(N)

        def linear_backward(dy, x, name):
            grads[f"{name}.weight"], grads[f"{name}.bias"] = x.T @ dy, dy.sum(0)
            return dy @ w[f"{name}.weight"].T

        def norm_backward(dy, cache, name):
            dx, grads[f"{name}.weight"], grads[f"{name}.bias"] = layernorm_backward(dy, cache)
            return dx

        pooled, norm_f = kept.pop()
        dx = np.zeros((N, config["tokens"], D), np.float32)
        dx[:, 0] = norm_backward(linear_backward(dlogits, pooled, "head"), norm_f, "norm")
        dx = dx.reshape(-1, D)
        for i in reversed(range(config["depth"])):
            block = f"blocks.{i}."
            a, norm1, q, k, v, p, o, b, norm2, h, tanh, g = kept.pop()
            dh = gelu_backward(linear_backward(dx, g, block + "mlp.fc2"), h, tanh)
            dx = dx + norm_backward(linear_backward(dh, b, block + "mlp.fc1"), norm2, block + "norm2")
            do = self.split_heads(linear_backward(dx, o, block + "attn.proj"))
            dp = do @ v.swapaxes(2, 3)
            ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * np.float32(q.shape[-1] ** -0.5)
            dq, dk, dv = ds @ k, ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ do
            da = sum(
                linear_backward(self.join_heads(d), a, f"{block}attn.{part}") for d, part in zip((dq, dk, dv), "qkv")
            )
            dx = dx + norm_backward(da, norm1, block + "norm1")
        dx = dx.reshape(N, -1, D)
        grads["pos_embed"], grads["cls_token"] = dx.sum(0), dx[:, 0].sum(0)
        dpatches = dx[:, 1:].reshape(-1, D)
        grads["patch_embed.weight"], grads["patch_embed.bias"] = self.patches().T @ dpatches, dpatches.sum(0)
        return loss, grads

    def logits(self):
        return self.forward()

    def forward_step(self):
        self.forward()

    def train_step(self):
        loss, grads = self.gradients()
        self.steps += 1
        for name, grad in grads.items():
            self.update(name, grad.reshape(self.weights[name].shape))
        return loss

    def sgd(self, name, grad):
        self.weights[name] -= self.lr * grad

    def adamw(self, name, grad, beta1=0.9, beta2=0.999, eps=1e-8):
        m, v = self.moments[name]
        m += np.float32(1 - beta1) * (grad - m)
        v += np.float32(1 - beta2) * (grad * grad - v)
        root = np.sqrt(v / np.float32(1 - beta2**self.steps)) + np.float32(eps)
        self.weights[name] -= self.lr * (m / np.float32(1 - beta1**self.steps)) / root


if __name__ == "__main__":
    serve(NumPyWorker())
