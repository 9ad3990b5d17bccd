"""Wrong input: for every public function and class one clear error that names the argument, before anything has
changed.

Each table's row is what is wrong and what the error says. (Files, optimizers, training, data and the command line have
theirs beside their other tests.)
"""

import copy
import re

import numpy as np
import pytest
from checks import same_bits
from test_functional import NAMES, arrays, weights

import cvit
from cvit import Layout, ViT, ViTConfig, ops
from cvit.model.config import FLAGS
from cvit.model.rope import Rope

PLAIN = arrays()  # images (2, 3, 4, 6), patches of 2, width 12, 2 blocks, 5 classes
CONFIG = ViTConfig(image_size=(4, 6), patch_size=2, channels=2, width=12, depth=1, heads=3, hidden=20, classes=5)
SIZE = Layout.of(CONFIG).size
IMAGES = np.ones((2, 2, 4, 6), np.float32)


def ids(value):
    return getattr(value, "__name__", None) or (
        str(value) if isinstance(value, (str, int, float, tuple)) and len(str(value)) < 60 else ""
    )


def refuses(call, arguments, error, message):
    """`call(*arguments)` raises `error` with `message` somewhere in it, and leaves every array among the arguments as
    it was."""
    before = copy.deepcopy([a for a in arguments if isinstance(a, np.ndarray)])
    with pytest.raises(error, match=re.escape(message)) as caught:
        call(*arguments)
    assert type(caught.value) is error
    assert caught.value.__cause__ is None
    assert same_bits([a for a in arguments if isinstance(a, np.ndarray)], before)


# ---------------------------------------------------------------------------------------------- the plain functions


def f(name, change=lambda a: a, **rest):
    """The plain argument `name`, changed."""
    return {name: change(PLAIN[name]), **rest}


WRONG_IMAGES = [
    (f("x", lambda x: None), TypeError, "x must be an array, got None"),
    (f("x", lambda x: "images"), TypeError, "x must be float32 or float64, got <U6"),
    (f("x", lambda x: [[1.0, 2.0], [3.0]]), TypeError, "x must be an array, got list"),
    (f("x", lambda x: x[0]), ValueError, "x must have shape (N, C, H, W), got (3, 4, 6)"),
    (f("x", lambda x: x[:0]), ValueError, "x must not be empty, got shape (0, 3, 4, 6)"),
    (f("x", lambda x: x[:, :0]), ValueError, "x must not be empty, got shape (2, 0, 4, 6)"),
    (f("x", lambda x: x.astype(int)), TypeError, "x must be float32 or float64, got int64"),
    (f("x", lambda x: x.astype(np.float16)), TypeError, "x must be float32 or float64, got float16"),
    (f("x", lambda x: x.astype(complex)), TypeError, "x must be float32 or float64, got complex128"),
    (f("x", lambda x: x.astype(object)), TypeError, "x must be float32 or float64, got object"),
    (
        f("x", lambda x: x[:, :, :3]),
        ValueError,
        "the patch size 2 (from w_proj's 12 rows) must divide the image size 3x6",
    ),
    (
        f("x", lambda x: x[..., :5]),
        ValueError,
        "the patch size 2 (from w_proj's 12 rows) must divide the image size 4x5",
    ),
    (f("x", lambda x: x[:, :2]), ValueError, "w_proj must have C·P·P rows for 2 channels and a whole P, got 12"),
    (f("w_proj", lambda w: w[:11]), ValueError, "w_proj must have C·P·P rows for 3 channels and a whole P, got 11"),
    (f("w_proj", lambda w: w[:0]), ValueError, "w_proj must have C·P·P rows for 3 channels and a whole P, got 0"),
    (f("w_proj", lambda w: w[:, :0]), ValueError, "w_proj must have at least one column, got shape (12, 0)"),
    (f("w_proj", np.ravel), ValueError, "w_proj must have shape (C·P·P, d), got (144,)"),
    (f("w_proj", lambda w: None), TypeError, "w_proj must be an array, got None"),
    (
        f("w_proj", lambda w: w[:3]),
        ValueError,
        "pos_embed must have shape (25, 12), got (7, 12)",
    ),  # a patch of one pixel
    (f("cls_token", lambda c: c[:5]), ValueError, "cls_token must have shape (12,), got (5,)"),
    (f("cls_token", lambda c: c[None]), ValueError, "cls_token must have shape (12,), got (1, 12)"),
    (f("cls_token", lambda c: c.astype(int)), TypeError, "cls_token must be float32 or float64, got int64"),
    (f("pos_embed", lambda p: p[1:]), ValueError, "pos_embed must have shape (7, 12), got (6, 12)"),
    (f("pos_embed", lambda p: p[:, 1:]), ValueError, "pos_embed must have shape (7, 12), got (7, 11)"),
    (f("pos_embed", lambda p: p[None]), ValueError, "pos_embed must have shape (7, 12), got (1, 7, 12)"),
]

WRONG_WEIGHTS = [
    (f("blocks_weights", lambda b: b[0]), ValueError, "blocks_weights must have shape (L, 6, 12, 12), got (6, 12, 12)"),
    (
        f("blocks_weights", lambda b: b[:, :5]),
        ValueError,
        "blocks_weights must have shape (L, 6, 12, 12), got (2, 5, 12, 12)",
    ),
    (
        f("blocks_weights", lambda b: b[..., :3]),
        ValueError,
        "blocks_weights must have shape (L, 6, 12, 12), got (2, 6, 12, 3)",
    ),
    (f("blocks_weights", lambda b: None), TypeError, "blocks_weights must be an array, got None"),
    (f("w_head", lambda w: w[:3]), ValueError, "w_head must have shape (12, classes), got (3, 5)"),
    (f("w_head", lambda w: w[:, :0]), ValueError, "w_head must have at least one column, got shape (12, 0)"),
    (f("w_head", lambda w: w.T), ValueError, "w_head must have shape (12, classes), got (5, 12)"),
    (f("w_head", np.ravel), ValueError, "w_head must have shape (12, classes), got (60,)"),
]

WRONG_HEADS = [
    ({"num_heads": heads}, error, message)
    for heads, error, message in [
        (0, ValueError, "num_heads must be at least 1, got 0"),
        (-3, ValueError, "num_heads must be at least 1, got -3"),
        (5, ValueError, "num_heads must divide the width 12, got 5"),
        (24, ValueError, "num_heads must divide the width 12, got 24"),
        (2.5, ValueError, "num_heads must be a whole number, got 2.5"),
        ("3", TypeError, "num_heads must be an integer, got '3'"),
        (None, TypeError, "num_heads must be an integer, got None"),
        (True, TypeError, "num_heads must be an integer, got True"),
        (np.nan, TypeError, "num_heads must be an integer, got nan"),
        (np.inf, TypeError, "num_heads must be an integer, got inf"),
    ]
]

WRONG_LABELS = [
    ({"y": y}, error, message)
    for y, error, message in [
        (np.array([1]), ValueError, "y must have shape (2,), one label an image, got (1,)"),
        (np.array([[1, 2]]), ValueError, "y must have shape (2,), one label an image, got (1, 2)"),
        (3, ValueError, "y must have shape (2,), one label an image, got ()"),
        (np.array([0, 5]), ValueError, "y must lie in [0, 5), got values from 0 to 5"),
        (np.array([-1, 2]), ValueError, "y must lie in [0, 5), got values from -1 to 2"),
        (np.array([2**63, 1], np.uint64), ValueError, "y must lie in [0, 5), got values from 1 to 9223372036854775808"),
        (np.array([1.0, 2.0]), TypeError, "y must have an integer dtype, got float64"),
        (np.array([True, False]), TypeError, "y must have an integer dtype, got bool"),
        (np.array([1, 2], object), TypeError, "y must have an integer dtype, got object"),
        (None, TypeError, "y must be an array, got None"),
    ]
]

WRONG_RATES = [
    ({"lr": lr}, error, message)
    for lr, error, message in [
        (np.nan, ValueError, "lr must be finite and at least 0, got nan"),
        (np.inf, ValueError, "lr must be finite and at least 0, got inf"),
        (-np.inf, ValueError, "lr must be finite and at least 0, got -inf"),
        (np.float32("nan"), ValueError, "lr must be finite and at least 0"),
        (10**400, ValueError, "lr must be finite and at least 0, got 1000"),
        (-0.1, ValueError, "lr must be finite and at least 0, got -0.1"),
        (None, TypeError, "lr must be a number, got None"),
        ("0.1", TypeError, "lr must be a number, got '0.1'"),
        (True, TypeError, "lr must be a number, got True"),
        (1j, TypeError, "lr must be a number, got 1j"),
        (np.ones(2), TypeError, "lr must be a number, got array([1., 1.])"),
    ]
]


def plain_arguments(name, change):
    """The arguments of the plain function `name`, in order, with `change` made."""
    given = {**PLAIN, "num_heads": 3, "lr": 0.1, **change}
    order = {
        "patch_embed_with_cls": ("x", "w_proj", "cls_token", "pos_embed"),
        "vit_classify": ("x", *NAMES, "num_heads"),
        "vit_train_step": ("x", "y", *NAMES, "num_heads", "lr"),
    }[name]
    return [given[argument] for argument in order]


@pytest.mark.parametrize("change, error, message", WRONG_IMAGES, ids=ids)
def test_patch_embed_with_cls(change, error, message):
    refuses(cvit.patch_embed_with_cls, plain_arguments("patch_embed_with_cls", change), error, message)


@pytest.mark.parametrize("change, error, message", WRONG_IMAGES + WRONG_WEIGHTS + WRONG_HEADS, ids=ids)
def test_vit_classify(change, error, message):
    refuses(cvit.vit_classify, plain_arguments("vit_classify", change), error, message)


@pytest.mark.parametrize(
    "change, error, message", WRONG_IMAGES + WRONG_WEIGHTS + WRONG_HEADS + WRONG_LABELS + WRONG_RATES, ids=ids
)
def test_vit_train_step(change, error, message):
    refuses(cvit.vit_train_step, plain_arguments("vit_train_step", change), error, message)


def test_vit_train_step_in_float32():
    given = [
        a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == float else a
        for a in plain_arguments("vit_train_step", {})
    ]
    refuses(cvit.vit_train_step, [*given[:-1], 1e39], ValueError, "lr must be at most 3.403e+38, the largest float32")


BLOCK = dict(zip(cvit.model.functional.PARTS, PLAIN["blocks_weights"][0]))
TOKENS = np.ones((2, 7, 12))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": TOKENS[0]}, ValueError, "x must have shape (N, T, d), got (7, 12)"),
        ({"x": TOKENS[:0]}, ValueError, "x must not be empty, got shape (0, 7, 12)"),
        ({"x": TOKENS[:, :0]}, ValueError, "x must not be empty, got shape (2, 0, 12)"),
        ({"x": TOKENS[..., :0]}, ValueError, "x must not be empty, got shape (2, 7, 0)"),
        ({"x": TOKENS[..., :11]}, ValueError, "w_q must have shape (11, 11), got (12, 12)"),
        ({"x": TOKENS.astype(int)}, TypeError, "x must be float32 or float64, got int64"),
        ({"x": None}, TypeError, "x must be an array, got None"),
        *[({name: BLOCK[name][:5]}, ValueError, f"{name} must have shape (12, 12), got (5, 12)") for name in BLOCK],
        *[
            ({name: BLOCK[name].astype("f2")}, TypeError, f"{name} must be float32 or float64, got float16")
            for name in BLOCK
        ],
        *WRONG_HEADS,
    ],
    ids=ids,
)
def test_vit_block(change, error, message):
    given = {"x": TOKENS, **BLOCK, "num_heads": 3, **change}
    refuses(cvit.vit_block, list(given.values()), error, message)


@pytest.mark.parametrize(
    "change, error, message",
    [
        *[row for row in WRONG_WEIGHTS if "at least one column" not in row[2]],  # a part of a model may be empty here
        (f("w_proj", np.ravel), ValueError, "w_proj must have shape (C·P·P, d), got (144,)"),
        (f("w_proj", lambda w: w.astype(int)), TypeError, "w_proj must be float32 or float64, got int64"),
        (f("cls_token", lambda c: c[1:]), ValueError, "cls_token must have shape (12,), got (11,)"),
        (f("pos_embed", lambda p: p[:, 1:]), ValueError, "pos_embed must have shape (T, 12), got (7, 11)"),
    ],
    ids=ids,
)
def test_pack_weights(change, error, message):
    refuses(cvit.pack_weights, weights({**PLAIN, **change}), error, message)


FLAT = cvit.pack_weights(*weights(PLAIN))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((FLAT[1:], 12, 7, 12, 2, 5), ValueError, "flat must have shape (2028,) for these sizes, got (2027,)"),
        ((FLAT[None], 12, 7, 12, 2, 5), ValueError, "flat must have shape (2028,) for these sizes, got (1, 2028)"),
        ((None, 12, 7, 12, 2, 5), TypeError, "flat must be an array, got None"),
        ((FLAT, 0, 7, 12, 2, 5), ValueError, "features must be at least 1, got 0"),
        ((FLAT, 12, -7, 12, 2, 5), ValueError, "tokens must be at least 1, got -7"),
        ((FLAT, 12, 7, "12", 2, 5), TypeError, "d_model must be an integer, got '12'"),
        ((FLAT, 12, 7, 12, 2.5, 5), ValueError, "num_layers must be a whole number, got 2.5"),
        ((FLAT, 12, 7, 12, -1, 5), ValueError, "num_layers must be at least 0, got -1"),
        ((FLAT, 12, 7, 12, 2, None), TypeError, "num_classes must be an integer, got None"),
    ],
    ids=ids,
)
def test_unpack_weights(arguments, error, message):
    refuses(cvit.unpack_weights, arguments, error, message)


# --------------------------------------------------------------------------------------------------------- cvit.ops

X, W, B, DY = np.ones((3, 4)), np.ones((4, 5)), np.ones(5), np.ones((3, 5))
PIXELS, PATCHES, Q = np.ones((2, 3, 4, 6)), np.ones((2, 6, 12)), np.ones((1, 2, 3, 4))
LSE, ROW = np.ones((1, 2, 3)), np.ones(3)
LABELS = np.array([0, 1, 2])
NOT_AN_INT = X.astype(int)


@pytest.mark.parametrize(
    "op, arguments, error, message",
    [
        (ops.patches, (PIXELS[0], 2), ValueError, "x must have shape (N, C, H, W), got (3, 4, 6)"),
        (ops.patches, (PIXELS[:0], 2), ValueError, "x must not be empty, got shape (0, 3, 4, 6)"),
        (ops.patches, (PIXELS, 3), ValueError, "patch_size must divide the image size 4x6, got 3"),
        (ops.patches, (PIXELS, 0), ValueError, "patch_size must be at least 1, got 0"),
        (ops.patches, (PIXELS, 1.5), ValueError, "patch_size must be a whole number, got 1.5"),
        (ops.patches, (PIXELS, None), TypeError, "patch_size must be an integer, got None"),
        (
            ops.patches_backward,
            (PATCHES, (3, 4), 2),
            ValueError,
            "image_shape must be (channels, height, width), got (3, 4)",
        ),
        (
            ops.patches_backward,
            (PATCHES, None, 2),
            TypeError,
            "image_shape must be (channels, height, width), got None",
        ),
        (ops.patches_backward, (PATCHES, (3, 0, 6), 2), ValueError, "image_shape must be at least 1, got 0"),
        (ops.patches_backward, (PATCHES, (3, 4, 6), 4), ValueError, "patch_size must divide the image size 4x6, got 4"),
        (
            ops.patches_backward,
            (PATCHES[:, :5], (3, 4, 6), 2),
            ValueError,
            "dpatches must have shape (N, 6, 12), got (2, 5, 12)",
        ),
        (
            ops.patches_backward,
            (PATCHES[:0], (3, 4, 6), 2),
            ValueError,
            "dpatches must not be empty, got shape (0, 6, 12)",
        ),
        (ops.linear, (X, W[:3]), ValueError, "x's last axis must be 3, got shape (3, 4)"),
        (ops.linear, (X, W[0]), ValueError, "w must have shape (K, M), got (5,)"),
        (ops.linear, (X, W, B[:4]), ValueError, "bias must have shape (5,), got (4,)"),
        (ops.linear, (X[:0], W), ValueError, "x must not be empty, got shape (0, 4)"),
        (ops.linear, (X, W[:, :0]), ValueError, "w must not be empty, got shape (4, 0)"),
        (ops.linear, (np.float64(3), W), ValueError, "x must have at least one axis, got a scalar"),
        (ops.linear, (NOT_AN_INT, W), TypeError, "x must be float32 or float64, got int64"),
        (ops.linear, (X, None), TypeError, "w must be an array, got None"),
        (ops.linear_backward, (DY[:2], X, W), ValueError, "dy must have shape (3, 5), got (2, 5)"),
        (ops.linear_backward, (DY, X[:, :3], W), ValueError, "x's last axis must be 4, got shape (3, 3)"),
        (ops.linear_backward, (DY, X, W.T), ValueError, "x's last axis must be 5, got shape (3, 4)"),
        (ops.linear_backward, (None, X, W), TypeError, "dy must be an array, got None"),
        (ops.layernorm, (X, W[:, 0]), ValueError, "scale and shift must be given together or not at all"),
        (ops.layernorm, (X, ROW, ROW), ValueError, "scale must have shape (4,), got (3,)"),
        (ops.layernorm, (X, W[:, 0], ROW), ValueError, "shift must have shape (4,), got (3,)"),
        (ops.layernorm, (X[:, :0],), ValueError, "x must not be empty, got shape (3, 0)"),
        (ops.layernorm, (X, None, None, -1), ValueError, "eps must be finite and at least 0, got -1"),
        (ops.layernorm, (X, None, None, np.nan), ValueError, "eps must be finite and at least 0, got nan"),
        (ops.layernorm, (X, None, None, "small"), TypeError, "eps must be a number, got 'small'"),
        (
            ops.layernorm,
            (X.astype("f4"), None, None, 1e-46),
            ValueError,
            "eps must be at least 1.175e-38, the smallest",
        ),
        (ops.layernorm_backward, (DY, X, ROW, ROW), ValueError, "dy must have shape (3, 4), got (3, 5)"),
        (ops.layernorm_backward, (X, X, ROW[:2], ROW), ValueError, "mean must have shape (3,), got (2,)"),
        (ops.layernorm_backward, (X, X, ROW, ROW[:, None]), ValueError, "rstd must have shape (3,), got (3, 1)"),
        (ops.layernorm_backward, (X, X, ROW, ROW, ROW), ValueError, "scale must have shape (4,), got (3,)"),
        (ops.gelu, (X, "relu"), ValueError, "form must be one of ('tanh', 'erf'), got 'relu'"),
        (ops.gelu, (X, None), ValueError, "form must be one of ('tanh', 'erf'), got None"),
        (ops.gelu, (NOT_AN_INT,), TypeError, "x must be float32 or float64, got int64"),
        (ops.gelu, (X[:0],), ValueError, "x must not be empty, got shape (0, 4)"),
        (ops.gelu_backward, (X[:2], X), ValueError, "dy must have shape (3, 4), got (2, 4)"),
        (ops.gelu_backward, (X, X, "relu"), ValueError, "form must be one of ('tanh', 'erf'), got 'relu'"),
        (ops.attention, (Q, Q[:, :, :2], Q), ValueError, "k must have shape (1, 2, 3, 4), got (1, 2, 2, 4)"),
        (ops.attention, (Q, Q, Q[..., :2]), ValueError, "v must have shape (1, 2, 3, 4), got (1, 2, 3, 2)"),
        (ops.attention, (Q[0], Q[0], Q[0]), ValueError, "q must have shape (N, H, T, dh), got (2, 3, 4)"),
        (ops.attention, (Q[:0], Q[:0], Q[:0]), ValueError, "q must not be empty, got shape (0, 2, 3, 4)"),
        (ops.attention, (Q, Q.astype(int), Q), TypeError, "k must be float32 or float64, got int64"),
        (
            ops.attention_backward,
            (Q[:, :1], Q, Q, Q, Q, LSE),
            ValueError,
            "do must have shape (1, 2, 3, 4), got (1, 1, 3, 4)",
        ),
        (ops.attention_backward, (Q, Q, Q, Q, Q[0], LSE), ValueError, "o must have shape (1, 2, 3, 4), got (2, 3, 4)"),
        (
            ops.attention_backward,
            (Q, Q, Q, Q, Q, LSE[..., None]),
            ValueError,
            "lse must have shape (1, 2, 3), got (1, 2, 3, 1)",
        ),
        (ops.attention_backward, (Q, Q, Q, Q, Q, None), TypeError, "lse must be an array, got None"),
        *[
            (op, arguments, error, message)
            for op in (ops.cross_entropy, ops.cross_entropy_backward)
            for arguments, error, message in [
                ((X[0], LABELS), ValueError, "logits must have shape (N, classes), got (4,)"),
                ((X[:0], LABELS[:0]), ValueError, "logits must not be empty, got shape (0, 4)"),
                ((X, LABELS[:2]), ValueError, "labels must have shape (3,), one label an image, got (2,)"),
                ((X, LABELS + 2), ValueError, "labels must lie in [0, 4), got values from 2 to 4"),
                ((X, LABELS - 1), ValueError, "labels must lie in [0, 4), got values from -1 to 1"),
                ((X, LABELS * 1.0), TypeError, "labels must have an integer dtype, got float64"),
                ((X, LABELS, 1.0), ValueError, "label_smoothing must be below 1, got 1.0"),
                ((X, LABELS, -0.1), ValueError, "label_smoothing must be finite and at least 0, got -0.1"),
                ((X, LABELS, np.nan), ValueError, "label_smoothing must be finite and at least 0, got nan"),
                ((X, LABELS, "some"), TypeError, "label_smoothing must be a number, got 'some'"),
                (
                    (X.astype("f4"), LABELS, 1 - 1e-9),
                    ValueError,
                    "label_smoothing must be below 1, got 0.999999999 (it",
                ),
                ((X, np.ma.masked_array([1, 2, 10**6], [0, 0, 1])), TypeError, "labels is a masked array"),
            ]
        ],
        *[
            (op, arguments, error, message)
            for op in (ops.exp, ops.tanh, ops.erf)
            for arguments, error, message in [
                ((None,), TypeError, "x must be an array, got None"),
                ((1.0,), ValueError, "x must have at least one axis, got a scalar"),
                ((X[:0],), ValueError, "x must not be empty, got shape (0, 4)"),
                ((NOT_AN_INT,), TypeError, "x must be float32 or float64, got int64"),
            ]
        ],
    ],
    ids=ids,
)
def test_ops(op, arguments, error, message):
    refuses(op, arguments, error, message)


# -------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(config={}), TypeError, "config must be a ViTConfig, got dict"),
        (dict(weights=np.zeros(5)), ValueError, f"weights must have shape ({SIZE},) for this configuration, got (5,)"),
        (
            dict(weights=np.zeros((1, SIZE))),
            ValueError,
            f"weights must have shape ({SIZE},) for this configuration, got (1, {SIZE})",
        ),
        (dict(weights=np.zeros(SIZE, int)), TypeError, "weights must be float32 or float64, got int64"),
        (dict(weights=np.zeros(SIZE, np.float16)), TypeError, "weights must be float32 or float64, got float16"),
        (dict(dtype=np.float16), ValueError, "dtype must be float32 or float64, got float16"),
        (dict(dtype="nonsense"), ValueError, "dtype must be float32 or float64, got nonsense"),
        (
            dict(dtype=np.float64, precision="bf16"),
            ValueError,
            "dtype must be float32 for precision 'bf16', got float64",
        ),
        (
            dict(weights=np.zeros(SIZE), precision="bf16"),
            TypeError,
            "weights must be float32 for precision 'bf16', got",
        ),
        (
            dict(weights=np.zeros(SIZE), precision="auto"),
            TypeError,
            "weights must be float32 for precision 'auto', got",
        ),
        (dict(dtype=np.float32, precision="f64"), ValueError, "dtype must be float64 for precision 'f64', got float32"),
        (dict(precision="bf17"), ValueError, "precision must be one of 'f32', 'f64', 'bf16', 'bf16-fast', 'auto', got"),
        (dict(precision=16), ValueError, "precision must be one of 'f32', 'f64', 'bf16', 'bf16-fast', 'auto', got 16"),
        (dict(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (dict(seed="one"), TypeError, "seed must be an integer, got 'one'"),
        (dict(weights=np.ma.zeros(SIZE)), TypeError, "weights is a masked array: fill it first"),
        (dict(checkpoint="layer"), ValueError, "checkpoint must be None or 'block', got 'layer'"),
    ],
    ids=ids,
)
def test_vit(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ViT(**{"config": CONFIG, **arguments})


@pytest.fixture
def model():
    return ViT(CONFIG, seed=1)


@pytest.mark.parametrize("call", ["forward", "features", "loss_and_grad"])
@pytest.mark.parametrize(
    "x, error, message",
    [
        (IMAGES[0], ValueError, "x must have shape (N, 2, 4, 6), got (2, 4, 6)"),
        (IMAGES[:0], ValueError, "x must hold at least one image, got a batch of 0"),
        (IMAGES[:, :1], ValueError, "x must have shape (N, 2, 4, 6), got (2, 1, 4, 6)"),
        (IMAGES[..., :4], ValueError, "x must have shape (N, 2, 4, 6), got (2, 2, 4, 4)"),
        (IMAGES.transpose(0, 2, 3, 1), ValueError, "x must have shape (N, 2, 4, 6), got (2, 4, 6, 2)"),
        (IMAGES.astype(np.uint8), TypeError, "x must be float32 or float64, got uint8"),
        (None, TypeError, "x must be an array, got None"),
        ("images", TypeError, "x must be float32 or float64, got <U6"),
    ],
    ids=ids,
)
def test_images(model, call, x, error, message):
    y = [np.zeros(2, int)] if call == "loss_and_grad" else []
    before = model.weights.copy()
    refuses(getattr(model, call), [x, *y], error, message)
    assert same_bits(model.weights, before) and model.logits is None


@pytest.mark.parametrize(
    "options, error, message",
    [
        *WRONG_LABELS,
        ({"label_smoothing": 1}, ValueError, "label_smoothing must be below 1, got 1"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be finite and at least 0, got -0.1"),
        ({"label_smoothing": np.nan}, ValueError, "label_smoothing must be finite and at least 0, got nan"),
        ({"label_smoothing": None}, TypeError, "label_smoothing must be a number, got None"),
        ({"out": np.ones(5, np.float32)}, ValueError, f"out must have shape ({SIZE},), got (5,)"),
        ({"out": np.ones((SIZE, 1), np.float32)}, ValueError, f"out must have shape ({SIZE},), got ({SIZE}, 1)"),
        ({"out": np.ones(SIZE)}, TypeError, "out must be a NumPy array of float32, got float64 array"),
        ({"out": np.ones(SIZE, ">f4")}, TypeError, "out must be a NumPy array of float32, got >f4 array"),
        ({"out": [0.0] * SIZE}, TypeError, "out must be a NumPy array of float32, got list"),
        ({"out": np.ones(2 * SIZE, np.float32)[::2]}, ValueError, "out must be contiguous and aligned"),
        (
            {"out": np.ones(4 * SIZE + 1, np.uint8)[1:].view(np.float32)},
            ValueError,
            "out must be contiguous and aligned",
        ),
        (
            {"out": np.broadcast_to(np.float32(1), SIZE).copy()},
            ValueError,
            "out must be writable, got a read-only array",
        ),
        ({"out": np.ma.ones(SIZE, np.float32)}, TypeError, "out is a masked array: fill it first"),
        ({"accumulate": True}, ValueError, "accumulate needs out, the vector that the gradient is added to"),
        ({"accumulate": 1}, TypeError, "accumulate must be True or False, got 1"),
        ({"progress": print}, TypeError, "progress must be a Progress, got <built-in function print>"),
        ({"label_smoothing": 1 - 1e-9}, ValueError, "label_smoothing must be below 1, got 0.999999999 (it rounds to 1"),
        ({"y": np.ma.masked_array([1, 10**6], [0, 1])}, TypeError, "y is a masked array: fill it first"),
    ],
    ids=ids,
)
def test_loss_and_grad(model, options, error, message):
    """Neither weights nor `out` nor what an earlier call left behind change."""
    given = {"y": np.array([1, 2]), **options}
    if "read-only" in message:
        given["out"].flags.writeable = False
    _, gradient = model.loss_and_grad(IMAGES, [3, 4])
    before = model.logits.copy(), gradient.copy(), model.weights.copy()
    y, *rest = given.values()
    keywords = [name for name in given if name != "y"]
    refuses(
        lambda x, y, *values: model.loss_and_grad(x, y, **dict(zip(keywords, values))),
        [IMAGES, y, *rest],
        error,
        message,
    )
    assert same_bits((model.logits, gradient, model.weights), before)


def test_the_gradient_may_not_go_over_its_sources(model):
    with pytest.raises(ValueError, match="out must not overlap the weights"):
        model.loss_and_grad(IMAGES, [1, 2], out=model.weights)
    large = np.ones((SIZE // 48 + 1, 2, 4, 6), np.float32)
    with pytest.raises(ValueError, match="out must not overlap x"):
        model.loss_and_grad(large, np.zeros(len(large), int), out=large.reshape(-1)[:SIZE])
    room = np.zeros(SIZE + 4, np.float32)
    with pytest.raises(ValueError, match="out must not overlap y"):
        model.loss_and_grad(IMAGES, room[:4].view(np.int64), out=room[:SIZE])
    assert (large == 1).all() and not room.any() and same_bits(model.weights, ViT(CONFIG, seed=1).weights)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((0,), ValueError, "batch must be at least 1, got 0"),
        ((2.5,), ValueError, "batch must be a whole number, got 2.5"),
        (("two",), TypeError, "batch must be an integer, got 'two'"),
        ((2**62,), ValueError, "batch must be at most "),
        ((10**15,), ValueError, "batch must be at most "),
        ((10**50,), ValueError, "batch must be at most "),
        ((2, "eval"), ValueError, "mode must be 'train' or 'infer', got 'eval'"),
        ((2, None), ValueError, "mode must be 'train' or 'infer', got None"),
    ],
    ids=ids,
)
def test_plan(model, arguments, error, message):
    refuses(model.plan, arguments, error, message)


@pytest.mark.parametrize(
    "value, error, message",
    [
        (np.zeros(SIZE), TypeError, "weights must be float32, as the model is, got float64"),
        (np.zeros(SIZE, ">f8"), TypeError, "weights must be float32, as the model is, got >f8"),
        (np.zeros(SIZE, np.int32), TypeError, "weights must be float32, as the model is, got int32"),
        (np.zeros(SIZE - 5, np.float32), ValueError, f"weights must have shape ({SIZE},) for this configuration, got"),
        (np.zeros((SIZE, 1), np.float32), ValueError, f"weights must have shape ({SIZE},) for this configuration, got"),
        (np.ma.zeros(SIZE, np.float32), TypeError, "weights is a masked array: fill it first"),
        (None, TypeError, "weights must be an array, got None"),
        ("best", ValueError, f"weights must have shape ({SIZE},) for this configuration, got ()"),
    ],
    ids=ids,
)
def test_weights_assigned(model, value, error, message):
    kept, before = model.weights, model.weights.copy()
    refuses(lambda value: setattr(model, "weights", value), [value], error, message)
    assert model.weights is kept and same_bits(kept, before)


@pytest.mark.parametrize("name", ["config", "layout", "dtype", "precision", "checkpoint", "frozen", "logits"])
def test_what_a_model_is_can_not_be_set(model, name):
    before = getattr(model, name)
    with pytest.raises(AttributeError, match=name):
        setattr(model, name, before)
    assert getattr(model, name) is before


@pytest.mark.parametrize("call", ["forward", "features", "loss_and_grad", "freeze"])
def test_weights_that_were_resized_behind_the_models_back(call):
    weights = cvit.init_weights(CONFIG, 1)
    model = ViT(CONFIG, weights)
    weights.resize(5, refcheck=False)
    arguments = [] if call == "freeze" else [IMAGES, [0, 1]] if call == "loss_and_grad" else [IMAGES]
    refuses(getattr(model, call), arguments, ValueError, f"weights must have shape ({SIZE},) and be float32, but")


def test_an_eps_that_is_none_in_the_models_dtype():
    with pytest.raises(ValueError, match=r"eps must be at least 1.2e-38, the smallest normal float32, got 1e-46"):
        ViTConfig(**{**CONFIG.__dict__, "eps": 1e-46})
    x = np.ones((1, 2, 4, 6))  # all tokens are constant
    assert np.isfinite(ViT(ViTConfig(**{**CONFIG.__dict__, "eps": 1e-37})).forward(x)).all()


# -------------------------------------------------------------------------------------------- configuration, layout


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(image_size=5), ValueError, "patch_size must divide the image size 5x5, got 2"),
        (dict(image_size=(4,)), ValueError, "image_size must be one number or (height, width), got (4,)"),
        (dict(image_size=0), ValueError, "image_size must be at least 1, got 0"),
        (dict(image_size=None), TypeError, "image_size must be an integer, got None"),
        (dict(patch_size=3), ValueError, "patch_size must divide the image size 4x6, got 3"),
        *[
            ({name: value}, error, f"{name} must be {needed}, got {value!r}")
            for name in ("patch_size", "channels", "width", "heads")
            for value, error, needed in [
                (0, ValueError, "at least 1"),
                (-2, ValueError, "at least 1"),
                (1.5, ValueError, "a whole number"),
                ("2", TypeError, "an integer"),
                (True, TypeError, "an integer"),
                (None, TypeError, "an integer"),
            ]
        ],
        (dict(heads=5), ValueError, "heads must divide the width 12, got 5"),
        (dict(width=13), ValueError, "heads must divide the width 13, got 3"),
        (dict(depth=-1), ValueError, "depth must be at least 0, got -1"),
        (dict(hidden=-1), ValueError, "hidden must be at least 0, got -1"),
        (
            dict(pool="max"),
            ValueError,
            "pool must be one of ('cls', 'mean', 'mean_all', 'cls_mean', 'map', 'none'), got",
        ),
        (dict(class_token=-1), ValueError, "class_token must be at least 0, got -1"),
        (dict(class_token=1.5), ValueError, "class_token must be a whole number, got 1.5"),
        (dict(class_token="one"), TypeError, "class_token must be an integer, got 'one'"),
        (dict(class_token=0, pool="cls_mean"), ValueError, "pool 'cls_mean' needs a class token, got class_token=0"),
        *[
            ({name: value}, error, f"{name} must be {needed}, got {value!r}")
            for name in ("classes", "pool_heads", "pre_logits")
            for value, error, needed in [
                (-1, ValueError, "at least 0"),
                (1.5, ValueError, "a whole number"),
                ("2", TypeError, "an integer"),
                (True, TypeError, "an integer"),
                (None, TypeError, "an integer"),
            ]
        ],
        (dict(pool_hidden=-2), ValueError, "pool_hidden must be at least -1, got -2"),
        (dict(pool_heads=5), ValueError, "pool_heads must divide the width 12, got 5"),
        (dict(patch_size=(2,)), ValueError, "patch_size must be one number or (height, width), got (2,)"),
        (dict(patch_size=(2, 0)), ValueError, "patch_size must be at least 1, got 0"),
        (dict(patch_size=(2, 4)), ValueError, "patch_size must divide the image size 4x6, got (2, 4)"),
        (dict(patch_size=(3, 2)), ValueError, "patch_size must divide the image size 4x6, got (3, 2)"),
        *[
            ({name: value}, TypeError, f"{name} must be True, False or None, got {value!r}")
            for name in ("patch_bias", "proj_bias", "mlp_bias", "pool_bias", "head_bias")
            for value in (1, "yes")
        ],
        *[
            (dict(qkv_bias=value), TypeError, f"qkv_bias must be None, True, False or three of these, got {value!r}")
            for value in (1, "yes", (True, False), (True, None, True), ())
        ],
        (dict(norm="batch"), ValueError, "norm must be one of ('layer', 'rms'), got 'batch'"),
        (dict(norm=[]), ValueError, "norm must be one of ('layer', 'rms'), got []"),
        (dict(norm_eps={"ln": 0.1}), ValueError, "norm_eps: norms must be of ("),
        (dict(norm_eps={"norm1": 0}), ValueError, "norm_eps['norm1'] must lie between 0 and 1, got 0.0"),
        (dict(norm_eps=0.1), TypeError, "norm_eps must be a mapping of norms to numbers, got 0.1"),
        (dict(block="serial"), ValueError, "block must be one of ('pre', 'post', 'parallel', 'pairs'), got 'serial'"),
        (dict(block="post", layer_scale=0.1), ValueError, "block 'post' has no layer_scale"),
        (dict(pre_logits_activation="softmax"), ValueError, "pre_logits_activation must be one of ('gelu_tanh',"),
        (dict(rope="axial"), TypeError, "rope must be a Rope or None, got 'axial'"),
        (dict(rope=Rope(), heads=2), ValueError, "rope needs a head width that is a multiple of 4, got 6"),
        (dict(dist_head=True), ValueError, "dist_head needs dist_token=True and pool='cls'"),
        (dict(dist_head=True, dist_token=True, pool="mean"), ValueError, "dist_head needs dist_token=True and pool="),
        *[
            ({"pool": "none", **other}, ValueError, "pool 'none' goes with no fc_norm, pre_logits or dist_head")
            for other in (dict(fc_norm=True), dict(pre_logits=3))
        ],
        (dict(class_token=False), ValueError, "pool 'cls' needs a class token, got class_token=False"),
        (dict(registers=-1), ValueError, "registers must be at least 0, got -1"),
        (dict(registers=None), TypeError, "registers must be an integer, got None"),
        (
            dict(pos_tokens="cls"),
            ValueError,
            "pos_tokens must be one of ('all', 'class', 'patches', 'none'), got",
        ),
        (
            dict(activation="gelu"),
            ValueError,
            "activation must be one of ('gelu_tanh', 'gelu_erf', 'quick_gelu', 'silu', 'relu', 'tanh'), got 'gelu'",
        ),
        (dict(gelu="relu"), ValueError, "gelu must be one of ('tanh', 'erf'), got 'relu'"),
        *[({name: 1}, TypeError, f"{name} must be True or False, got 1") for name in FLAGS],
        (dict(eps=0), ValueError, "eps must lie between 0 and 1, got 0.0"),
        (dict(eps=1), ValueError, "eps must lie between 0 and 1, got 1.0"),
        (dict(eps=1e-46), ValueError, "eps must be at least 1.2e-38, the smallest normal float32, got 1e-46"),
        (dict(eps=np.nan), ValueError, "eps must be finite and at least 0, got nan"),
        *[
            (dict(layer_scale=value), error, f"layer_scale must be {needed}")
            for value, error, needed in [
                ((1, 2, 3), ValueError, "None, one number or a pair, got (1, 2, 3)"),
                ("small", TypeError, "a number, got 'small'"),
                ((0.1, np.nan), ValueError, "finite and at least"),
                (1e39, ValueError, "at most 3.40282e+38, got 1e+39"),
                (True, TypeError, "a number, got True"),
            ]
        ],
        (dict(eps="small"), TypeError, "eps must be a number, got 'small'"),
    ],
    ids=ids,
)
def test_config(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ViTConfig(**{**CONFIG.__dict__, **change})


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(kind="spiral"), ValueError, "rope: kind must be one of ('axial', 'centred', 'mixed'), got 'spiral'"),
        (dict(kind=None), ValueError, "rope: kind must be one of"),
        (dict(theta=0), ValueError, "rope: theta must be above 0 and at most 1e30, got 0.0"),
        (dict(theta=-1), ValueError, "rope: theta must be"),
        (dict(theta=1e31), ValueError, "rope: theta must be above 0 and at most 1e30, got 1e+31"),
        (dict(theta=np.nan), ValueError, "rope: theta must be finite"),
        (dict(theta="large"), TypeError, "rope: theta must be a number, got 'large'"),
        (dict(offset=np.inf), ValueError, "rope: offset must be finite"),
        (dict(offset=1e7), ValueError, "rope: offset must be at most 1e6, got 10000000.0"),
        (dict(reference=16), ValueError, "rope: reference must be None or (rows, columns), got 16"),
        (dict(reference=(16,)), ValueError, "rope: reference must be None or (rows, columns), got (16,)"),
        (dict(reference=(16, 0)), ValueError, "rope: reference must be at least 1, got 0"),
        (dict(reference=(16, "16")), TypeError, "rope: reference must be an integer, got '16'"),
        (dict(columns_first=1), TypeError, "rope: columns_first must be True or False, got 1"),
    ],
    ids=ids,
)
def test_rope(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Rope(**arguments)


@pytest.mark.parametrize("name", ["X/16", "S", "S/", "S/x", "S/-1", "s/16", "S/16/2", "", None, 16])
def test_variant(name):
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"name must be one of Ti, S, M, B, L, So400m, H, g, G, e with a patch size, like 'S/16', got {name!r}"
        ),
    ):
        ViTConfig.variant(name)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "null", "{", None, 3, '{"width": 3}', "[" * 100_000])
def test_config_from_json(text):
    with pytest.raises(ValueError, match=r"config (is not valid JSON|must be a JSON object)"):
        ViTConfig.from_json(text)


def test_config_from_json_with_a_wrong_value():
    with pytest.raises(ValueError, match="config: width must be an integer, got '12'"):
        ViTConfig.from_json(CONFIG.to_json().replace('"width": 12', '"width": "12"'))
    with pytest.raises(ValueError, match="config has keys that format 4 does not know: breadth"):
        ViTConfig.from_json(CONFIG.to_json().replace("width", "breadth"))


def test_layout():
    layout = Layout.of(CONFIG)
    tensors = layout.views(np.zeros(SIZE))
    for flat, error, message in [
        (np.zeros(5), ValueError, f"weights must have shape ({SIZE},) for this configuration, got (5,)"),
        ([0.0] * SIZE, TypeError, "weights must be a NumPy array, got list"),
        (None, TypeError, "weights must be a NumPy array, got NoneType"),
    ]:
        refuses(layout.views, [flat], error, message)
    for given, error, message in [
        ({name: tensors[name] for name in tensors if name != "norm.bias"}, ValueError, "tensors lacks norm.bias"),
        ({**tensors, "other": 1}, ValueError, "tensors has names that this configuration does not know: other"),
        ({**tensors, "norm.bias": np.zeros(3)}, ValueError, "norm.bias must have shape (12,), got (3,)"),
        (None, TypeError, "tensors must be a mapping of name to array, got NoneType"),
    ]:
        refuses(layout.pack, [given], error, message)
    refuses(Layout.of, [None], TypeError, "config must be a ViTConfig, got NoneType")
