"""The benchmark's model in PyTorch: eager, or with `--variant compile` through torch.compile; `bf16` and `compile-bf16`
are the same two under autocast, whose master weights are float32."""

import contextlib

from serve import Worker, serve


def make_model(torch, config):
    """The model as a module whose parts carry timm's names; q, k and v are one matrix, as PyTorch is fastest with."""
    nn, F = torch.nn, torch.nn.functional
    D, H, eps = config["width"], config["heads"], config["eps"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(D, eps), nn.LayerNorm(D, eps)
            self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.fc1, self.fc2 = nn.Linear(D, config["hidden"]), nn.Linear(config["hidden"], D)

        def forward(self, x):
            N, T, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(N, T, 3, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
            a = F.scaled_dot_product_attention(q, k, v)
            x = x + self.proj(a.transpose(1, 2).reshape(N, T, D))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            P = config["patch_size"]
            self.patch_embed = nn.Conv2d(config["channels"], D, P, stride=P)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
            self.pos_embed = nn.Parameter(torch.zeros(1, config["tokens"], D))
            self.blocks = nn.ModuleList(Block() for _ in range(config["depth"]))
            self.norm, self.head = nn.LayerNorm(D, eps), nn.Linear(D, config["classes"])

        def forward(self, images):
            x = self.patch_embed(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x[:, 0]))

    return ViT()


def tensors(model, config):
    """(cvit's name, the view of the parameter that it names, its gradient or None), (out, in) as PyTorch stores it."""
    D = config["width"]

    def both(name, module, rows=slice(None)):
        for part in ("weight", "bias"):
            parameter = getattr(module, part)
            grad = None if parameter.grad is None else parameter.grad[rows]
            yield f"{name}.{part}", parameter.data[rows], grad

    yield from both("patch_embed", model.patch_embed)
    for name in ("cls_token", "pos_embed"):
        parameter = getattr(model, name)
        yield name, parameter.data, parameter.grad
    for i, block in enumerate(model.blocks):
        yield from both(f"blocks.{i}.norm1", block.norm1)
        for j, part in enumerate("qkv"):
            yield from both(f"blocks.{i}.attn.{part}", block.qkv, slice(j * D, (j + 1) * D))
        yield from both(f"blocks.{i}.attn.proj", block.proj)
        yield from both(f"blocks.{i}.norm2", block.norm2)
        yield from both(f"blocks.{i}.mlp.fc1", block.fc1)
        yield from both(f"blocks.{i}.mlp.fc2", block.fc2)
    yield from both("norm", model.norm)
    yield from both("head", model.head)


class TorchWorker(Worker):
    name = "torch"

    def setup(self, threads, variant):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.compiled = torch, variant.startswith("compile")
        self.half = variant.endswith("bf16")
        self.precision = "bf16" if self.half else "f32"
        return torch.__version__

    def load(self, config, weights, images, labels, tasks, optimizer, lr):
        torch = self.torch
        self.images, self.labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.config, self.inference = config, None
        self.model = self.make(weights)
        self.train = torch.compile(self.model) if self.compiled else self.model
        make_optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
        self.optimizer = make_optimizer(self.model.parameters(), lr=lr, weight_decay=0, fused=True)
        if "forward" in tasks:
            self.inference = self.make(weights).eval().requires_grad_(False)
            if self.half:  # what autocast would round anew in every pass
                for module in self.inference.modules():
                    if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                        module.to(torch.bfloat16)
            if self.compiled:
                # Freezing lets the compiler lay the weights out once, as a serving process would.
                self.inference = torch.compile(self.inference, options={"freezing": True})

    def make(self, weights):
        """The model with these weights."""
        model = make_model(self.torch, self.config)
        for name, parameter, _ in tensors(model, self.config):
            array = weights[name].T if name.endswith("weight") else weights[name]
            parameter.copy_(self.torch.from_numpy(array).reshape(parameter.shape))
        return model

    def autocast(self):
        """The context of a forward pass."""
        return self.torch.autocast("cpu", self.torch.bfloat16) if self.half else contextlib.nullcontext()

    def logits(self):
        with self.torch.inference_mode(), self.autocast():
            return self.inference(self.images).float().numpy()

    def forward_step(self):
        with self.torch.inference_mode(), self.autocast():
            self.inference(self.images)

    def backward(self):
        with self.autocast():
            logits = self.train(self.images)
        loss = self.torch.nn.functional.cross_entropy(logits.float(), self.labels)
        loss.backward()
        return loss

    def gradients(self):
        loss = self.backward()
        grads = {name: grad.numpy().copy() for name, _, grad in tensors(self.model, self.config)}
        self.optimizer.zero_grad()
        return loss.item(), grads

    def train_step(self):
        loss = self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


if __name__ == "__main__":
    serve(TorchWorker())
