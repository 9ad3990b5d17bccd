"""The framework of families: transformations and their inverses, recognition, and files that are not what they say."""

import dataclasses

import numpy as np
import pytest

from cvit import families
from cvit.families import Family, Row
from cvit.families.transform import CONVOLUTION, LINEAR, PIXELS_FIRST, SAME, TOKEN, TOKENS, Axes, Zero
from cvit.model.config import ViTConfig
from cvit.model.layout import Layout
from cvit.model.rope import pairs_first

CONFIG = ViTConfig(
    image_size=(4, 9), patch_size=(2, 3), channels=2, width=24, depth=2, heads=3, hidden=7, classes=5, registers=2
)

CASES = {  # transformation, our shape, their shape
    "same": (SAME, (3, 4), (3, 4)),
    "linear": (LINEAR, (24, 7), (7, 24)),
    "convolution": (CONVOLUTION, (12, 24), (24, 2, 2, 3)),
    "linear of pixels": (PIXELS_FIRST, (12, 24), (24, 12)),
    "token": (TOKEN, (24,), (1, 1, 24)),
    "tokens": (TOKENS, (5, 24), (1, 5, 24)),
    "heads": (Axes("i (H d)", "i H d"), (24, 24), (24, 3, 8)),
    "stacked": (Axes("(H d) o", "1 H d o"), (24, 24), (1, 3, 8, 24)),
    "stacked, whatever it is": (Axes("...", "1 ..."), (24, 7), (1, 24, 7)),
    "neighbours": (Axes("i o", "o i", pairs=True), (5, 24), (24, 5)),
    "neighbours' bias": (Axes(pairs=True), (24,), (24,)),
    "norm of neighbours": (Axes(pairs=True), (8,), (8,)),
}


@pytest.mark.parametrize("case", CASES)
def test_transformations_are_inverse(case):
    how, ours, theirs = CASES[case]
    tensor = np.arange(np.prod(ours), dtype=np.float32).reshape(ours)
    piece = how.there(tensor, CONFIG)
    assert piece.shape == theirs == how.shape(ours, CONFIG)
    assert np.array_equal(how.here(piece, ours, CONFIG), tensor)


def test_pixels():
    """Row (c, y, x) of the patch matrix is pixel (y, x) of channel c, in a convolution and behind flattened pixels."""
    matrix = np.arange(12 * 24).reshape(12, 24)
    convolution, linear = CONVOLUTION.there(matrix, CONFIG), PIXELS_FIRST.there(matrix, CONFIG)
    for c, y, x in np.ndindex(2, 2, 3):
        row = matrix[(c * 2 + y) * 3 + x]
        assert np.array_equal(convolution[:, c, y, x], row)
        assert np.array_equal(linear[:, (y * 3 + x) * 2 + c], row)


def test_neighbours():
    """Our column j of a head is their output 2 j, and column j + half theirs 2 j + 1."""
    theirs = np.arange(24)
    ours = Axes(pairs=True).here(theirs, (24,), CONFIG)
    assert np.array_equal(ours, theirs[pairs_first(3, 8)])
    assert np.array_equal(ours[8:16], [8, 10, 12, 14, 9, 11, 13, 15])


class Odd(Family):
    """A family with every kind of row."""

    name = "odd"
    marks = ("patches",)
    prefixes = ("net.",)
    aliases = ((r"^old_", ""),)
    ignored = (r"mask",)

    def config(self, given):
        return dataclasses.replace(CONFIG, depth=given.json.get("depth", 2))

    def rows(self, config, style=frozenset()):
        def prefix(config):
            return 0, config.pos_prefix

        def rest(config):
            return config.pos_prefix, config.pos_rows

        norms = [(x, x) for x in ("norm.weight", "norm.bias", "head.bias", "patch_embed.bias", "cls_token")]
        rows = [Row(theirs, ours, SAME) for theirs, ours in norms]
        rows += [
            Row("patches", "patch_embed.weight", CONVOLUTION),
            Row("registers", "reg_token", TOKENS),
            Row("first_positions", "pos_embed", Axes(part=prefix)),
            Row("positions", "pos_embed", Axes("T D", "1 T D", part=rest)),
            Row("head.weight", "head.weight", LINEAR),
        ]
        for name in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"):
            how = SAME if "norm" in name else LINEAR
            rows += [Row(f"{{i}}.{name}.w", f"blocks.{{i}}.{name}.weight", how)]
            rows += [Row(f"all.{name}.b", f"blocks.{{i}}.{name}.bias", Axes("...", "1 ..."))]
        rows += [Row("{i}.qkv.w", f"blocks.{{i}}.attn.{x}.weight", LINEAR) for x in "qkv"]
        rows += [Row("{i}.qkv.b", "blocks.{i}.attn.q.bias", SAME)]
        rows += [Row("{i}.qkv.b", "", Zero(lambda config: (config.width,)))] if style else []
        rows += [Row("{i}.qkv.b", "blocks.{i}.attn.k.bias", SAME), Row("{i}.qkv.b", "blocks.{i}.attn.v.bias", SAME)]
        return rows


def odd(style=frozenset()):
    weights = np.random.default_rng(0).standard_normal(Layout.of(CONFIG).size).astype(np.float32)
    arrays, _ = families.write(CONFIG, weights, Odd(), style)
    return weights, arrays


def test_every_kind_of_row():
    weights, arrays = odd()
    assert arrays["all.mlp.fc1.b"].shape == (2, 7)
    assert arrays["first_positions"].shape == (3, 24)
    assert arrays["positions"].shape == (1, 6, 24)
    model = families.read(arrays, [Odd()])
    assert model.config == CONFIG
    assert np.array_equal(model.weights, weights)
    other = {f"net.old_{name}": array for name, array in arrays.items()} | {"net.mask": np.zeros(1)}
    assert families.recognise(list(other), None, [families.FAMILIES[0], Odd()]).name == "odd"
    assert np.array_equal(families.read(other, [Odd()]).weights, weights)


def test_numbers_that_must_be_zero():
    style = frozenset(["zeros"])
    weights, arrays = odd(style)
    assert arrays["0.qkv.b"].shape == (96,)
    assert not arrays["0.qkv.b"][24:48].any()
    assert np.array_equal(families.read(arrays, [Odd()], style=style).weights, weights)
    arrays["1.qkv.b"][30] = 1
    with pytest.raises(ValueError, match="1.qkv.b: must be zero"):
        families.read(arrays, [Odd()], style=style)


class Lazy:
    """A tensor of a file: its shape is known, its numbers are read when asked for."""

    def __init__(self, array, read):
        self.shape, self.array, self.log = array.shape, array, read

    def read(self, *, strict):
        self.log.append(1)
        return self.array


def test_nothing_is_read_before_all_shapes_are_right():
    weights, arrays = odd()
    log = []
    lazy = {name: Lazy(array, log) for name, array in arrays.items()}
    assert np.array_equal(families.read(lazy, [Odd()]).weights, weights)
    assert len(log) == len(arrays)
    log.clear()
    lazy["norm.bias"] = Lazy(np.zeros(23, np.float32), log)
    with pytest.raises(ValueError, match=r"norm.bias must have shape \(24,\), got \(23,\)"):
        families.read(lazy, [Odd()])
    assert not log


@pytest.mark.parametrize("depth", [10**9, 10**100])
def test_a_depth_that_no_file_has(depth):
    _, arrays = odd()
    with pytest.raises(ValueError, match="blocks cannot stand in a file of"):
        families.read(arrays, [Odd()], {"depth": depth})


def test_two_names_of_one_tensor():
    _, arrays = odd()
    arrays["old_norm.bias"] = arrays["norm.bias"]
    with pytest.raises(ValueError, match="are two names of one tensor"):
        families.read(arrays, [Odd()])


def test_a_file_of_no_family():
    with pytest.raises(ValueError, match="is of no known family .*timm eva, timm, .*; its tensors begin with a, b"):
        families.read({"a": np.zeros(1), "b": np.zeros(1)}, families.FAMILIES)


def test_a_family_by_name():
    assert families.family_named("timm").name == "timm"
    with pytest.raises(ValueError, match="family must be one of .*timm eva, timm"):
        families.family_named("keras")


def test_an_option_that_a_library_lacks():
    config = dataclasses.replace(CONFIG, block="parallel", class_token=2)
    weights = np.zeros(Layout.of(config).size, np.float32)
    with pytest.raises(ValueError, match="timm has no model with 2 class tokens"):
        families.write(config, weights, families.family_named("timm"))
    config = dataclasses.replace(CONFIG, layer_scale=0.1)
    weights = np.zeros(Layout.of(config).size, np.float32)
    with pytest.raises(ValueError, match="torchvision has no place for blocks.0.ls1.gamma"):
        families.write(config, weights, families.family_named("torchvision"))
    config = ViTConfig(image_size=8, patch_size=4, width=8, heads=2, depth=1, activation="relu")
    weights = np.zeros(Layout.of(config).size, np.float32)
    with pytest.raises(ValueError, match="'torchvision' cannot say activation='relu'"):
        families.write(config, weights, families.family_named("torchvision"))
