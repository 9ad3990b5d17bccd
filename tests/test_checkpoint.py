"""Models through files: what comes back, and a table of damaged and hostile files."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from cvit import checkpoint
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT

SMALL = dict(image_size=(8, 4), patch_size=4, channels=1, width=6, depth=2, heads=2, hidden=10, classes=3)
CONFIGS = [
    ViTConfig(**SMALL),
    ViTConfig(**SMALL, pool="mean", gelu="erf", eps=1e-3),
    ViTConfig.plain(**{**SMALL, "hidden": 6}),
]


def random_model(config=CONFIGS[0], dtype=np.float32):
    model = ViT(config, seed=0, dtype=dtype)
    model.weights[:] = np.random.default_rng(0).normal(size=model.layout.size)
    return model


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_saved_comes_back(tmp_path, config, dtype):
    model = random_model(config, dtype)
    checkpoint.save(tmp_path / "model.safetensors", model, metadata={"note": "größer"})
    loaded = checkpoint.load(str(tmp_path / "model.safetensors"))
    assert loaded.config == config and loaded.weights.dtype == dtype
    np.testing.assert_array_equal(loaded.weights, model.weights)
    assert checkpoint.read_metadata(tmp_path / "model.safetensors") == {"note": "größer"}
    assert os.listdir(tmp_path) == ["model.safetensors"]
    loaded.weights += 1  # in memory of its own, not the file's


def test_the_file_reads_without_cvit(tmp_path):
    model = random_model()
    checkpoint.save(tmp_path / "model.safetensors", model)
    tensors = safetensors_numpy.load_file(tmp_path / "model.safetensors")
    views = model.layout.views(model.weights)
    assert tensors.keys() == views.keys()
    for name, view in views.items():
        np.testing.assert_array_equal(tensors[name], view)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_text("old")

    def full_disk(filename, tensors, metadata, **options):
        Path(filename).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "write_checked", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, random_model())
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "metadata, error", [({"epochs": 3}, TypeError), ({1: "a"}, TypeError), ({checkpoint.CONFIG_KEY: "{}"}, ValueError)]
)
def test_bad_metadata(tmp_path, metadata, error):
    with pytest.raises(error, match="metadata must"):
        checkpoint.save(tmp_path / "model.safetensors", random_model(), metadata=metadata)
    assert not os.listdir(tmp_path)


# ------------------------------------------------------------------------------------------------------- hostile files
def model_file(config_text=None, metadata=None, **changed_tensors) -> bytes:
    """A model file with another config, or with some tensors replaced (None removes one)."""
    model = random_model()
    tensors = {**model.layout.views(model.weights), **changed_tensors}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if metadata is None:
        metadata = {checkpoint.CONFIG_KEY: model.config.to_json() if config_text is None else config_text}
    return safetensors_numpy.save(tensors, metadata)


def with_config(**changes) -> bytes:
    return model_file(json.dumps({**json.loads(CONFIGS[0].to_json()), **changes}))


def raw(header: bytes, data: bytes = b"", length=None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def with_header(**changes) -> bytes:
    """A model file with some of the header's entries replaced; tensors keep their data."""
    content = model_file()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    for name, entry in changes.items():
        header[name] = {**entry, "data_offsets": header[name]["data_offsets"]}
    return raw(json.dumps(header).encode(), content[end:])


def of_dtype(dtype) -> bytes:
    model = random_model()
    tensors = {name: view.astype(dtype) for name, view in model.layout.views(model.weights).items()}
    return safetensors_numpy.save(tensors, {checkpoint.CONFIG_KEY: model.config.to_json()})


LONG = "x" * 100_000
NOT_SAFETENSORS = "is not a safetensors file"
WRONG_CONFIG = "has a wrong config"
HOSTILE = {
    "empty file": (lambda: b"", NOT_SAFETENSORS),
    "text": (lambda: b"these are not the weights you are looking for", NOT_SAFETENSORS),
    "a pickle": (lambda: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system", NOT_SAFETENSORS),
    "data cut off": (lambda: model_file()[:-1], "must lie within the .* the file may be cut off"),
    "data too long": (lambda: model_file() + b"\0", "1 bytes after the last tensor belong to none"),
    "header cut off": (lambda: model_file()[:100], NOT_SAFETENSORS),
    "header length beyond the file": (lambda: raw(b"{}", length=1 << 20), NOT_SAFETENSORS),
    "header length of 2^63": (lambda: raw(b"{}", length=1 << 63), NOT_SAFETENSORS),
    "header is not JSON": (lambda: raw(b"not JSON"), NOT_SAFETENSORS),
    "header is nested deeply": (lambda: raw(b'{"a":' * 100_000), NOT_SAFETENSORS),
    "tensor of 2^62 values": (
        lambda: raw(b'{"w":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}', b"\0" * 4),
        r"'w' must have a shape of at most 32 lengths and 2\^60 values",
    ),
    "no checksum": (lambda: model_file(), "is damaged .* a file of format 4 must have a checksum"),
    "no metadata": (lambda: raw(b"{}"), "has no 'cvit.config' in its metadata"),
    "another program's file": (lambda: model_file(metadata={"format": "pt"}), "has no 'cvit.config' in its metadata"),
    "config is not JSON": (lambda: model_file("{'width': 6}"), WRONG_CONFIG),
    "config is a list": (lambda: model_file("[]"), WRONG_CONFIG),
    "config is nested deeply": (lambda: model_file("[" * 100_000), "its header has 100.* brackets"),
    "config lacks a key": (lambda: model_file("{}"), WRONG_CONFIG),
    "config of a later format": (
        lambda: with_config(format=5, reader="9.1"),
        "config is of format 5, which cvit-cpu 9.1 or later reads",
    ),
    "config of a later format with a long reader": (lambda: with_config(format=5, reader=LONG), WRONG_CONFIG),
    "config with a further key": (lambda: with_config(path="/etc"), WRONG_CONFIG),
    "config with a text for a number": (lambda: with_config(width="six"), WRONG_CONFIG),
    "config with a long number": (lambda: model_file('{"width": ' + "9" * 5000 + "}"), WRONG_CONFIG),
    "config with a huge epsilon": (lambda: with_config(eps=10**400), WRONG_CONFIG),
    "config with a negative depth": (lambda: with_config(depth=-1), WRONG_CONFIG),
    "config with heads that don't divide": (lambda: with_config(heads=4), WRONG_CONFIG),
    "config of 10^15 blocks": (lambda: with_config(depth=10**15), "too few for the 1000000000000000 blocks"),
    "config of one block more": (lambda: with_config(depth=3), "lacks 16 of its config's tensors: blocks.2"),
    "config of one block less": (lambda: with_config(depth=1), "has 16 tensors unknown to its config: blocks.1"),
    "config of a huge width": (lambda: with_config(width=2**40), "must have shape"),
    "config of a huge image": (lambda: with_config(image_size=[2**40, 2**40]), "must have shape"),
    "config without biases": (
        lambda: with_config(bias=False),
        "unknown to its config: blocks.0.attn.k.bias, .* and 11 more",
    ),
    "tensor missing": (lambda: model_file(cls_token=None), "lacks 1 of its config's tensors: cls_token"),
    "tensor too many": (lambda: model_file(extra=np.zeros(2, np.float32)), "unknown to its config: extra"),
    "no tensors": (
        lambda: safetensors_numpy.save({}, {checkpoint.CONFIG_KEY: CONFIGS[0].to_json()}),
        "too few for the 2 blocks",
    ),
    "tensor transposed": (
        lambda: model_file(pos_embed=np.zeros((6, 3), np.float32)),
        r"pos_embed must have shape \(3, 6\), got \(6, 3\)",
    ),
    "tensor of another dtype": (
        lambda: model_file(cls_token=np.zeros(6, np.float64)),
        r"must be all F32, all F64 or all BF16, got \['F32', 'F64'\]",
    ),
    "float16": (lambda: of_dtype(np.float16), r"must be all F32, all F64 or all BF16, got \['F16'\]"),
    "int32": (lambda: of_dtype(np.int32), r"must be all F32, all F64 or all BF16, got \['I32'\]"),
    "tensor of a long name": (lambda: model_file(**{LONG: np.zeros(2, np.float32)}), "unknown to its config: xxx"),
    "tensor of a long name beyond the file": (
        lambda: raw(b'{"%s":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}' % LONG.encode(), b"\0" * 4),
        "must lie within the 4 bytes of data",
    ),
    "tensor of many axes": (
        lambda: with_header(cls_token={"dtype": "F32", "shape": [6] + [1] * 50_000}),
        "'cls_token' must have a shape of at most 32 lengths",
    ),
    "config with a long key": (lambda: with_config(**{LONG: 1}), WRONG_CONFIG),
    "config with a long text": (lambda: with_config(pool=LONG), WRONG_CONFIG),
    "config with a long text for a number": (lambda: with_config(width=LONG), WRONG_CONFIG),
    "config of 10^4000 blocks": (lambda: with_config(depth=10**4000), "too few for the 1000000"),
    "config of a patch of 10^4000": (
        lambda: with_config(image_size=10**4000, patch_size=10**4000),
        "must have shape a number of thousands of digits",
    ),
}


@pytest.mark.parametrize("content, message", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(tmp_path, content, message):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=f"hostile.safetensors.* ?{message}") as caught:
        checkpoint.load(path)
    assert len(str(caught.value)) < 1000  # whatever the file says


def test_every_truncation_is_an_error(tmp_path):
    path, content = tmp_path / "cut.safetensors", model_file()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors"):
            checkpoint.load(path)


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        checkpoint.load(tmp_path / "none.safetensors")
    with pytest.raises(OSError, match=tmp_path.name):
        checkpoint.load(tmp_path)
