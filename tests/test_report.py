"""The report: what it says, that it is well formed and loads nothing, and that names cannot break out."""

import base64
import io
import itertools
import os
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from cvit.plots.attention import Attention
from cvit.plots.mistakes import Mistake
from cvit.plots.report import write_report

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
EVIL = '"><script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(1)>'


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), its text, and what is not well formed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.elements, self.cells, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        if len(names) != len(set(names)):
            self.faults.append(f"<{tag}> has an attribute twice")
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes another element")

    def handle_data(self, data):
        self.words.append(data)
        if self.cells and {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def write(path, **changes):
    """A report with everything in it; two mistakes of which one has attention."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (8, 8, 3), np.uint8)
    large = rng.integers(0, 256, (300, 500, 3), np.uint8)
    given = dict(
        title="flowers",
        history={"epoch": [1, 2], "train_loss": [2.0, 1.0], "test_loss": [2.0, 1.5], "test_accuracy": [0.25, 0.5]},
        classes=["rose", "tulip"],
        confusion=np.array([[6, 2], [1, 1]]),
        mistakes=[Mistake("a.png", picture, "rose", "tulip", 0.5), Mistake("b.jpg", large, "tulip", "rose", 0.9)],
        attention=[None, Attention(large[:288, :288], np.full((2, 2), 0.25), np.array([[0.0, 0.1], [0.2, 0.7]]))],
        settings={"epochs": 2, "init": None, "model": {"width": 64, "image_size": (8, 8)}},
        times={"training": 3725.0, "evaluation": 0.25, "started": "at noon"},
        remarks=["one picture was skipped"],
    )
    write_report(path, **given | changes)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_is_well_formed(text, page):
    assert text.startswith("<!DOCTYPE html>\n<html lang=") and page.faults == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing_and_runs_nothing(text, page):
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", re.sub(r'src="data:[^"]*"', "", text))
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_picture_can_be_opened_and_has_a_text(page):
    images = page.all("img")
    assert len(images) == 3 + 1 + 3  # panels, the matrix, two mistakes of which one has attention
    for image in images:
        assert len(image["alt"]) > 5
        kind, content = re.fullmatch("data:image/(png|jpeg);base64,(.*)", image["src"]).groups()
        opened = Image.open(io.BytesIO(base64.b64decode(content)))
        assert opened.format.lower() == kind and opened.size == (int(image["width"]), int(image["height"]))
    assert images[0]["alt"] == "Loss over the epochs: training from 2 to 1, validation from 2 to 1.5."


def test_mistakes_stand_in_order_with_their_attention(page):
    names = re.findall(r"[ab]\.(?:png|jpg)", page.text)
    assert names == ["b.jpg", "a.png"]
    alts = [image["alt"] for image in page.all("img")[4:]]
    assert alts == ["Picture b.jpg", "Where the model looked in b.jpg", "Picture a.png"]
    assert "tulip, taken for rose (90.0 %)" in page.text
    large, _, small = (image for image in page.all("img")[4:])
    assert large["width"] == "208" and small["class"] == "pixelated" and small["src"].startswith("data:image/png")


def test_the_page_can_be_read_on_a_phone_by_keyboard_and_at_night(text, page):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert page.all("html") == [{"lang": "en"}]
    links = [attributes["href"] for attributes in page.all("a")]
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert links[0] == "#main" and {link[1:] for link in links} <= ids  # the first is the skip link
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(headings))
    assert ":focus-visible" in text and "prefers-color-scheme: dark" in text
    scrolled = [attributes for _, attributes in page.elements if "scroll" in attributes.get("class", "").split()]
    assert scrolled and all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolled)


def test_the_tables_say_what_was_given(page):
    rows = [[" ".join(cell.split()) for cell in row] for row in page.cells]
    assert rows[:3] == [
        ["Class", "Accuracy", "Correct", "Most often taken for"],
        ["tulip", "50.0 %", "1 of 2", "rose (1×)"],
        ["rose", "75.0 %", "6 of 8", "tulip (2×)"],
    ]
    assert ["epochs", "2"] in rows and ["init", "none"] in rows and ["image_size", "8, 8"] in rows
    assert rows[-3:] == [["training", "1 h 02 min"], ["evaluation", "0.25 s"], ["started", "at noon"]]
    assert "accuracy 70.0 %" in page.text and "best epoch 2" in page.text and "one picture was skipped" in page.text


def test_many_classes_are_folded_away(tmp_path):
    counts = np.diag(np.arange(1, 101))
    counts[7, 8] = 5
    page = Page(write(tmp_path / "report.html", confusion=counts, classes=None))
    assert page.faults == [] and len(page.all("details")) == len(page.all("summary")) == 1
    assert page.cells[1][0] == "7" and "The other 70 classes" in page.text


def test_names_cannot_break_out(tmp_path):
    case = Mistake(EVIL, np.zeros((4, 4), np.uint8), EVIL, EVIL, 0.5)
    text = write(
        tmp_path / "report.html", title=EVIL, classes=[EVIL, "\udcff" + EVIL],
        mistakes=[case, case._replace(picture=None)],
        settings={EVIL: EVIL, f"group {EVIL}": {EVIL: [EVIL]}}, times={EVIL: EVIL}, remarks=[EVIL],
    )  # fmt: skip
    page = Page(text)
    assert page.faults == [] and not page.all("script") and "picture not found" in page.text
    assert page.text.count("alert(1)") > 10
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_what_is_not_given_has_no_section(tmp_path):
    write_report(tmp_path / "report.html", title="bare")
    page = Page((tmp_path / "report.html").read_text())
    assert page.faults == [] and not page.all("img") and not page.all("section") and not page.all("table")
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_typical_report_is_small(tmp_path):
    rng = np.random.default_rng(0)
    cases = [Mistake(f"{i}.jpg", rng.integers(0, 256, (375, 500, 3), np.uint8), "a", "b", 0.5) for i in range(24)]
    looked = [Attention(case.picture[:224, :224], np.eye(14) / 14, np.eye(14) / 14) for case in cases]
    text = write(tmp_path / "report.html", mistakes=cases, attention=looked)  # of noise, which JPEG packs worst
    assert len(text) < 2_000_000


def test_arguments_that_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="attention must be of mistakes, 0, got 1"):
        write(tmp_path / "report.html", mistakes=[], attention=[None])
    with pytest.raises(ValueError, match="names must be 2, one a class, got 1"):
        write(tmp_path / "report.html", classes=["a"])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r'the report needs jinja2: pip install "cvit-cpu\[report\]"'):
        write(tmp_path / "report.html")
    assert not os.listdir(tmp_path)
