"""Fresh weights from a seed: as the ViT paper's code draws them, or number for number as Flax does."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from ..base.arrays import FLOATS
from ..base.errors import check
from ..base.numbers import as_int
from ..formats.flax import flax_path, patch_matrix
from . import threefry
from .config import ViTConfig
from .layout import Layout

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
        normal(0.02), norm scales one, all else zero. Zero too is the head, so that training starts from equal logits.

        "flax-nnx" and "flax-linen" are what modules of Flax's two interfaces draw from the same seed with their default
        initialisers: matrices LeCun-normal, norm scales one, biases zero, positions zero in NNX, normal(0.02) in Linen.
        A class token is zero and takes no random key, so that the other draws are those of the model without it (in
        Linen: as if the module declared it after the positions). Without biases or norm parameters the draws are those
        of modules with `use_bias=False` and `use_scale=False`; in NNX, where every parameter takes the next key, that
        changes the matrices.
    dtype : float32 or float64
        In the Flax schemes the numbers are float32, and only widened.
    """
    check(isinstance(scheme, str) and scheme in _SCHEMES, f"scheme must be one of {tuple(_SCHEMES)}, got {scheme!r}")
    dtype = np.dtype(dtype)
    check(dtype in FLOATS, f"dtype must be float32 or float64, got {dtype}")
    layout = Layout.of(config)
    flat = np.zeros(layout.size, dtype)
    _SCHEMES[scheme](config, layout.views(flat), seed)
    return flat


def _is_scale(name):
    """Whether `name` is a layer norm's scale."""
    *_, owner, leaf = ("", *name.split("."))
    return leaf == "weight" and owner.startswith("norm")


# ------------------------------------------------------------------------------------------------- the ViT paper's code
def _init_vit(config, tensors, seed):
    """Fill the zeroed `tensors`, a mapping of name to view, in the layout's order."""
    rng = np.random.default_rng(as_int("seed", seed, minimum=0))
    for name, tensor in tensors.items():
        if _is_scale(name):
            tensor[...] = 1
        elif name == "pos_embed":
            tensor[...] = 0.02 * rng.standard_normal(tensor.shape)
        elif name == "patch_embed.weight":
            tensor[...] = _truncated_normal(rng, tensor.shape) / (_TRUNCATED_STD * math.sqrt(config.patch_features))
        elif name.startswith("blocks.") and name.endswith(".weight"):
            bound = math.sqrt(6 / sum(tensor.shape))  # Glorot & Bengio 2010: variance 2 / (fan in + fan out)
            tensor[...] = rng.uniform(-bound, bound, tensor.shape)
        elif ".mlp." in name:
            tensor[...] = 1e-6 * rng.standard_normal(tensor.shape)


def _truncated_normal(rng, shape):
    """Standard normal numbers; those beyond two standard deviations are drawn again."""
    draws = rng.standard_normal(shape)
    while (outside := np.abs(draws) > 2).any():
        draws[outside] = rng.standard_normal(np.count_nonzero(outside))
    return draws


# ----------------------------------------------------------------------------------------------------------------- Flax
def _init_nnx(config, tensors, seed):
    """`flax.nnx.Rngs(seed)`: parameter n, from 0 in the order in which the modules are built, takes the seed's key with n
    folded in. That order is the layout's. Positions and class token are plain zeros and take no key."""
    key = threefry.key(seed)
    count = 0
    for name, tensor in tensors.items():
        if name not in ("pos_embed", "cls_token"):
            _init_tensor(config, name, tensor, threefry.fold_in(key, count))
            count += 1


def _init_linen(config, tensors, seed):
    """`flax.linen`: parameter n of a module, from 1, takes the seed's key with a hash of the module's path and n folded
    in (flax/core/scope.py)."""
    key = threefry.key(seed)
    for name, tensor in tensors.items():
        *scopes, leaf = flax_path(name, "linen")
        number = 2 if leaf in ("bias", "cls_token") else 1
        digest = hashlib.sha1("".join(scopes).encode() + bytes([number]), usedforsecurity=False).digest()
        parameter_key = threefry.fold_in(key, int.from_bytes(digest[:4], "big"))
        if name == "pos_embed":
            tensor[...] = threefry.normal(parameter_key, tensor.shape) * np.float32(0.02)
        else:
            _init_tensor(config, name, tensor, parameter_key)


def _init_tensor(config, name, tensor, key):
    """Fill one zeroed tensor by Flax's default initialisers: scales one, kernels LeCun-normal, all else zero."""
    if _is_scale(name):
        tensor[...] = 1
    elif name == "patch_embed.weight":
        P, C, D = config.patch_size, config.channels, config.width
        tensor[...] = patch_matrix(_lecun_normal(key, (P, P, C, D)))
    elif name.endswith(".weight"):
        tensor[...] = _lecun_normal(key, tensor.shape)


def _lecun_normal(key, shape):
    """`jax.nn.initializers.lecun_normal`: truncated normal with variance 1 / fan in (LeCun et al. 1998), in float32."""
    fan_in = math.prod(shape[:-1])
    std = np.sqrt(np.float32(1 / fan_in)) / np.float32(_TRUNCATED_STD)
    return threefry.truncated_normal(key, shape) * std


_SCHEMES = {"vit": _init_vit, "flax-nnx": _init_nnx, "flax-linen": _init_linen}
