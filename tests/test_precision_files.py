"""Files and bfloat16: weights rounded in them, a model's precision in them, weights that stay in the file's map."""

import copy
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from checks import same_bits
from precision_cases import SMALL, batch, model, weights
from reference_bf16 import float_of, nearest

import cvit
from cvit import AdamW, ViT, ViTConfig
from cvit.base.arrays import is_fixed
from cvit.formats.bfloat16 import bits_of
from cvit.formats.safetensors_file import read_safetensors

SQUARE = ViTConfig(image_size=8, patch_size=4, width=32, depth=2, heads=2, hidden=64, classes=5)  # as others have them


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_to_bfloat16(dtype):
    rng = np.random.default_rng(0)
    step = 2.0**-7
    values = np.concatenate([
        rng.standard_normal(300) * 10.0 ** rng.integers(-38, 38, 300),
        [0.0, -0.0, 1.0, 1 + step / 2, 1 + 1.5 * step, -1 - 2.5 * step, 1 + step / 2 + 2.0**-23],
        [1 + step / 2 + 2.0**-40, 1 + step / 2 - 2.0**-40, 2.0**-134, 2.0**-134 * (1 + 2.0**-20), 2.0**-160],
        [2.0**-133, 1.5 * 2.0**-133],
    ]).astype(dtype)  # fmt: skip
    found = float_of(bits_of(values))
    assert np.array_equal(found.astype(np.float64), nearest(values))
    assert np.array_equal(np.signbit(found), np.signbit(values))


def test_what_is_no_number_in_bfloat16():
    with np.errstate(over="ignore"):
        values = np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e39], np.float64)
    for x in (values, values[:5].astype(np.float32)):
        found = float_of(bits_of(x))
        assert np.array_equal(found[:5], np.array([np.inf, -np.inf, np.nan, np.inf, -np.inf]), equal_nan=True)
    quiet = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)  # whose upper bits alone are an infinity's
    assert np.isnan(float_of(bits_of(quiet))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_of_bfloat16_holds_the_rounded_weights(tmp_path, dtype):
    made = ViT(SMALL, weights().astype(dtype))
    cvit.save(tmp_path / "whole.safetensors", made)
    cvit.save(tmp_path / "half.safetensors", made, dtype="bf16")
    made.save(tmp_path / "folder", dtype="bf16")
    sizes = [(tmp_path / name).stat().st_size for name in ("whole.safetensors", "half.safetensors")]
    assert sizes[1] < 0.6 * sizes[0]
    for path in ("half.safetensors", "folder"):
        read = cvit.load(tmp_path / path)
        assert (read.dtype, read.precision) == (np.float32, "f32")
        assert np.array_equal(read.weights, nearest(made.weights))
    again = cvit.load(tmp_path / "half.safetensors", dtype=np.float64)
    assert again.precision == "f64" and np.array_equal(again.weights, read.weights)


def test_a_damaged_file_of_bfloat16_is_refused(tmp_path):
    path = tmp_path / "half.safetensors"
    cvit.save(path, model(), dtype="bf16")
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        cvit.load(path)


def test_other_libraries_files_in_bfloat16(tmp_path):
    made = ViT(SQUARE, weights(SQUARE))
    for names in ("timm", "hf"):
        made.save(tmp_path / names, names, dtype="bf16")
        file = read_safetensors(tmp_path / names / "model.safetensors")
        assert {tensor.dtype for tensor in file.values()} == {"bfloat16"} and file.metadata == {"format": "pt"}
        assert np.array_equal(cvit.load(tmp_path / names).weights, nearest(made.weights))
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "hf" / "config.json").read_text()


@pytest.mark.parametrize("path, dtype, message", [
    ("a.npz", "bf16", "dtype must be None for names 'npz', whose files have no bfloat16, got 'bf16'"),
    ("a.onnx", "bf16", "dtype must be None for names 'onnx', whose files have no bfloat16, got 'bf16'"),
    ("a.safetensors", "f16", "dtype must be 'bf16' or None, got 'f16'"),
    ("a.safetensors", np.float32, "dtype must be 'bf16' or None, got <class 'numpy.float32'>"),
])  # fmt: skip
def test_files_without_bfloat16(tmp_path, path, dtype, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model().save(tmp_path / path, dtype=dtype)
    assert not any(tmp_path.iterdir())


def test_a_file_says_its_models_precision(tmp_path):
    path = tmp_path / "a.safetensors"
    made = model()
    made.save(path)
    x, _ = batch()
    assert cvit.load(path).precision == "bf16" and same_bits(cvit.load(path).forward(x), made.forward(x))
    assert cvit.load(path, dtype=np.float32).precision == "bf16"
    assert cvit.load(path, classes=3).precision == "bf16"
    for precision in ("f32", "f64"):
        assert cvit.load(path, precision=precision).precision == precision
    assert cvit.load(path, dtype=np.float64).precision == "f64"
    assert cvit.checkpoint.read_metadata(path) == {}
    model(precision="f32").save(path)
    assert b"cvit.precision" not in path.read_bytes() and cvit.load(path).precision == "f32"
    assert cvit.load(path, precision="bf16").precision == "bf16"


def test_a_precision_that_a_file_says_wrongly_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(
        cvit.checkpoint, "notes_of", lambda m: {"cvit.config": m.config.to_json(), "cvit.precision": "b"}
    )
    model().save(path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: precision must be one of 'f32', 'f64', 'bf16'")):
        cvit.load(path)


def test_whatever_is_loaded_gets_the_precision_asked_for(tmp_path):
    ViT(SQUARE, weights(SQUARE)).save(tmp_path / "timm", "timm")
    made = cvit.load(tmp_path / "timm", precision="bf16")
    assert (made.precision, made.dtype) == ("bf16", np.float32)
    tensors = {name: values.astype(np.float64) for name, values in _arrays(tmp_path / "timm").items()}
    assert cvit.from_state_dict(tensors, num_heads=2).precision == "f64"
    assert cvit.from_state_dict(tensors, num_heads=2, precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match="dtype must be float32 for precision 'bf16', got float64"):
        cvit.from_state_dict(tensors, num_heads=2, precision="bf16", dtype=np.float64)
    with pytest.raises(ValueError, match="precision must be one of"):
        cvit.load(tmp_path / "timm", precision="half")


def _arrays(folder):
    from safetensors import numpy as safetensors_numpy

    return safetensors_numpy.load_file(folder / "model.safetensors")


# ------------------------------------------------------------------------------------------- weights in the file's map
def test_weights_can_stay_in_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    model().save(path)
    made, x = cvit.load(path, mmap=True), batch()[0]
    assert is_fixed(made.weights) and not made.weights.flags.writeable
    expected = model().forward(x)
    assert same_bits(made.forward(x), expected)
    frozen = made.freeze()._state
    assert np.shares_memory(frozen.weights, frozen.thawed) and same_bits(made.forward(x), expected)
    assert is_fixed(made.unfreeze().weights)
    with pytest.raises(ValueError, match="weights must be writable, got a read-only array"):
        AdamW(made).step(made.weights, np.zeros_like(made.weights))
    copied = copy.deepcopy(made)
    copied.weights[:] = 0
    assert same_bits(made.forward(x), expected)


@pytest.mark.parametrize("stored", [None, "bf16", "timm"])
@pytest.mark.parametrize("how", [dict(precision="f64"), dict(classes=3), dict(precision="bf16")])
def test_weights_that_have_to_be_converted_are_in_memory_once(tmp_path, stored, how):
    made = ViT(SQUARE, weights(SQUARE))
    path = tmp_path / ("folder" if stored == "timm" else "a.safetensors")
    made.save(path, *(["timm"] if stored == "timm" else []), dtype="bf16" if stored == "bf16" else None)
    read = cvit.load(path, mmap=True, **how)
    assert is_fixed(read.weights) and same_bits(read.weights, cvit.load(path, **how).weights)
    state = read.freeze()._state
    assert np.shares_memory(state.weights, state.thawed)


def test_mmap_is_true_or_false(tmp_path):
    with pytest.raises(TypeError, match="mmap must be True or False, got 1"):
        cvit.load(tmp_path, mmap=1)


SHARING = """
import re, sys, cvit
def file_pages(path):
    sizes, inside = {}, False
    for line in open("/proc/self/smaps"):
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.rstrip().endswith(path)
        elif inside:
            name, value = line.split(":")
            if value.endswith("kB\\n"):
                sizes[name] = sizes.get(name, 0) + int(value.split()[0])
    return sizes
path = sys.argv[1]
model = cvit.load(path, precision="bf16", mmap=True).freeze()
size = model.weights.nbytes / 1024
pages = file_pages(path)
print(pages["Rss"] / size, pages["Private_Dirty"] / size, pages["Anonymous"] / size, flush=True)
sys.stdin.read()
pages = file_pages(path)
print(pages["Shared_Clean"] / size)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="only Linux tells how pages are shared")
def test_processes_share_the_weights_in_a_file(tmp_path):
    """Two processes that freeze the same file hold one copy of its pages between them, and none of their own."""
    path = str(tmp_path / "a.safetensors")
    wide = ViTConfig(image_size=16, patch_size=4, width=256, depth=4, heads=4, classes=10)
    cvit.save(path, ViT(wide))
    command = [sys.executable, "-c", SHARING, path]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    firsts = [[float(part) for part in process.stdout.readline().split()] for process in both]
    lasts = [float(process.communicate("")[0]) for process in both]
    for mapped, dirty, anonymous in firsts:
        assert mapped > 0.9 and dirty == anonymous == 0
    assert max(lasts) > 0.9  # the one that told last while the other was there
