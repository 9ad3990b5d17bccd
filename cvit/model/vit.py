"""`ViT`: a configuration and one flat weight tensor, with forward, loss and gradient.

    images (N, C, H, W) -> patches -> +cls +pos
        -> [norm, attention, +; norm, MLP, +] x depth -> norm -> pool -> logits -> loss

The passes themselves are in engine/stages.pyx. A model keeps one engine for each of the last few batch sizes and modes,
so that from the second call on nothing is allocated but the result.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from ..base.arrays import any_float, as_array, as_float, as_sample_weight, as_targets, as_vector, is_fixed, laid_out
from ..base.errors import check
from ..base.numbers import as_int, representable, shown
from ..engine import runtime
from ..engine.plan import Plan as Engine
from ..engine.plan import Progress
from ..engine.vectors import Vectors
from ..pictures.preprocessing import Preprocessing
from . import copies, inference, maps, recognition
from .config import ViTConfig
from .drop import NOTHING, Drop, as_drop
from .inference import as_first
from .initialize import init_weights
from .layout import Layout
from .memory import Plan, buffers_of
from .origin import Origin
from .precision import resolved, settled
from .program import First, program_of, tail_of
from .recognition import Guess

Mode = Literal["train", "infer", "tokens", "maps"]

ENGINES_KEPT = 6  # for a frozen front, training and evaluation, each with a last, smaller batch

# Inference takes a batch in pieces whose activations need at most so many bytes, whatever the batch.
PIECE_BYTES = 256 << 20
# What the address space of a process has room for; sizes below it do not overflow the engine's 64-bit arithmetic.
MOST_BYTES = 1 << 47


class _State(NamedTuple):
    """What `freeze` and `unfreeze` change: replaced as one object, so that nobody sees half of it."""

    weights: np.ndarray  # that calls read
    packed: Engine | None  # of a frozen model
    thawed: np.ndarray | None  # the vector that `unfreeze` gives back
    engines: dict[tuple, Engine]


_models: weakref.WeakValueDictionary[int, ViT] = weakref.WeakValueDictionary()


def _in_forked_child() -> None:
    """The threads that held a lock when the process forked do not exist in the child, and would never release it."""
    for model in _models.values():
        model._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


class ViT:
    """A Vision Transformer of one configuration.

    Parameters
    ----------
    config : ViTConfig
    weights : array (size,), optional
        The flat weight tensor in the order of `Layout.of(config)`, float32 or float64. A contiguous, writable NumPy
        vector is kept, not copied: an optimizer updates it in place. So is one that NumPy's `frombuffer` makes of a map
        of a file that can only be read; such a model is not trained. None draws `init_weights(config, seed)`.
    seed : int
        For `weights=None`.
    dtype : float32 or float64, optional
        For `weights=None`; given weights keep theirs. None: what `precision` needs, else float32.
    precision : "f32", "f64", "bf16", "bf16-fast" or "auto", optional
        What passes compute in, see `cvit.model.precision`. None: float32 or float64, as the weights are. With "bf16"
        operands of products are rounded to bfloat16, and weights, gradient, images and results stay float32.
    checkpoint : "block", optional
        Training keeps only the blocks' inputs and computes the rest again in the backward: far less memory, about a
        fifth more time, the same bits (Chen et al. 2016, arXiv:1604.06174).
    preprocessing : Preprocessing, optional
        What `preprocess` does to pictures, for the configuration's image size and channels.
    class_names : sequence of str, optional
        One name for each class.
    origin : Origin, optional
        Whose names the weights had in the file that they were read from; `save` writes the same.

    Attributes
    ----------
    config, layout, dtype, precision, checkpoint
        Of the model for its lifetime; read-only. "auto" has become the precision that was chosen.
    weights : array (size,)
        May be written to, `model.weights[:] = best`, and assigned, `model.weights = best`: a vector of the model's
        dtype is then kept or copied as by the constructor. A frozen model's are read-only.
    preprocessing, class_names, origin
        As given, the names as a tuple, or None. May be assigned; `cvit.save` writes them, `cvit.load` reads them.
    frozen : bool
        Whether `freeze` was called last, not `unfreeze`.
    logits : array (N, classes) or None
        Of the calling thread's last `loss_and_grad`.

    What a call returns
    -------------------
    `forward`, `features` and `logits` give arrays of their own. A gradient from `loss_and_grad` is valid for as long as
    it or a view of it is referenced, and its memory is used again after that: gradients may be kept, compared and added
    up, and a training loop still allocates nothing. (A loop that still refers to the last gradient at the next call
    takes turns with two vectors. With `out` there is one, the caller's own.) A raw address, such as `grad.ctypes.data`,
    is no reference.

    A model may be called from several threads: its calls take turns, and each thread gets its own results, logits
    included. Two models run at the same time. A forked child may use the model, whatever other threads did at the fork.

    A model can be pickled and copied. `copy.copy(model)` shares the vector of weights, `copy.deepcopy(model)` and a
    pickled model have their own; engines, gradients and logits stay behind, and a frozen model is packed again. (Do not
    unpickle what you do not trust: `cvit.save` writes files that are safe to load.)

    Examples
    --------
    >>> model = ViT(ViTConfig.variant("Ti/16", classes=10, image_size=32))
    >>> model.forward(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """

    _write: ClassVar[
        Callable[[str | os.PathLike, ViT, str | None, str | None], None]
    ]  # cvit.formats.save, which lies above this package

    def __init__(
        self,
        config: ViTConfig,
        weights=None,
        *,
        seed: int = 0,
        dtype=None,
        precision: str | None = None,
        checkpoint: str | None = None,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        origin: Origin | None = None,
    ):
        if not isinstance(config, ViTConfig):
            raise TypeError(f"config must be a ViTConfig, got {type(config).__name__}")
        check(checkpoint in (None, "block"), f"checkpoint must be None or 'block', got {shown(checkpoint)}")
        _, dtype = settled(precision, dtype)
        if weights is None:
            weights = init_weights(config, seed, dtype=dtype or np.float32)
        self._config = config
        self._checkpoint = checkpoint
        self.preprocessing = preprocessing
        self.class_names = class_names
        self.origin = origin
        self._layout = Layout.of(config)
        self._size = self._layout.size
        self._token_rows = config.tokens if config.pool == "none" else 0  # of each image's logits
        flat = as_array("weights", weights)
        self._layout.check_flat(flat)
        flat = self._kept(flat)
        self._dtype = flat.dtype
        self._precision = resolved(precision, self._dtype, "weights")
        for eps in (config.eps, *dict(config.norm_eps).values()):
            representable("the configuration's eps", eps, self._dtype, positive=True)
        self._state = _State(flat, None, None, {})
        self._gradients = Vectors(self._size, self._dtype)
        self._most_in_piece = 0  # images of an inference, 0 before it is known
        self._most: dict[Mode, int] = {}  # images of a call
        self._own = threading.local()
        self._lock = threading.Lock()
        _models[id(self)] = self

    def __repr__(self):
        precision = "" if self._precision in ("f32", "f64") else f", precision {self._precision}"
        return f"ViT({self._config}, {self._size:,} weights, {self._dtype}{precision})"

    # ------------------------------------------------------------------------------------------------- attributes
    @property
    def config(self) -> ViTConfig:
        return self._config

    @property
    def layout(self) -> Layout:
        """The table of the flat weight tensor."""
        return self._layout

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64: of weights, images inside, gradients and results."""
        return self._dtype

    @property
    def precision(self) -> str:
        """What passes compute in: "f32", "f64", "bf16" or "bf16-fast"."""
        return self._precision

    @property
    def checkpoint(self) -> str | None:
        return self._checkpoint

    @property
    def frozen(self) -> bool:
        return self._state.packed is not None

    @property
    def logits(self) -> np.ndarray | None:
        """The logits (N, classes) of the calling thread's last `loss_and_grad`, None before."""
        return getattr(self._own, "logits", None)

    @property
    def weights(self) -> np.ndarray:
        """The flat weight tensor (size,), not a copy."""
        return self._state.weights

    @weights.setter
    def weights(self, value) -> None:
        flat = as_array("weights", value)
        self._layout.check_flat(flat)
        if flat.dtype.newbyteorder("=") != self._dtype:
            raise TypeError(f"weights must be {self._dtype}, as the model is, got {flat.dtype}")
        flat = self._kept(flat)
        with self._lock:
            check(not self.frozen, "this model is frozen: call unfreeze() before giving it other weights")
            self._state = self._state._replace(weights=flat)

    @property
    def preprocessing(self) -> Preprocessing | None:
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing | None) -> None:
        if value is not None:
            if not isinstance(value, Preprocessing):
                raise TypeError(f"preprocessing must be a Preprocessing, got {type(value).__name__}")
            needed, got = (self._config.channels, *self._config.image_size), value.shape
            check(got == needed, f"preprocessing must give images {needed}, as the configuration says, got {got}")
        self._preprocessing = value

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._class_names

    @class_names.setter
    def class_names(self, value: Sequence[str] | None) -> None:
        if value is not None:
            value = (value,) if isinstance(value, str) else tuple(value)
            for name in value:
                if not isinstance(name, str):
                    raise TypeError(f"class_names must be strings, got {shown(name)}")
            classes = self._config.classes
            check(len(value) == classes, f"class_names must be {classes}, one a class, got {len(value)}")
        self._class_names: tuple[str, ...] | None = value

    @property
    def origin(self) -> Origin | None:
        return self._origin

    @origin.setter
    def origin(self, value: Origin | None) -> None:
        if value is not None and not isinstance(value, Origin):
            raise TypeError(f"origin must be an Origin or None, got {type(value).__name__}")
        self._origin = value

    def _kept(self, flat: np.ndarray) -> np.ndarray:
        """The vector itself if it can be read and updated in place, or lies in a map that nobody can write to, else a
        copy."""
        flat = as_float("weights", flat, (self._size,))
        return flat if flat.flags.writeable or is_fixed(flat) else flat.copy()

    # ------------------------------------------------------------------------------------------------------ calls
    def forward(self, x) -> np.ndarray:
        """Logits (N, classes) of images x (N, C, H, W), a new array; (N, T, classes) for a model with pool="none".

        An image's logits do not depend on the other images, bit for bit. A large batch is computed in pieces, so that
        the memory it takes is bounded (`PIECE_BYTES`), but for the result.
        """
        self._check_head()
        return inference.forward(self, x, inference.LOGITS)

    __call__ = forward

    def features(self, x) -> np.ndarray:
        """Pooled features (N, D) of images x (N, C, H, W), a new array: what the head sees.

        That is after the final norm and what stands behind the pooling (`fc_norm`, the MLP of attention pooling,
        `pre_logits`). Of a model with a head for the distillation token the mean of the two tokens. Computed as by
        `forward`.
        """
        features = inference.forward(self, x, inference.FEATURES)
        if self._config.dist_head:
            D = self._config.width
            return (features[:, :D] + features[:, D:]) / self._dtype.type(2)
        return features

    def tokens(self, x, layers=None, *, norm: bool | None = None) -> np.ndarray | list[np.ndarray]:
        """All tokens (N, T, D) of images x (N, C, H, W) after the final norm, new arrays.

        Parameters
        ----------
        x : array (N, C, H, W)
        layers : sequence of int, optional
            A list of these blocks' outputs instead, in the order given; -1 is the last block.
        norm : bool, optional
            Whether the final norm is applied: None means for the tokens, and not for `layers`.

        Tokens stand in the order class tokens, distillation token, registers, patches row by row.
        """
        norm = layers is None if norm is None else norm
        if not isinstance(norm, bool):
            raise TypeError(f"norm must be True, False or None, got {shown(norm)}")
        return inference.tokens(self, x, layers, norm)

    def attention(self, x, layers=None) -> np.ndarray:
        """Attention maps (N, L, H, T, T) of images x (N, C, H, W), a new array: row q of a map holds the softmax
        probabilities of query q, for all L blocks or those of `layers`, tokens in the order of `tokens`.

        Blocks in pairs have the heads of both attentions, 2 H. Beside its result a call takes what `forward` takes.
        """
        return maps.attention(self, x, layers)

    def front(self, x, first: First) -> np.ndarray:
        """What training with the same `first` begins with, of images x (N, C, H, W): a new array, to be kept where the
        same images are trained on again.

        Tokens (N, T, D) before block `first`, behind all blocks for first = depth; for "head" what the head reads, (N,
        width), which is the features, or (N, T, width) with pool="none". Computed as by `forward`, in pieces.
        """
        return inference.front(self, x, as_first(first, self._config.depth))

    def preprocess(self, images) -> np.ndarray:
        """Pictures as `forward` takes them, float32 (N, C, H, W).

        images is one picture or a list of pictures: paths, Pillow images, uint8 arrays (h, w) or (h, w, c). A model
        without `preprocessing` takes `Preprocessing.default` of its image size and channels.
        """
        how = self.preprocessing or Preprocessing.default(self._config.image_size, self._config.channels)
        return how(images)

    def predict(self, images, top: int = 5) -> list[Guess] | list[list[Guess]]:
        """The `top` most probable classes of pictures, with their probabilities: [("cat", 0.98), …].

        images is what `preprocess` takes, or a folder. One picture gives one list, anything else a list of lists.
        A class is called by its number where the model has no names.
        """
        return recognition.predict(self, images, top)

    def embed(self, images) -> np.ndarray:
        """The features (N, D) of pictures: what `preprocess` takes, or a folder, in the order of its sorted names."""
        return recognition.embed(self, images)

    def loss_and_grad(
        self,
        x,
        y,
        *,
        label_smoothing: float = 0.0,
        sample_weight=None,
        drop: Drop | None = None,
        first: First | None = None,
        out=None,
        accumulate: bool = False,
        progress: Progress | None = None,
    ) -> tuple[float, np.ndarray]:
        """Softmax cross-entropy of a batch, the mean or a weighted sum, and its gradient with respect to every weight.

        Parameters
        ----------
        x : array (N, C, H, W), float32 or float64; with `first` also what `front` gives
        y : array (N,) of any integer dtype, labels in [0, classes); (N, T) for a model with pool="none"
            Or floats with an axis more, (N, classes) or (N, T, classes): target distributions, as mixup makes them,
            finite and not negative. A row that does not add up to 1 is taken as it is.
        label_smoothing : float in [0, 1)
            s in the target (1 - s) t + s / classes (Szegedy et al. 2016, arXiv:1512.00567), t = onehot(y) or y's row.
        sample_weight : array (N,), optional
            The loss is the sum of each image's loss times its weight, which is finite and not negative: None is 1 / N.
            An image's loss is the mean of its tokens' for a model with pool="none".
        drop : Drop, optional
            Stochastic depth and dropout: the loss, the gradient and `logits` are then those of the thinned model.
        first : int or "head", optional
            What lies before block `first` is frozen: it runs as in inference, keeps nothing, drops nothing, and its
            part of the gradient is left as it is (in a vector of the model's own it is zero). 0 freezes the embedding,
            `depth` all blocks, "head" all but the head. Without `drop` the other gradients have the bits that they have
            without `first`.
        out : array (size,), optional
            Where the gradient goes: a contiguous vector of the model's dtype. Until the gradient is written it holds
            activations. By default the model gives a vector of its own, see "What a call returns" in the class.
        accumulate : bool
            Add the gradient to what is in `out`, which must be given. The sum over k batches of equal size is k times
            the gradient of their mean loss.
        progress : Progress of `cvit.engine.plan`, optional
            A new one: while the call runs, other threads see by it how many blocks' parts of `out` are final, the last
            block's first. With `accumulate` it stays at 0.

        Returns
        -------
        loss : float
        grad : array (size,), in the order of `layout`; `out` itself where that was given
        """
        self._check_head()
        if first is not None:
            first = as_first(first, self._config.depth)
        x = self._images(x) if first is None else inference.images_or_rows(self, x, first)
        targets = as_targets("y", y, len(x), self._config.classes, self._dtype, self._token_rows)
        if sample_weight is not None:
            sample_weight = as_sample_weight("sample_weight", sample_weight, len(x), self._dtype)
        smoothing = representable("label_smoothing", label_smoothing, self._dtype, below_one=True)
        drop = as_drop(drop, self._dtype)
        if not isinstance(accumulate, bool):
            raise TypeError(f"accumulate must be True or False, got {shown(accumulate)}")
        if progress is not None and not isinstance(progress, Progress):
            raise TypeError(f"progress must be a Progress, got {shown(progress)}")
        check(out is not None or not accumulate, "accumulate needs out, the vector that the gradient is added to")
        target = None
        if out is not None:
            target = as_vector("out", out, self._size, self._dtype, writable=True)
            for name, array in (("x", x), ("y", as_array("y", y))):
                check(not np.may_share_memory(target, array), f"out must not overlap {name}")
        if first is None:
            x = laid_out(x, self._dtype)
        with self._lock:
            state = self._checked_state()
            check(state.packed is None, "this model is frozen: call unfreeze() before training it")
            if out is not None:
                check(not np.may_share_memory(target, state.weights), "out must not overlap the weights")
            if first is not None and target is None:
                grad = np.zeros(self._size, self._dtype)  # whose frozen part takes no memory: it is never touched
            else:
                grad = self._gradients.take() if target is None or accumulate else target
            engine = self._engine(len(x), "train", first, drop.steps)
            if first is not None:
                inference.fill_front(self, state.weights, x, first, engine.given, engine.isa)
            followed = None if accumulate else progress
            loss = engine.run_training(state.weights, x, targets, smoothing, grad, sample_weight, drop, followed)
            self._own.logits = engine.logits().copy()
        if target is None:
            return loss, grad
        if accumulate:
            trained = slice(engine.trained, None)
            np.add(target[trained], grad[trained], out=target[trained])
        return loss, out

    def freeze(self) -> ViT:
        """Pack the weights once, so that every forward starts at once. Returns the model.

        The model then computes with a copy of the weights, which is read-only: writing to the vector that was the
        model's before changes nothing. (Weights that can only be read, see `load`, need none.) Of a model of "bf16" the
        packed matrices are bfloat16 and take half the memory that float32's take. A freeze that fails, for want of
        memory, leaves the model as it was.
        """
        with self._lock:
            state = self._checked_state()
            if state.packed is None:
                weights = state.weights if is_fixed(state.weights) else state.weights.copy()
                weights.flags.writeable = False
                # A view of it, which cannot be made writable again.
                self._state = _State(weights[:], self._pack_all(weights), state.weights, {})
        return self

    def unfreeze(self) -> ViT:
        """Take `freeze` back: `weights` is the vector that it was before, with what it holds now. Returns the model."""
        with self._lock:
            if self._state.thawed is not None:
                self._state = _State(self._state.thawed, None, None, {})
        return self

    def plan(self, batch: int, mode: Mode = "train", *, drop: Drop | None = None, first: First | None = None) -> Plan:
        """The memory that a call on `batch` images takes beside weights, gradient and results.

        mode: "train" for `loss_and_grad`, with `drop` and `first` as that call gets them and images for x; "infer" for
        `forward` and `features`.
        """
        batch, drop = as_int("batch", batch), as_drop(drop, self._dtype)
        check(mode in ("train", "infer"), f"mode must be 'train' or 'infer', got {shown(mode)}")
        piece = batch if mode == "train" else self._piece(batch)
        if first is not None:
            first = as_first(first, self._config.depth)
            check(mode == "train", f"first is of training: mode must be 'train', got {shown(mode)}")
            self._check_head()
        engine = self._make_engine(piece, mode, first, drop.steps if mode == "train" else NOTHING.steps, dry=True)
        buffers = buffers_of(engine)
        if first is not None:
            at_once = self._piece(batch)
            buffers[f"frozen front, {at_once} at a time"] = self._bytes(at_once, inference.front_mode(first))
        return Plan(mode, batch, engine.threads(), buffers, engine.lent, piece)

    def save(self, path: str | os.PathLike, names: str | None = None, *, dtype: str | None = None) -> None:
        """Write the model, preprocessing and class names included, for `cvit.load` or for another library.

        Parameters
        ----------
        path : str or path
            A folder, made if it is missing; for "npz" and "onnx" a file that ends so, for "cvit" also one in
            .safetensors.
        names : "cvit", "timm", "hf", "npz" or "onnx", optional
            Whose names and options: cvit's, timm's (`timm.create_model("local-dir:…")` loads it), transformers'
            (`from_pretrained`), or those of vit_jax and big_vision; or an ONNX graph, for onnxruntime. By default what
            the ending .npz or .onnx says, else cvit's.
        dtype : "bf16", optional
            Round the weights to bfloat16, to nearest even: half the size, for names "cvit", "timm" and "hf". By default
            they are stored as they are, whatever the model's precision.

        Raises
        ------
        ValueError
            The library could not say an option of this model; the message says why, and nothing is written.
        ModuleNotFoundError
            An ONNX graph needs the package onnx, the extra "onnx".
        OSError
            What the system reports. No file is ever half-written.
        """
        ViT._write(path, self, names, dtype)

    def program(self) -> str:
        """The steps that a pass takes, as text: what each reads, writes and adds, and how large it is."""
        return str(program_of(self._config))

    # ---------------------------------------------------------------------------------------------------- copies
    def __getstate__(self) -> dict:
        return copies.state_of(self)

    def __setstate__(self, state: dict) -> None:
        copies.restore(self, state, ViT.__init__)

    # ---------------------------------------------------------------------------------------------------- inside
    @property
    def _engines(self) -> dict[tuple, Engine]:
        return self._state.engines

    def _images(self, x) -> np.ndarray:
        """The images as they lie in memory, checked but not yet converted."""
        x = any_float("x", x, ("N", self._config.channels, *self._config.image_size))
        if len(x) == 0:
            raise ValueError("x must hold at least one image, got a batch of 0")
        return x

    def _checked_state(self) -> _State:
        """The state, if its weights are still as they were checked: whoever holds the array may have resized it."""
        state = self._state
        weights = state.weights
        if weights.size != self._size or weights.dtype != self._dtype:
            raise ValueError(
                f"weights must have shape ({self._size},) and be {self._dtype}, "
                f"but the vector that the model was given now has {weights.shape} and is {weights.dtype}"
            )
        return state

    def _check_head(self) -> None:
        if not self._config.classes:
            raise ValueError("this model has no head (classes=0): features() gives what a head would see")

    def _piece(self, N: int) -> int:
        """How many of N images inference takes at a time: equal pieces, as few as keep to `PIECE_BYTES`."""
        if N == 1:
            return 1
        if self._most_in_piece == 0:
            one, most = self._bytes(1, "infer"), 1
            while self._bytes(2 * most, "infer") - one <= PIECE_BYTES:
                most *= 2
            self._most_in_piece = most
        pieces = -(-N // self._most_in_piece)
        return -(-N // pieces)

    def _bytes(self, batch: int, mode: Mode) -> int:
        return sum(buffers_of(self._make_engine(batch, mode, dry=True)).values())

    def _pack_all(self, weights: np.ndarray, isa: str | None = None) -> Engine:
        program, precision = program_of(self._config), self._precision
        engine = Engine(program, 1, self._dtype, "infer", frozen=True, precision=precision, isa=isa)
        engine.freeze(weights)
        return engine

    def _make_engine(
        self, batch: int, mode: Mode, first: First | None = None, drops=NOTHING.steps, dry: bool = False,
        isa: str | None = None,
    ) -> Engine:  # fmt: skip
        if batch > 1:
            most = self._most.get(mode) or self._most.setdefault(mode, MOST_BYTES // self._bytes(1, mode))
            check(batch <= most, f"batch must be at most {most} for this model, got {batch}: more than 2^47 bytes")
        packed = self._state.packed
        program = program_of(self._config, *drops) if first is None else tail_of(self._config, first, *drops)
        return Engine(
            program, batch, self._dtype, "tokens" if mode == "maps" else mode, frozen=packed is not None, owner=packed,
            checkpoint=mode == "train" and self._checkpoint == "block", dry=dry, staged=mode == "maps",
            precision=self._precision, isa=isa,
        )  # fmt: skip

    def _engine(
        self, batch: int, mode: Mode, first: First | None = None, drops=NOTHING.steps, isa: str | None = None
    ) -> Engine:
        """The engine for a batch size and mode, kept from earlier or made; the least recently used one goes. Of the
        instruction set in use, unless a call that has begun with another one asks."""
        isa, state = isa or runtime.get_isa(), self._state
        if state.packed is not None and state.packed.isa != isa:
            self._state = state = state._replace(packed=self._pack_all(state.weights, isa), engines={})
        engines, key = state.engines, (batch, mode, first, drops, isa)
        engine = engines.pop(key, None)
        if engine is None:
            engine = self._make_engine(batch, mode, first, drops, isa=isa)
            if len(engines) >= ENGINES_KEPT:
                engines.pop(next(iter(engines)))
        engines[key] = engine
        return engine
