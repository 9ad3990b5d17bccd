"""Who is compared in `precision.py`: cvit's precisions, and the same model in PyTorch, in float64 and under autocast.

All have `logits(x)`, float64 (N, classes), and `loss_and_grad(x, y)`, the loss and the flat float64 gradient in cvit's
order, so that what differs is the arithmetic.
"""

import contextlib
import os
import sys

import numpy as np

import cvit
from cvit.bench import peers
from cvit.bench.cases import Case

PRECISIONS = {"f64": np.float64, "f32": np.float32, "bf16": np.float32}  # of cvit, and the dtype of their weights


class Cvit:
    """A model of cvit with one precision."""

    def __init__(self, config, weights, precision):
        self.dtype = PRECISIONS[precision]
        self.model = cvit.ViT(config, weights.astype(self.dtype), precision=precision)
        self.optimizer = None

    def logits(self, x):
        return self.model.forward(x.astype(self.dtype)).astype(np.float64)

    def loss_and_grad(self, x, y):
        loss, grad = self.model.loss_and_grad(x.astype(self.dtype), y)
        return float(loss), grad.astype(np.float64)

    def step(self, x, y, lr):
        """One step of AdamW without weight decay. Returns the loss before it."""
        self.optimizer = self.optimizer or cvit.AdamW(self.model, lr, weight_decay=0)
        loss, grad = self.model.loss_and_grad(x.astype(self.dtype), y)
        self.optimizer.step(self.model.weights, grad)
        return float(loss)


class Torch:
    """The benchmark's model in PyTorch with the same weights: in float64, or float32 under bfloat16 autocast."""

    def __init__(self, config, weights, precision):
        import torch

        sys.path.insert(0, os.fspath(peers.HERE))  # torch_worker.py finds its neighbour there
        from torch_worker import make_model, tensors

        torch.set_num_threads(cvit.get_num_threads())
        self.torch, self.layout = torch, cvit.Layout.of(config)
        self.fields = Case("", config, 1).worker_config()
        self.named = lambda: tensors(self.model, self.fields)
        self.dtype = torch.float64 if precision == "f64" else torch.float32
        self.context = contextlib.nullcontext
        if precision == "autocast":
            self.context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        self.model = make_model(torch, self.fields).to(self.dtype)
        views = self.layout.views(weights)
        for name, parameter, _ in self.named():
            array = views[name].T if name.endswith("weight") else views[name]
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)).reshape(parameter.shape))
        self.optimizer = None

    def logits(self, x):
        with self.torch.inference_mode(), self.context():
            return self.model(self.torch.from_numpy(x).to(self.dtype)).double().numpy()

    def backward(self, x, y):
        with self.context():
            logits = self.model(self.torch.from_numpy(x).to(self.dtype))
            loss = self.torch.nn.functional.cross_entropy(logits, self.torch.from_numpy(y))
        self.model.zero_grad()
        loss.backward()
        return loss.item()

    def loss_and_grad(self, x, y):
        loss = self.backward(x, y)
        grads = {}
        for name, _, grad in self.named():
            grad = grad.flatten(1).T if name.endswith("weight") and grad.ndim > 1 else grad
            grads[name] = grad.double().numpy().reshape(self.layout.entries[name].shape)
        return loss, self.layout.pack(grads)

    def step(self, x, y, lr):
        """One step of AdamW without weight decay. Returns the loss before it."""
        self.optimizer = self.optimizer or self.torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0)
        loss = self.backward(x, y)
        self.optimizer.step()
        return loss


def openvino_logits(path, hint, x, batch=10):
    """What OpenVINO computes of the ONNX file with `hint` as its precision, and the precision that it says it takes.

    Where the CPU has no bfloat16 it computes the same in a slow way: seconds for an image of a ViT-B/16.
    """
    import openvino

    properties = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": cvit.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", properties)
    found = [compiled([x[i : i + batch]])[0].copy() for i in range(0, len(x), batch)]
    return np.concatenate(found).astype(np.float64), compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
