"""Other libraries' containers of weights: what is read is exact, and a table of damaged and hostile files."""

import json
import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
from checks import peer
from safetensors import numpy as safetensors_numpy

from cvit.formats.reading import json_object, read_json
from cvit.formats.safetensors_file import INDEX, read_safetensors, read_sharded
from cvit.formats.tensors import tensors_of

RNG = np.random.default_rng(0)


def raw(header, data=b"", length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bits_file(path, code, size) -> None:
    """A file with one tensor "w" of all the patterns that two bytes have, in rows of 256."""
    path.write_bytes(raw({"w": entry(code, [256, 256], 0, 1 << 17)}, np.arange(1 << 16, dtype="<u2").tobytes()))


# --------------------------------------------------------------------------------------------------------- what is read
@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
def test_values_come_back_as_they_are(tmp_path, dtype):
    tensors = {
        name: RNG.integers(0, 2, shape).astype(dtype) for name, shape in [("a", (3, 5)), ("b", ()), ("c", (0, 4))]
    }
    safetensors_numpy.save_file(tensors, tmp_path / "w.safetensors", {"format": "pt"})
    read = read_safetensors(tmp_path / "w.safetensors")
    assert read.keys() == tensors.keys() and read.metadata == {"format": "pt"} and "w.safetensors" in repr(read)
    for name, tensor in tensors.items():
        array = read[name].read(strict=True)
        assert (read[name].shape, read[name].dtype) == (tensor.shape, tensor.dtype.name)
        assert array.dtype == tensor.dtype and array.dtype.isnative and not array.flags.writeable
        np.testing.assert_array_equal(array, tensor)


@pytest.mark.filterwarnings("error")
def test_all_patterns_of_float16_are_widened_exactly(tmp_path):
    bits_file(tmp_path / "w.safetensors", "F16", 2)
    array = read_safetensors(tmp_path / "w.safetensors")["w"].read()
    bits = np.arange(1 << 16)
    exponent, fraction = bits >> 10 & 31, bits & 1023
    value = np.where(exponent == 0, fraction * 2.0**-24, (1 + fraction / 1024) * 2.0 ** (exponent - 15))
    value[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    expected = np.where(bits >> 15, -value, value).reshape(256, 256)
    np.testing.assert_array_equal(array, expected)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(array[~nan]), np.signbit(expected[~nan]))
    assert array.dtype == np.float32


@pytest.mark.filterwarnings("error")
def test_all_patterns_of_bfloat16_are_widened_exactly(tmp_path):
    bits_file(tmp_path / "w.safetensors", "BF16", 2)
    tensor = read_safetensors(tmp_path / "w.safetensors")["w"]
    array = tensor.read()
    assert tensor.dtype == "bfloat16" and array.dtype == np.float32
    np.testing.assert_array_equal(array.view(np.uint32).ravel(), np.arange(1 << 16, dtype=np.uint32) << 16)


def test_aligned_float32_is_a_view_of_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors_numpy.save_file({"w": np.zeros(1 << 20, np.float32)}, path)
    tensor = read_safetensors(path)["w"]
    tracemalloc.start()
    array = tensor.read(strict=True)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    with open(path, "r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    assert array[-1] == 7
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_what_lies_unaligned_is_aligned(tmp_path):
    header = json.dumps({"w": entry("F32", [3], 0, 12)}).encode()
    data = np.arange(3, dtype="<f4").tobytes()
    for spaces in range(4):
        (tmp_path / "w.safetensors").write_bytes(raw(header + b" " * spaces, data))
        array = read_safetensors(tmp_path / "w.safetensors")["w"].read()
        assert array.flags.aligned and array.tolist() == [0, 1, 2]


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2", "C64"])
def test_a_dtype_that_is_not_read_is_named_when_it_is_read(tmp_path, code):
    size = 8 if code == "C64" else 1
    header = {"w": entry(code, [2], 0, 2 * size), "v": entry("F32", [1], 2 * size, 2 * size + 4)}
    (tmp_path / "w.safetensors").write_bytes(raw(header, bytes(2 * size + 4)))
    tensors = read_safetensors(tmp_path / "w.safetensors")
    assert tensors["v"].read().tolist() == [0]
    with pytest.raises(ValueError, match=rf"w\.safetensors: 'w' must be of float32, .*, got '{code}'"):
        tensors["w"].read()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_strict_reading_refuses_what_is_not_finite(tmp_path, dtype, bad):
    weights = np.zeros((50, 3), dtype)
    weights[7, 1] = bad
    safetensors_numpy.save_file({"head.weight": weights}, tmp_path / "w.safetensors")
    tensor = read_safetensors(tmp_path / "w.safetensors")["head.weight"]
    np.testing.assert_array_equal(tensor.read(), weights)
    with pytest.raises(
        ValueError, match=r"w\.safetensors: 'head\.weight' must be finite, but one of its values is NaN"
    ):
        tensor.read(strict=True)


# -------------------------------------------------------------------------------------------------------- hostile files
LONG = "x\n" * 50_000
F = "F32"
ONE = json.dumps(entry(F, [1], 0, 4)).encode()
DEEP = b"[" * 1_000_000
HOSTILE = {
    "empty": (b"", "is not a safetensors file: it is empty"),
    "seven bytes": (b"1234567", "has only 7 bytes"),
    "text": (b"these are no weights", "header should have"),
    "a header beyond the file": (raw({}, length=3), "header should have 3 bytes, more than the 2 allowed"),
    "a header of 2^64 - 1": (raw({}, length=2**64 - 1), "header should have 18446744073709551615 bytes"),
    "a header beyond the limit": (raw(b" " * 5_000_000), "more than the 4000000 allowed"),
    "a header cut short": (raw({"w": entry(F, [], 0, 4)}, length=20), "JSON"),
    "no JSON": (raw(b"{'w': 1}"), "JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "JSON"),
    "UTF-16": (raw('{"w": 1}'.encode("utf-16")), "JSON"),
    "a list": (raw([]), "must be a JSON object, got list"),
    "deep": (raw(DEEP + b" " * 2_900_000), "1000000 brackets"),
    "a deep value": (raw(b'{"w":' + b"[" * 100_000 + b" " * 1_000_000), "nested too deeply"),
    "many small lists": (raw(b'{"w":[' + b"[]," * 1_300_000 + b"[]]}"), "brackets in 3900010 bytes"),
    "many small names": (raw({f"{i:06}": 0 for i in range(250_000)}), "'000000' must have dtype"),
    "a number of 5000 digits": (raw(b'{"w":' + b"9" * 5000 + b"}"), "JSON"),
    "one name twice": (raw(b'{"w":%s,"w":%s}' % (ONE, ONE), bytes(4)), "'w' occurs twice"),
    "one key twice": (raw(b'{"w":{"dtype":"F32","dtype":"F32"}}'), "'dtype' occurs twice"),
    "metadata is a number": (raw({"__metadata__": 3}), "__metadata__ must map texts"),
    "metadata of numbers": (raw({"__metadata__": {"a": 3}}), "__metadata__ must map texts"),
    "no offsets": (raw({"w": {"dtype": F, "shape": [1]}}, bytes(4)), "must have dtype, shape and data_offsets"),
    "one key more": (raw({"w": {**entry(F, [1], 0, 4), "x": 1}}, bytes(4)), "must have dtype, shape and data_offsets"),
    "a tensor is a list": (raw({"w": []}), "must have dtype, shape and data_offsets"),
    "an unknown dtype": (raw({"w": entry("F31", [1], 0, 4)}, bytes(4)), "is of a dtype that is not known here: 'F31'"),
    "a dtype of NumPy": (raw({"w": entry("float32", [1], 0, 4)}, bytes(4)), "'w' is of a dtype that is not known"),
    "a dtype is a list": (raw({"w": entry([F], [1], 0, 4)}, bytes(4)), "'w' is of a dtype that is not known"),
    "10^18 values": (raw({"w": entry(F, [10**18], 0, 4)}, bytes(4)), "'w' must have 4000000000000000000 bytes"),
    "10^18 values in axes": (raw({"w": entry(F, [10**6] * 3, 0, 4)}, bytes(4)), "'w' must have 4000000000000000000 b"),
    "2^64 values": (raw({"w": entry(F, [2**32, 2**32], 0, 4)}, bytes(4)), "'w' must have a shape of at most"),
    "2^64 values and none": (raw({"w": entry(F, [2**32, 2**32, 0], 0, 0)}), "'w' must have a shape of at most"),
    "a negative length": (raw({"w": entry(F, [-1, -1], 0, 4)}, bytes(4)), "'w' must have a shape"),
    "a length of 1.0": (raw({"w": entry(F, [1.0], 0, 4)}, bytes(4)), "'w' must have a shape"),
    "a length is true": (raw({"w": entry(F, [True], 0, 4)}, bytes(4)), "'w' must have a shape"),
    "many axes": (raw({"w": entry(F, [1] * 100_000, 0, 4)}, bytes(4)), "'w' must have a shape"),
    "a shape is a text": (raw({"w": entry(F, "1", 0, 4)}, bytes(4)), "'w' must have a shape"),
    "one offset": (raw({"w": {**entry(F, [1], 0, 4), "data_offsets": [0]}}, bytes(4)), "two data_offsets"),
    "an offset is 0.0": (raw({"w": entry(F, [1], 0.0, 4)}, bytes(4)), "two data_offsets"),
    "an offset below 0": (raw({"w": entry(F, [1], -4, 0)}, bytes(4)), "'w' must lie within the 4 bytes of data"),
    "an offset beyond the data": (raw({"w": entry(F, [1], 4, 8)}, bytes(4)), "'w' must lie within the 4 bytes"),
    "offsets backwards": (raw({"w": entry(F, [1], 4, 0)}, bytes(4)), "'w' must lie within the 4 bytes"),
    "offsets of 10^4000": (raw({"w": entry(F, [1], 0, 10**4000)}, bytes(4)), "'w' must lie within the 4 bytes"),
    "too few bytes": (raw({"w": entry(F, [2], 0, 4)}, bytes(4)), r"must have 8 bytes, as F32 of shape \(2,\), got 4"),
    "an overlap": (raw({"v": entry(F, [2], 0, 8), "w": entry(F, [2], 4, 12)}, bytes(12)), "'w' overlaps 'v'"),
    "the same bytes twice": (raw({"v": entry(F, [1], 0, 4), "w": entry(F, [1], 0, 4)}, bytes(4)), "'w' overlaps 'v'"),
    "a hole": (raw({"v": entry(F, [1], 0, 4), "w": entry(F, [1], 8, 12)}, bytes(12)), "4 bytes before 'w' belong"),
    "a hole at the start": (raw({"w": entry(F, [1], 4, 8)}, bytes(8)), "4 bytes before 'w' belong to no tensor"),
    "a rest": (raw({"w": entry(F, [1], 0, 4)}, bytes(5)), "1 bytes after the last tensor"),
    "a rest alone": (raw({}, b"x"), "1 bytes after the last tensor"),
    "a long name": (raw({LONG: entry(F, [2], 0, 4)}, bytes(4)), "must have 8 bytes"),
    "a long dtype": (raw({"w": entry(LONG, [2], 0, 4)}, bytes(4)), "dtype that is not known"),
    "long overlapping names": (raw({LONG: entry(F, [1], 0, 4), LONG + "y": entry(F, [1], 0, 4)}, bytes(4)), "overlaps"),
    "a long name twice": (raw(b'{"%s":1,"%s":1}' % ((LONG.replace("\n", "n").encode(),) * 2)), "occurs twice"),
    "a name with a lone surrogate": (raw(b'{"\\ud800\\u001b[31m": 1}'), "must have dtype"),
}  # fmt: skip


@pytest.mark.parametrize("content, message", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(tmp_path, content, message):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"hostile\.safetensors.*{message}") as caught:
        read_safetensors(path)
    assert time.process_time() - start < 1
    text = str(caught.value)
    assert len(text) < 1000 and text.isprintable() and text.encode()


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "cut.safetensors"
    content = safetensors_numpy.save({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7)})
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors"):
            read_safetensors(path)


def test_what_is_no_regular_file_is_the_usual_error(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, error in (("fifo", "Not a regular file"), ("none", "No such file"), ("", "Is a directory")):
        with pytest.raises(OSError, match=error):
            read_safetensors(tmp_path / name)


def test_json_has_limits(tmp_path):
    (tmp_path / "large.json").write_text('{"a": "' + "x" * 4_000_000 + '"}')
    with pytest.raises(ValueError, match=r"large\.json has 4000009 bytes, more than the 4000000"):
        read_json(tmp_path / "large.json")
    with pytest.raises(ValueError, match="config: the JSON is nested too deeply"):
        json_object(b'{"w":' + DEEP, "config")
    assert json_object('{"größe": [1, NaN]}'.encode(), "config").keys() == {"größe"}


# --------------------------------------------------------------------------------------------------------------- shards
@pytest.fixture
def sharded(tmp_path):
    """A function that writes two shards and an index with some of its entries replaced, and gives the index."""
    safetensors_numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "1.safetensors", {"format": "pt"})
    safetensors_numpy.save_file({"b": np.zeros(3, np.float32), "c": np.zeros(1)}, tmp_path / "2.safetensors")

    def write(**changes):
        weight_map = {"a": "1.safetensors", "b": "2.safetensors", **changes}
        (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
        return tmp_path / INDEX

    return write


def test_shards_are_one_mapping(sharded):
    tensors = read_sharded(sharded())
    assert list(tensors) == ["a", "b"] and tensors.metadata == {"format": "pt"}
    assert tensors["a"].read().tolist() == [1, 1] and tensors["b"].label.endswith("2.safetensors")


@pytest.mark.parametrize(
    "file",
    [
        *("../1.safetensors", "/etc/passwd", "/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "..", ""),
        *("model.bin", "x\0.safetensors", 3, None, [], "x/" * 50_000 + ".safetensors"),
    ],
    ids=lambda file: repr(file)[:20],
)
def test_a_shard_outside_the_folder_is_refused(sharded, file):
    with pytest.raises(ValueError, match="'a' must be in a .safetensors file beside the index") as caught:
        read_sharded(sharded(a=file))
    assert len(str(caught.value)) < 1000


def test_missing_shards_and_tensors_are_named(sharded):
    with pytest.raises(FileNotFoundError, match=r"1 of its 3 files are missing: '3\.safetensors'"):
        read_sharded(sharded(d="3.safetensors"))
    with pytest.raises(ValueError, match="1 tensors are not in the files that it names: 'd'"):
        read_sharded(sharded(d="1.safetensors"))
    for weight_map in ([], None, {}):
        path = sharded()
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match="weight_map must map tensors to files"):
            read_sharded(path)


# ----------------------------------------------------------------------------------------------------- arrays in memory
def test_arrays_are_not_copied_and_stay_writable():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = tensors_of({"a": array, "b": array.astype(">f8").T, "c": array.astype(np.float16)})
    assert np.shares_memory(tensors["a"].read(), array) and array.flags.writeable
    assert tensors["b"].dtype == "float64" and tensors["b"].read().dtype.isnative
    np.testing.assert_array_equal(tensors["b"].read(), array.T)
    assert tensors["c"].read(strict=True).dtype == np.float32


def test_torch_tensors_are_read_by_their_methods():
    torch = peer("torch")
    values = torch.randn(4, 3)
    tensors = tensors_of(
        {
            "parameter": torch.nn.Parameter(values),
            "half": values.half(),
            "brain": values.bfloat16(),
            "transposed": values.double().T,
            "float8": values.to(torch.float8_e4m3fn),
            "meta": torch.empty(3, device="meta"),
            "step": torch.tensor(5),
        }
    )
    np.testing.assert_array_equal(tensors["parameter"].read(), values.numpy())
    for name in ("half", "brain", "transposed"):
        expected = dict(half=values.half(), brain=values.bfloat16(), transposed=values.T)[name].double().numpy()
        np.testing.assert_array_equal(
            tensors[name].read(), expected if name != "transposed" else values.double().T.numpy()
        )
    assert [tensors[name].dtype for name in ("half", "brain", "step")] == ["float16", "bfloat16", "int64"]
    assert tensors["step"].read() == 5 and tensors["step"].shape == ()
    for name, message in (("float8", "got 'float8_e4m3fn'"), ("meta", "'meta' must be a plain tensor with values")):
        with pytest.raises(ValueError, match=message):
            tensors[name].read()


@pytest.mark.parametrize(
    "arrays, message",
    [
        ([np.zeros(3)], "weights must map names to arrays, got list"),
        ({3: np.zeros(3)}, "weights must map strings to arrays, got the key 3"),
        ({"model": {"a": np.zeros(3)}}, "weights: 'model' must be an array, got dict"),
    ],
)
def test_a_dict_of_something_else(arrays, message):
    with pytest.raises(TypeError, match=message):
        tensors_of(arrays)


def test_objects_are_refused():
    with pytest.raises(ValueError, match="'a' must be of float32, .*, got 'object'"):
        tensors_of({"a": np.array([None])})["a"].read()
