"""Weights of classes in the loss, so that rare ones count as much as common ones."""

from __future__ import annotations

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check
from ..base.numbers import shown


def class_weights(given, labels: np.ndarray | None, classes: int) -> np.ndarray | None:
    """The weight (classes,) of each class, or None where all are 1.

    given : None, "balanced", or numbers (classes,), finite and at least 0
        "balanced" is n / (classes present · n of the class), as scikit-learn's `class_weight="balanced"`; a class
        without an image gets 0, which no image meets.
    labels : array (n,)
        Of the training images; only "balanced" needs them.
    """
    if given is None:
        return None
    if isinstance(given, str):
        check(given == "balanced", f"class_weight must be None, 'balanced' or numbers, got {shown(given)}")
        if labels is None:
            raise ValueError("class_weight='balanced' needs data whose labels are known: give numbers")
        counts = np.bincount(labels, minlength=classes).astype(np.float64)
        present = np.count_nonzero(counts)
        return np.divide(len(labels), present * counts, out=np.zeros(classes), where=counts > 0)
    weights = as_array("class_weight", given)
    check(weights.shape == (classes,), f"class_weight must have shape ({classes},), one a class, got {weights.shape}")
    right = weights.dtype.kind in "fiu" and bool(np.isfinite(weights).all()) and float(weights.min()) >= 0
    check(right, "class_weight must be finite numbers, none negative")
    check(float(weights.max()) > 0, "class_weight must be above 0 for at least one class")
    return weights.astype(np.float64)
