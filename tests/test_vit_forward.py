"""cvit.vit_forward against Flax: recorded logits everywhere, live ones where Flax is installed."""

import pathlib

import numpy as np
import pytest
from flax_cases import CASES, PLAIN, case, name

from cvit.model.config import ViTConfig
from cvit.model.initialize import init_weights
from cvit.model.vit import ViT
from cvit.model.vit_forward import vit_forward

RECORDED = np.load(pathlib.Path(__file__).parent / "data" / "flax_models.npz")
APIS = ["nnx", "linen"]
SIZES = dict(patch_size=2, d_model=8, num_heads=2, d_ff=16, num_layers=2, num_classes=4)
IMAGE = np.linspace(-1, 1, 48, dtype=np.float32).reshape(4, 4, 3)


def run(case, api):
    """vit_forward for a case that it can express."""
    c = case.config
    return vit_forward(case.seed, case.image, c.patch_size, c.width, c.heads, c.hidden, c.depth, c.classes, init=api)


def assert_close(logits, expected):
    """Within 1e-5 of the largest logit."""
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("case", PLAIN, ids=name)
def test_logits_equal_recorded_flax(case, api):
    logits = run(case, api)
    assert logits.dtype == np.float32 and logits.shape == (case.config.classes,)
    assert_close(logits, RECORDED[f"{name(case)}.{api}.logits"])


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_models_equal_recorded_flax(case, api):
    """The variants of the model as well: class token, no biases, no norm parameters, no final norm."""
    model = ViT(case.config, init_weights(case.config, case.seed, f"flax-{api}"))
    images = np.stack([case.cropped.transpose(2, 0, 1)] * 3)
    for logits in model.forward(images):
        assert_close(logits, RECORDED[f"{name(case)}.{api}.logits"])


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("seed", [0, 2**31, -5])
def test_logits_equal_live_flax(seed, api):
    pytest.importorskip("flax")
    import flax_models

    live = case(seed, (9, 14), 2, 4, 12, 3, 20, 2, 6)
    assert_close(run(live, api), flax_models.forward(api, live.config, seed, live.cropped))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8, bool, ">f4"])
def test_image_dtypes(dtype):
    image = np.arange(48).reshape(4, 4, 3) % 2
    expected = vit_forward(0, image.astype(np.float32), **SIZES)
    np.testing.assert_array_equal(vit_forward(0, image.astype(dtype), **SIZES), expected)


def test_image_forms():
    """Read-only and non-contiguous arrays and lists; the image is not written to."""
    expected = vit_forward(0, IMAGE, **SIZES)
    image = IMAGE.copy()
    image.flags.writeable = False
    spread = np.zeros((8, 8, 6), np.float32)[::2, ::-2, ::2]
    spread[:] = IMAGE
    for form in (image, spread, IMAGE.tolist(), np.asfortranarray(IMAGE)):
        np.testing.assert_array_equal(vit_forward(0, form, **SIZES), expected)


def test_last_partial_patch_is_dropped():
    image = np.full((5, 7, 3), np.nan, np.float32)
    image[:4, :6] = np.random.RandomState(0).uniform(-1, 1, (4, 6, 3))
    np.testing.assert_array_equal(vit_forward(0, image, **SIZES), vit_forward(0, image[:4, :6], **SIZES))


def test_whole_floats_are_integers():
    floats = {name: float(value) for name, value in SIZES.items()}
    np.testing.assert_array_equal(vit_forward(3.0, IMAGE, **floats), vit_forward(3, IMAGE, **SIZES))


def test_init_chooses_the_weights():
    np.testing.assert_array_equal(vit_forward(0, IMAGE, **SIZES), vit_forward(0, IMAGE, **SIZES, init="nnx"))
    assert not np.allclose(vit_forward(0, IMAGE, **SIZES, init="linen"), vit_forward(0, IMAGE, **SIZES, init="nnx"))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(image=IMAGE[0]), ValueError, r"image must have shape \(height, width, channels\), got \(4, 3\)"),
        (dict(image=IMAGE[None]), ValueError, r"image must have shape .*, got \(1, 4, 4, 3\)"),
        (dict(image=IMAGE[..., :0]), ValueError, r"image must have at least one channel, got shape \(4, 4, 0\)"),
        (dict(image=IMAGE.astype(complex)), TypeError, "image must hold real numbers, got complex"),
        (dict(image="cat.png"), TypeError, "image must hold real numbers, got <U7"),
        (dict(patch_size=5), ValueError, "patch_size must fit into the image of 4x4 pixels, got 5"),
        (dict(image=IMAGE[:1]), ValueError, "patch_size must fit into the image of 1x4 pixels, got 2"),
        (dict(patch_size=0), ValueError, "patch_size must be at least 1, got 0"),
        (dict(patch_size=2.5), ValueError, "patch_size must be a whole number, got 2.5"),
        (dict(num_heads=3), ValueError, "num_heads must divide d_model, 8, got 3"),
        (dict(num_heads=0), ValueError, "num_heads must be at least 1, got 0"),
        (dict(d_model=-8), ValueError, "d_model must be at least 1, got -8"),
        (dict(d_ff=0), ValueError, "d_ff must be at least 1, got 0"),
        (dict(num_layers=-1), ValueError, "num_layers must be at least 0, got -1"),
        (dict(num_classes=0), ValueError, "num_classes must be at least 1, got 0"),
        (dict(num_classes=None), TypeError, "num_classes must be an integer, got None"),
        (dict(seed=2.5), ValueError, "seed must be a whole number, got 2.5"),
        (dict(seed=2**63), ValueError, "seed must be less than"),
        (dict(init="haiku"), ValueError, "init must be one of .*'linen'.*, got 'haiku'"),
    ],
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        vit_forward(**{"seed": 0, "image": IMAGE, **SIZES, **changes})


def test_training_from_flax_weights():
    """The mean-pool model that Flax would start learns: a run begun there can go on here."""
    config = ViTConfig(image_size=4, patch_size=2, width=8, heads=2, hidden=16, depth=2, classes=4, pool="mean")
    model = ViT(config, init_weights(config, 0, "flax-nnx"))
    rng = np.random.RandomState(0)
    x, y = rng.uniform(-1, 1, (16, 3, 4, 4)).astype(np.float32), rng.randint(0, 4, 16)
    first, _ = model.loss_and_grad(x, y)
    for _ in range(100):
        last, grad = model.loss_and_grad(x, y)
        model.weights -= 0.1 * grad
    assert last < 0.5 * first
