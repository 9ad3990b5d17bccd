"""`vit_forward`: one image through a mean-pool ViT whose weights Flax would draw from a seed."""

from __future__ import annotations

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..base.numbers import as_int
from .config import ViTConfig
from .initialize import init_weights
from .vit import ViT

_SCHEMES = {"nnx": "flax-nnx", "linen": "flax-linen"}


def vit_forward(seed, image, patch_size, d_model, num_heads, d_ff, num_layers, num_classes, init="nnx") -> np.ndarray:
    """The logits of one image under a ViT with the weights that Flax draws from `seed`; neither Flax nor JAX is used.

    The model: patches as a strided convolution without padding, learned positions and no class token, `num_layers`
    pre-norm blocks with biases and tanh GELU, a final norm, the mean over the patches and a linear head. The weights
    are Flax's to 1e-6 relative, the logits to 1e-5 of the largest.

    Parameters
    ----------
    seed : int
        As `jax.random.key` takes it: 64 signed bits, of which the lower 32 count.
    image : array (H, W, C)
        Of any real type, used as float32. Rows and columns beyond the last whole patch are dropped.
    patch_size, d_model, num_heads, d_ff, num_layers, num_classes : int
        Patch P, width D, heads H (must divide D), hidden width F, depth (may be 0) and number of classes.
    init : "nnx" or "linen"
        Which of Flax's two interfaces draws the weights; see `init_weights`.

    Whole floats (`2.0`) pass as ints.

    Returns
    -------
    float32 array (num_classes,)

    Examples
    --------
    >>> image = np.linspace(-1, 1, 48).reshape(4, 4, 3)
    >>> vit_forward(0, image, patch_size=2, d_model=8, num_heads=2, d_ff=16, num_layers=2, num_classes=4).shape
    (4,)
    """
    P = as_int("patch_size", patch_size)
    D = as_int("d_model", d_model)
    heads = as_int("num_heads", num_heads)
    check(D % heads == 0, f"num_heads must divide d_model, {D}, got {heads}")
    check(init in _SCHEMES, f"init must be one of {tuple(_SCHEMES)}, got {init!r}")

    image = as_array("image", image)
    # V is also the kind of bfloat16 and the like, which ml_dtypes registers
    if image.dtype.kind not in "biufV" or image.dtype.type in (np.void, np.record):
        raise TypeError(f"image must hold real numbers, got {image.dtype}")
    check(image.ndim == 3, f"image must have shape (height, width, channels), got {image.shape}")
    height, width, channels = image.shape
    check(channels > 0, f"image must have at least one channel, got shape {image.shape}")
    rows, columns = height // P, width // P
    check(rows > 0 and columns > 0, f"patch_size must fit into the image of {height}x{width} pixels, got {P}")

    config = ViTConfig(
        image_size=(rows * P, columns * P),
        patch_size=P,
        channels=channels,
        width=D,
        depth=as_int("num_layers", num_layers, minimum=0),
        heads=heads,
        hidden=as_int("d_ff", d_ff),
        classes=as_int("num_classes", num_classes),
        pool="mean",
    )
    model = ViT(config, init_weights(config, seed, _SCHEMES[init]))
    pixels = image[: rows * P, : columns * P].transpose(2, 0, 1)[None]
    return model.forward(np.ascontiguousarray(pixels, np.float32))[0]
