"""`ViTClassifier`: scikit-learn's own checks and tools, layouts of images, weights, and what is promised of bits."""

import pickle
import subprocess
import sys

import checks
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import cvit
from cvit.estimator import ViTClassifier
from cvit.estimator.training import patch_for
from cvit.model.vit import ViT


def small(**options) -> ViTClassifier:
    """A classifier that trains in a fraction of a second."""
    chosen = dict(width=16, depth=1, heads=2, epochs=20, learning_rate=5e-3, random_state=0)
    return ViTClassifier(**{**chosen, **options})


def digits(classes=4, count=400):
    """The first digits of the first few classes: images (n, 8, 8) float64 of whole numbers, and labels."""
    data = load_digits(n_class=classes)
    return data.images[:count], data.target[:count]


X, Y = digits()


@parametrize_with_checks([small()])
def test_scikit_learns_own_checks(estimator, check, monkeypatch):
    """None is expected to fail, and none is skipped."""
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    check(estimator)


def test_it_learns_and_repeats_itself():
    first, second = small().fit(X[:300], Y[:300]), small().fit(X[:300], Y[:300])
    assert first.score(X[300:], Y[300:]) > 0.8 and first.score(X[:300], Y[:300]) > 0.9
    assert checks.same_bits(first.model_.weights, second.model_.weights)
    assert not checks.same_bits(first.model_.weights, small(random_state=1).fit(X[:300], Y[:300]).model_.weights)
    assert first.n_iter_ == len(first.loss_curve_) == 20 and first.loss_curve_[-1] < first.loss_curve_[0] / 3
    probabilities = first.predict_proba(X)
    assert probabilities.dtype == first.decision_function(X).dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)


def test_any_layout_and_any_dtype_of_the_same_images_gives_the_same_bits():
    rng = np.random.default_rng(0)
    colour, y = rng.integers(0, 256, (60, 6, 8, 3)), rng.integers(0, 3, 60)
    channels_first = colour.transpose(0, 3, 1, 2)
    layouts = [
        (colour, None), (colour.astype(np.uint8), None), (colour.astype(np.float32), (6, 8, 3)),
        (np.asfortranarray(channels_first), None), (channels_first.astype(float), (3, 6, 8)), (colour, (3, 6, 8)),
        (colour.reshape(60, -1), (6, 8, 3)), (channels_first.reshape(60, -1), (3, 6, 8)),
    ]  # fmt: skip
    fitted = [small(epochs=2, image_shape=shape).fit(images, y) for images, shape in layouts]
    expected = fitted[0].predict_proba(colour)
    for (images, _), estimator in zip(layouts, fitted):
        assert estimator.n_features_in_ == 6 * 8 * 3 and estimator.model_.config.channels == 3
        assert checks.same_bits(estimator.predict_proba(images), expected)
        assert checks.same_bits(estimator.predict_proba(colour), expected)
    grey = small(epochs=2, image_shape=(8, 8)).fit(X, Y)
    for images in (X[:, None], X[..., None], X.reshape(len(X), 64), X.astype(np.uint8), (X * 4).astype(np.float16) / 4):
        fitted = small(epochs=2, image_shape=(8, 8)).fit(images, Y)
        assert checks.same_bits(fitted.predict_proba(X), grey.predict_proba(images))


def test_rows_of_no_square_are_padded_and_image_shape_is_held_to():
    rows = X.reshape(len(X), 64)
    assert small(epochs=1).fit(rows[:, :50], Y).model_.config.image_size == (8, 8)
    assert small(epochs=1, patch_size=3).fit(X, Y).model_.config.image_size == (9, 9)
    assert small(epochs=1, patch_size=(4, 8)).fit(X, Y).model_.config.tokens == 2
    with pytest.raises(ValueError, match=r"X must have images of image_shape=\(7, 9\), 63 values each, got 64 values"):
        small(image_shape=(7, 9)).fit(rows, Y)
    with pytest.raises(ValueError, match=r"image_shape=\(4, 16\), 64 values each, got images of shape \(8, 8\)"):
        small(image_shape=(4, 16)).fit(X, Y)
    with pytest.raises(ValueError, match=r"X must have images of \(1, 8, 8\) .* got images of shape \(4, 16\)"):
        small(epochs=1).fit(X, Y).predict(X.reshape(-1, 4, 16))
    with pytest.raises(ValueError, match="X has 81 features, but ViTClassifier is expecting 64"):
        small(epochs=1).fit(X, Y).predict(np.zeros((2, 9, 9)))


@pytest.mark.parametrize(
    ("size", "patch"), [((1, 1), 1), ((3, 2), 1), ((4, 4), 2), ((8, 8), 2), ((28, 28), 4), ((32, 32), 4), ((25, 25), 4),
                        ((64, 48), 8), ((224, 224), 16), ((1000, 10), 16)]
)  # fmt: skip
def test_the_patch_size_follows_from_the_images(size, patch):
    assert patch_for(*size) == patch


def test_the_same_bits_for_any_number_of_threads():
    fit = lambda **options: small(epochs=2, augment="affine", **options).fit(X, Y)
    expected = checks.on_all_threads(lambda: fit().predict_proba(X))
    for threads in (1, 2):
        assert checks.same_bits(fit(n_threads=threads).predict_proba(X), expected)
    with pytest.raises(ValueError, match="n_threads must be at least 1"):
        fit(n_threads=0)


def test_predictions_do_not_depend_on_the_other_images():
    estimator = small(epochs=2).fit(X, Y)
    together = estimator.decision_function(X)
    assert checks.same_bits(np.concatenate([estimator.decision_function(X[i : i + 1]) for i in range(9)]), together[:9])


def test_string_labels():
    names = np.array(["zero", "one", "two", "three"])[Y]
    estimator = small().fit(X, names)
    assert estimator.classes_.tolist() == ["one", "three", "two", "zero"]
    assert estimator.model_.class_names == ("one", "three", "two", "zero")
    assert estimator.score(X, names) > 0.85 and set(estimator.predict(X)) == set(names)


def test_pipelines_searches_validation_and_calibration():
    images, labels = digits(classes=2, count=200)
    rows, form = images.reshape(200, -1), small(image_shape=(8, 8))
    pipeline = make_pipeline(FunctionTransformer(lambda x: x / 16), form)
    assert pipeline.fit(rows, labels).score(rows, labels) > 0.85
    assert cross_val_score(form, rows, labels, cv=2).min() > 0.85
    search = GridSearchCV(form, {"learning_rate": [1e-6, 5e-3]}, cv=2, n_jobs=2).fit(images, labels)
    assert search.best_params_ == {"learning_rate": 5e-3} and search.best_score_ > 0.85
    assert checks.same_bits(search.predict_proba(rows), clone(form).fit(rows, labels).predict_proba(images))
    calibrated = CalibratedClassifierCV(form, cv=2).fit(rows, labels, sample_weight=labels + 1.0)
    assert calibrated.score(rows, labels) > 0.85


def test_clones_and_pickles():
    estimator = small(epochs=2, class_weight={0: 2.0}).fit(X, Y)
    copied = pickle.loads(pickle.dumps(estimator))
    assert checks.same_bits(copied.predict_proba(X), estimator.predict_proba(X))
    fresh = clone(estimator)
    assert fresh.get_params() == estimator.get_params()
    for method in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(fresh, method)(X)
    for one in (estimator, copied):
        one.partial_fit(X, Y)
    again = pickle.loads(pickle.dumps(estimator))  # with its optimizer
    results = [one.partial_fit(X, Y).model_.weights for one in (estimator, copied, again)]
    assert checks.same_bits(results[0], results[1]) and checks.same_bits(results[0], results[2])


@pytest.mark.parametrize("shape", [(40, 8, 8), (40, 8, 8, 3), (40, 1, 8, 8), (40, 64)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_in_every_layout(shape, value):
    images, y = np.random.default_rng(0).normal(size=shape), np.arange(40) % 3
    estimator = small(epochs=1).fit(images, y)
    images[17].flat[5] = value
    for call in (lambda: small().fit(images, y), lambda: estimator.predict(images)):
        with pytest.raises(ValueError, match="Input X contains (NaN|infinity)"):
            call()
    with pytest.raises(ValueError, match="too large to be standardised"):
        small().fit(np.where(np.isfinite(images), images * 1e200, 0), y)


def test_one_class_and_images_without_contrast():
    one = small(epochs=2).fit(X, np.full(len(X), "only"))
    assert set(one.predict(X)) == {"only"} and (one.predict_proba(X) == 1).all()
    assert one.decision_function(X).shape == (len(X), 1)
    flat = small(epochs=2).fit(np.full((20, 8, 8), 0.1), np.arange(20) % 2)
    assert np.isfinite(flat.predict_proba(X)).all() and flat.decision_function(X).shape == (len(X),)


def test_scikit_learn_is_imported_only_when_it_is_asked_for():
    code = "import sys, cvit; assert 'sklearn' not in sys.modules; cvit.ViTFeatures; assert 'sklearn' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys; sys.modules['sklearn'] = None\nimport cvit; from cvit import *\n"
        "try:\n    cvit.ViTClassifier\nexcept ModuleNotFoundError as e:\n    assert 'cvit-cpu[sklearn]' in str(e)\n"
        "else:\n    raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert cvit.ViTClassifier is ViTClassifier


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epochs=0), "epochs must be at least 1"),
        (dict(batch_size=2.5), "batch_size must be a whole number"),
        (dict(learning_rate=-1), "lr must be finite and at least 0"),
        (dict(warmup=1.5), "warmup must be a share of the steps, at most 1, got 1.5"),
        (dict(clip_norm=0), "clip_norm must be greater than 0"),
        (dict(label_smoothing=1), "label_smoothing must be below 1, got 1"),
        (dict(standardize="row"), "standardize must be 'channel', 'pixel' or None, got 'row'"),
        (dict(augment="flip"), "augment must be None, 'affine' or a function of images and rng, got 'flip'"),
        (dict(class_weight="even"), "class_weight must be a dict, 'balanced' or None, got 'even'"),
        (dict(validation_fraction=1.0), "validation_fraction must be between 0 and 1"),
        (dict(image_shape=8), r"image_shape must be \(h, w\), \(h, w, c\) or \(c, h, w\), got 8"),
        (dict(patch_size=(1, 2, 3)), r"patch_size must be one number or \(height, width\)"),
        (dict(heads=3), "heads must divide the width 16"),
        (dict(init=3), "init must be a ViT, a path or a name on the Hub, got 3"),
        (dict(early_stopping=True, validation_fraction=0.001), "early_stopping needs more images"),
        (dict(augment=lambda images, rng: images[:, :, 1:]), "augment must give images of shape"),
        (dict(augment=lambda images, rng: images * np.nan), "augment gave images that are not finite"),
    ],
)
def test_wrong_parameters(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small(**options).fit(X, Y)


def test_a_loss_that_is_not_finite_stops_the_training():
    model = ViT(small(epochs=1).fit(X, Y).model_.config, np.full(small(epochs=1).fit(X, Y).model_.weights.size, 1e30))
    with pytest.raises(FloatingPointError, match="in epoch 1, step 1: a lower learning_rate may help"):
        small(init=model, epochs=1).fit(X, Y)
