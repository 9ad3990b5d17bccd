"""Data sets that installed packages bring along: scikit-learn's digits."""

from __future__ import annotations

import numpy as np

from .arrays import Dataset


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
