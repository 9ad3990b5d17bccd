"""How similar position embeddings are: the cosine of each patch's with all others', one small map a patch.

As figure 7 (centre) of Dosovitskiy et al. 2021, arXiv:2010.11929: a model that has learnt where patches lie shows maps
that are bright around the patch itself, along its row and its column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..base.errors import check
from ..model.vit import ViT
from .figure import SMALL, TEXT, TITLE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12  # maps side by side


def similarity(model: ViT) -> np.ndarray:
    """Cosines (patches, patches) between the patches' position embeddings, float64; patches row by row.

    Raises
    ------
    ValueError
        The model has no position embedding.
    """
    config = model.config
    learned = config.pos_rows > 0
    why = "its positions are rotary" if config.rope is not None else "it has no positions"
    check(learned, f"the model must have a learned position embedding for this plot, but {why}")
    rows = model.layout.views(model.weights)["pos_embed"][config.pos_prefix :].astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return np.clip(rows @ rows.T, -1, 1)


def draw(model: ViT) -> Figure:
    """The maps in a grid as the patches lie; of a large grid every second patch, or every third, and so on."""
    height, width = model.config.grid
    cosines = similarity(model).reshape(height, width, height, width)
    step = -(-max(height, width) // MOST)
    rows, columns = (np.arange((edge - 1) % step // 2, edge, step) for edge in (height, width))
    mosaic = _mosaic(cosines[np.ix_(rows, columns)])

    inches = 6.2 / max(mosaic.shape)
    figure = new_figure(max(mosaic.shape[1] * inches + 1.6, 4.6), max(mosaic.shape[0] * inches + 1.1, 3.2))
    axes = figure.subplots()
    image = axes.imshow(mosaic, cmap="viridis", vmin=min(0.0, float(cosines.min())), vmax=1, interpolation="nearest")
    axes.set_xticks(np.arange(len(columns)) * (width + 1) + (width - 1) / 2, columns + 1, fontsize=SMALL)
    axes.set_yticks(np.arange(len(rows)) * (height + 1) + (height - 1) / 2, rows + 1, fontsize=SMALL)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("column of the patch", fontsize=TEXT)
    axes.set_ylabel("row of the patch", fontsize=TEXT)
    some = "" if step == 1 else f"\n(one patch in {step} each way, compared with all {height * width:,})"
    axes.set_title(f"Similarity of position embeddings{some}", fontsize=TITLE)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("cosine with the positions of the other patches", fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _mosaic(maps: np.ndarray) -> np.ndarray:
    """Maps (rows, columns, gh, gw) beside each other in one array, with a gap of nan between two."""
    rows, columns, height, width = maps.shape
    whole = np.full((rows, height + 1, columns, width + 1), np.nan)
    whole[:, :height, :, :width] = maps.transpose(0, 2, 1, 3)
    return whole.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
