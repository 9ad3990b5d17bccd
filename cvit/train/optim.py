"""SGD and AdamW over the flat weight tensor, gradient clipping by global norm, and the warm-up + cosine schedule.

An optimizer sees one long vector and knows no layers; the layout says which runs of it decay. Everything is checked
before anything is touched, then one fused pass over memory does the whole update, clipping included.

Sources: SGD with momentum as in PyTorch's `torch.optim.SGD` (Sutskever et al. 2013); AdamW by Loshchilov & Hutter 2019
(arXiv:1711.05101); clipping by global norm by Pascanu et al. 2013 (arXiv:1211.5063).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping

import numpy as np

from ..base.arrays import FLOATS, as_array, as_float, as_vector
from ..base.errors import check
from ..base.numbers import as_int, finite, representable, shown
from ..engine import update
from ..model.layout import Layout


def _norm(grad: np.ndarray) -> float:
    """The Euclidean norm of `grad`, or a `ValueError` where it is not a finite number."""
    if len(grad) == 0:
        return 0.0
    total = update.sum_of_squares(grad)
    normal = float(np.finfo(grad.dtype).tiny)
    if total > len(grad) * normal * 2**30 and math.isfinite(total):
        return math.sqrt(total)
    # The kernel squares in the gradient's own type: large squares may have overflowed, and small ones are lost beside
    # these few.
    largest = max(float(grad.max()), -float(grad.min()))
    norm = largest
    if largest > 0 and math.isfinite(largest):
        norm *= math.sqrt(np.square(grad / np.float64(largest)).sum())
    check(math.isfinite(norm), f"grad must be finite, but its norm is {norm}")
    return norm


def _norm_and_scale(grad: np.ndarray, max_norm: float) -> tuple[float, float]:
    """The norm of `grad`, and the factor that brings it down to `max_norm` (1 where it is no longer than that)."""
    max_norm = finite("clip_norm", max_norm)
    check(max_norm > 0, "clip_norm must be greater than 0, got 0 (None means no clipping)")
    norm = _norm(grad)
    return norm, min(1.0, max_norm / norm) if norm else 1.0


def _too_small(scale: float, dtype: np.dtype) -> bool:
    """Whether a factor would lose its digits in `dtype`."""
    return scale < 1 and scale < np.finfo(dtype).tiny


def clip(grad: np.ndarray, clip_norm: float) -> float:
    """Scale `grad` (size,) in place to at most `clip_norm`, and return the norm it had.

    The optimizers' `step(..., clip_norm=...)` does the same without a pass of its own.
    """
    if not isinstance(grad, np.ndarray) or np.asarray(grad).dtype not in FLOATS:
        raise TypeError("grad must be a NumPy array of float32 or float64")
    grad = as_array("grad", grad)
    grad = as_vector("grad", grad, grad.size, grad.dtype, writable=True)
    norm, scale = _norm_and_scale(grad, clip_norm)
    if _too_small(scale, grad.dtype):
        np.multiply(grad, scale, out=grad, dtype=np.float64, casting="same_kind")
    elif scale < 1:
        grad *= grad.dtype.type(scale)
    return norm


class _Optimizer(abc.ABC):
    """What SGD and AdamW share: the checks, the clipping, the order of the two, and the state as a dict.

    Every attribute that a step reads is checked when it is set.
    """

    _NUMBERS: tuple[str, ...] = ("lr", "weight_decay")  # of the state, in the order in which they are set
    _VECTORS: tuple[str, ...] = ()

    def __init__(self, model, lr, weight_decay, dtype):
        layout = getattr(model, "layout", model)
        if not isinstance(layout, Layout):
            raise TypeError(f"model must be a ViT or a Layout, got {type(model).__name__}")
        self._size = layout.size
        self._dtype = np.dtype(getattr(model, "dtype", np.float32) if dtype is None else dtype)
        if self._dtype not in FLOATS:
            raise TypeError(f"dtype must be float32 or float64, got {self._dtype}")
        self._decay_runs = np.array(layout.decay_runs(), np.int64).reshape(-1, 2)
        self.lr = lr
        self.weight_decay = weight_decay
        self.steps = 0

    @property
    def size(self) -> int:
        """Length of the vectors."""
        return self._size

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64: of the vectors, and of the arithmetic."""
        return self._dtype

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, value) -> None:
        self._lr = representable("lr", value, self._dtype)

    @property
    def weight_decay(self) -> float:
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value) -> None:
        self._weight_decay = representable("weight_decay", value, self._dtype)

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._steps

    @steps.setter
    def steps(self, value) -> None:
        self._steps = as_int("steps", value, minimum=0, maximum=2**53)

    def _vector(self, name: str, value) -> np.ndarray:
        """A copy of a vector of the state: a view, since an array that owns its memory can be resized."""
        array = as_float(name, value, (self._size,))
        if array.dtype != self._dtype:
            raise TypeError(f"{name} must be {self._dtype}, as the optimizer is, got {array.dtype}")
        return array.copy()[:]

    def step(self, weights, grad, *, lr=None, clip_norm=None) -> float | None:
        """Update `weights` (size,) in place from `grad` (size,), and count the step.

        `lr` stands in for the optimizer's own learning rate in this step (schedules use it). With `clip_norm` the
        gradient counts as scaled to at most that norm; `grad` itself is only read. Returns the gradient's norm when
        clipping, else None. A wrong argument, or a gradient whose norm is not finite when clipping, raises before
        weights or state have changed.
        """
        lr = self._lr if lr is None else representable("lr", lr, self._dtype)
        weights = as_vector("weights", weights, self._size, self._dtype, writable=True)
        grad = as_vector("grad", grad, self._size, self._dtype)
        check(not np.may_share_memory(weights, grad), "weights and grad must not overlap")
        norm, scale = (None, 1.0) if clip_norm is None else _norm_and_scale(grad, clip_norm)
        if _too_small(scale, self._dtype):
            grad, scale = (grad * np.float64(scale)).astype(self._dtype), 1.0
        self._apply(weights, grad, lr, scale)
        self._steps += 1
        return norm

    @abc.abstractmethod
    def _apply(self, weights: np.ndarray, grad: np.ndarray, lr: float, scale: float) -> None:
        """The step itself; everything is checked."""

    def state_dict(self) -> dict:
        """All that a run needs to go on, for `load_state_dict`: options and `steps` as numbers, vectors as copies."""
        state = {name: getattr(self, name) for name in ("steps", *self._NUMBERS)}
        for name in self._VECTORS:
            vector = getattr(self, name)
            state[name] = None if vector is None else vector.copy()
        return state

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict()` of an optimizer of the same kind, size and dtype gave; vectors are copied.

        Everything is checked before anything changes: the error names a missing or unknown key or a wrong value.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, as state_dict() gives it, got {type(state).__name__}")
        known = {"steps", *self._NUMBERS, *self._VECTORS}
        missing, unknown = known - set(state), [key for key in state if key not in known]
        check(not missing, f"state lacks {', '.join(sorted(missing))}")
        check(
            not unknown,
            f"state has keys that {type(self).__name__} does not know: {', '.join(map(shown, unknown[:8]))}",
        )
        loaded = object.__new__(type(self))
        loaded._size, loaded._dtype = self._size, self._dtype
        for name in (*self._NUMBERS, *self._VECTORS, "steps"):
            setattr(loaded, name, state[name])
        vars(self).update(vars(loaded))


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

    Attributes: the options, which may be set between steps, `steps` taken so far, and `velocity` (size,), None without
    momentum; a vector that is assigned is checked and copied.
    """

    _NUMBERS = ("lr", "weight_decay", "momentum", "nesterov")
    _VECTORS = ("velocity",)
    _momentum, _nesterov, _velocity = 0.0, False, None

    def __init__(self, model, lr=0.1, *, momentum=0.0, nesterov=False, weight_decay=0.0, dtype=None):
        super().__init__(model, lr, weight_decay, dtype)
        self.momentum = momentum
        self.nesterov = nesterov

    @property
    def momentum(self) -> float:
        return self._momentum

    @momentum.setter
    def momentum(self, value) -> None:
        momentum = representable("momentum", value, self._dtype, below_one=True)
        check(momentum > 0 or not self._nesterov, "nesterov needs a momentum greater than 0")
        if momentum == 0:
            self._velocity = None
        elif self._velocity is None:
            self._velocity = np.zeros(self._size, self._dtype)[:]
        self._momentum = momentum

    @property
    def nesterov(self) -> bool:
        return self._nesterov

    @nesterov.setter
    def nesterov(self, value) -> None:
        check(self._momentum > 0 or not value, "nesterov needs a momentum greater than 0")
        self._nesterov = bool(value)

    @property
    def velocity(self) -> np.ndarray | None:
        return self._velocity

    @velocity.setter
    def velocity(self, value) -> None:
        needed = "None without momentum" if self._momentum == 0 else f"an array ({self._size},) with a momentum above 0"
        given = "None" if value is None else "an array"
        check((value is None) == (self._momentum == 0), f"velocity must be {needed}, got {given}")
        self._velocity = None if value is None else self._vector("velocity", value)

    def _apply(self, weights, grad, lr, scale):
        update.sgd(
            weights, grad, self._velocity, lr, self._momentum, self._nesterov, self._weight_decay, self._decay_runs,
            scale
        )  # fmt: skip


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as `torch.optim.AdamW` defines it.

        w *= 1 - lr * weight_decay           (only where the layout says so)
        m = beta1 * m + (1 - beta1) * grad;  v = beta2 * v + (1 - beta2) * grad²
        w -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)      in step t = 1, 2, ...

    Parameters are those of `SGD`, and `betas`, each in [0, 1), and `eps`, greater than 0.

    Attributes: the options, which may be set between steps, `steps` taken so far, and the moments `m` and `v` (size,);
    a vector that is assigned is checked and copied.
    """

    _NUMBERS = ("lr", "weight_decay", "betas", "eps")
    _VECTORS = ("m", "v")

    def __init__(self, model, lr=1e-3, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, dtype=None):
        super().__init__(model, lr, weight_decay, dtype)
        self.betas = betas
        self.eps = eps
        self._m, self._v = np.zeros(self._size, self._dtype)[:], np.zeros(self._size, self._dtype)[:]

    @property
    def betas(self) -> tuple[float, float]:
        return self._betas

    @betas.setter
    def betas(self, value) -> None:
        check(isinstance(value, (tuple, list)) and len(value) == 2, f"betas must be two numbers, got {shown(value)}")
        beta1, beta2 = (representable("betas", beta, self._dtype, below_one=True) for beta in value)
        self._betas = beta1, beta2

    @property
    def eps(self) -> float:
        return self._eps

    @eps.setter
    def eps(self, value) -> None:
        self._eps = representable("eps", value, self._dtype, positive=True)

    @property
    def m(self) -> np.ndarray:
        return self._m

    @m.setter
    def m(self, value) -> None:
        self._m = self._vector("m", value)

    @property
    def v(self) -> np.ndarray:
        return self._v

    @v.setter
    def v(self, value) -> None:
        vector = self._vector("v", value)
        check(not (vector < 0).any(), f"v must not be negative, got {vector.min()}")
        self._v = vector

    def _apply(self, weights, grad, lr, scale):
        update.adamw(
            weights, grad, self._m, self._v, lr, *self._betas, self._eps, self._weight_decay, self._steps + 1,
            self._decay_runs, scale,
        )  # fmt: skip


def warmup_cosine(step: int, total: int, warmup: int, base_lr: float, final_lr: float = 0.0) -> float:
    """Learning rate of step 0, 1, …: `warmup` steps up to `base_lr`, then half a cosine to `final_lr`.

    Step `warmup - 1` has `base_lr`, step `total` and all after it `final_lr` (Loshchilov & Hutter 2017,
    arXiv:1608.03983).
    `functools.partial(warmup_cosine, total=1000, warmup=50, base_lr=1e-3)` is the schedule that `cvit.train.fit` takes.
    """
    base_lr, final_lr = finite("base_lr", base_lr), finite("final_lr", final_lr)
    step, total = as_int("step", step, minimum=0), as_int("total", total, minimum=0)
    warmup = as_int("warmup", warmup, minimum=0)
    check(warmup <= total, f"warmup must lie between 0 and total = {total}, got {warmup}")
    if step < warmup:
        return base_lr * (step + 1) / warmup
    if step >= total:
        return final_lr
    progress = (step - warmup) / (total - warmup)
    return final_lr + (base_lr - final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
