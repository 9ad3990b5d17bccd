"""`ViTClassifier`: a Vision Transformer trained by `fit(X, y)`, as any classifier of scikit-learn."""

from __future__ import annotations

import functools
import math

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from ..base.errors import check
from ..base.numbers import as_int, finite, shown
from ..data import stratified_mask
from ..model.vit import ViT
from ..train.optim import AdamW, warmup_cosine
from .inputs import Form, limited, validated
from .samples import Samples, padded
from .standardize import Standardizer, chunks
from .training import Recipe, Trainer, new_model, started_from


class ViTClassifier(ClassifierMixin, BaseEstimator):
    """A Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) as a classifier of scikit-learn.

    X is (n, h, w), (n, h, w, c), (n, c, h, w), or rows (n, values) of images of `image_shape`, of integers or floats;
    integers mean the same values as floats. Of a 4-D array, and of an `image_shape` of three numbers, the channels are
    the shorter one of first and last axis. Without `image_shape` a row is an image of one channel, with zeros up to the
    next square. Values are standardised, see `standardize`, with mean and variance that `fit` learns and keeps.

    Parameters
    ----------
    image_shape : (h, w), (h, w, c) or (c, h, w), optional
        Of the images whose values X has in rows; of an X of images it is only compared.
    patch_size : int or (int, int), optional
        Pixels of a patch. None: an eighth of the longer edge, rounded up, at least 2 and at most 16; every pixel of
        images below 4 pixels. Images are padded with zeros, at the right and below, to whole patches.
    standardize : "channel", "pixel" or None
        Whether one mean and one variance hold for all pixels of a channel, as pictures want it, whose parts may move,
        or each pixel has its own, as values of unlike units want it. None: by pixel for rows without `image_shape` and
        without `init`, else by channel. (Trained on 1,300 of scikit-learn's digits for 8 epochs, channels gave 94.8 %
        on the others and pixels 92.6 %.)
    width, depth, heads : int
        Of the tokens, and how many blocks and attention heads; `heads` divides `width`.
    hidden : int, optional
        Width of the MLP's hidden layer. None: 4 x width.
    epochs, batch_size : int
        Passes of `fit` over X, and images a step.
    learning_rate, weight_decay : float
        Of AdamW. In `fit` the learning rate goes up from 0 in the first share `warmup` of the steps, and down to 0
        along half a cosine in the others; in `partial_fit` it stays. With `init` about 1e-4 suits.
    label_smoothing : float in [0, 1)
        See `ViT.loss_and_grad`.
    warmup : float in [0, 1]
    clip_norm : float, optional
        The largest norm of a step's gradient; None does not clip.
    augment : None, "affine" or callable
        What changes every training batch: nothing; small shifts, turns, zooms and shears (`cvit.data.random_affine`);
        or `augment(images, rng)` of float32 images (n, C, h, w), in the units of X, that gives images as large.
    class_weight : dict, "balanced" or None
        Factors of the weights of the examples, by class; "balanced" gives every class the same sum of weights.
    early_stopping : bool
        Hold `validation_fraction` of every class back, stop when the accuracy on it has not become better for
        `n_iter_no_change` epochs, and keep the weights of the best epoch.
    validation_fraction : float in (0, 1)
    n_iter_no_change : int
    init : ViT, path or str, optional
        A model to fine-tune, or what `cvit.load` takes. Its head is replaced, its positions are resampled to the size
        of the images; patch size, width, depth, heads and hidden are then those of the model.
    random_state : int, RandomState instance or None
        Of first weights, order, augmentation and validation part.
    n_threads : int, optional
        The most threads that a call uses. The results are the same bits for any number.
    verbose : int
        Above 0 prints a line for each epoch.
    precision : "f32", "f64", "bf16", "bf16-fast", "auto" or None
        What the model computes and is trained in, see `ViT`. None: float32, but for an `init` of "bf16". In "bf16" the
        same data and `random_state` give the same weights on every machine, to the bit.

    Attributes
    ----------
    classes_ : array (classes,)
        The labels, sorted.
    model_ : ViT
        Takes standardised, padded images; its `class_names` are the labels as text.
    n_features_in_ : int
        Values of an image.
    loss_curve_ : list of float
        The mean training loss of each epoch.
    validation_scores_ : list of float or None
        With `early_stopping`, the accuracy on the part held back, by epoch.
    n_iter_ : int
        Epochs trained; calls of `partial_fit`, too, count as one each.

    Notes
    -----
    Without augmentation and early stopping, `fit` trains on distinct examples with the sums of their weights: an
    example of weight 3 and one that stands in X three times give the same bits, one of weight 0 counts as left out, and
    the order of X does not matter. `classes_` has every label of y, whatever its weight.

    The predictions for an image do not depend on the other images of X, bit for bit.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> digits = load_digits()
    >>> classifier = ViTClassifier(epochs=2, random_state=0).fit(digits.images, digits.target)
    >>> classifier.predict_proba(digits.images[:3]).shape
    (3, 10)
    """

    classes_: np.ndarray
    model_: ViT
    loss_curve_: list[float]
    validation_scores_: list[float] | None
    n_iter_: int
    _form: Form
    _by_channel: bool
    _seed: int
    _standardizer: Standardizer
    _optimizer: AdamW

    def __init__(
        self, image_shape=None, patch_size=None, standardize=None, width=64, depth=4, heads=4, hidden=None, epochs=50,
        batch_size=64, learning_rate=1e-3, weight_decay=0.05, label_smoothing=0.0, warmup=0.1, clip_norm=1.0,
        augment=None, class_weight=None, early_stopping=False, validation_fraction=0.1, n_iter_no_change=10, init=None,
        random_state=None, n_threads=None, verbose=0, precision=None,
    ):  # fmt: skip
        self.image_shape = image_shape
        self.patch_size = patch_size
        self.standardize = standardize
        self.width = width
        self.depth = depth
        self.heads = heads
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.warmup = warmup
        self.clip_norm = clip_norm
        self.augment = augment
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.init = init
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose
        self.precision = precision

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # --------------------------------------------------------------------------------------------------- training
    def fit(self, X, y, sample_weight=None):
        """Train a new model on images X with labels y (n,), numbers or strings.

        Parameters
        ----------
        X : array of images or rows, see the class
        y : array (n,)
        sample_weight : array (n,), optional
            At least 0, not all 0; None means 1 each.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            A parameter, X, y or sample_weight is wrong; the message says which one, before any training.
        FloatingPointError
            The loss is not finite.
        """
        epochs, warmup, patience = self._checked()
        rows, seen, y = validated(self, X, y, reset=True, with_y=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        weights = self._weights(sample_weight, rows, labels)
        self._begin(rows, seen)
        held = self._held_back(labels) if self.early_stopping else np.zeros(len(labels), bool)
        check(bool(weights[~held].any()), "sample_weight must not be zero for all examples that are trained on")
        samples = self._learn(rows, seen, labels, np.where(held, 0.0, weights))
        trainer = self._trainer(samples)
        steps = math.ceil(len(samples) / trainer.recipe.batch_size)
        schedule = functools.partial(
            warmup_cosine, total=epochs * steps, warmup=round(warmup * epochs * steps),
            base_lr=trainer.optimizer.lr,
        )  # fmt: skip
        scores: list[float] = []
        best_weights = self.model_.weights
        with limited(self.n_threads):
            for epoch in range(epochs):
                rate = lambda step, first=epoch * steps: schedule(first + step)
                self._after_epoch(trainer.epoch(samples, self._standardizer, epoch, rate))
                if self.early_stopping:
                    scores.append(self._accuracy(rows[held], seen, labels[held], weights[held]))
                self._tell(f"epoch {epoch + 1}/{epochs}", scores)
                if not self.early_stopping:
                    continue
                best = scores.index(max(scores))
                if best == epoch:
                    best_weights = self.model_.weights.copy()
                if epoch - best >= patience:
                    break
        if self.early_stopping:
            self.model_.weights[:] = best_weights
            self.validation_scores_ = scores
        return self

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train on X once, at the constant learning rate, going on from what was learnt before.

        Mean and variance of the values go on, too, over all images seen so far.

        Parameters
        ----------
        X, y, sample_weight
            As of `fit`.
        classes : array (classes,), optional
            All labels that will ever come; needed in the first call, unless `fit` came before.

        Returns
        -------
        self
        """
        self._checked()
        if isinstance(self.class_weight, str):
            raise ValueError("class_weight='balanced' needs all of y: give partial_fit a dict, or sample_weight")
        first = not hasattr(self, "model_")
        check(not first or classes is not None, "classes must be passed on the first call to partial_fit.")
        rows, seen, y = validated(self, X, y, reset=first, with_y=True)
        check_classification_targets(y)
        known = np.unique(classes) if first else self.classes_
        same = classes is None or np.array_equal(np.unique(classes), known)
        check(same, f"classes must be {shown(known)}, as in the first call, got {shown(classes)}")
        strangers = np.setdiff1d(y, known)
        check(len(strangers) == 0, f"y has labels that are not in classes: {shown(strangers)}")
        labels = np.searchsorted(known, y)
        self.classes_ = known
        weights = self._weights(sample_weight, rows, labels)
        if first:
            self._begin(rows, seen)
        samples = self._learn(rows, seen, labels, weights)
        trainer = self._trainer(samples, getattr(self, "_optimizer", None))
        with limited(self.n_threads):
            self._after_epoch(trainer.epoch(samples, self._standardizer, self.n_iter_))
        self._optimizer = trainer.optimizer
        self._tell(f"call {self.n_iter_}", [])
        return self

    # -------------------------------------------------------------------------------------------------- prediction
    def decision_function(self, X):
        """Logits of X in float64: (n, classes), and for two classes (n,), the second one's minus the first one's."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X):
        """Probabilities (n, classes) in float64, in the order of `classes_`."""
        logits = self._logits(X)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, X):
        """The most probable label of each image, (n,)."""
        best = self._logits(X).argmax(axis=1)  # before classes_, which an estimator that is not fitted lacks
        return self.classes_[best]

    # ------------------------------------------------------------------------------------------------------ inside
    def _checked(self) -> tuple[int, float, int]:
        """Check what nothing else checks before training begins; epochs, warmup and n_iter_no_change as numbers."""
        epochs, warmup = as_int("epochs", self.epochs), finite("warmup", self.warmup)
        check(warmup <= 1, f"warmup must be a share of the steps, at most 1, got {shown(self.warmup)}")
        known = self.standardize in (None, "channel", "pixel")
        check(known, f"standardize must be 'channel', 'pixel' or None, got {shown(self.standardize)}")
        known = self.augment is None or callable(self.augment) or self.augment == "affine"
        check(known, f"augment must be None, 'affine' or a function of images and rng, got {shown(self.augment)}")
        named = not isinstance(self.class_weight, str) or self.class_weight == "balanced"
        check(named, f"class_weight must be a dict, 'balanced' or None, got {shown(self.class_weight)}")
        fraction = finite("validation_fraction", self.validation_fraction)
        check(0 < fraction < 1, f"validation_fraction must be between 0 and 1, got {shown(self.validation_fraction)}")
        smoothing = finite("label_smoothing", self.label_smoothing)
        check(smoothing < 1, f"label_smoothing must be below 1, got {shown(self.label_smoothing)}")
        if self.clip_norm is not None:
            check(finite("clip_norm", self.clip_norm) > 0, "clip_norm must be greater than 0 (None does not clip)")
        as_int("batch_size", self.batch_size)
        return epochs, warmup, as_int("n_iter_no_change", self.n_iter_no_change)

    def _begin(self, rows, seen) -> None:
        """A new model for the images and the classes, which has seen nothing."""
        self._form = Form.of(rows.shape[1], self.image_shape, seen)
        pictures = self._form.axes is not None or self.init is not None
        self._by_channel = pictures if self.standardize is None else self.standardize == "channel"
        self._seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        shape, classes = self._form.shape, len(self.classes_)
        if self.init is None:
            form = self.patch_size, self.width, self.depth, self.heads, self.hidden
            self.model_ = new_model(shape, classes, self._seed, *form, self.precision)
        else:
            self.model_ = started_from(self.init, shape, classes, self.precision)
        self.model_.class_names = [str(label) for label in self.classes_]
        for name in ("_standardizer", "_optimizer"):  # of an earlier fit
            self.__dict__.pop(name, None)
        self.loss_curve_, self.n_iter_, self.validation_scores_ = [], 0, None

    def _weights(self, sample_weight, rows, labels) -> np.ndarray:
        """The weight of each example (n,) float64: sample_weight times the weight of its class."""
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
        check(bool(weights.any()), "sample_weight must contain at least one number that is not zero")
        with np.errstate(over="ignore"):
            if self.class_weight is not None:
                weights = weights * self._class_weights(weights, labels)[labels]
            check(bool(np.isfinite(weights.sum())), "sample_weight times class_weight must have a finite sum")
        check(bool(np.any(weights)), "class_weight makes the weight of every example zero")
        return weights

    def _class_weights(self, weights, labels) -> np.ndarray:
        """The factor of each class (classes,)."""
        if self.class_weight == "balanced":
            sums = np.bincount(labels, weights, minlength=len(self.classes_))
            return np.divide(sums.sum(), np.count_nonzero(sums) * sums, out=np.zeros_like(sums), where=sums > 0)
        factors = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[labels])
        right = bool(np.isfinite(factors).all() and (factors >= 0).all())
        check(right, f"class_weight must hold finite weights of at least 0, got {shown(self.class_weight)}")
        return factors

    def _held_back(self, labels) -> np.ndarray:
        """The validation part, a bool vector (n,)."""
        held = stratified_mask(labels, self.validation_fraction, self._seed)
        enough = 0 < int(np.count_nonzero(held)) < len(held)
        share = f"{self.validation_fraction} of {len(held)}"
        check(enough, f"early_stopping needs more images in a class: {share} leaves a part empty")
        return held

    def _learn(self, rows, seen, labels, weights) -> Samples:
        """The examples to train on, after mean and variance have been learnt from them, too."""
        images = self._form.images(rows, seen)
        samples, sums = Samples.of(images, labels, weights, self.model_.config.image_size, self.augment)
        learnt = Standardizer.of(images, samples.rows, sums, self._by_channel)
        known = getattr(self, "_standardizer", None)
        self._standardizer = learnt if known is None else known.merged(learnt)
        return samples

    def _trainer(self, samples, optimizer=None) -> Trainer:
        recipe = Recipe(as_int("batch_size", self.batch_size), self.clip_norm, float(self.label_smoothing), self._seed)
        optimizer = optimizer or AdamW(self.model_)
        optimizer.lr, optimizer.weight_decay = self.learning_rate, self.weight_decay
        return Trainer(self.model_, optimizer, recipe)

    def _after_epoch(self, loss: float) -> None:
        self.loss_curve_.append(loss)
        self.n_iter_ += 1

    def _tell(self, when: str, scores: list[float]) -> None:
        if self.verbose:
            accuracy = f", validation accuracy {scores[-1]:.4f}" if scores else ""
            print(f"{when}: loss {self.loss_curve_[-1]:.4f}{accuracy}", flush=True)

    def _accuracy(self, rows, seen, labels, weights) -> float:
        """The weighted share of right predictions; unweighted where all of these examples weigh 0."""
        right = self._logits_of(rows, seen).argmax(axis=1) == labels
        return float(np.average(right, weights=weights if weights.any() else None))

    def _logits(self, X) -> np.ndarray:
        check_is_fitted(self)
        rows, seen, _ = validated(self, X, reset=False)
        with limited(self.n_threads):
            return self._logits_of(rows, seen)

    def _logits_of(self, rows, seen) -> np.ndarray:
        """Logits (n, classes) float64 of rows that are checked."""
        images, size = self._form.images(rows, seen), self.model_.config.image_size
        parts = [
            self.model_.forward(padded(self._standardizer(images[some]), size))
            for some in chunks(len(images), images.shape[1:])
        ]
        return np.concatenate(parts).astype(np.float64)
