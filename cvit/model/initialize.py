"""Fresh weights from a seed: as the ViT paper's code draws them, or number for number as Flax does."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np

from ..base.arrays import FLOATS
from ..base.errors import check
from ..base.numbers import as_int
from . import threefry
from .config import ViTConfig
from .layout import Layout
from .parts import Law, Role, Tensor

# Standard deviation of a standard normal confined to (-2, 2): divided by, it makes the truncated draws' variance one.
_TRUNCATED_STD = 0.87962566103423978


def init_weights(config: ViTConfig, seed: int = 0, scheme: str = "vit", dtype=np.float32) -> np.ndarray:
    """Fresh flat weights (size,) for `config`, the same for the same arguments.

    Parameters
    ----------
    config : ViTConfig
    seed : int
        For "vit" at least 0; for the Flax schemes any number of 64 signed bits, of which JAX uses the lower 32.
    scheme : "vit", "flax-nnx" or "flax-linen"
        "vit" has the distributions of the ViT paper's code (github.com/google-research/vision_transformer,
        vit_jax/models_vit.py), drawn by NumPy's default generator: q, k, v, projection and MLP matrices Xavier-uniform,
        MLP biases normal(1e-6), the patch embedding LeCun-normal (truncated at two standard deviations), positions
        and a distillation token normal(0.02), registers normal(1e-6), norm scales one, layer scales their initial
        values, all else zero. Zero too is the head, so that training starts from equal logits.

        "flax-nnx" and "flax-linen" are what modules of Flax's two interfaces draw from the same seed with their default
        initialisers: matrices LeCun-normal, norm scales one, biases zero, positions zero in NNX, normal(0.02) in Linen.
        A class token is zero and takes no random key, so that the other draws are those of the model without it; a
        distillation token and registers are drawn after all else, normal with standard deviations 0.02 (DeiT) and 1e-6
        (DINOv2) as in "vit". In Linen it is as if the module declared its tokens after the positions. Without biases or
        norm parameters the draws are those of modules with `use_bias=False` and `use_scale=False`; in NNX, where every
        parameter takes the next key, that changes the matrices.
    dtype : float32 or float64
        In the Flax schemes the numbers are float32, and only widened.
    """
    check(isinstance(scheme, str) and scheme in _SCHEMES, f"scheme must be one of {tuple(_SCHEMES)}, got {scheme!r}")
    dtype = np.dtype(dtype)
    check(dtype in FLOATS, f"dtype must be float32 or float64, got {dtype}")
    layout = Layout.of(config)
    flat = np.zeros(layout.size, dtype)
    draw(scheme, seed, [(entry.row, view) for entry, view in zip(layout.entries.values(), layout.views(flat).values())])
    return flat


def draw(scheme: str, seed: int, tensors: Sequence[tuple[Tensor, np.ndarray]]) -> None:
    """Fill arrays of zeros by the columns of their rows, in the rows' order; arguments as in `init_weights`."""
    _SCHEMES[scheme](tensors, seed)


# ------------------------------------------------------------------------------------------------- the ViT paper's code
def _draw_vit(tensors, seed):
    rng = np.random.default_rng(as_int("seed", seed, minimum=0))
    for row, tensor in tensors:
        law, value = row.init
        match law:
            case Law.CONSTANT:
                tensor[...] = value
            case Law.NORMAL:
                tensor[...] = value * rng.standard_normal(tensor.shape)
            case Law.XAVIER:
                bound = math.sqrt(6 / sum(tensor.shape))  # of a uniform distribution with variance 2 / (in + out)
                tensor[...] = rng.uniform(-bound, bound, tensor.shape)
            case Law.ROTARY:
                tensor[...] = _rotary(rng, tensor.shape, value)
            case Law.LECUN:
                tensor[...] = _truncated_normal(rng, tensor.shape) / (_TRUNCATED_STD * math.sqrt(tensor.shape[0]))


def _rotary(rng, shape, theta):
    """Frequencies (2, heads, dh / 2) of learned rotary positions (Heo et al. 2024, arXiv:2403.13298): those of the
    axial kind for both axes, each head's axes turned by an angle of its own."""
    _, heads, pairs = shape
    bands = theta ** (-2 * np.arange((pairs + 1) // 2) / pairs)
    turn = rng.uniform(0, 2 * math.pi, (heads, 1)) + np.array([0, math.pi / 2]).repeat(len(bands))[:pairs]
    return np.stack([np.cos(turn), np.sin(turn)]) * np.concatenate([bands, bands])[:pairs]


def _truncated_normal(rng, shape):
    """Standard normal numbers; those beyond two standard deviations are drawn again."""
    draws = rng.standard_normal(shape)
    while (outside := np.abs(draws) > 2).any():
        draws[outside] = rng.standard_normal(np.count_nonzero(outside))
    return draws


# ----------------------------------------------------------------------------------------------------------------- Flax
def _draw_nnx(tensors, seed):
    """`flax.nnx.Rngs(seed)`: parameter n, from 0 in the order in which the modules are built, takes the seed's key with
    n folded in. That order is the layout's. Positions are zero; they, constant tokens and layer scales take no key."""
    key = threefry.key(seed)
    count = 0
    for row, tensor in _tokens_last(tensors):
        if row.role is Role.POSITION:
            continue
        if row.role in (Role.TOKEN, Role.GAMMA) and row.init.law is Law.CONSTANT:
            tensor[...] = row.init.value
        else:
            _draw_flax(row, tensor, threefry.fold_in(key, count))
            count += 1


def _draw_linen(tensors, seed):
    """`flax.linen`: parameter n of a module, from 1, takes the seed's key with a hash of the module's path and n folded
    in (flax/core/scope.py)."""
    key = threefry.key(seed)
    token_numbers = itertools.count(2)  # after the positions, the model's own first parameter
    for row, tensor in _tokens_last(tensors):
        *scopes, _ = row.flax_path("linen")
        match row.role:
            case Role.TOKEN:
                number = next(token_numbers)
            case Role.BIAS | Role.SHIFT:
                number = 2
            case _:
                number = 1
        digest = hashlib.sha1("".join(scopes).encode() + bytes([number]), usedforsecurity=False).digest()
        _draw_flax(row, tensor, threefry.fold_in(key, int.from_bytes(digest[:4], "big")))


def _tokens_last(tensors):
    """The tensors in their order, but learned tokens behind all others, whose draws they then leave as they are."""
    return sorted(tensors, key=lambda pair: pair[0].role is Role.TOKEN)


def _draw_flax(row, tensor, key):
    """Fill one array by Flax's default initialisers: kernels LeCun-normal, scales one, positions normal(0.02).

    Flax has none for tokens and layer scales: they are as in the scheme "vit".
    """
    match row.role:
        case Role.MATRIX | Role.PATCH_MATRIX:
            kernel = _lecun_normal(key, row.flax.shape_there(row.shape))
            tensor[...] = row.flax.here(kernel, row.shape)
        case Role.SCALE:
            tensor[...] = 1
        case Role.POSITION:
            tensor[...] = threefry.normal(key, tensor.shape) * np.float32(0.02)
        case Role.TOKEN if row.init.law is Law.NORMAL:
            tensor[...] = threefry.normal(key, tensor.shape) * np.float32(row.init.value)
        case Role.FREQUENCY:
            tensor[...] = _rotary(np.random.default_rng(np.asarray(key, np.uint32)), tensor.shape, row.init.value)
        case Role.TOKEN | Role.GAMMA:
            tensor[...] = row.init.value


def _lecun_normal(key, shape):
    """`jax.nn.initializers.lecun_normal`: truncated normal with variance 1 / fan in (LeCun et al. 1998), in float32."""
    fan_in = math.prod(shape[:-1])
    std = np.sqrt(np.float32(1 / fan_in)) / np.float32(_TRUNCATED_STD)
    return threefry.truncated_normal(key, shape) * std


_SCHEMES = {"vit": _draw_vit, "flax-nnx": _draw_nnx, "flax-linen": _draw_linen}
