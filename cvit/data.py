"""Images in, batches out: scikit-learn's digits, seeded shuffling, and small random affine maps as augmentation."""

from __future__ import annotations

from typing import Callable, Iterator, NamedTuple

import numpy as np

from .config import as_int
from .errors import check


class Dataset(NamedTuple):
    """Images (N, C, H, W) and their labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def digits() -> tuple[Dataset, Dataset]:
    """Training and test part of scikit-learn's bundled handwritten digits: 1,797 real 8x8 images, 10 classes.

    Images are (N, 1, 8, 8) float32; the pixels 0 ... 16 become -1 ... 1 (`pixel / 8 - 1`). Labels are int64. The split
    is fixed: a fifth of each class, drawn with a seed of its own, is the test part (359 images), so that numbers of
    different runs compare.
    Source: Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (its test set).

    Raises `ModuleNotFoundError` without scikit-learn, which `pip install "cvit-cpu[demo]"` brings.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError('the digits come with scikit-learn: pip install "cvit-cpu[demo]"') from None
    bunch = load_digits()
    images = (bunch.images[:, None] / 8 - 1).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    test = stratified_mask(labels, fraction=0.2, seed=0)
    return Dataset(images[~test], labels[~test]), Dataset(images[test], labels[test])


def stratified_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A bool vector (N,), true for `fraction` of each class, rounded."""
    random = np.random.RandomState(seed)  # its stream is frozen across NumPy versions, default_rng's is not
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        mask[members[: round(fraction * len(members))]] = True
    return mask


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    rng: np.random.Generator | None = None,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images, labels) of at most `batch_size` images each, every image once.

    With `rng` in a random order, else as they stand. The last batch holds what is left; `drop_last` leaves it out when
    it is not full. `augment(images, rng)` is applied to every batch and needs `rng`.
    """
    batch_size = as_int("batch_size", batch_size)
    check(len(images) == len(labels), f"labels must be as many as the images, {len(images)}, got {len(labels)}")
    check(augment is None or rng is not None, "augment needs rng")
    return _batches(images, labels, batch_size, rng, augment, drop_last)


def _batches(images, labels, batch_size, rng, augment, drop_last):
    N = len(images)
    order = np.arange(N) if rng is None else rng.permutation(N)
    for start in range(0, N - N % batch_size if drop_last else N, batch_size):
        chosen = order[start : start + batch_size]
        x = images[chosen]
        yield x if augment is None else augment(x, rng), labels[chosen]


def random_affine(
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    shift: float = 0.75,
    rotation: float = 0.2,
    zoom: float = 0.12,
    shear: float = 0.15,
    untouched: float = 0.25,
    fill: float = -1.0,
) -> np.ndarray:
    """Each image (N, C, H, W) moved, turned, scaled and sheared a little about its centre, resampled bilinearly.

    Drawn evenly: a shift of up to `shift` pixels each way, an angle of up to `rotation` radians, a factor between
    exp(-zoom) and exp(zoom), a shear of up to `shear` pixels a row. Outside an image there is `fill`. A share of about
    `untouched` stays as it is: resampling blurs, and the images to be recognised later are sharp.
    """
    N, _, H, W = images.shape
    uniform = lambda limit: rng.uniform(-limit, limit, (N, 1, 1))
    angle, factor, slant = uniform(rotation), np.exp(uniform(zoom)), uniform(shear)
    y, x = np.arange(H)[:, None] - (H - 1) / 2, np.arange(W) - (W - 1) / 2
    # Where each new pixel lies in the old image, in coordinates of the image with a border of one pixel.
    source_y = factor * (np.cos(angle) * y - np.sin(angle) * x) + uniform(shift) + (H + 1) / 2
    source_x = factor * (np.sin(angle) * y + np.cos(angle) * x) + slant * y + uniform(shift) + (W + 1) / 2
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=fill)
    return np.where(rng.random((N, 1, 1, 1)) < untouched, images, _bilinear(padded, source_y, source_x))


def _bilinear(images, y, x):
    """The images (N, C, H, W) at the points y, x (N, h, w), clipped to them: (N, C, h, w)."""
    N, _, H, W = images.shape
    y, x = np.clip(y, 0, H - 1), np.clip(x, 0, W - 1)
    top, left = np.minimum(y.astype(int), H - 2), np.minimum(x.astype(int), W - 2)
    down, right = ((y - top)[..., None].astype(images.dtype), (x - left)[..., None].astype(images.dtype))
    n = np.arange(N)[:, None, None]
    pixel = lambda i, j: images[n, :, top + i, left + j]  # (N, h, w, C)
    upper = (1 - right) * pixel(0, 0) + right * pixel(0, 1)
    lower = (1 - right) * pixel(1, 0) + right * pixel(1, 1)
    return np.moveaxis((1 - down) * upper + down * lower, -1, 1)
