"""SGD and AdamW over the flat weight tensor.

An optimizer sees one long vector; `groups` says which runs of it are trained, which of those decay, and how their
learning rates differ. Everything is checked before anything is touched, then one fused pass over memory does the whole
update, clipping included. Clipping is in clipping.py, the learning rate's schedule in schedule.py.

Sources: SGD with momentum as in PyTorch's `torch.optim.SGD` (Sutskever et al. 2013); AdamW by Loshchilov & Hutter 2019
(arXiv:1711.05101).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping

import numpy as np

from ..base.arrays import FLOATS, as_float, as_vector
from ..base.errors import check
from ..base.numbers import as_int, representable, shown
from ..engine import update
from ..model.layout import Layout
from ..model.precision import resolved
from .clipping import clip, norm_and_scale, too_small
from .groups import Groups, groups
from .schedule import warmup_cosine

__all__ = ["SGD", "AdamW", "clip", "warmup_cosine"]


class _Optimizer(abc.ABC):
    """What SGD and AdamW share: the checks, the clipping, the order of the two, and the state as a dict.

    Every attribute that a step reads is checked when it is set.
    """

    _NUMBERS: tuple[str, ...] = ("lr", "weight_decay")  # of the state, in the order in which they are set
    _VECTORS: tuple[str, ...] = ()
    # Of an optimizer that was pickled before there were precisions, its dtype's; and before there were shares, all.
    _precision: str | None = None
    _share: slice | None = None

    def __init__(self, model, lr, weight_decay, dtype, precision, layer_decay, trained):
        layout = getattr(model, "layout", model)
        if not isinstance(layout, Layout):
            raise TypeError(f"model must be a ViT or a Layout, got {type(model).__name__}")
        self._size = layout.size
        self._dtype = np.dtype(getattr(model, "dtype", np.float32) if dtype is None else dtype)
        if self._dtype not in FLOATS:
            raise TypeError(f"dtype must be float32 or float64, got {self._dtype}")
        if precision is None and dtype is None:
            precision = getattr(model, "precision", None)
        self._precision = resolved(precision, self._dtype)
        self._groups = groups(layout, layer_decay, trained)
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
    def precision(self) -> str | None:
        """Whose kernels update the weights: with "bf16" a step has the same bits on every machine."""
        return self._precision

    @property
    def groups(self) -> Groups:
        """The parts that are trained, and how."""
        return self._groups

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

    @property
    def share(self) -> slice | None:
        """The part of the vectors that steps update and the state has values for, None for all: see
        `split.SplitOptimizer`. The norm, when clipping, is the whole gradient's all the same."""
        return self._share

    @share.setter
    def share(self, value: slice | None) -> None:
        self._share = value

    @property
    def _runs(self) -> np.ndarray:
        """What a step goes over."""
        return self._groups.runs if self._share is None else self._groups.within(self._share)

    def _zeros(self) -> np.ndarray:
        """A vector of the state: a view, since an array that owns its memory can be resized.

        Its pages have no memory before a step writes to them, so what is not trained takes none.
        """
        return np.zeros(self._size, self._dtype)[:]

    def _vector(self, name: str, value) -> np.ndarray:
        """A copy of a vector of the state, zero where nothing is trained."""
        array = as_float(name, value, (self._size,))
        if array.dtype != self._dtype:
            raise TypeError(f"{name} must be {self._dtype}, as the optimizer is, got {array.dtype}")
        vector = self._zeros()
        for run in self._runs:
            vector[run["start"] : run["stop"]] = array[run["start"] : run["stop"]]
        return vector

    def step(self, weights, grad, *, lr=None, clip_norm=None) -> float | None:
        """Update `weights` (size,) in place from `grad` (size,), and count the step.

        `lr` stands in for the optimizer's own learning rate in this step (schedules use it). With `clip_norm` the
        gradient counts as scaled to at most that norm; `grad` itself is only read. Returns the gradient's norm when
        clipping, else None. What is not trained is neither read nor written, and the norm is that of the trained parts
        of the gradient. A wrong argument, or a gradient whose norm is not finite when clipping, raises before weights
        or state have changed.
        """
        lr = self._lr if lr is None else representable("lr", lr, self._dtype)
        weights = as_vector("weights", weights, self._size, self._dtype, writable=True)
        grad = as_vector("grad", grad, self._size, self._dtype)
        check(not np.may_share_memory(weights, grad), "weights and grad must not overlap")
        norm, scale = (
            (None, 1.0) if clip_norm is None else norm_and_scale(grad, clip_norm, self._groups.spans, self._precision)
        )
        if too_small(scale, self._dtype):
            grad, scale = self._scaled(grad, scale), 1.0
        self._apply(weights, grad, lr, scale)
        self._steps += 1
        return norm

    def _scaled(self, grad: np.ndarray, scale: float) -> np.ndarray:
        """The trained parts of `grad` times a factor that the vectors' own type does not have."""
        scaled = self._zeros()
        for part in self._groups.slices():
            np.multiply(grad[part], scale, out=scaled[part], dtype=np.float64, casting="same_kind")
        return scaled

    @abc.abstractmethod
    def _apply(self, weights: np.ndarray, grad: np.ndarray, lr: float, scale: float) -> None:
        """The step itself; everything is checked."""

    @property
    def numbers(self) -> dict:
        """The options and `steps`: the state without its vectors."""
        return {name: getattr(self, name) for name in ("steps", *self._NUMBERS)}

    def state_dict(self, whole: Callable[[np.ndarray], np.ndarray | None] | None = None) -> dict:
        """All that a run needs to go on, for `load_state_dict`: options and `steps` as numbers, vectors as copies.

        Where not everything is trained, the vectors hold the trained values alone, and "spans", a list of
        [start, stop], says whose they are. `whole` gives the vector in place of one of which this optimizer has but a
        share.
        """
        state = self.numbers
        for name in self._VECTORS:
            vector = getattr(self, name)
            if vector is not None and whole is not None:
                vector = whole(vector)
            state[name] = None if vector is None else self._groups.taken(vector)
        return state | self._spans()

    def _spans(self) -> dict[str, list[list[int]]]:
        if self._groups.whole:
            return {}
        return {"spans": [[part.start, part.stop] for part in self._groups.slices()]}

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict()` of an optimizer of the same kind, size, dtype and trained tensors gave; vectors
        are copied.

        Everything is checked before anything changes: the error names a missing or unknown key or a wrong value.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, as state_dict() gives it, got {type(state).__name__}")
        spans = self._spans()
        known = {"steps", *self._NUMBERS, *self._VECTORS, *spans}
        missing, unknown = known - set(state), [key for key in state if key not in known]
        check(not missing, f"state lacks {', '.join(sorted(missing))}")
        check(
            not unknown,
            f"state has keys that {type(self).__name__} does not know: {', '.join(map(shown, unknown[:8]))}",
        )
        check(all(state[name] == wanted for name, wanted in spans.items()), "state is of other trained tensors")
        loaded = object.__new__(type(self))
        loaded._size, loaded._dtype, loaded._groups = self._size, self._dtype, self._groups
        loaded._precision, loaded._share = self._precision, self._share
        for name in (*self._NUMBERS, *self._VECTORS, "steps"):
            value = state[name]
            if spans and name in self._VECTORS and value is not None:
                value = self._groups.spread(as_float(name, value, (self._groups.count,)))
            setattr(loaded, name, value)
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
    precision : "f32", "f64", "bf16", "bf16-fast" or "auto", optional
        Whose kernels take the step: the model's if neither this nor `dtype` is given. In "bf16" the arithmetic is
        float32's, in an order that is the same on every machine.
    layer_decay : float
        In (0, 1]: the learning rate of the embedding, of each block and of what follows them is `lr` times
        `layer_decay ** (depth + 1 - layer)`, see `groups`. Weight decay changes with it only as its formula has the
        learning rate.
    trained : None, function of a name, or names and patterns
        Which tensors are trained, all of them by default; see `groups`. Others are neither read nor written, and their
        state takes no memory.

    Attributes: the options, which may be set between steps, `steps` taken so far, and `velocity` (size,), None without
    momentum; a vector that is assigned is checked and copied.
    """

    _NUMBERS = ("lr", "weight_decay", "momentum", "nesterov")
    _VECTORS = ("velocity",)
    _momentum, _nesterov, _velocity = 0.0, False, None

    def __init__(
        self,
        model,
        lr=0.1,
        *,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        dtype=None,
        precision=None,
        layer_decay=1.0,
        trained=None,
    ):
        super().__init__(model, lr, weight_decay, dtype, precision, layer_decay, trained)
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
            self._velocity = self._zeros()
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
            weights, grad, self._velocity, lr, self._momentum, self._nesterov, self._weight_decay,
            self._runs, scale, self._precision,
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

    def __init__(
        self,
        model,
        lr=1e-3,
        *,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.01,
        dtype=None,
        precision=None,
        layer_decay=1.0,
        trained=None,
    ):
        super().__init__(model, lr, weight_decay, dtype, precision, layer_decay, trained)
        self.betas = betas
        self.eps = eps
        self._m, self._v = self._zeros(), self._zeros()

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
            self._runs, scale, self._precision,
        )  # fmt: skip
