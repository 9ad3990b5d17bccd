"""Checksums in safetensors files: every flipped bit of a model's file, and what other libraries read and write."""

import json
import os
import re

import numpy as np
import pytest
from checks import on_all_threads, same_bits
from safetensors import numpy as safetensors_numpy

import cvit
from cvit.formats import checkpoint, checksum
from cvit.formats.checksum import BLOCK, KEY, PART, ROW, read_checked, write_checked
from cvit.formats.safetensors_file import HEADER_BYTES
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT

CONFIG = ViTConfig.plain(image_size=4, patch_size=4, channels=1, width=2, depth=0, heads=1, classes=2)


def saved(path):
    model = ViT(CONFIG, seed=0, class_names=["größer", "b"])
    checkpoint.save(path, model, metadata={"note": "[{ é"})
    return model, path.read_bytes()


def test_every_flipped_bit_of_a_model_is_refused(tmp_path):
    """All of the header and of the data; `cvit.load`, which asks first whose the file is, at some of them."""
    path = tmp_path / "model.safetensors"
    _, content = saved(path)
    start = 8 + int.from_bytes(content[:8], "little")
    with open(path, "r+b", buffering=0) as file:
        for bit in range(8 * len(content)):
            byte = content[bit // 8]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            with pytest.raises(ValueError, match=r"model\.safetensors"):
                (checkpoint.load if bit % 31 else cvit.load)(path)
            os.pwrite(file.fileno(), bytes([byte]), bit // 8)
        os.pwrite(file.fileno(), bytes([content[start] ^ 8]), start)
    with pytest.raises(
        ValueError, match=r"model\.safetensors is damaged: its contents are not those that its checksum"
    ):
        cvit.load(path)


def test_what_is_written_comes_back(tmp_path, rng):
    """Of every dtype, empty ones and numbers without axes; metadata of any text."""
    kinds = ("float64", "float32", "float16", "bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "uint64")
    arrays = {kind: rng.integers(0, 2, (3, 5)).astype(kind) for kind in kinds}
    arrays |= {"empty": np.empty((0, 3), np.float32), "number": np.array(2.5), "strided": np.arange(12.0)[::3]}
    arrays |= {"reversed": np.arange(3, dtype=">f4"), "odd": np.ones(3, np.uint8)}
    metadata = {"text": 'größer "[[{{\\', "": "", "a": "\ud800".encode("utf-8", "replace").decode()}
    write_checked(tmp_path / "a.safetensors", arrays, metadata)
    tensors, checked = read_checked(tmp_path / "a.safetensors")
    assert checked and tensors.metadata.keys() == {KEY, *metadata}
    assert {name: tensors.metadata[name] for name in metadata} == metadata
    theirs = safetensors_numpy.load_file(tmp_path / "a.safetensors")
    assert theirs.keys() == arrays.keys() == set(tensors)
    for name, array in arrays.items():
        wanted = array.astype(array.dtype.newbyteorder("="))
        assert same_bits(theirs[name], wanted)
        np.testing.assert_array_equal(tensors[name].read(), array)


def test_no_arrays_and_no_metadata(tmp_path):
    write_checked(tmp_path / "a.safetensors", {}, {})
    tensors, checked = read_checked(tmp_path / "a.safetensors")
    assert checked and not tensors and not safetensors_numpy.load_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("size", [1, 8 * ROW - 1, 8 * ROW, BLOCK + 8 * ROW + 3, PART, 2 * PART + BLOCK + 8 * ROW + 1])
def test_large_data(tmp_path, rng, size):
    """The same digits for any number of threads; bits at both ends, exchanged rows and columns."""
    path, data = tmp_path / "a.safetensors", rng.integers(0, 256, size, dtype=np.uint8)

    def write():
        write_checked(path, {"a": data}, {})
        return np.frombuffer(read_checked(path)[0].metadata[KEY].encode(), np.uint8)

    on_all_threads(write)
    content = bytearray(path.read_bytes())
    start = len(content) - size
    for place in {start, start + size // 2, len(content) - 1}:
        content[place] ^= 128
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            read_checked(path)
        content[place] ^= 128
    numbers = np.frombuffer(content, np.uint8, size, start).copy()
    for one, other in [(0, 8), (0, 8 * ROW), (8, 8 * ROW + 16), (0, BLOCK), (0, PART)]:
        if other + 8 <= size:
            numbers[one : one + 8], numbers[other : other + 8] = data[other : other + 8], data[one : one + 8]
            path.write_bytes(content[:start] + numbers.tobytes())
            with pytest.raises(ValueError, match="is damaged"):
                read_checked(path)
            numbers[:] = data
    path.write_bytes(content)
    assert read_checked(path)[1]


def test_files_of_other_libraries_have_none_and_are_read(tmp_path):
    safetensors_numpy.save_file({"a": np.ones(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    tensors, checked = read_checked(tmp_path / "a.safetensors")
    assert not checked and tensors["a"].read().sum() == 3


def test_a_model_without_its_checksum(tmp_path):
    """Files of earlier formats have none; one of this format must."""
    model, _ = saved(path := tmp_path / "model.safetensors")
    fields = json.loads(CONFIG.to_json())
    views = model.layout.views(model.weights)
    safetensors_numpy.save_file(views, path, {"cvit.config": json.dumps(fields | {"format": 3})})
    assert same_bits(checkpoint.load(path).weights, model.weights)
    safetensors_numpy.save_file(views, path, {"cvit.config": json.dumps(fields)})
    for load in (checkpoint.load, cvit.load):
        with pytest.raises(ValueError, match="is damaged .* a file of format 4 must have a checksum"):
            load(path)


@pytest.mark.parametrize("text", ["", "0" * 31, "G" * 32, "0" * 32, "é" * 32])
def test_a_checksum_that_is_none(tmp_path, text):
    safetensors_numpy.save_file({"a": np.ones(3)}, tmp_path / "a.safetensors", {KEY: text})
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
        read_checked(tmp_path / "a.safetensors")


def test_a_checksum_that_stands_in_another_text(tmp_path):
    """The digits are those of the metadata's own key, wherever else its name occurs."""
    arrays = {f'"{KEY}": "{"0" * 32}"': np.ones(3)}
    write_checked(tmp_path / "a.safetensors", arrays, {"a": f'"{KEY}": "{"1" * 32}"'})
    assert read_checked(tmp_path / "a.safetensors")[1]


@pytest.mark.parametrize(
    "arrays, metadata, error, message",
    [
        ({"a": np.ones(2, complex)}, {}, TypeError, "a must be of floats, bool or integers, got complex128"),
        ({"a": np.array(["x"])}, {}, TypeError, "a must be of floats, bool or integers, got"),
        ({"a": None}, {}, TypeError, "a must be an array, got None"),
        ({}, {"a": "x" * HEADER_BYTES}, ValueError, "names and metadata must take at most 4000000 bytes"),
    ],
)
def test_what_can_not_be_written(tmp_path, arrays, metadata, error, message):
    with pytest.raises(error, match=re.escape(message)):
        write_checked(tmp_path / "a.safetensors", arrays, metadata)
    assert not (tmp_path / "a.safetensors").exists()


def test_the_number_of_threads_is_asked_for(tmp_path, monkeypatch):
    """Large data on two threads: the pool is used at all."""
    used = []
    pool = checksum.ThreadPoolExecutor
    monkeypatch.setattr(checksum, "ThreadPoolExecutor", lambda threads: used.append(threads) or pool(threads))
    cvit.set_num_threads(2)
    write_checked(tmp_path / "a.safetensors", {"a": np.zeros(PART // 4, np.float64)}, {})
    assert used == [2]
