"""Attention maps: the softmax probabilities of every head, which the engine itself never stores.

    P = softmax(q kᵀ / sqrt(dh))                                        (Vaswani et al. 2017, arXiv:1706.03762)

The engine runs as in inference, block by block, and q and k are taken as its heads read them: behind their norms and
rotary positions. The products are NumPy's einsum on one thread, which uses no BLAS, whose bits may depend on the number
of its threads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..engine.team import in_own_mode
from .inference import layer_number, pieces

if TYPE_CHECKING:
    from .vit import ViT


def attention(model: ViT, x, layers) -> np.ndarray:
    """The maps (N, L, H, T, T) of images x in these blocks, or in all of them."""
    x = model._images(x)
    config = model.config
    wanted = [layer_number(layer, config.depth) for layer in (range(config.depth) if layers is None else layers)]
    heads = config.heads * (2 if config.block == "pairs" else 1)
    maps = np.empty((len(x), len(wanted), heads, config.tokens, config.tokens), model.dtype)
    numbers = sorted(set(wanted))
    with model._lock:
        weights = model._checked_state().weights
        for rows, engine, images in pieces(model, x, "maps"):
            for layer, qkv in zip(numbers, engine.queries_keys(weights, images, numbers)):
                i = wanted.index(layer)
                in_own_mode(_fill, (qkv, maps[rows, i]))
    for i, layer in enumerate(wanted):
        if wanted.index(layer) != i:  # asked for twice
            maps[:, i] = maps[:, wanted.index(layer)]
    return maps


def _fill(both: tuple[np.ndarray, np.ndarray]) -> None:
    """Probabilities P (N, H, T, T) from the rows qkv (N, T, 3 H dh), image by image, so that they stay in the cache."""
    qkv, P = both
    N, H, T, _ = P.shape
    q, k, _ = (qkv.reshape(N, T, 3, H, -1)[:, :, i] for i in range(3))
    scale = P.dtype.type(1 / math.sqrt(q.shape[-1]))
    for n in range(N):
        scores = P[n]
        np.einsum("qhd,khd->hqk", q[n], k[n], out=scores)
        scores *= scale
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
