"""Pictures of every mode and orientation, files that are cut short or damaged, and folders."""

import io
import sys

import numpy as np
import pytest

from cvit import Preprocessing
from cvit.pictures.listing import pictures_in
from cvit.pictures.open import ORIENTATION, inspect, open_picture

Image = pytest.importorskip("PIL.Image")

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
MODES = ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "La", "RGBa"]
MODES += ["I;16", "I;16L", "I;16B"]


def values_of(picture, **options):
    return np.asarray(open_picture(picture, **options))


# ------------------------------------------------------------------------------------------------------ one picture
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode, channels):
    for alpha in ("drop", "white"):
        image = open_picture(Image.new(mode, (4, 3)), channels=channels, alpha=alpha)
        assert (image.mode, image.size) == ("L" if channels == 1 else "RGB", (4, 3))


def test_grey_of_16_bits_keeps_its_range(tmp_path):
    """Pillow's own conversion would turn everything above 255 white."""
    wide = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    expected = [[0, 0, 1, 128, 255]]
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        assert values_of(tmp_path / name, channels=1).tolist() == expected
    (tmp_path / "grey.pgm").write_bytes(b"P5 5 1 65535\n" + wide.astype(">u2").tobytes())
    assert values_of(tmp_path / "grey.pgm").tolist() == [[[v] * 3 for v in expected[0]]]


def test_grey_and_colour():
    assert (values_of(PIXELS[:, :, 0]) == PIXELS[:, :, :1]).all()
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(values_of(PIXELS, channels=1) - luma).max() <= 1


def test_alpha_is_dropped_or_laid_on_white():
    half = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 128, np.uint8)])
    assert (values_of(half) == PIXELS).all()
    on_white = PIXELS * (128 / 255) + 255 * (127 / 255)
    assert np.abs(values_of(half, alpha="white") - on_white).max() <= 1


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=0)
    assert values_of(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert values_of(tmp_path / "palette.png", alpha="white").tolist() == [[[255] * 3, [200, 100, 50]]]


def test_cmyk_file(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red = values_of(tmp_path / "red.jpg")[4, 4]
    assert red[0] > 250 and red[1] < 5 and red[2] < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))
    assert (values_of(tmp_path / "turned.png") == np.asarray(expected)).all()
    opened = Image.open(tmp_path / "turned.png")
    assert (values_of(opened) == np.asarray(expected)).all() and opened.size == PICTURE.size


@pytest.mark.filterwarnings("ignore")
def test_a_jpeg_is_decoded_at_a_part_of_its_size_where_that_is_enough(tmp_path):
    coarse = Image.fromarray(PIXELS[:4, :4]).resize((320, 241), Image.Resampling.BICUBIC)
    for name in ("a.jpg", "a.png", "upright.jpg"):
        exif = Image.Exif()
        exif[ORIENTATION] = 6 if name.startswith("upright") else 1
        coarse.save(tmp_path / name, exif=exif)
    sizes = {edge: open_picture(tmp_path / "a.jpg", short_edge=edge).size for edge in (1, 30, 31, 60, 121, 500)}
    assert sizes == {1: (40, 31), 30: (40, 31), 31: (80, 61), 60: (80, 61), 121: (320, 241), 500: (320, 241)}
    assert open_picture(tmp_path / "upright.jpg", short_edge=60).size == (61, 80)
    assert values_of(tmp_path / "a.png", short_edge=1).shape == (241, 320, 3)
    half = values_of(tmp_path / "a.jpg", short_edge=120).astype(float)
    assert np.abs(half - coarse.resize((160, 121), Image.Resampling.BOX)).mean() < 2
    assert open_picture(tmp_path / "a.jpg", short_edge=60, channels=1).mode == "L"


@pytest.mark.parametrize("mode, grey", [("1", True), ("L", True), ("I;16", True), ("RGB", False), ("P", False)])
def test_inspecting_a_file(mode, grey):
    file, turned = io.BytesIO(), Image.Exif()
    turned[ORIENTATION] = 8
    Image.new(mode, (5, 3)).save(file, "PNG", exif=turned)
    assert inspect(file.getvalue(), "a.png") == (5, 3, grey)
    Image.new("L", (50, 30)).save(file := io.BytesIO(), "JPEG")
    assert inspect(file.getvalue(), "a.jpg") == (30, 50, True)
    with pytest.raises(ValueError, match="a.jpg cannot be decoded"):
        inspect(file.getvalue()[:-200], "a.jpg")


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\xff", b"Exif\0\0"])
def test_exif_data_that_cannot_be_read_say_nothing(tmp_path, exif):
    PICTURE.save(tmp_path / "p.jpg", exif=exif)
    assert open_picture(tmp_path / "p.jpg").size == PICTURE.size


def test_a_path_an_image_and_an_array_are_the_same(tmp_path):
    PICTURE.save(tmp_path / "p.png")
    for picture in (tmp_path / "p.png", str(tmp_path / "p.png"), PICTURE, PIXELS, PIXELS[::-1][::-1]):
        assert (values_of(picture) == PIXELS).all()
    how = Preprocessing(size=9)
    batch = how([tmp_path / "p.png", PICTURE, PIXELS])
    assert batch.shape == (3, 3, 9, 9) and (batch == how(PIXELS)).all() and (batch == how(np.stack([PIXELS] * 3))).all()


# ----------------------------------------------------------------------------------------------------- broken files
def encoded(format):
    stream = io.BytesIO()
    Image.fromarray(np.tile(PIXELS, (8, 8, 1))).save(stream, format)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it passes over
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_truncated_file_is_named(tmp_path, format):
    content = encoded(format)
    path = tmp_path / "cut.picture"
    for length in (0, 3, 20, len(content) // 3, len(content) * 2 // 3):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut.picture") as caught:
            open_picture(path)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_damaged_files_are_decoded_or_named(tmp_path, format):
    """Whatever a decoder raises."""
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged"
    for _ in range(60):
        content = bytearray(encoded(format))
        for position in rng.integers(0, min(len(content), 400), 6):
            content[position] = rng.integers(256)
        path.write_bytes(content)
        try:
            open_picture(path)
        except ValueError as error:
            assert "damaged" in str(error)


def test_what_is_no_picture(tmp_path):
    (tmp_path / "text.jpg").write_text("no pixels")
    with pytest.raises(ValueError, match=r"text\.jpg is not a picture"):
        open_picture(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "none.jpg")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(ValueError, match=r"program\.eps is not a picture"):  # no interpreter is started for it
        open_picture(tmp_path / "program.eps")


def test_a_picture_of_too_many_pixels(tmp_path, monkeypatch):
    PICTURE.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"large\.png has more pixels than PIL\.Image\.MAX_IMAGE_PIXELS allows"):
        open_picture(tmp_path / "large.png")


@pytest.mark.parametrize(
    "picture, error, message",
    [
        (PIXELS.astype(np.float32), TypeError, "must be uint8, values from 0 to 255, got float32"),
        (PIXELS.transpose(2, 0, 1), ValueError, r"\(h, w\) or \(h, w, 1 to 4 channels\), got \(3, 13, 17\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \(0, 4, 3\)"),
        (None, TypeError, "a picture must be an array, got None"),
    ],
)
def test_wrong_pictures(picture, error, message):
    with pytest.raises(error, match=message):
        open_picture(picture)


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"cvit-cpu\[pictures\]\""):
        open_picture(PIXELS)


def test_the_pictures_of_a_folder(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/.hidden.png", ".cache/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path) for path in pictures_in(tmp_path)] == ["a.png", "b.JPG", "sub/c.webp"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no pictures"):
        pictures_in(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        pictures_in(tmp_path / "none")
