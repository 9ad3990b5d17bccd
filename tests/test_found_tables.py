"""Data sets from CSV files and from .npz files."""

import numpy as np
import pytest
from picture_files import check_one, folder, pixels

from cvit.data import find
from cvit.pictures.preprocessing import Preprocessing


def table(tmp_path, text, name="list.csv", **options):
    folder(tmp_path / "p", {"x": 6})
    path = tmp_path / name
    path.write_text(text, **options)
    return path


def test_a_table_with_all_columns(tmp_path):
    text = (
        'file, Label ,remark,split,weight\r\np/x/0.png,cat,"a, ""b""",train,2\r\np/x/1.png,dog,"two\r\nlines",,\r\n'
        "\r\n./p/x/2.png,cat,,val,1\r\np/x/3.png,dog,,test,0.5\r\np/x/4.png,dog,,training,0\r\n"
    )
    found = find(table(tmp_path, text, encoding="utf-8-sig"))
    assert (found.kind, found.name, found.class_names) == ("csv", "list", ("cat", "dog"))
    assert found.train.names == ["p/x/0.png", "p/x/1.png", "p/x/4.png"] and found.train.labels.tolist() == [0, 1, 1]
    assert found.train.weights.tolist() == [2, 1, 0] and found.test.weights.tolist() == [0.5]
    assert found.validation.names == ["./p/x/2.png"]
    assert np.array_equal(np.asarray(found.validation.decoded(0)), pixels(2))


def test_paths_are_relative_to_the_table_and_may_lead_out(tmp_path):
    folder(tmp_path / "elsewhere", {"x": 3})
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists/l.csv"
    rows = ["../elsewhere/x/0.png,a", f"{tmp_path}/elsewhere/x/1.png,b", "../elsewhere/x/2.png,b", "gone.png,a"]
    path.write_text("\n".join(["path,class", *rows]))
    found = find(path, validation=0)
    assert len(found.train) == 3 and found.train.weights is None
    check_one(found.remarks, "train: 1 of 4 pictures cannot be read", "gone.png (No such file or directory)")


def test_the_path_counts_where_a_name_stands_beside_it(tmp_path):
    found = find(table(tmp_path, "file,path,label,class\nz,p/x/0.png,a,1\nz,p/x/1.png,b,1\n"), validation=0)
    assert found.train.names == ["p/x/0.png", "p/x/1.png"] and found.class_names == ("a", "b")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "must begin with a heading that has path and label, got nothing"),
        ("p/x/0.png,a\n", "must begin with a heading that has path and label, got p/x/0.png, a"),
        ("path;label\n", "heading that has path and label, got path;label"),
        ("path,label\n", "has no pictures in it"),
        ("path,label\np/x/0.png\n", "line 2 must have 2 fields, got 1"),
        ("path,label\np/x/0.png,a\n,b\n", "line 3 has no path"),
        ("path,label\np/x/0.png, \n", "line 2 has no label"),
        ("path,label,split\np/x/0.png,a,dev\n", "line 2: split must be one of test, .*, got dev"),
        ("path,label,weight\np/x/0.png,a,-1\n", "line 2: weight must be at least 0 and finite, got -1"),
        ("path,label,weight\np/x/0.png,a,nan\n", "line 2: weight must be at least 0 and finite, got nan"),
        ("path,label,weight\np/x/0.png,a,much\n", "line 2: weight must be .* got much"),
        ('path,label\n"p/x/0.png"x,a\n', "is not a CSV file in UTF-8"),
        ("path,label,split\np/x/0.png,a,val\n", "list has no part to train on"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        find(table(tmp_path, text))


def test_tables_in_another_encoding(tmp_path):
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        find(table(tmp_path, "path,label\np/x/0.png,süß\n", encoding="latin-1"))


# ------------------------------------------------------------------------------------------------ .npz
def pictures(count=12, channels=3, height=6, width=8):
    return np.stack([pixels(seed, height, width, channels) for seed in range(count)])


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


Y = np.arange(12) % 3


@pytest.mark.parametrize("names", [("x", "y"), ("X_train", "y_train"), ("images", "labels")])
def test_orders_of_axes(tmp_path, names):
    colour, grey = pictures(), pictures(channels=1)
    for images, expected in (
        (colour, colour), (np.moveaxis(colour, 3, 1), colour), (grey[..., 0], grey), (grey, grey),
        (np.moveaxis(grey, 3, 1), grey), (colour.astype(np.int64), colour),
    ):  # fmt: skip
        found = find(saved(tmp_path / "d.npz", **dict(zip(names, (images, Y)))), validation=0)
        assert np.array_equal(found.train.source.images, expected) and found.train.labels.tolist() == Y.tolist()
        assert (found.kind, found.name, found.class_names) == ("npz", "d", ("0", "1", "2")) and not found.remarks
        assert found.train.channels == expected.shape[3]


def test_floats_that_are_bytes_become_bytes_and_others_stay(tmp_path):
    images = pictures()
    for scaled, words in (
        ((images / 255).astype(np.float32), "of float32 were read as bytes, values from 0 to 1"),
        (images.astype(np.float64), "of float64 were read as bytes, values from 0 to 255, the largest of which is"),
    ):
        found = find(saved(tmp_path / "d.npz", x=scaled, y=Y), validation=0)
        assert found.train.source.images.dtype == np.uint8 and np.array_equal(found.train.source.images, images)
        check_one(found.remarks, "train: 12 pictures", words)
    how = Preprocessing(size=(6, 8), resize="squash", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    smooth = np.random.default_rng(0).random((12, 6, 8, 3))
    for unit in (1, 255):
        found = find(saved(tmp_path / "d.npz", x=smooth * unit, y=Y), validation=0)
        check_one(found.remarks, "were read as brightness", f"from 0 to {unit},")
        expected = np.moveaxis((smooth - how.mean) / how.std, 3, 1)
        for way in (how, Preprocessing(size=(6, 8), resize="squash", mean=how.mean, std=how.std, rescale_first=True)):
            assert np.abs(found.train.plain(range(12), way) - expected).max() < 1e-5
        assert np.abs(np.asarray(found.train.decoded(2)) - smooth[2] * 255).max() <= 0.5 + 1e-4


def test_the_scale_of_floats_is_that_of_all_parts(tmp_path):
    dark = np.zeros((3, 6, 8), np.float32)
    found = find(saved(tmp_path / "d.npz", x=pictures(channels=1)[..., 0] * 1.0, y=Y, x_test=dark + 1, y_test=Y[:3]))
    assert (found.test.source.images == 1).all()


def test_parts_and_names_of_classes(tmp_path):
    images = pictures()
    path = saved(tmp_path / "d.npz", x_train=images, y_train=Y[:, None] * 1.0, x_val=images[:3] // 2, y_val=Y[:3],
                 x_test=images[:2] // 3, y_test=Y[:2], classes=["c", "b", "a", "unused"])  # fmt: skip
    found = find(path)
    assert found.class_names == ("c", "b", "a") and len(found.validation) == 3 and len(found.test) == 2
    assert found.train.labels.tolist() == Y.tolist()
    check_one(found.remarks, "1 class without a picture to train on is left out: unused")
    found = find(saved(tmp_path / "d.npz", x=images, y=np.array(["z", "10", "2"])[Y]), validation=0)
    assert found.class_names == ("10", "2", "z") and found.train.labels.tolist() == [2, 0, 1] * 4
    found = find(saved(tmp_path / "d.npz", x=images, y=np.array([30, 4, 100])[Y]), validation=0)
    assert found.class_names == ("4", "30", "100") and found.train.labels.tolist() == [1, 0, 2] * 4


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(a=Y), "must hold the arrays x and y, got a"),
        (dict(x=Y), "has x without y"),
        (dict(x=Y, y=Y, y_test=Y), "has y_test without x_test"),
        (dict(x=Y, y=Y), r"images of train must have shape \(n, h, w\)"),
        (dict(x=np.zeros((12, 6, 8, 5), np.uint8), y=Y), "images of train must have shape"),
        (dict(x=np.zeros((12, 6, 8)) - 1, y=Y), "must lie between 0 and 1, or 0 and 255, got values from -1 to 0"),
        (dict(x=np.full((12, 6, 8), 256), y=Y), "got values from 0 to 256"),
        (dict(x=np.full((12, 6, 8), np.nan), y=Y), "got values from"),
        (dict(x=np.zeros((12, 6, 8), complex), y=Y), "images of train must be uint8 or floats, got complex128"),
        (dict(x=pictures(), y=Y[:5]), r"labels of train must have shape \(12,\), got \(5,\)"),
        (dict(x=pictures(), y=Y + 0.5), "labels of train must be integers or strings, got float64"),
        (dict(x=pictures(), y=np.array(["", "a", "b"])[Y]), "labels of train must not be empty"),
        (dict(x=pictures(), y=Y, classes=["a", "b"]), r"labels of train must lie in \[0, 2\)"),
        (dict(x=pictures(), y=Y, classes=["a", "b", "b"]), "classes must be names that differ"),
        (dict(x=pictures(), y=Y, classes=[1, 2, 3]), "classes must be a list of names"),
        (dict(x=pictures(), y=Y, x_test=pictures(), y_test=np.array(["a"] * 12)), "integers, or of all parts strings"),
        (dict(x=pictures(), y=Y * 0), "d has one class only, 0"),
        (dict(x=np.zeros((0, 6, 8), np.uint8), y=Y[:0]), "d has no pictures to train on"),
        (dict(x=pictures(), y=np.array([None] * 12)), "cannot be read as an .npz file: .*pickle"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, words):
    with pytest.raises((TypeError, ValueError), match=words):
        find(saved(tmp_path / "d.npz", **arrays))


def test_files_that_are_no_archives(tmp_path):
    path = tmp_path / "d.npz"
    saved(path, x=pictures(), y=Y)
    whole = path.read_bytes()
    np.savez_compressed(path, x=pictures(), y=Y)
    packed = bytearray(path.read_bytes())
    packed[200] ^= 255
    for content in (b"", b"PK", whole[:300], whole[:-50], bytes(packed)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="d.npz cannot be read as an .npz file"):
            find(path)
    with open(path, "wb") as file:
        np.save(file, Y)
    with pytest.raises(ValueError, match="cannot be read as an .npz file: File is not a zip file"):
        find(path)


def test_copies_in_arrays(tmp_path):
    images = pictures()
    images[5] = images[2]
    found = find(saved(tmp_path / "d.npz", x=images, y=Y, x_val=images[:3], y_val=Y[:3]))
    check_one(found.remarks, "1 picture is a copy of another one there: train[5] = train[2]")
    check_one(found.remarks, "validation: 3 pictures are copies of one that is trained on", "validation[0] = train[0]")


@pytest.mark.parametrize("offset, byte", [(10, 99), (10, 14), (8, 1)])
def test_an_archive_that_says_something_impossible_is_a_value_error(tmp_path, offset, byte):
    """An unknown compression method, LZMA of what is none, and an encrypted member: in the archive's directory."""
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=pictures(), y=Y)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    local = content.index(b"PK\x03\x04")
    content[entry + offset] = content[local + offset - 2] = byte
    path.write_bytes(content)
    with pytest.raises(ValueError, match="d.npz cannot be read as an .npz file"):
        find(path)
