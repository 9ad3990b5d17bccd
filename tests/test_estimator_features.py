"""`ViTFeatures`: scikit-learn's own checks and tools, pictures and arrays of any layout, and the example."""

import pickle
import subprocess
import sys
from pathlib import Path

import checks
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_estimator import X, Y

from cvit.estimator import ViTFeatures
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT
from cvit.pictures.preprocessing import Preprocessing

Image = pytest.importorskip("PIL.Image")

CONFIG = ViTConfig(image_size=16, patch_size=8, channels=3, width=24, depth=2, heads=2, classes=0, registers=1)
RULE = Preprocessing(size=16, resize_size=18, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 20, 30, 3), np.uint8)


@pytest.fixture
def model():
    return ViT(CONFIG, seed=1, preprocessing=RULE)


@pytest.fixture
def paths(tmp_path):
    """The pictures PIXELS as files."""
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(len(PIXELS))]


@parametrize_with_checks([ViTFeatures(), ViTFeatures(pool="tokens-mean")])
def test_scikit_learns_own_checks(estimator, check, monkeypatch):
    """None is expected to fail, and none is skipped."""
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    check(estimator)


def test_pictures_and_arrays_of_any_layout_give_the_features_of_the_preprocessed_picture(model, paths):
    expected = model.features(RULE(list(PIXELS)))
    pictures = [paths, [str(path) for path in paths], np.array(paths, object)[:, None], np.array(list(map(str, paths)))]
    pictures += [[Image.open(path) for path in paths], tuple(paths)]
    for given in pictures:
        result = ViTFeatures(model, batch_size=4).fit(given).transform(given)
        assert result.dtype == np.float32 and checks.same_bits(result, expected)
    arrays = [PIXELS, PIXELS.astype(float), PIXELS.tolist(), PIXELS.transpose(0, 3, 1, 2), list(PIXELS)]
    for given in arrays:
        features = ViTFeatures(model).fit(given)
        assert checks.same_bits(features.transform(given), expected) and features.n_features_in_ == 1800
        assert checks.same_bits(features.transform(paths), expected)
    rows = PIXELS.reshape(10, -1)
    assert checks.same_bits(ViTFeatures(model, image_shape=(20, 30, 3)).fit_transform(rows), expected)
    assert checks.same_bits(ViTFeatures(model, white=1).fit_transform(PIXELS / 255), expected)
    unlike = [PIXELS[0], PIXELS[1, :15], PIXELS[2, :, :, 0]]
    assert checks.same_bits(ViTFeatures(model).fit_transform(unlike), model.features(RULE(unlike)))


def test_arrays_that_are_normalised_already(model):
    ready = RULE(list(PIXELS))
    features = ViTFeatures(model, white=None).fit(ready)
    assert checks.same_bits(features.transform(np.moveaxis(ready, 1, 3)), model.features(ready))
    with pytest.raises(ValueError, match=r"X must have images \(3, 16, 16\), as the model takes them"):
        ViTFeatures(model, white=None).fit(PIXELS)


def test_the_mean_of_the_patches_tokens(model):
    images = RULE(list(PIXELS))
    expected = model.tokens(images)[:, 2:].mean(axis=1)
    assert checks.same_bits(ViTFeatures(model, pool="tokens-mean").fit_transform(PIXELS), expected)
    unpooled = ViT(ViTConfig(image_size=16, patch_size=8, width=24, heads=2, depth=1, pool="none"))
    assert ViTFeatures(unpooled, pool="tokens-mean").fit_transform(PIXELS).shape == (10, 24)
    with pytest.raises(ValueError, match="pool must be 'tokens-mean' for a model whose own pool is 'none'"):
        ViTFeatures(unpooled).fit(PIXELS)


@pytest.mark.parametrize(
    "options",
    [dict(pool="cls_mean"), dict(dist_token=True, dist_head=True, classes=3), dict(pre_logits=7), dict(pool="map")],
    ids=lambda options: "-".join(options),
)
def test_models_of_any_kind(options):
    model = ViT(ViTConfig(**{**dict(image_size=16, patch_size=8, width=24, heads=2, depth=1, classes=0), **options}))
    features = ViTFeatures(model).fit(PIXELS)
    expected = model.features(model.preprocess(list(PIXELS)))
    assert checks.same_bits(features.transform(PIXELS), expected)
    assert features.get_feature_names_out().tolist() == [f"vitfeatures{i}" for i in range(expected.shape[1])]


def test_a_model_is_read_in_fit_and_its_path_is_pickled(model, tmp_path, paths):
    path = tmp_path / "model.safetensors"
    features = ViTFeatures(str(path))
    with pytest.raises(NotFittedError):
        features.transform(paths)
    with pytest.raises(NotFittedError):
        _ = features.model_
    with pytest.raises(FileNotFoundError):
        features.fit(paths)
    model.save(path)
    expected = features.fit(paths).transform(paths)
    assert checks.same_bits(expected, model.features(RULE(list(PIXELS))))
    bytes_of_path = pickle.dumps(features)
    assert len(bytes_of_path) < 2000 < model.weights.nbytes
    assert checks.same_bits(pickle.loads(bytes_of_path).transform(paths), expected)
    whole = pickle.loads(pickle.dumps(ViTFeatures(model).fit(paths)))
    path.unlink()
    assert checks.same_bits(whole.transform(paths), expected)
    assert not hasattr(clone(features), "fitted_") and clone(features).model == str(path)


def test_the_same_bits_for_any_number_of_threads(model):
    expected = checks.on_all_threads(lambda: ViTFeatures(model).fit_transform(PIXELS))
    for threads in (1, 2):
        assert checks.same_bits(ViTFeatures(model, n_threads=threads).fit_transform(PIXELS), expected)


def test_pipelines_searches_and_data_frames(model, paths):
    steps = make_pipeline(ViTFeatures(random_state=0), LogisticRegression(max_iter=500))
    search = GridSearchCV(steps, {"vitfeatures__pool": ["features", "tokens-mean"]}, cv=2).fit(X, Y)
    assert search.best_score_ > 0.7
    labels = np.arange(10) % 2
    assert make_pipeline(ViTFeatures(model), LogisticRegression(max_iter=500)).fit(paths, labels).predict(paths).size
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"picture": map(str, paths)})
    frame = ViTFeatures(model).set_output(transform="pandas").fit_transform(table)
    assert frame.shape == (10, 24) and frame.columns[0] == "vitfeatures0"


def test_random_features_follow_random_state():
    first, again, other = (ViTFeatures(random_state=seed).fit_transform(X) for seed in (0, 0, 1))
    assert checks.same_bits(first, again) and not checks.same_bits(first, other)
    assert checks.same_bits(first, ViTFeatures(random_state=0).fit_transform(X.astype(np.uint8)))


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (dict(pool="cls"), X, r"pool must be one of \('features', 'tokens-mean'\), got 'cls'"),
        (dict(white=0), X, "white must be greater than 0"),
        (dict(batch_size=0), X, "batch_size must be at least 1"),
        (dict(model=3), X, "model must be a ViT, a path or a name on the Hub, got 3"),
        (dict(), ["a.jpg"], "model must be given for pictures: the random one takes arrays"),
        (dict(), "a.jpg", r"X must be a list of pictures, \['a.jpg'\] for one, got a single path"),
        (dict(model="the model"), np.zeros((2, 8, 8, 5)), "X must be pictures of 1 to 4 channels, got 5"),
        (dict(model="the model"), np.full((2, 8, 8), 256), "X must lie between 0 and white = 255, got values from 256"),
        (dict(model="the model"), np.full((2, 8, 8), -0.5), "X must lie between 0 and white = 255"),
        (dict(model="the model"), np.full((2, 8, 8), np.nan), "Input X contains NaN"),
    ],
)
def test_wrong_arguments(model, options, data, message):
    options = {name: model if value == "the model" else value for name, value in options.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        ViTFeatures(**options).fit(data).transform(data)


def test_pictures_and_arrays_are_told_apart(model, paths):
    with pytest.raises(ValueError, match="X must be a list of pictures, as in fit, got an array"):
        ViTFeatures(model).fit(paths).transform(PIXELS)
    with pytest.raises(ValueError, match="X must be an array for the random model, got pictures"):
        ViTFeatures().fit(X).transform(paths)
    with pytest.warns(UserWarning, match="nearly black where white is 255: white=1 says what they mean"):
        ViTFeatures(model).fit(PIXELS / 255)


def test_the_example():
    """With few images and epochs, that it runs to its end."""
    example = Path(__file__).parent.parent / "examples" / "in_a_pipeline.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40
    options = ["--images", "120", "--epochs", "1"]
    done = subprocess.run([sys.executable, example, *options], check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 4 and "linear classifier on its features" in done.stdout
