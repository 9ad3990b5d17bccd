"""What the fuzzers of fuzz/ have found, each with the smallest input that shows it, built here."""

import io
import json
import os
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from test_runs import TINY as RUN

import cvit
from cvit import AdamW, ViT, ViTConfig
from cvit.cli import main
from cvit.data import find
from cvit.formats.checkpoint import CONFIG_KEY, notes_of
from cvit.formats.checksum import BLANK, KEY, write_checked
from cvit.formats.reading import JSON_BYTES, read_json
from cvit.formats.save import save
from cvit.model.rope import Rope
from cvit.pictures.open import inspect, open_picture
from cvit.pictures.preprocessing import Preprocessing
from cvit.runs.recipe import Recipe
from cvit.runs.training import train
from cvit.train.loop import Loop

Image = pytest.importorskip("PIL.Image")
PIXELS = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
IMMENSE = dict(patch_size=4, width=1 << 16, depth=1 << 12, heads=1, hidden=1 << 18)  # 3 PB of weights
SMALL = dict(image_size=8, patch_size=4, width=8, depth=1, heads=2, hidden=8, classes=3)


def png(width=4, height=4):
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------- what is no regular file
@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes, two pictures each; in the first class one more file, which a test makes."""
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "data" / name / f"{number}.png").write_bytes(png(4 + number, 4 + ord(name)))
    return tmp_path / "data"


def no_files(place):
    """A FIFO, which waits for its writer, and a device, which has no end, under names in `place`."""
    os.mkfifo(place / "fifo.png")
    (place / "zeros.png").symlink_to("/dev/zero")


def test_no_picture_is_waited_for_or_read_without_end(pictures):
    no_files(pictures / "a")
    found = find(pictures, validation=0)
    assert len(found.train) == 4
    assert any("2 of 6 pictures cannot be read" in text and "Invalid argument" in text for text in found.remarks)
    for name in ("fifo.png", "zeros.png"):
        with pytest.raises(OSError, match="Not a regular file"):
            open_picture(pictures / "a" / name)


@pytest.mark.parametrize("name", ["data.csv", "data.npz"])
def test_no_data_are_waited_for_or_read_without_end(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / f"zeros-{name}").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / f"zeros-{name}"):
        with pytest.raises(OSError, match="Not a regular file"):
            find(path)


def test_a_table_may_not_name_devices(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png(5))
    (tmp_path / "t.csv").write_text("path,label\na.png,a\nb.png,b\n/dev/zero,a\n")
    assert len(find(tmp_path / "t.csv", validation=0).train) == 2


def test_commands_do_not_wait_for_a_fifo(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    assert main(["predict", "S/16", str(tmp_path / "fifo")]) == 2
    assert "Not a regular file" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- memory and time
def test_json_takes_no_more_memory_than_its_size_accounts_for(tmp_path):
    """Objects of one number are the worst there is, 27 bytes for each of the text's."""
    piece = b'{"":0},'
    (tmp_path / "x.json").write_bytes(b'{"a":[' + piece * ((JSON_BYTES - 20) // len(piece)) + b"0]}")
    tracemalloc.start()
    read_json(tmp_path / "x.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000_000


def saved(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_data_that_unpack_to_far_more_are_refused(tmp_path):
    path = saved(tmp_path / "d.npz", x=np.zeros((2, 5000, 2000), np.uint8), y=np.arange(2))
    with pytest.raises(ValueError, match=r"d\.npz cannot be read as an \.npz file: of \d+ bytes would unpack to"):
        find(path)


def test_pictures_of_one_pixel_are_counted(tmp_path):
    path = saved(tmp_path / "d.npz", x=np.zeros((40_000, 1, 1), np.uint8), y=np.zeros(40_000, np.uint8))
    with pytest.raises(ValueError, match="has 40000 pictures, more than 32768 for its size"):
        find(path)


def test_data_whose_shape_is_not_that_of_its_bytes(tmp_path):
    """NumPy's own reader would make an array of 10^15 bytes first."""
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        for name in ("x", "y"):
            header = repr({"descr": "|u1", "fortran_order": False, "shape": (10**15,)}).encode()
            file.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(9))
    with pytest.raises(ValueError, match="'x' must have 1000000000"):
        find(tmp_path / "d.npz")


def test_a_blank_picture_of_many_pixels_is_refused(tmp_path):
    data = png(13_000, 13_000)
    (tmp_path / "x.png").write_bytes(data)
    assert len(data) < 200_000
    with pytest.raises(ValueError, match=r"x\.png.*13000x13000 pixels would take 845000000 bytes, too many for a file"):
        open_picture(tmp_path / "x.png")
    with pytest.raises(ValueError, match="pixels would take"):
        inspect(data, "x.png")


@pytest.mark.parametrize("rope", [Rope("centred", theta=100.0), Rope("axial")])
def test_an_image_size_alone_makes_no_large_model(tmp_path, rope):
    """Rotary positions are computed for every patch, and no tensor of the file bears out how many there are."""
    model = ViT(ViTConfig(**SMALL, rope=rope, pos_tokens="none"), seed=0)
    notes, path = notes_of(model), tmp_path / "m.safetensors"
    notes[CONFIG_KEY] = notes[CONFIG_KEY].replace("[8, 8]", "[400000, 400000]")
    write_checked(path, model.layout.views(model.weights), {KEY: BLANK, **notes})
    with pytest.raises(ValueError, match="positions of 10000000000 patches are 80000000000 values, too many"):
        cvit.load(path)


def test_json_alone_makes_no_large_model(tmp_path):
    """DINOv3 computes its positions for config.json's image size, DINOv2 resamples them for the processor's."""
    rope = dict(rope=Rope("centred", theta=100.0), pos_tokens="none")
    for name, options, file in (("v3", rope, "config.json"), ("v2", {}, "preprocessor_config.json")):
        config = ViTConfig(**{**SMALL, "classes": 0}, layer_scale=1.0, **options)
        how = Preprocessing(size=8, resize_size=8)
        save(tmp_path / name, ViT(config, seed=0, preprocessing=how), "hf")
        assert cvit.load(tmp_path / name).config.patches == 4
        text = (tmp_path / name / file).read_text()
        large = re.sub(r'"(image_size|height|width|shortest_edge)": 8', r'"\1": 32768', text)
        assert large != text
        (tmp_path / name / file).write_text(large)
        with pytest.raises(ValueError, match="positions of 67108864 patches are 536870912 values, too many for a file"):
            cvit.load(tmp_path / name)


# ---------------------------------------------------------------------------------------- types that are not documented
@pytest.mark.parametrize(
    "change",
    [
        dict(position={"epoch": "0"}), dict(position={"step": -1}), dict(position={"loss": []}), dict(position=5),
        dict(history=["abcdefg"]), dict(history=[[0, 1, 1, 1, 1, 1, 1]]), dict(history=5), dict(optimizer=None),
        dict(position={"x" * 9000: 1}),
    ],
)  # fmt: skip
def test_a_state_of_wrong_types_is_a_value_error(change):
    """It has a right checksum, and changes nothing."""
    model = ViT(ViTConfig(**SMALL), seed=0)
    data = np.zeros((4, 3, 8, 8), np.float32), np.array([0, 1, 2, 0])
    loop = Loop(model, data, data, epochs=1, optimizer=AdamW(model))
    arrays, facts = loop.state()
    before = loop.model.weights.copy()
    facts = json.loads(json.dumps(facts))
    arrays = {name: array.copy() + 1 for name, array in arrays.items()}
    for name, value in change.items():
        facts[name] = {**facts[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError) as caught:
        loop.restore(arrays, facts)
    assert len(str(caught.value)) < 1000
    assert np.array_equal(loop.model.weights, before) and loop.position.epoch == 0


def test_weights_of_another_dtype_are_no_state():
    model = ViT(ViTConfig(**SMALL), seed=0)
    data = np.zeros((4, 3, 8, 8), np.float32), np.array([0, 1, 2, 0])
    loop = Loop(model, data, data, epochs=1, optimizer=AdamW(model))
    arrays, facts = loop.state()
    with pytest.raises(ValueError, match="the weights must be"):
        loop.restore({**arrays, "weights": np.ones(model.weights.size, np.int8)}, facts)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(arguments=None), "is not of a run"), (dict(settings=3), "is not of a run"),
        (dict(machine=[]), "is not of a run"), (dict(arguments={"data": 5}), "must name its data, got 5"),
        (dict(arguments={}), "must name its data, got None"),
        (dict(arguments={"data": "d.npz", "variant": "x" * 9000}), "name must be one of .*, got 'xxx.{0,80}$"),
        (dict(settings={}), "holds another run"),
        (dict(arguments={"data": "d.npz", **IMMENSE}), "run.json or an argument beside it: Unable to allocate"),
    ],
)  # fmt: skip
def test_a_run_whose_facts_are_of_wrong_types(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x=PIXELS, y=np.arange(4) % 2)
    train("d.npz", out="run", **{**RUN, "epochs": 1})
    facts = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(ValueError, match=message):
        train(None, out="run", resume=True, pictures=False)


@pytest.mark.parametrize("change", [dict(lr=[]), dict(epochs="x"), dict(augmentation=5), dict(freeze=3)])
def test_a_recipe_of_wrong_types_is_a_value_error(change):
    with pytest.raises(ValueError):
        Recipe.from_json({**Recipe().to_json(), **change})


def test_labels_of_a_wrong_type_in_a_file_are_a_value_error(tmp_path):
    path = saved(tmp_path / "d.npz", x=PIXELS, y=np.arange(4) * 1j)
    with pytest.raises(ValueError, match=r"d\.npz: labels of train must be integers or strings, got complex128"):
        find(path)


def test_letters_beyond_unicode_are_a_value_error(tmp_path):
    """NumPy gives a SystemError for them."""
    names = np.array(["aa", "bb"])
    names.view(np.uint32)[1] = 0x7F7F7F7F
    with pytest.raises(ValueError, match="'classes' must hold texts, got the letter number 2139062143"):
        find(saved(tmp_path / "d.npz", x=PIXELS, y=np.arange(4) % 2, classes=names))


def test_a_crop_of_a_short_edge_is_a_value_error():
    how = Preprocessing(size=8).to_hf()
    with pytest.raises(ValueError, match="crop_size must have height and width, got {'shortest_edge': 8}"):
        Preprocessing.from_hf({**how, "crop_size": {"shortest_edge": 8}})


def test_a_picture_that_says_it_has_a_box_of_gigabytes(tmp_path):
    """JPEG 2000: Pillow asks the file for all of them, and Python made room before it looked what there is."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG2000")
    data = bytearray(buffer.getvalue())
    place = data.index(b"jp2h") - 4
    data[place : place + 4] = (1).to_bytes(4, "big")  # the length stands in the 8 bytes behind the name
    data[place + 8 : place + 16] = (1 << 40).to_bytes(8, "big")
    (tmp_path / "x.jp2").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.jp2"):
        open_picture(tmp_path / "x.jp2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("field", ["depth", "width", "image_size"])
def test_a_new_model_has_a_largest_shape(tmp_path, monkeypatch, field):
    """In run.json, say, where a number of thirty digits would take for ever."""
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x=PIXELS, y=np.arange(4) % 2)
    with pytest.raises(ValueError, match=f"{field} must be at most"):
        train("d.npz", out="run", **{**RUN, field: 10**30})


def test_headers_that_no_tokenizer_reads(tmp_path):
    """NumPy's own reader lets Python's tokenizer at them, whose errors are its own."""
    text = b"{'descr': '<f4', ((("
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("x.npy", b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)
        file.writestr("y.npy", b"")
    with pytest.raises(ValueError, match="'x' is no array: its .npy header cannot be read"):
        find(tmp_path / "d.npz")


def test_predictions_of_files_whose_names_are_no_text(tmp_path, pictures, capsys):
    """The table was written at the end, and failed there."""
    os.rename(pictures / "a" / "0.png", os.fsencode(pictures / "a") + b"/\xff.png")
    model = ViT(ViTConfig(**{**SMALL, "classes": 2}), seed=0, class_names=["a", "b"])
    model.save(tmp_path / "m.safetensors")
    table = tmp_path / "t.csv"
    assert main(["eval", str(tmp_path / "m.safetensors"), str(pictures), "--csv", str(table)]) == 0, capsys.readouterr()
    assert b"a/\xff.png," in table.read_bytes()
