"""From a path or arrays to a data set: readers, what is left out and said, what is held out."""

import os
import shutil

import numpy as np
import pytest
from picture_files import check_one, folder, pixels, write

from cvit import data
from cvit.data import digits, find, from_arrays
from cvit.data.found import KINDS


def labels_by_name(pictures):
    return {name: pictures.class_names[label] for name, label in zip(pictures.names, pictures.labels)}


# ------------------------------------------------------------------------------------------------ folders
def test_a_folder_a_class_nested_pictures_count(tmp_path):
    folder(tmp_path, {"dog": 3, "cat": 4, "bird": 3})
    write(tmp_path / "cat/indoors/far/x.JPG", 100)
    found = find(tmp_path, validation=0)
    assert (found.kind, found.name, found.class_names) == ("folder", tmp_path.name, ("bird", "cat", "dog"))
    assert found.validation is None and found.test is None and found.remarks == []
    labels = labels_by_name(found.train)
    assert len(labels) == 11 and labels["cat/indoors/far/x.JPG"] == "cat" and labels["bird/0.png"] == "bird"
    assert found.train.size == (20, 24) and found.train.channels == 3 and found.train.weights is None
    assert found.train.decoded(0).size == (24, 20)


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_parts_in_folders(tmp_path, val):
    folder(tmp_path / "train", {"a": 2, "b": 3})
    folder(tmp_path / val, {"a": 1, "b": 1}, start=10)
    folder(tmp_path / "test", {"b": 2}, start=20)
    (tmp_path / "annotations").mkdir()
    found = find(tmp_path)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [5, 2, 2]
    assert found.test.labels.tolist() == [1, 1] and found.validation.names == [f"{val}/a/0.png", f"{val}/b/0.png"]
    assert len(found.remarks) == 1
    check_one(found.remarks, "left out", "annotations")
    with pytest.raises(ValueError, match="has a validation part: validation must be None, got 0.2"):
        find(tmp_path, validation=0.2)


def test_a_test_part_alone_is_not_what_is_validated_by(tmp_path):
    folder(tmp_path / "train", {"a": 20, "b": 10})
    folder(tmp_path / "test", {"a": 1, "b": 1}, start=50)
    found = find(tmp_path)
    assert len(found.test) == 2 and np.bincount(found.validation.labels).tolist() == [2, 1]
    check_one(found.remarks, "3 of 30 pictures were held out for validation, 10 % of each class", "seed 0")


def test_a_class_may_be_called_train(tmp_path):
    folder(tmp_path, {"train/steam": 3, "train/electric": 3, "bus": 4})
    assert find(tmp_path).class_names == ("bus", "train")
    shutil.rmtree(tmp_path / "train")
    folder(tmp_path, {"train": 3, "val": 1}, start=10)
    assert find(tmp_path).class_names == ("bus", "train", "val")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda root: None, "is empty: one folder for each class is needed"),
        (lambda root: write(root / "0.png", 0), "has 1 picture but no folders: one folder for each class is needed"),
        (lambda root: folder(root, {"val/a": 1, "test/a": 1}), "has no folder train beside test, val"),
        (lambda root: folder(root, {"train/a": 2, "val/a": 1, "valid/a": 1}), "two folders for one part"),
        (lambda root: folder(root, {"a": 3}), "has one class only, a: at least two are needed"),
        (lambda root: [(root / name).mkdir() for name in "ab"], "has no pictures to train on: .*class folders without"),
        (lambda root: (root / "train").mkdir(), "train is empty: one folder for each class"),
    ],
)
def test_folders_that_nothing_can_be_learnt_from(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        find(tmp_path)


def test_what_is_left_out_is_said(tmp_path):
    """Each fault is one sentence with names; with `strict` each one raises."""
    root = folder(tmp_path / "d", {"a": 6, "b": 5, "one": 1})
    (root / "empty").mkdir()
    (root / "a/broken.png").write_bytes((root / "a/0.png").read_bytes()[:60])
    (root / "a/text.jpg").write_text("not a picture")
    (root / "b/drawing.svg").write_text("<svg/>")
    (root / "b/notes.txt").write_text("")
    (root / ".hidden").mkdir()
    write(root / "a/.hidden.png", 90)
    write(root / "loose.png", 91)
    shutil.copy(root / "a/0.png", root / "a/copy.png")
    shutil.copy(root / "a/1.png", root / "b/contradiction.png")
    found = find(root, validation=0)
    assert found.class_names == ("a", "b", "one") and len(found.train) == 14
    faults = [
        ("1 class folder without pictures", "empty"),
        ("1 picture of a format that cannot be read", "b/drawing.svg"),
        ("1 picture beside the class folders", "loose.png"),
        ("train: 2 of 16 pictures cannot be read and are left out", "a/broken.png (cannot be decoded",
         "a/text.jpg (is not a picture in a format that is read here)"),
        ("1 class has one picture to train on, and none to be checked by: one",),
        ("train: 1 picture is a copy of another one there: a/copy.png = a/0.png",),
        ("train: 1 picture is a copy of one in another class: b/contradiction.png = a/1.png",),
    ]  # fmt: skip
    for words in faults:
        check_one(found.remarks, *words)
    check_one(found.remarks, "1 file that is no picture")
    assert len(found.remarks) == len(faults) + 1
    with pytest.raises(ValueError, match="without pictures|beside the class folders"):
        find(root, strict=True)


def test_strict_raises_for_each_fault_and_not_for_notes(tmp_path):
    clean = folder(tmp_path / "clean", {"a": 12, "b": 11})
    (clean / "a/notes.txt").write_text("")
    assert len(find(clean, strict=True).remarks) == 2  # ignored files, held out
    for number, spoil in enumerate([
        lambda root: (root / "c").mkdir(),
        lambda root: (root / "a/x.png").write_bytes(b""),
        lambda root: (root / "a/x.svg").write_bytes(b""),
        lambda root: shutil.copy(root / "a/1.png", root / "a/99.png"),
        lambda root: write(root / "c/0.png", 77),
        lambda root: write(root / "x.png", 77),
    ]):  # fmt: skip
        root = shutil.copytree(clean, tmp_path / str(number))
        spoil(root)
        with pytest.raises(ValueError):
            find(root, strict=True)
        assert len(find(root).remarks) == 3


def test_classes_and_pictures_that_other_parts_share_or_lack(tmp_path):
    root = folder(tmp_path / "d", {"train/a": 3, "train/b": 3})
    folder(root, {"val/a": 2, "val/zebra": 2, "test/yak": 1}, start=20)
    shutil.copy(root / "train/b/0.png", root / "val/a/again.png")
    found = find(root)
    assert found.class_names == ("a", "b") and found.test is None and len(found.validation) == 3
    check_one(found.remarks, "validation: 2 pictures of 1 class that the training part lacks are left out: zebra")
    check_one(found.remarks, "test: 1 picture of 1 class that the training part lacks is left out: yak")
    check_one(found.remarks, "test has no pictures left")
    check_one(found.remarks, "validation: 1 picture is a copy of one that is trained on",
              "val/a/again.png = train/b/0.png")  # fmt: skip
    assert len(found.remarks) == 4


def test_a_class_whose_pictures_are_all_broken_is_named(tmp_path):
    root = folder(tmp_path / "d", {"a": 3, "b": 3, "c": 2})
    for path in (root / "c").iterdir():
        path.write_bytes(b"\x89PNG")
    found = find(root, validation=0)
    assert found.class_names == ("a", "b")
    check_one(found.remarks, "1 class without a picture to train on is left out: c")


def test_an_unlabelled_test_folder_is_left_out(tmp_path):
    root = folder(tmp_path / "d", {"train/a": 3, "train/b": 3})
    write(root / "test/0.png", 9)
    found = find(root, validation=0)
    assert found.test is None
    check_one(found.remarks, "test has 1 picture but no folders", "it is left out")


# ------------------------------------------------------------------------------------------------ held out
def test_held_out_of_each_class_and_never_a_copy(tmp_path):
    root = folder(tmp_path / "d", {"few": 2, "many": 31, "one": 1})
    for number in range(5):
        shutil.copy(root / "few/0.png", root / f"few/copy{number}.png")
        shutil.copy(root / "many/0.png", root / f"many/copy{number}.png")
    for seed in range(4):
        found = find(root, seed=seed)
        held = found.validation
        classes = [found.class_names[label] for label in held.labels]
        assert classes.count("one") == 0 and classes.count("few") in (1, 6) and classes.count("many") in (3, 8)
        assert not set(held.source.hashes) & set(found.train.source.hashes)
        assert not set(held.names) & set(found.train.names) and len(held) + len(found.train) == 44
        assert held.names == find(root, seed=seed).validation.names
    assert find(root, seed=1).validation.names != find(root, seed=2).validation.names
    half = find(root, validation=0.5).validation
    assert np.bincount(half.labels, minlength=3)[1] in (16, 21) and find(root, validation=0).validation is None


def test_nothing_can_be_held_out_of_single_pictures(tmp_path):
    found = find(folder(tmp_path, {"a": 1, "b": 1}))
    assert found.validation is None and len(found.train) == 2
    check_one(found.remarks, "no pictures could be held out")
    check_one(found.remarks, "2 classes have one picture to train on", "a, b")


# ------------------------------------------------------------------------------------------------ other kinds
def test_the_digits():
    pytest.importorskip("sklearn")
    found = find("digits")
    train, test = digits()
    assert found.kind == found.name == "digits" and found.class_names == tuple("0123456789") and not found.remarks
    for pictures, part in ((found.train, train), (found.validation, test)):
        assert np.array_equal(pictures.labels, part.labels)
        assert np.array_equal(pictures.source.images[..., 0], np.rint((part.images[:, 0] + 1) * 8 * 255 / 16))
    assert found.train.channels == 1 and found.train.background(1) == (0,) and found.train.names[17] == "train[17]"


def test_paths_that_are_no_data_sets(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find(tmp_path / "nowhere")
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.tar is no data set .*digits, a folder .*, a .csv file, an .npz file can"):
        find(tmp_path / "x.tar")
    for name, value in (("validation", 1.0), ("validation", -0.1), ("seed", -1), ("threads", 0)):
        with pytest.raises(ValueError, match=name):
            find(tmp_path, **{name: value})
    assert len(KINDS) == 4


def test_checking_tells_its_progress_and_takes_any_number_of_threads(tmp_path):
    root = folder(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 2})
    (root / "train/a/7.png").write_bytes(b"")
    calls, digests = [], set()
    for threads in (1, 2, 5):
        found = find(root, threads=threads, on_check=lambda *call: calls.append(call))
        digests.add((found.train.digest(), found.validation.digest(), tuple(found.remarks)))
    expected = [(number + 1, 7) for number in range(7)] + [(1, 2), (2, 2)]
    assert calls == 3 * expected and len(digests) == 1


def test_unreadable_files_are_named(tmp_path):
    root = folder(tmp_path / "d", {"a": 3, "b": 3})
    os.symlink(tmp_path / "gone.png", root / "a/link.png")
    check_one(find(root, validation=0).remarks, "a/link.png (No such file or directory)")


def test_arrays_of_python(tmp_path):
    images = np.stack([pixels(seed) for seed in range(12)])
    labels = np.array(["b", "a"] * 6)
    found = from_arrays(images, labels, validation=(images[:2] // 2, labels[:2]), test=(images[2:3] // 3, ["a"]))
    assert (found.kind, found.name, found.class_names) == ("arrays", "arrays", ("a", "b")) and not found.remarks
    assert found.train.labels.tolist() == [1, 0] * 6 and found.validation.names == ["validation[0]", "validation[1]"]
    assert np.array_equal(np.asarray(found.train.decoded(3)), images[3]) and found.test.labels.tolist() == [0]
    weighted = from_arrays(images, np.arange(12) % 2, class_names=["x", "y"], weights=np.arange(12.0), name="n")
    held, kept = weighted.validation, weighted.train
    assert weighted.class_names == ("x", "y") and weighted.name == "n"
    for part in (held, kept):
        assert part.weights.tolist() == [float(name.strip("train[]")) for name in part.names]
    for wrong in (dict(weights=np.ones(3)), dict(validation=(images,)), dict(test=3), dict(validation=1.5)):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            from_arrays(images, labels, **wrong)


def test_every_name_of_the_package_loads():
    assert sorted(data.MODULES) == sorted(set(data.__all__) - {"Dataset", "batches"})
    for name in data.__all__:
        assert getattr(data, name).__name__ == name and name in dir(data)
    with pytest.raises(AttributeError, match="'cvit.data' has no attribute 'nothing'"):
        getattr(data, "nothing")  # noqa: B009
