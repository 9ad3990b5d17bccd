"""`ViT`: a configuration and one flat weight tensor, with forward, loss and gradient.

    images (N, C, H, W) -> patches -> +cls +pos -> [norm, attention, +; norm, MLP, +] x depth -> norm -> pool -> logits -> loss

The passes themselves are in _stages.pyx. A model keeps one engine for each batch size and mode it has seen lately, so that from the second
call on nothing is allocated but the result.
"""

from __future__ import annotations

import dataclasses
import threading

import numpy as np

from ..base.arrays import as_array, as_float, as_labels, check_vector, float_dtype
from ..base.errors import check
from ..base.numbers import as_int, finite
from ..engine import runtime
from ..engine.plan import Engine, allocate
from .config import ViTConfig, unsupported
from .initialize import init_weights
from .layout import Layout

ENGINES_KEPT = 4  # for training and evaluation, each with a last, smaller batch


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of one call, known before anything is allocated: bytes by buffer. `print(plan)` shows the table."""

    mode: str
    batch: int
    threads: int
    buffers: dict[str, int]
    lent: int = 0  # bytes of activations that lie in the gradient vector until gradients are written there

    @property
    def bytes(self) -> int:
        """All of it beside weights and gradient: activations, gradients of activations, packed weights, scratch of all threads."""
        return sum(self.buffers.values())

    def __str__(self):
        title = f"{'training' if self.mode == 'train' else 'inference'}, batch {self.batch}, {self.threads} threads"
        rows = [*self.buffers.items(), ("total", self.bytes)]
        if self.lent:
            rows.insert(-1, ("(more in the gradient's room)", self.lent))
        return "\n".join([title, *(f"  {name:<38}{size / 1e6:>12.3f} MB" for name, size in rows)])


class ViT:
    """A Vision Transformer of one configuration.

    Parameters
    ----------
    config : ViTConfig
    weights : array (size,), optional
        The flat weight tensor in the order of `Layout.of(config)`, float32 or float64. A contiguous, writable NumPy vector is kept, not
        copied: an optimizer updates it in place. None draws `init_weights(config, seed)`.
    seed : int
        For `weights=None`.
    dtype : float32 or float64
        For `weights=None`; given weights keep theirs.
    checkpoint : "block", optional
        Training keeps only the blocks' inputs and computes the rest again in the backward: far less memory, about a fifth more time, the
        same bits (Chen et al. 2016, arXiv:1604.06174).

    Attributes: `config`, `layout`, `dtype`, `weights`, and after `loss_and_grad` the `logits` (N, classes) of that pass.
    A model may be called from several threads; its calls take turns. Two models run at the same time.

    Examples
    --------
    >>> model = ViT(ViTConfig.variant("Ti/16", classes=10, image_size=32))
    >>> model.forward(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self, config: ViTConfig, weights=None, *, seed: int = 0, dtype=np.float32, checkpoint: str | None = None
    ):
        if not isinstance(config, ViTConfig):
            raise TypeError(f"config must be a ViTConfig, got {type(config).__name__}")
        check(not unsupported(config), f"config has options that are not computed yet: {', '.join(unsupported(config))}")
        if weights is None:
            weights = init_weights(config, seed, dtype=float_dtype("dtype", dtype))
        check(checkpoint in (None, "block"), f"checkpoint must be None or 'block', got {checkpoint!r}")
        self.config = config
        self.checkpoint = checkpoint
        self.layout = Layout.of(config)
        flat = as_array("weights", weights)
        self.layout.check_flat(flat)
        flat = as_float("weights", flat, (self.layout.size,))
        self.weights = flat if flat.flags.writeable else flat.copy()
        self.dtype = flat.dtype
        self.logits = None
        self._grad = None
        self._engines: dict[tuple, Engine] = {}
        self._frozen: Engine | None = None
        self._lock = threading.Lock()

    def __repr__(self):
        return f"ViT({self.config}, {self.layout.size:,} weights, {self.dtype})"

    # ------------------------------------------------------------------------------------------------------ calls
    def forward(self, x) -> np.ndarray:
        """Logits (N, classes) of images x (N, C, H, W), a new array. An image's logits do not depend on the others, bit for bit."""
        return self._infer(x)[0]

    def features(self, x) -> np.ndarray:
        """Pooled features (N, D) of images x (N, C, H, W), after the final norm: what the head sees. A new array."""
        return self._infer(x)[1]

    def loss_and_grad(self, x, y, *, label_smoothing: float = 0.0, out=None) -> tuple[float, np.ndarray]:
        """Mean softmax cross-entropy of a batch, and its gradient with respect to every weight.

        Parameters
        ----------
        x : array (N, C, H, W), float32 or float64
        y : array (N,) of any integer dtype, labels in [0, classes)
        label_smoothing : float in [0, 1)
            s in the target (1 - s) onehot(y) + s / classes (Szegedy et al. 2016, arXiv:1512.00567).
        out : array (size,), optional
            Where the gradient goes; by default a vector that the model owns and uses again at the next call. Until the gradient is
            written it holds activations.

        Returns
        -------
        loss : float
        grad : array (size,), in the order of `layout`
        """
        x = self._images(x)
        y = as_labels("y", y, len(x), self.config.classes)
        smoothing = finite("label_smoothing", label_smoothing)
        check(smoothing < 1, f"label_smoothing must be below 1, got {label_smoothing!r}")
        check(self._frozen is None, "this model is frozen: call unfreeze() before training it")
        if out is not None:
            check_vector("out", out, self.layout.size, self.dtype, writable=True)
            check(not np.may_share_memory(out, self.weights), "out must not overlap the weights")
            check(not np.may_share_memory(out, x), "out must not overlap x")
            check(not np.may_share_memory(out, y), "out must not overlap y")  # out holds activations before y is read
        with self._lock:
            if out is None:
                if self._grad is None:
                    self._grad = allocate(self.layout.size, self.dtype)[: self.layout.size]
                out = self._grad
            engine = self._engine(len(x), "train")
            loss = engine.loss_and_grad(self.weights, x, y, smoothing, out)
            self.logits = engine.logits()
        return loss, out

    def freeze(self) -> ViT:
        """Make the weights read-only and pack them once, so that every forward starts at once. Returns the model."""
        with self._lock:
            self.weights = self.weights.view()
            self.weights.flags.writeable = False
            self._frozen = None
            self._engines.clear()
            self._frozen = self._pack_all()
        return self

    def unfreeze(self) -> ViT:
        """Take `freeze` back. Returns the model."""
        with self._lock:
            if self._frozen is not None:
                base = self.weights.base
                self.weights = (
                    base
                    if base is not None and base.flags.writeable and base.shape == self.weights.shape
                    else self.weights.copy()
                )
                self._frozen = None
                self._engines.clear()
        return self

    def plan(self, batch: int, mode: str = "train") -> Plan:
        """The memory that a call on `batch` images takes beside weights and gradient; mode "train" or "infer"."""
        batch = as_int("batch", batch)
        check(mode in ("train", "infer"), f"mode must be 'train' or 'infer', got {mode!r}")
        engine = self._make_engine(batch, mode, dry=True)
        threads = engine.threads()
        buffers = {name: count * self.dtype.itemsize for name, count in engine.buffers.items()}
        buffers[f"scratch of {threads} threads"] = buffers.pop("scratch of a thread") * threads
        return Plan(mode, batch, threads, buffers, engine.lent)

    # ---------------------------------------------------------------------------------------------------- inside
    def _images(self, x) -> np.ndarray:
        config = self.config
        x = as_float("x", x, ("N", config.channels, *config.image_size), self.dtype)
        check(len(x) > 0, "x must hold at least one image, got a batch of 0")
        return x

    def _infer(self, x):
        x = self._images(x)
        with self._lock:
            logits, pooled = self._engine(len(x), "infer").forward(self.weights, x)
            return logits.copy(), pooled.copy()

    def _pack_all(self):
        engine = Engine(self.config, self.layout, 1, self.dtype, "infer", frozen=True)
        engine.freeze(self.weights)
        return engine

    def _make_engine(self, batch: int, mode: str, dry: bool = False):
        checkpoint = mode == "train" and self.checkpoint == "block"
        return Engine(
            self.config, self.layout, batch, self.dtype, mode, frozen=self._frozen is not None, owner=self._frozen,
            checkpoint=checkpoint, dry=dry,
        )  # fmt: skip

    def _engine(self, batch: int, mode: str):
        """The engine for a batch size and mode, kept from earlier or made; the least recently used one goes."""
        isa = runtime.get_isa()
        if self._frozen is not None and self._frozen.isa != isa:
            self._frozen = self._pack_all()
            self._engines.clear()
        key = (batch, mode, isa)
        engine = self._engines.pop(key, None)
        if engine is None:
            engine = self._make_engine(batch, mode)
            if len(self._engines) >= ENGINES_KEPT:
                self._engines.pop(next(iter(self._engines)))
        self._engines[key] = engine
        return engine
