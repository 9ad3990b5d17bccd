"""The moving average of the weights, which often predicts better than the weights of the last step.

Averaging of iterates: Polyak & Juditsky 1992 (SIAM J. Control Optim. 30, 838). The exponential form as DeiT has it
(Touvron et al. 2021, arXiv:2012.12877) and timm's `ModelEmaV3`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..base.arrays import as_vector
from ..base.errors import check
from ..base.numbers import as_int, representable, shown
from ..engine import update
from .groups import Trained, groups


class EMA:
    """The exponential moving average of a model's weights: after each step, e += (1 - d) * (w - e).

        d = decay                                   without warm-up
        d = min(decay, (1 + t) / (10 + t))          with it, in update t = 1, 2, ...

    The warm-up keeps the first weights, which training has hardly touched, from staying in the average for long.

    Parameters
    ----------
    model : ViT
        Its weights are where the average starts; they are copied.
    decay : float
        In [0, 1), 0.9999 for instance: the average reaches back about 1 / (1 - decay) steps.
    warmup : bool
        See above.
    trained : None, function of a name, or names and patterns
        As of the optimizers: only these tensors are averaged, others stay as they were when the average was made.

    Attributes: `decay`, `warmup`, `updates` made so far, and `weights` (size,), read-only: the average, for
    `ViT(model.config, ema.weights)` or to write it into another model's weights. Updates are computed in the model's
    precision.
    """

    def __init__(self, model, decay: float = 0.9999, warmup: bool = True, *, trained: Trained = None):
        weights = getattr(model, "weights", None)
        if not isinstance(weights, np.ndarray) or not hasattr(model, "layout"):
            raise TypeError(f"model must be a ViT, got {type(model).__name__}")
        self._groups = groups(model.layout, trained=trained)
        self._weights = weights.copy()
        self._precision = getattr(model, "precision", None)
        self._decay = representable("decay", decay, weights.dtype, below_one=True)
        self._warmup = bool(warmup)
        self._updates = 0

    @property
    def decay(self) -> float:
        return self._decay

    @property
    def warmup(self) -> bool:
        return self._warmup

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self._updates

    @property
    def weights(self) -> np.ndarray:
        """The average (size,), a read-only view that later updates change."""
        view = self._weights.view()
        view.flags.writeable = False
        return view

    def update(self, weights: np.ndarray) -> None:
        """Take `weights` (size,) of the next step into the average; one pass over memory."""
        weights = as_vector("weights", weights, self._weights.size, self._weights.dtype)
        check(not np.may_share_memory(weights, self._weights), "weights must not be the average itself")
        t = self._updates + 1
        decay = min(self._decay, (1 + t) / (10 + t)) if self._warmup else self._decay
        update.average(self._weights, weights, 1 - decay, self._groups.spans, self._precision)
        self._updates = t

    def state_dict(self) -> dict:
        """All that a run needs to go on, for `load_state_dict`: the options, `updates`, and a copy of `weights`."""
        return dict(
            decay=self._decay, warmup=self._warmup, updates=self._updates, weights=self._weights.copy(),
        )  # fmt: skip

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict()` of an average of the same size and dtype gave; `weights` is copied.

        Everything is checked before anything changes: the error names a missing or unknown key or a wrong value.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, as state_dict() gives it, got {type(state).__name__}")
        known = {"decay", "warmup", "updates", "weights"}
        missing, unknown = known - set(state), [key for key in state if key not in known]
        check(not missing, f"state lacks {', '.join(sorted(missing))}")
        check(not unknown, f"state has keys that EMA does not know: {', '.join(map(shown, unknown[:8]))}")
        decay = representable("decay", state["decay"], self._weights.dtype, below_one=True)
        updates = as_int("updates", state["updates"], minimum=0, maximum=2**53)
        weights = as_vector("weights", state["weights"], self._weights.size, self._weights.dtype)
        own = np.empty_like(self._weights)
        own[...] = weights  # whose byte order a file may have said
        self._weights, self._decay, self._warmup, self._updates = own, decay, bool(state["warmup"]), updates
