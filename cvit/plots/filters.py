"""What the patch embedding looks for: its filters as small pictures, or the principal components of many filters.

As figure 7 (left) of Dosovitskiy et al. 2021, arXiv:2010.11929, which shows the first 28 components: trained filters
are smooth waves and blobs of colour, untrained ones are noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..base.errors import check
from ..model.vit import ViT
from .figure import SMALL, TITLE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPONENTS = 28
COLUMNS = 7


def filters_of(model: ViT) -> np.ndarray:
    """The patch embedding's filters (D, C, P, P), float64."""
    config = model.config
    matrix = model.layout.views(model.weights)["patch_embed.weight"].astype(np.float64)
    return matrix.T.reshape(config.width, config.channels, *config.patch)


def components(filters: np.ndarray, most: int = COMPONENTS) -> tuple[np.ndarray, np.ndarray]:
    """The principal components of filters (D, C, P, P): (k, C, P, P) of unit length, the strongest first, and the share
    of the filters' variance that each explains (k,).

    k is `most`, or the number of values of a filter if that is less. A component's sign, which means nothing, is the
    one with which its largest value is positive.
    """
    flat = filters.reshape(len(filters), -1)
    flat = flat - flat.mean(axis=0)
    _, sizes, axes = np.linalg.svd(flat, full_matrices=False)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    shares = sizes**2 / max(np.sum(sizes**2), 1e-300)
    return axes[:most].reshape(-1, *filters.shape[1:]), shares[:most]


def draw(model: ViT) -> Figure:
    """The first `COMPONENTS` principal components of the filters, each with the share of the variance that it explains;
    the filters themselves where there are no more of them. In colours for three channels, in grey for one.

    Raises
    ------
    ValueError
        The model takes neither colours nor grey: other channels have no colour.
    """
    channels = model.config.channels
    check(channels in (1, 3), f"the model must have 1 or 3 channels for this plot, got {channels}")
    filters = filters_of(model)
    few = len(filters) <= COMPONENTS
    shown, shares = (filters, None) if few else components(filters)
    columns = min(COLUMNS, max(len(shown), 4))
    rows = -(-len(shown) // columns)
    figure = new_figure(max(1.25 * columns, 6.4), (1.3 if few else 1.5) * rows + 0.8)
    figure.suptitle(_title(len(shown), len(filters)), fontsize=TITLE)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#999999")
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for index, (axes, one) in enumerate(zip(grid, shown)):
        axes.imshow(pixels(one), interpolation="nearest", cmap="gray", vmin=0, vmax=1)
        if shares is not None:
            percent = 100 * shares[index]
            axes.set_title(f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %", fontsize=SMALL)
    return figure


def pixels(filter_: np.ndarray) -> np.ndarray:
    """A filter (C, P, P) as colours (P, P, 3) or grey (P, P) from 0 to 1: middle grey is 0, and the largest value is at
    an end of the range."""
    scaled = 0.5 + 0.5 * filter_ / max(np.abs(filter_).max(), 1e-300)
    return scaled.transpose(1, 2, 0) if len(filter_) == 3 else scaled[0]


def _title(shown: int, total: int) -> str:
    if shown == total:
        return f"The {total} filters of the patch embedding"
    return f"Principal components of the {total:,} filters of the patch embedding\nwith their shares of the variance"
