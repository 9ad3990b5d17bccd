"""Where a model looks in a picture: attention rollout and the last block's attention, laid over the picture.

Rollout (Abnar & Zuidema 2020, arXiv:2005.00928): with A_l the mean over the heads of block l's attention (T, T), and
the residual stream as an identity of the same weight,

    A'_l = (A_l + I) / 2, its rows divided by their sums        rollout = A'_L ... A'_2 A'_1

so that entry (i, j) says how much of what token i holds behind the last block came from input token j.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..model.config import ViTConfig
from ..pictures.open import pillow
from ..pictures.preprocessing import Preprocessing
from .figure import SMALL, TEXT, TITLE, foreign, label, matplotlib, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOM = 256 << 20  # bytes of maps that are held at a time
OPACITY = 0.6  # of the colours over the picture
EDGE = 448  # pixels of an overlay's longer edge, at least


class Attention(NamedTuple):
    """A picture as the model sees it, and how much each of its patches counts: all shares (gh, gw) sum up to 1."""

    seen: np.ndarray  # (h, w, 3) uint8, resized and cropped
    last: np.ndarray  # by the last block alone
    rollout: np.ndarray  # by all blocks


def rollout(maps) -> np.ndarray:
    """Attention rollout (T, T), float64, of the maps (L, H, T, T) of one picture, the first block first.

    Raises
    ------
    ValueError
        The maps have another shape, or hold a negative number or one that is not finite.
    """
    maps = as_array("maps", maps)
    right = maps.ndim == 4 and maps.shape[2] == maps.shape[3] and maps.size > 0
    check(right, f"maps must have shape (layers, heads, T, T), got {maps.shape}")
    check(bool(np.isfinite(maps).all()) and maps.min() >= 0, "maps must hold finite numbers of at least 0")
    product = identity = np.eye(maps.shape[2])
    for layer in maps:
        mixed = 0.5 * layer.mean(axis=0, dtype=np.float64) + 0.5 * identity
        product = (mixed / mixed.sum(axis=1, keepdims=True)) @ product
    return product


def query_row(matrix: np.ndarray, config: ViTConfig) -> np.ndarray:
    """What the prediction attends to, (T,): of a matrix (T, T) the class token's row, of several their mean; in models
    without one the mean of the patches' rows."""
    rows = matrix[: config.class_tokens] if config.class_tokens else matrix[config.prefix_tokens :]
    return rows.mean(axis=0, dtype=np.float64)


def patch_map(row, config: ViTConfig) -> np.ndarray:
    """The patches' part of a row (T,) as a grid (gh, gw), divided by its sum; what went to other tokens is left out."""
    row = as_array("row", row)
    check(row.shape == (config.tokens,), f"row must have shape ({config.tokens},), one a token, got {row.shape}")
    patches = row[config.prefix_tokens :].astype(np.float64).reshape(config.grid)
    total = patches.sum()
    check(bool(np.isfinite(total)) and total > 0, "row must attend to some patch")
    return patches / total


def of_picture(model, picture) -> Attention:
    """The attention of a model on one picture: a path, a Pillow image or a uint8 array.

    `model` is a ViT. Its blocks are taken a few at a time where their maps would need more than `ROOM` bytes.

    Raises
    ------
    ValueError
        The model has no block, or the picture cannot be decoded.
    """
    config = model.config
    check(config.depth > 0, "the model must have a block: without one there is no attention")
    how = model.preprocessing or Preprocessing.default(config.image_size, config.channels)
    x = how([picture])
    bytes_of_one = config.heads * config.tokens**2 * x.itemsize * (2 if config.block == "pairs" else 1)
    step = max(1, ROOM // bytes_of_one)
    product = np.eye(config.tokens)
    for start in range(0, config.depth, step):
        maps = model.attention(x, list(range(start, min(start + step, config.depth))))[0]
        product = rollout(maps) @ product
    last = maps[-1].mean(axis=0, dtype=np.float64)
    shares = (patch_map(query_row(matrix, config), config) for matrix in (last, product))
    return Attention(_seen(x[0], how), *shares)


def overlay(picture: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The grid of shares (gh, gw) in viridis' colours over the picture in grey, uint8 (h', w', 3).

    The colours' range is that of the shares, from 0; small pictures are enlarged to at least `EDGE` pixels.
    """
    image_module = pillow()
    image = image_module.fromarray(np.ascontiguousarray(picture))
    scale = max(1, -(-EDGE // max(image.size)))
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), image_module.Resampling.NEAREST)
    heat = image_module.fromarray((shares / max(shares.max(), 1e-300)).astype(np.float32))
    heat = np.asarray(heat.resize(image.size, image_module.Resampling.BILINEAR)).clip(0, 1)
    colours = matplotlib().colormaps["viridis"](heat)[:, :, :3] * 255
    grey = np.asarray(image.convert("L"), np.float64)[:, :, None]
    return np.rint(OPACITY * colours + (1 - OPACITY) * grey).astype(np.uint8)


def draw(attention: Attention, name: str, prediction: str = "") -> Figure:
    """The picture beside what the last block attends to, and beside the rollout.

    The colour bars count in even shares: 1 is what every patch had if all counted the same.

    Parameters
    ----------
    attention : Attention
    name : str
        Of the picture.
    prediction : str
        What the model says of it, for the title.
    """
    figure = new_figure(12, 4.4)
    title = label(name, 60) + (f": {label(prediction, 50)}" if prediction else "")
    figure.suptitle(title, fontsize=TITLE, **foreign())
    plain, *overlaid = figure.subplots(1, 3)
    plain.imshow(attention.seen, interpolation="nearest")
    plain.set_title("what the model sees", fontsize=TEXT)
    titles = "attention of the last block", "attention rollout over all blocks"
    for axes, text, shares in zip(overlaid, titles, attention[1:]):
        axes.imshow(overlay(attention.seen, shares))
        axes.set_title(text, fontsize=TEXT)
        most = shares.max() * shares.size
        scale = matplotlib().cm.ScalarMappable(matplotlib().colors.Normalize(0, most), "viridis")
        bar = figure.colorbar(scale, ax=axes, shrink=0.75, pad=0.02)
        bar.set_label("attention (1 = an even share)", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    for axes in (plain, *overlaid):
        axes.set(xticks=[], yticks=[])
    return figure


def _seen(values: np.ndarray, how: Preprocessing) -> np.ndarray:
    """The picture (h, w, 3) in bytes of what a model takes, (C, h, w): scaling and normalization undone."""
    mean, std = (np.array(numbers)[:, None, None] for numbers in (how.mean, how.std))
    pixels = np.rint((values * std + mean) / how.rescale).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(pixels, 3, axis=2) if how.channels == 1 else pixels
