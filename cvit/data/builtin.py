"""Data sets that installed packages bring along: scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .archive import of_arrays
from .arrays import Dataset
from .parts import Reading, Remarks


def digits() -> tuple[Dataset, Dataset]:
    """Training and test part of scikit-learn's bundled handwritten digits: 1,797 real 8x8 images, 10 classes.

    Images are (N, 1, 8, 8) float32; the pixels 0 ... 16 become -1 ... 1 (`pixel / 8 - 1`). Labels are int64. The split
    is fixed: a fifth of each class, drawn with a seed of its own, is the test part (359 images), so that numbers of
    different runs compare.
    Source: Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (its test set).

    Raises `ModuleNotFoundError` without scikit-learn, which `pip install "cvit-cpu[demo]"` brings.
    """
    images, labels, test = _digits()
    images = (images[:, None] / 8 - 1).astype(np.float32)
    return Dataset(images[~test], labels[~test]), Dataset(images[test], labels[test])


def read(path: Path, remarks: Remarks) -> Reading:
    """The digits as pictures: uint8 (8, 8), the pixels 0 ... 16 as 0 ... 255. Their test part is the validation part.

    `path` is their name. Raises as `digits`.
    """
    images, labels, test = _digits()
    pictures = np.rint(images * 255 / 16).astype(np.uint8)
    parts = {"train": (pictures[~test], labels[~test]), "validation": (pictures[test], labels[test])}
    return of_arrays("digits", str(path), parts, None, remarks)


def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (N, 8, 8) from 0 to 16, labels (N,), and which are the test part (N,)."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError('the digits come with scikit-learn: pip install "cvit-cpu[demo]"') from None
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    return bunch.images, labels, stratified_mask(labels, fraction=0.2, seed=0)


def stratified_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A bool vector (N,), true for `fraction` of each class, rounded."""
    random = np.random.RandomState(seed)  # its stream is frozen across NumPy versions, default_rng's is not
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        mask[members[: round(fraction * len(members))]] = True
    return mask
