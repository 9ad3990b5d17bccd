"""`ViTClassifier` in training: weights of examples, augmentation, partial_fit, early stopping, fine-tuning."""

import checks
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from test_estimator import X, Y, small

from cvit.estimator.samples import Samples, border_value
from cvit.estimator.standardize import LARGEST, Standardizer
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT

COUNTS = np.random.default_rng(1).integers(0, 4, len(X))


def weights_of(estimator) -> np.ndarray:
    return estimator.model_.weights


# ---------------------------------------------------------------------------------------------------- weighted examples
def test_a_weight_is_a_number_of_equal_examples_bit_for_bit():
    """Also with more examples than fit into a batch, in another order, and of another scale."""
    counts, order = COUNTS[:200], np.random.default_rng(0).permutation(200)
    repeated = small(epochs=3).fit(np.repeat(X[:200], counts, axis=0), np.repeat(Y[:200], counts))
    for images, labels, weights in (
        (X[:200], Y[:200], counts),
        (X[order], Y[order], counts[order].tolist()),
        (X[:200][counts > 0], Y[:200][counts > 0], counts[counts > 0] * 4.0),
    ):
        weighted = small(epochs=3).fit(images, labels, sample_weight=weights)
        assert checks.same_bits(weights_of(weighted), weights_of(repeated))
    assert not checks.same_bits(weights_of(repeated), weights_of(small(epochs=3).fit(X[:200], Y[:200])))


def test_class_weights_are_weights_of_the_examples():
    few = np.flatnonzero((Y < 2) & ((Y == 0) | (np.arange(len(Y)) % 4 == 0)))
    images, labels = X[few], Y[few]
    sums = np.bincount(labels)
    balanced = small(class_weight="balanced", epochs=2).fit(images, labels)
    factors = {label: len(labels) / (2 * sums[label]) for label in (0, 1)}
    by_hand = small(class_weight=factors, epochs=2).fit(images, labels)
    weighted = small(epochs=2).fit(images, labels, sample_weight=[factors[label] for label in labels])
    assert checks.same_bits(weights_of(balanced), weights_of(by_hand))
    assert checks.same_bits(weights_of(balanced), weights_of(weighted))
    assert not checks.same_bits(weights_of(balanced), weights_of(small(epochs=2).fit(images, labels)))


def test_weights_decide_between_equal_pictures():
    """Every picture has both labels; which one wins, and by how much, is a matter of their weights."""
    images, labels = np.repeat(X[:40], 2, axis=0), np.tile([0, 1], 40)
    weights = np.where(labels == 1, 3.0, 1.0)
    estimator = small(epochs=100, batch_size=16).fit(images, labels, sample_weight=weights)
    assert np.abs(estimator.predict_proba(X[:40])[:, 1] - 0.75).max() < 0.1


def test_a_class_of_weight_zero_stays_a_class():
    estimator = small(epochs=5).fit(X, Y, sample_weight=(Y != 2).astype(float))
    assert estimator.classes_.tolist() == [0, 1, 2, 3] and 2 not in estimator.predict(X)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(len(Y)), "one non-zero number"),
        (np.where(np.arange(len(Y)) == 3, -1.0, 1.0), "Negative values in data passed to `sample_weight`"),
        (np.full(len(Y), 1e308), "sample_weight times class_weight must have a finite sum"),
        (np.ones(3), "sample_weight.shape == "),
        (np.where(np.arange(len(Y)) == 3, np.nan, 1.0), "contains NaN"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        small().fit(X, Y, sample_weight=weights)
    with pytest.raises(ValueError, match=message):
        small().partial_fit(X, Y, classes=range(4), sample_weight=weights)


def test_a_class_weight_that_leaves_nothing():
    with pytest.raises(ValueError, match="class_weight makes the weight of every example zero"):
        small(class_weight={0: 0, 1: 0, 2: 0, 3: 0}).fit(X, Y)
    with pytest.raises(ValueError, match="class_weight must hold finite weights of at least 0"):
        small(class_weight={0: -1}).fit(X, Y)


# -------------------------------------------------------------------------------------------------------- augmentation
def test_augmentation_sees_images_in_the_units_of_x_and_training_sees_what_it_gives():
    seen = []

    def augment(images, rng):
        seen.append((images.shape, images.dtype, float(images.max()), rng.random()))
        return 16 - images

    plain, negative = small(epochs=2), small(epochs=2, augment=augment)
    plain.fit(X, Y)
    negative.fit(X, Y)
    assert seen[0][:3] == ((64, 1, 8, 8), np.float32, 16.0) and len({draw for *_, draw in seen}) == len(seen) == 14
    assert not checks.same_bits(weights_of(plain), weights_of(negative))
    assert small(augment=augment, random_state=0).fit(X, Y).score(16 - X, Y) > 0.85


def test_affine_augmentation_fills_in_what_the_borders_show():
    white = (255 - 10 * X.astype(np.uint8))[:, None]
    assert border_value(white, np.arange(len(X))) == 255 and border_value(X[:, None], np.arange(len(X))) == 0
    samples, _ = Samples.of(white, Y, np.ones(len(Y)), (8, 8), "affine")
    assert (samples.augment.shift, samples.augment.fill) == (0.72, 255)
    assert small(augment="affine").fit(X, Y).score(X, Y) > 0.75


# ----------------------------------------------------------------------------------------------------- standardisation
@pytest.mark.parametrize("by_channel", [False, True])
def test_standardisation_is_that_of_scikit_learn(rng, by_channel):
    images, weights = rng.normal(3, 2, (1100, 2, 3, 4)), rng.integers(0, 3, 1100).astype(float)
    images[:, 0, 1] = 0.1
    if by_channel:
        rows = np.moveaxis(images, 1, 3).reshape(-1, 2)
        expected = StandardScaler().fit(rows, sample_weight=np.repeat(weights, 12)).transform(rows)
        expected = np.moveaxis(expected.reshape(1100, 3, 4, 2), 3, 1)
    else:
        rows = images.reshape(1100, -1)
        expected = StandardScaler().fit(rows, sample_weight=weights).transform(rows).reshape(images.shape)
    every = np.arange(1100)
    result = Standardizer.of(images, every, weights, by_channel)
    np.testing.assert_allclose(result(images), np.clip(expected, -LARGEST, LARGEST), rtol=1e-5, atol=1e-6)
    parts = [Standardizer.of(images, some, weights[some], by_channel) for some in np.split(every, [100, 101, 600])]
    merged = parts[0].merged(parts[1]).merged(parts[2]).merged(parts[3])
    np.testing.assert_allclose(merged.mean, result.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.variance, result.variance, rtol=1e-9, atol=1e-15)
    assert merged.weight == result.weight


def test_pictures_are_standardised_by_channel_and_other_rows_value_by_value():
    rows = X.reshape(len(X), 64)
    fitted = lambda images, **options: small(epochs=1, **options).fit(images, Y)
    for estimator in (fitted(X), fitted(rows, image_shape=(8, 8)), fitted(rows, standardize="channel")):
        assert estimator._standardizer.mean.shape == (1, 1, 1)
    for estimator in (fitted(rows), fitted(rows[:, :50]), fitted(X, standardize="pixel")):
        assert estimator._standardizer.mean.shape == (1, 8, 8)
    assert checks.same_bits(weights_of(fitted(X)), weights_of(fitted(rows, standardize="channel")))


def test_features_of_any_scale_count_alike(rng):
    columns = rng.normal(size=(300, 4)) * [1e-6, 1, 1e6, 1] + [0, 5, 1e7, 0]
    labels = (columns[:, 0] > 0).astype(int)
    assert small(epochs=30).fit(columns, labels).score(columns, labels) > 0.9


# --------------------------------------------------------------------------------------------------------- partial_fit
def test_partial_fit_learns_from_parts():
    estimator = small()
    for _ in range(12):
        for part in np.array_split(np.arange(300), 3):
            estimator.partial_fit(X[part], Y[part], classes=[3, 2, 1, 0])
    assert estimator.score(X[300:], Y[300:]) > 0.8 and estimator.n_iter_ == len(estimator.loss_curve_) == 36
    seen = estimator._standardizer
    np.testing.assert_allclose(seen.mean, X[:300].mean(), rtol=1e-12)
    np.testing.assert_allclose(seen.variance, X[:300].var(), rtol=1e-12)
    assert estimator.fit(X, Y).n_iter_ == 20  # begins anew
    assert checks.same_bits(weights_of(estimator), weights_of(small().fit(X, Y)))


def test_wrong_calls_of_partial_fit():
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        small().partial_fit(X, Y)
    with pytest.raises(ValueError, match="y has labels that are not in classes"):
        small().partial_fit(X, Y, classes=[0, 1])
    estimator = small().partial_fit(X, Y, classes=range(5))
    assert estimator.predict_proba(X).shape == (len(X), 5)
    with pytest.raises(ValueError, match="classes must be .* as in the first call"):
        estimator.partial_fit(X, Y, classes=range(4))
    with pytest.raises(ValueError, match="class_weight='balanced' needs all of y"):
        small(class_weight="balanced").partial_fit(X, Y, classes=range(4))


# ------------------------------------------------------------------------------------------ early stopping, fine-tuning
def test_early_stopping_keeps_the_best_weights(capsys):
    estimator = small(epochs=40, early_stopping=True, n_iter_no_change=3, validation_fraction=0.25, verbose=1)
    estimator.fit(X, Y)
    scores = estimator.validation_scores_
    assert estimator.n_iter_ == len(scores) < 40 and scores.index(max(scores)) == len(scores) - 4
    held = estimator._held_back(Y)
    assert held.sum() == pytest.approx(len(Y) / 4, abs=2) and estimator.score(X[held], Y[held]) == max(scores)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == estimator.n_iter_ and lines[0].startswith("epoch 1/40: loss ") and "accuracy" in lines[0]


@pytest.mark.parametrize("kind", ["model", "file"])
def test_a_given_model_is_fine_tuned(tmp_path, kind):
    config = ViTConfig(image_size=16, patch_size=4, channels=3, width=16, depth=2, heads=2, classes=4, pool="cls")
    model = ViT(config, seed=3, dtype=np.float64 if kind == "model" else np.float32)
    before = model.weights.copy()
    model.save(tmp_path / "model.safetensors")
    init = model if kind == "model" else tmp_path / "model.safetensors"
    start = small(init=init, learning_rate=0.0, epochs=1).fit(X, Y)
    assert checks.same_bits(model.weights, before)
    views, own = start.model_.layout.views(weights_of(start)), model.layout.views(model.weights)
    assert start.model_.config.image_size == (8, 8) and start.model_.config.channels == 1
    assert (views["head.weight"] == 0).all()
    np.testing.assert_array_equal(views["blocks.1.mlp.fc1.weight"], own["blocks.1.mlp.fc1.weight"].astype(np.float32))
    assert views["pos_embed"].shape == (5, 16)
    assert small(init=init, epochs=30).fit(X, Y).score(X, Y) > 0.9
