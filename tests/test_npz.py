"""An .npz file as big_vision and NumPy write it, and a table of damaged and hostile ones."""

import io
import json
import struct
import time
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from cvit.formats.npz import read_npz

RNG = np.random.default_rng(0)


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array))
    return stream.getvalue()


def header(text, data=b"", version=1, length=None) -> bytes:
    """An .npy file with this text for its header."""
    text = text if isinstance(text, bytes) else text.encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def described(descr="'<f4'", shape="(2,)", fortran="False", data=bytes(8)) -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}", data)


def archive(members, method=zipfile.ZIP_STORED) -> bytes:
    """A zip archive of (name, content) pairs."""
    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(stream, "w", method) as file:  # one name twice
        for name, content in members:
            file.writestr(name, content)
    return stream.getvalue()


def one(content, name="w.npy", method=zipfile.ZIP_STORED) -> bytes:
    return archive([(name, content)], method)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_values_come_back_as_they_are(tmp_path, save):
    arrays = {
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": RNG.normal(size=(3, 5)).astype(np.float32),
        "opt/step": np.int64(7),
        "half": RNG.normal(size=4).astype(np.float16),
        "wide": RNG.normal(size=(2, 2, 2)),
        "big_endian": RNG.normal(size=3).astype(">f4"),
        "fortran": np.asfortranarray(RNG.normal(size=(3, 4)).astype(np.float32)),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "large": RNG.normal(size=700_000).astype(np.float32),
    }
    save(tmp_path / "w.npz", **arrays)
    tensors = read_npz(tmp_path / "w.npz")
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        read = tensors[name].read(strict=True)
        assert tensors[name].shape == array.shape and tensors[name].dtype == array.dtype.name
        assert read.flags.c_contiguous and read.flags.aligned and read.dtype.isnative and not read.flags.writeable
        assert read.dtype == (np.float32 if name == "half" else array.dtype.newbyteorder("="))
        np.testing.assert_array_equal(read, array)


def test_bfloat16_is_two_bytes_without_a_meaning(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16)
    np.savez(tmp_path / "w.npz", w=bits.view("V2"))
    tensor = read_npz(tmp_path / "w.npz")["w"]
    assert tensor.dtype == "bfloat16"
    np.testing.assert_array_equal(tensor.read().view(np.uint32), bits.astype(np.uint32) << 16)


def test_other_dtypes_are_refused_when_they_are_read(tmp_path):
    np.savez(tmp_path / "w.npz", names=np.array(["cat", "dog"]), z=np.zeros(2, complex), w=np.ones(2, np.float32))
    tensors = read_npz(tmp_path / "w.npz")
    assert tensors["w"].read().tolist() == [1, 1]
    for name, got in (("names", "<U3"), ("z", "<c16")):
        with pytest.raises(ValueError, match=rf"w\.npz: '{name}' must be of float32, .*, got '{got}'"):
            tensors[name].read()


# -------------------------------------------------------------------------------------------------------- hostile files
GOOD = one(npy(np.zeros(2, np.float32)))


def patched(content, signature, offset, layout, *values) -> bytes:
    """`content` with other numbers at `offset` behind the last place of a record's signature."""
    content = bytearray(content)
    struct.pack_into(layout, content, content.rindex(signature) + offset, *values)
    return bytes(content)


def lying(size, packed=None, content=GOOD):
    """An archive whose directory gives its member another size."""
    return patched(content, b"PK\1\2", 20, "<II", size if packed is None else packed, size)


DEFLATED = zipfile.ZIP_DEFLATED
HUGE = "(1000000000000000000,)"
HOSTILE = {
    "empty": (b"", "is not an .npz file: it is empty"),
    "text": (b"no weights" * 10, "is not an .npz file"),
    "a pickle": (b"\x80\x04\x95\x10" + bytes(50), "is not an .npz file"),
    "cut off": (GOOD[:-30], "is not an .npz file"),
    "a directory of 4 GB": (patched(GOOD, b"PK\5\6", 12, "<I", 2**32 - 2), "is not an .npz file"),
    "many members": (lambda: archive([(f"{i}.npy", b"") for i in range(10_001)]), "has 10001 members"),
    "a text beside": (archive([("readme.txt", "x")]), "'readme.txt' is no array"),
    "no .npy header": (one(b"PK" * 40), "'w' is no array: it has no .npy header"),
    "an .npy header cut off": (one(b"\x93NUMPY\x01\x00\xff\x00{"), "its .npy header is cut off"),
    "version 9": (one(header("{}", version=9)), "its .npy header is of version 9"),
    "an .npy header of 4 GB": (one(header("{}", version=2, length=2**32 - 1)), "should have 4294967295 bytes"),
    "an .npy header of code": (one(header("__import__('os').system('touch hacked')")), "cannot be read"),
    "an .npy header of brackets": (one(header("(" * 9000)), "cannot be read"),
    "an .npy header of minus signs": (one(header("-" * 9000 + "1")), "cannot be read"),
    "an .npy header of keys": (one(header("{'descr': '<f4'}")), "must have"),
    "objects": (one(described("'|O'")), "'w' is an array of objects, a pickle"),
    "objects of NumPy": (one(npy(np.array([{}, None]))), "'w' is an array of objects, a pickle"),
    "a record": (one(described("[('a', '<f4')]")), "its dtype is"),
    "a record with objects": (one(described("[('a', '|O')]")), "its dtype is"),
    "10^18 values": (one(described(shape=HUGE)), "'w' must have 4000000000000000"),
    "10^18 values packed": (one(described(shape=HUGE), method=DEFLATED), "'w' must have 4000000000000000"),
    "a negative length": (one(described(shape="(-2,)")), "'w' must have a shape"),
    "a length is true": (one(described(shape="(True, 2)")), "'w' must have a shape"),
    "2^80 values and none": (one(described(shape=f"({2**80}, 0)", data=b"")), "'w' must have a shape"),
    "a shape is a number": (one(described(shape="2")), "'w' must have a shape"),
    "fortran_order is a text": (one(described(fortran="'no'")), "fortran_order is 'no'"),
    "data too short": (one(described(data=bytes(7))), "'w' must have"),
    "data too long": (one(described(data=bytes(9))), "'w' must have"),
    "a lying size": (lying(100), "'w' is no array: Bad CRC-32"),
    "a lying size beyond the archive": (lying(10_000_000), "'w' says that it has 10000000 bytes"),
    "a lying size of 4 GB": (lying(2**32 - 2), "would unpack to 4294967294, more than the 67108864"),
    "a bomb": (lambda: one(bytes(70_000_000), method=DEFLATED), "would unpack to 70000000, more than the 67108864"),
    "one name twice": (archive([("w.npy", npy(0.0)), ("w.npy", npy(0.0))]), "'w' occurs twice"),
    "another method": (one(npy(np.zeros(2)), method=zipfile.ZIP_BZIP2), "'w' must be stored or deflated"),
    "encrypted": (patched(GOOD, b"PK\1\2", 8, "<H", 1), "'w' must be stored or deflated, without encryption"),
    "a member beyond the file": (patched(GOOD, b"PK\1\2", 42, "<I", 2**31), "'w' is no array"),
    "a long name": (one(b"", "x\n" * 20_000 + ".npy"), "is no array"),
    "a long dtype": (one(described("'" + "x" * 9000 + "'")), None),
}  # fmt: skip


@pytest.mark.parametrize("content, message", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.npz"
    path.write_bytes(content() if callable(content) else content)
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"hostile\.npz.*{message or ''}") as caught:
        read_npz(path)["w"].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 5 and peak < 20_000_000  # tracing takes time
    text = str(caught.value)
    assert len(text) < 1000 and text.isprintable() and not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_data_are_found_when_they_are_read(tmp_path, method):
    values = RNG.normal(size=1000).astype(np.float32)
    content = bytearray(one(npy(values), method=method))
    content[2000] ^= 1
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.npz: 'w' is damaged"):
        read_npz(tmp_path / "w.npz")["w"].read()


def test_every_truncation_is_an_error(tmp_path):
    for length in range(len(GOOD)):
        (tmp_path / "cut.npz").write_bytes(GOOD[:length])
        with pytest.raises(ValueError, match=r"cut\.npz"):
            read_npz(tmp_path / "cut.npz")


def test_every_changed_byte_is_an_error_or_changes_nothing(tmp_path):
    """The checksum covers the data, and everything else is compared with something."""
    path = tmp_path / "changed.npz"
    for place in range(len(GOOD)):
        content = bytearray(GOOD)
        content[place] ^= 0xFF
        path.write_bytes(content)
        try:
            values = [tensor.read() for tensor in read_npz(path).values()]
        except ValueError as error:
            assert "changed.npz" in str(error), json.dumps(str(error))
        else:
            assert [value.tolist() for value in values] in ([[0, 0]], []), place
