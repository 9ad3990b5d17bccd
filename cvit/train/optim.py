"""SGD and AdamW over the flat weight tensor, gradient clipping by global norm, and the warm-up + cosine schedule.

An optimizer sees one long vector and knows no layers; the layout says which runs of it decay. Everything is checked
before anything is touched, then one fused pass over memory does the whole update, clipping included.

Sources: SGD with momentum as in PyTorch's `torch.optim.SGD` (Sutskever et al. 2013); AdamW by Loshchilov & Hutter 2019
(arXiv:1711.05101); clipping by global norm by Pascanu et al. 2013 (arXiv:1211.5063).
"""

from __future__ import annotations

import math

import numpy as np

from ..base.arrays import FLOATS, check_vector
from ..base.errors import check
from ..base.numbers import finite
from ..engine import update
from ..model.layout import Layout


def _norm_and_scale(grad: np.ndarray, max_norm: float) -> tuple[float, float]:
    """The norm of `grad`, and the factor that brings it down to `max_norm` (1 where it is no longer than that)."""
    max_norm = finite("clip_norm", max_norm)
    check(max_norm > 0, "clip_norm must be greater than 0, got 0 (None means no clipping)")
    norm = math.sqrt(update.sum_of_squares(grad))
    check(math.isfinite(norm), f"grad must be finite, but its norm is {norm}")
    return norm, min(1.0, max_norm / norm) if norm else 1.0


def clip(grad: np.ndarray, clip_norm: float) -> float:
    """Scale `grad` (size,) in place to at most `clip_norm`, and return the norm it had.

    The optimizers' `step(..., clip_norm=...)` does the same without a pass of its own.
    """
    if not isinstance(grad, np.ndarray) or grad.dtype not in FLOATS:
        raise TypeError("grad must be a NumPy array of float32 or float64")
    check_vector("grad", grad, grad.size, grad.dtype, writable=True)
    norm, scale = _norm_and_scale(grad, clip_norm)
    if scale < 1:
        grad *= grad.dtype.type(scale)
    return norm


class _Optimizer:
    """What SGD and AdamW share: the checks, the clipping, and the order of the two."""

    def __init__(self, model, lr, weight_decay, dtype):
        layout = getattr(model, "layout", model)
        if not isinstance(layout, Layout):
            raise TypeError(f"model must be a ViT or a Layout, got {type(model).__name__}")
        self.size = layout.size
        self.dtype = np.dtype(getattr(model, "dtype", np.float32) if dtype is None else dtype)
        if self.dtype not in FLOATS:
            raise TypeError(f"dtype must be float32 or float64, got {self.dtype}")
        self.lr = finite("lr", lr)
        self.weight_decay = finite("weight_decay", weight_decay)
        self.steps = 0
        self._decay_runs = np.array(layout.decay_runs(), np.int64).reshape(-1, 2)

    def step(self, weights, grad, *, lr=None, clip_norm=None) -> float | None:
        """Update `weights` (size,) in place from `grad` (size,), and count the step.

        `lr` stands in for the optimizer's own learning rate in this step (schedules use it). With `clip_norm` the
        gradient counts as scaled to at most that norm; `grad` itself is only read. Returns the gradient's norm when
        clipping, else None. A wrong argument, or a gradient whose norm is not finite when clipping, raises before
        weights or state have changed.
        """
        lr = self.lr if lr is None else finite("lr", lr)
        check_vector("weights", weights, self.size, self.dtype, writable=True)
        check_vector("grad", grad, self.size, self.dtype)
        check(not np.may_share_memory(weights, grad), "weights and grad must not overlap")
        norm, scale = (None, 1.0) if clip_norm is None else _norm_and_scale(grad, clip_norm)
        self._apply(weights, grad, lr, scale)
        self.steps += 1
        return norm


class SGD(_Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD` defines it.

        d = grad + weight_decay * w          (the decay only where the layout says so)
        velocity = momentum * velocity + d
        w -= lr * (d + momentum * velocity   if nesterov else   velocity)

    Parameters
    ----------
    model : ViT or Layout
        Whose weights will be updated: gives size, dtype and the runs that decay.
    lr : float
        Learning rate, used where `step` gets none.
    momentum : float
        In [0, 1); 0 keeps no state.
    nesterov : bool
        Nesterov's momentum; needs `momentum` above 0.
    weight_decay : float
        L2 penalty added to the gradient of the weight matrices.
    dtype : float32 or float64
        Of weights and gradient; the model's if not given, float32 for a Layout.

    Attributes: `velocity` (size,) or None, `steps` taken so far.
    """

    def __init__(self, model, lr=0.1, *, momentum=0.0, nesterov=False, weight_decay=0.0, dtype=None):
        super().__init__(model, lr, weight_decay, dtype)
        self.momentum = finite("momentum", momentum)
        check(self.momentum < 1, f"momentum must be below 1, got {momentum!r}")
        self.nesterov = bool(nesterov)
        check(self.momentum > 0 or not self.nesterov, "nesterov needs a momentum greater than 0")
        self.velocity = np.zeros(self.size, self.dtype) if self.momentum else None

    def _apply(self, weights, grad, lr, scale):
        update.sgd(
            weights, grad, self.velocity, lr, self.momentum, self.nesterov, self.weight_decay, self._decay_runs, scale
        )


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as `torch.optim.AdamW` defines it.

        w *= 1 - lr * weight_decay           (only where the layout says so)
        m = beta1 * m + (1 - beta1) * grad;  v = beta2 * v + (1 - beta2) * grad²
        w -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)      in step t = 1, 2, ...

    Parameters are those of `SGD`, and `betas`, each in [0, 1), and `eps`, greater than 0.

    Attributes: the moments `m` and `v` (size,), `steps` taken so far.
    """

    def __init__(self, model, lr=1e-3, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, dtype=None):
        super().__init__(model, lr, weight_decay, dtype)
        check(isinstance(betas, (tuple, list)) and len(betas) == 2, f"betas must be two numbers, got {betas!r}")
        self.betas = tuple(finite("betas", beta) for beta in betas)
        check(max(self.betas) < 1, f"betas must be below 1, got {betas!r}")
        self.eps = finite("eps", eps)
        check(self.eps > 0, "eps must be greater than 0, got 0")
        self.m = np.zeros(self.size, self.dtype)
        self.v = np.zeros(self.size, self.dtype)

    def _apply(self, weights, grad, lr, scale):
        update.adamw(
            weights, grad, self.m, self.v, lr, *self.betas, self.eps, self.weight_decay, self.steps + 1,
            self._decay_runs, scale,
        )  # fmt: skip


def warmup_cosine(step: int, total: int, warmup: int, base_lr: float, final_lr: float = 0.0) -> float:
    """Learning rate of step 0, 1, …: `warmup` steps up to `base_lr`, then half a cosine to `final_lr`.

    Step `warmup - 1` has `base_lr`, step `total` and all after it `final_lr` (Loshchilov & Hutter 2017,
    arXiv:1608.03983).
    `functools.partial(warmup_cosine, total=1000, warmup=50, base_lr=1e-3)` is the schedule that `cvit.train.fit` takes.
    """
    base_lr, final_lr = finite("base_lr", base_lr), finite("final_lr", final_lr)
    check(step >= 0, f"step must be at least 0, got {step}")
    check(0 <= warmup <= total, f"warmup must lie between 0 and total = {total}, got {warmup}")
    if step < warmup:
        return base_lr * (step + 1) / warmup
    if step >= total:
        return final_lr
    progress = (step - warmup) / (total - warmup)
    return final_lr + (base_lr - final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
