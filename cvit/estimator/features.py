"""`ViTFeatures`: a Vision Transformer's features as a transformer of scikit-learn."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ..base.errors import check
from ..base.numbers import as_int, finite, shown
from ..model.vit import ViT
from .inputs import Form, limited, validated
from .samples import padded
from .standardize import Standardizer
from .training import new_model, read_model

POOLS = ("features", "tokens-mean")
BASELINE = dict(patch_size=None, width=64, depth=4, heads=4, hidden=None)  # of the model where none is given


class ViTFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features of images by a Vision Transformer that is not trained: for a linear classifier, clusters, neighbours.

    X is a list of pictures (paths, Pillow images, uint8 arrays of unlike sizes), or an array of images or rows as
    `ViTClassifier` takes it. Pictures go through `model.preprocess`, which opens, resizes and normalises them; arrays
    go the same way, as pictures whose values lie between 0, black, and `white`.

    Parameters
    ----------
    model : ViT, path or str, optional
        Whose features, or what `cvit.load` takes. None is a small model with random weights for the shape of X, over
        values that are standardised as in fit: a baseline that shows what a trained model adds (Saxe et al. 2011, On
        random weights and unsupervised feature learning). It takes arrays only.
    image_shape : (h, w), (h, w, c) or (c, h, w), optional
        Of the images whose values X has in rows; None: one channel, with zeros up to the next square.
    pool : "features" or "tokens-mean"
        What the model's head would see (`ViT.features`), or the mean of the patches' tokens behind the final norm.
    white : float or None
        The value of white in arrays; 255 for bytes, 1 for shares. They are rounded to 256 steps. None: arrays are what
        `model.forward` takes, (n, C, H, W) of the model's size in any layout, already normalised.
    batch_size : int
        Pictures that are in memory at a time, decoded.
    random_state : int, RandomState instance or None
        Of the random weights where `model` is None.
    n_threads : int, optional
        The most threads that a call uses. The results are the same bits for any number.
    precision : "f32", "f64", "bf16", "bf16-fast", "auto" or None
        What the model computes in, see `ViT`; None: its own.

    Attributes
    ----------
    model_ : ViT
    n_features_in_ : int
        Values of an image, where fit was given an array.

    Notes
    -----
    A pickle holds the path of a model that was given by path or name, not its weights: it is read again when it is
    needed. Other models are pickled with their weights.
    """

    _form: Form | None
    _standardizer: Standardizer | None
    _read: ViT | None

    def __init__(
        self, model=None, image_shape=None, pool="features", white=255.0, batch_size=64, random_state=None,
        n_threads=None, precision=None,
    ):  # fmt: skip
        self.model = model
        self.image_shape = image_shape
        self.pool = pool
        self.white = white
        self.batch_size = batch_size
        self.random_state = random_state
        self.n_threads = n_threads
        self.precision = precision

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X, y=None):
        """Check the parameters and X, and read the model. y is ignored. Returns self.

        Raises
        ------
        ValueError, TypeError
            A parameter or X is wrong; the message says which one.
        OSError
            The model cannot be read.
        """
        check(self.pool in POOLS, f"pool must be one of {POOLS}, got {shown(self.pool)}")
        as_int("batch_size", self.batch_size)
        if self.white is not None:
            check(finite("white", self.white) > 0, "white must be greater than 0 (None: X is normalised already)")
        self._form = self._standardizer = self._read = None
        pictures = as_pictures(X)
        if pictures is not None:
            check(self.model is not None, "model must be given for pictures: the random one takes arrays")
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
        if pictures is None:
            rows, seen, _ = validated(self, X, reset=True)
            self._form = Form.of(rows.shape[1], self.image_shape, seen)
            images = self._form.images(rows, seen)
        if self.model is None:
            self._read = self._random(images)
        else:
            self._read = self._given()
            if pictures is None:
                self._check_images(images, self._read)
        self._n_features_out = _columns(self._read, self.pool)
        self.fitted_ = True
        return self

    def transform(self, X):
        """Features (n, D) of X, float32, each picture's by itself."""
        check_is_fitted(self)
        pictures = as_pictures(X)
        if pictures is not None:
            check(self.model is not None, "X must be an array for the random model, got pictures")
            prepare = lambda some: self.model_.preprocess(pictures[some])
            return self._features(prepare, len(pictures))
        form = self._form
        if form is None:
            raise ValueError("X must be a list of pictures, as in fit, got an array")
        rows, seen, _ = validated(self, X, reset=False)
        images = form.images(rows, seen)
        return self._features(lambda some: self._prepared(images[some]), len(images))

    @property
    def model_(self) -> ViT:
        """The model, read again after unpickling."""
        check_is_fitted(self)
        if self._read is None:
            self._read = self._given()
        return self._read

    def __getstate__(self):
        state = super().__getstate__()
        if self.model is not None and not isinstance(self.model, ViT) and "_read" in state:
            return {**state, "_read": None}
        return state

    # ------------------------------------------------------------------------------------------------------ inside
    def _given(self) -> ViT:
        """The model of the parameter."""
        model = read_model("model", self.model, self.precision)
        pooled = model.config.pool != "none" or self.pool == "tokens-mean"
        check(pooled, "pool must be 'tokens-mean' for a model whose own pool is 'none'")
        return model

    def _random(self, images: np.ndarray) -> ViT:
        """A model with random weights for these images; mean and variance of their values are kept for it."""
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        every = np.arange(len(images))
        self._standardizer = Standardizer.of(images, every, np.ones(len(images)), by_channel=False)
        return new_model(images.shape[1:], 0, seed, **BASELINE, precision=self.precision)

    def _check_images(self, images: np.ndarray, model: ViT) -> None:
        """Raise unless images (n, C, h, w) are what `white` says they are."""
        shape, needed = images.shape[1:], (model.config.channels, *model.config.image_size)
        if self.white is None:
            check(shape == needed, f"X must have images {needed}, as the model takes them, got {shape}")
            return
        check(shape[0] <= 4, f"X must be pictures of 1 to 4 channels, got {shape[0]} (white=None takes any)")
        if self.white > 1 and images.dtype.kind in "fb" and 0 < images.max() <= 1:
            warnings.warn(
                f"X has values from 0 to 1, nearly black where white is {self.white:g}: white=1 says what they mean",
                stacklevel=3,
            )

    def _prepared(self, images: np.ndarray) -> np.ndarray:
        """Images (n, C, h, w) of numbers as the model takes them."""
        if self._standardizer is not None:
            return padded(self._standardizer(images), self.model_.config.image_size)
        if self.white is None:
            return np.ascontiguousarray(images, np.float32)
        values = images.astype(np.float64)
        low, high = values.min(), values.max()
        right = low >= 0 and high <= self.white
        check(right, f"X must lie between 0 and white = {self.white:g}, got values from {low:g} to {high:g}")
        return self.model_.preprocess(np.moveaxis(np.rint(values * (255 / self.white)).astype(np.uint8), 1, 3))

    def _features(self, prepare, count: int) -> np.ndarray:
        """Features of `count` images, of which `prepare` makes a slice ready."""
        model, size = self.model_, as_int("batch_size", self.batch_size)
        prefix = model.config.prefix_tokens
        result = np.empty((count, self._n_features_out), np.float32)
        with limited(self.n_threads):
            for start in range(0, count, size):
                some = slice(start, start + size)
                images = prepare(some)
                if self.pool == "features":
                    result[some] = model.features(images)
                else:
                    result[some] = np.asarray(model.tokens(images))[:, prefix:].mean(axis=1)
        return result


def _columns(model: ViT, pool: str) -> int:
    """The number of features."""
    config = model.config
    if pool == "tokens-mean" or config.dist_head:  # whose features are the mean of two tokens
        return config.width
    return config.feature_width


def as_pictures(X) -> list | None:
    """X as a list of paths, Pillow images or arrays, None if it is an array of numbers, or a list of one.

    Pictures are a list, tuple, vector or single column of paths or of Pillow images, or a list of arrays of unlike
    shapes, each a picture.
    """
    if isinstance(X, (str, bytes, os.PathLike)):
        raise TypeError(f"X must be a list of pictures, [{shown(X)}] for one, got a single path")
    shape = getattr(X, "shape", None)
    if shape is not None and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        array = np.asarray(X)
        X = list(array.reshape(-1)) if array.dtype.kind in "OU" else X
    if not isinstance(X, Sequence) or len(X) == 0:
        return None
    if all(isinstance(one, (str, os.PathLike)) or hasattr(one, "getbands") for one in X):
        return list(X)
    arrays = all(isinstance(one, np.ndarray) and one.ndim in (2, 3) for one in X)
    unlike = arrays and any(one.shape != X[0].shape for one in X)
    return list(X) if unlike else None
