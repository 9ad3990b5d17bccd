"""What plots show: the figures' data against plain loops and NumPy, names from outside, and the files."""

import importlib
import io
import math
import subprocess
import sys

import numpy as np
import pytest

from cvit import Preprocessing, Rope, ViT, ViTConfig
from cvit.plots import PLOTS, attention, confusion, curves, figure, filters, mistakes, positions
from cvit.plots.mistakes import Mistake
from cvit.train import Epoch, History

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

SMALL = dict(image_size=(12, 8), patch_size=4, width=16, depth=3, heads=2, classes=3)
HOSTILE = ["$\\bad_{$", "a\nb\x00c", "<script>", "\N{CJK UNIFIED IDEOGRAPH-732B}" * 60, "\udcff.png"]


def random_maps(rng, *shape):
    """Stochastic matrices: rows of at least 0 that sum up to 1."""
    maps = rng.random(shape) ** 4
    return maps / maps.sum(axis=-1, keepdims=True)


def texts(shown):
    """All texts of a figure."""
    from matplotlib.text import Text

    return [text.get_text() for text in shown.findobj(Text) if text.get_text()]


def size_of(content):
    return Image.open(io.BytesIO(content)).size


# ---------------------------------------------------------------------------------------------------------- curves
def epochs(count):
    return [Epoch(i + 1, 0.1 / (i + 1), 2.0 - i, 0.1 * i, 1.5 - i, [0.2, 0.7, 0.7][i], 100.0) for i in range(count)]


def test_curves_show_the_columns_and_the_best_epoch():
    shown = curves.draw(History(epochs(3)))
    loss, accuracy, lr = shown.axes
    assert [line.get_ydata().tolist() for line in loss.lines[:2]] == [[2.0, 1.0, 0.0], [1.5, 0.5, -0.5]]
    assert np.allclose(accuracy.lines[1].get_ydata(), [20, 70, 70])
    assert lr.lines[0].get_ydata().tolist() == [0.1, 0.05, 0.1 / 3]
    for axes in shown.axes:  # of two epochs with the same accuracy that with the lower loss
        assert set(axes.lines[-1].get_xdata()) == {3}
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel() and axes.get_title()
    assert "best epoch: 3 (70.0 %)" in texts(shown) and "best epoch: 3 (-0.5)" in texts(shown)


@pytest.mark.parametrize(
    "accuracy, loss, best",
    [([0.1, 0.3, 0.2], [1, 1, 1], 1), ([math.nan] * 3, [3, 1, 2], 1), ([math.nan] * 3, [math.nan] * 3, None)],
)
def test_best_epoch(accuracy, loss, best):
    assert curves.best_epoch(dict(epoch=[1, 2, 3], test_accuracy=np.array(accuracy), test_loss=np.array(loss))) == best


def test_curves_of_missing_values_and_columns():
    shown = curves.draw({"epoch": [1, 2], "train_loss": [1.0, math.inf], "more": [1, 2]})
    assert np.isnan(shown.axes[0].lines[0].get_ydata()[1])
    assert texts(shown).count("not measured") == 2
    assert texts(curves.draw(History())).count("no epoch is finished") == 3
    assert [len(curves.draw(History(epochs(1)), panels).axes) for panels in (["loss"], ["loss", "lr"])] == [1, 2]


def test_a_history_is_read_by_the_names_of_its_columns(tmp_path):
    History(epochs(3)).write_csv(tmp_path / "history.csv")
    columns = curves.read_columns(tmp_path / "history.csv")
    assert np.array_equal(columns["test_loss"], [1.5, 0.5, -0.5]) and list(columns) == list(Epoch._fields)
    (tmp_path / "other.csv").write_text("new,epoch,test_loss\n7,1,\n8,2,0.5\n9,3\n")
    columns = curves.read_columns(tmp_path / "other.csv")
    assert np.array_equal(columns["test_loss"], [math.nan, 0.5, math.nan], equal_nan=True)
    for text in ("", "a,b\n1,2\n", "\x00"):
        (tmp_path / "other.csv").write_text(text)
        with pytest.raises(ValueError, match="epoch"):
            curves.read_columns(tmp_path / "other.csv")


@pytest.mark.parametrize(
    "history, error, message",
    [
        ([1, 2], TypeError, "history must be a History or a mapping of columns, got list"),
        ({"loss": [1]}, ValueError, "history must have a column epoch, got loss"),
        ({"epoch": [1], "lr": [1, 2]}, ValueError, "history must have one value an epoch in every column"),
    ],
)
def test_histories_that_are_refused(history, error, message):
    with pytest.raises(error, match=message):
        curves.draw(history)
    with pytest.raises(ValueError, match="panels must be some of loss, accuracy, lr, got speed"):
        curves.draw(History(), ["speed"])


# ------------------------------------------------------------------------------------------------------- confusion
COUNTS = np.array([[8, 2, 0], [0, 0, 0], [3, 1, 1000]])


def test_confusion_shows_shares_and_counts():
    shown = confusion.draw(COUNTS, ["cat", "dog", "owl"])
    axes = shown.axes[0]
    shares = axes.images[0].get_array()
    assert np.allclose(np.ma.filled(shares[[0, 2]], np.nan), 100 * COUNTS[[0, 2]] / [[10], [1004]])
    assert np.ma.getmaskarray(np.ma.masked_invalid(shares))[1].all()  # a class without pictures has no shares
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1,000", "2", "3", "8"]
    assert {tuple(text.get_position()): text.get_text() for text in axes.texts}[(1, 2)] == "1"  # (column, row)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["cat", "dog", "owl"]
    assert "1,008 of 1,014 pictures correct (99.4 %)" in axes.get_title()


def test_of_many_classes_the_most_confused_are_shown(rng):
    counts = np.diag(np.full(1000, 50))
    wrong = rng.choice(1000, 31, replace=False)
    counts[wrong[:-1], wrong[1:]] += np.arange(30, 0, -1)
    shown = confusion.draw(counts)
    chosen = [int(tick.get_text()) for tick in shown.axes[0].get_yticklabels()]
    errors = {i: counts[i].sum() + counts[:, i].sum() - 100 for i in range(1000)}
    assert chosen == sorted(sorted(errors, key=errors.get)[-30:]) and set(chosen) < set(wrong)
    assert "30 most confused of 1,000 classes" in shown.axes[0].get_title()
    shares = shown.axes[0].images[0].get_array()
    row = counts[chosen[0]]
    assert np.allclose(shares[0], 100 * row[chosen] / row.sum())


def test_rows_by_class_begin_with_the_lowest_accuracy():
    rows = confusion.by_class(COUNTS, ["cat", "dog", "owl"])
    assert [tuple(row) for row in rows] == [
        ("cat", 10, 8, "dog", 2),
        ("owl", 1004, 1000, "cat", 3),
        ("dog", 0, 0, "", 0),
    ]
    assert rows[0].accuracy == 0.8 and math.isnan(rows[2].accuracy)


@pytest.mark.parametrize(
    "counts, names, error, message",
    [
        (COUNTS / 2, None, TypeError, "counts must have an integer dtype, got float64"),
        (COUNTS[:2], None, ValueError, r"counts must have shape \(classes, classes\), got \(2, 3\)"),
        (-COUNTS, None, ValueError, "counts must not be negative, got -1000"),
        (COUNTS, ["a"], ValueError, "names must be 3, one a class, got 1"),
    ],
)
def test_matrices_that_are_refused(counts, names, error, message):
    with pytest.raises(error, match=message):
        confusion.draw(counts, names)


def test_large_numbers_that_do_not_fit_are_left_out():
    counts = np.full((30, 30), 123456789)
    assert not confusion.draw(counts).axes[0].texts
    assert len(confusion.draw(counts % 1000).axes[0].texts) == 900


# -------------------------------------------------------------------------------------------------------- mistakes
def test_mistakes_are_shown_with_their_names_the_surest_first(rng):
    pixels = rng.integers(0, 256, (3, 20, 30, 3), np.uint8)
    cases = [Mistake(f"sub/{i}.png", pixels[i], "cat", f"dog {i}", [0.5, 0.9, 0.7][i]) for i in range(3)]
    shown = mistakes.draw(cases, most=2)
    assert [np.array_equal(axes.images[0].get_array(), pixels[i]) for axes, i in zip(shown.axes, (1, 2))] == [True] * 2
    lines = [text.get_text() for text in shown.axes[0].texts]
    assert lines == ["true: cat", "taken for: dog 1", "probability 90.0 %", "sub/1.png"]
    assert "The 2 surest of 3 mistakes" in texts(shown)
    assert "No mistakes" in texts(mistakes.draw([]))
    assert "picture not found" in texts(mistakes.draw([cases[0]._replace(picture=None)]))
    with pytest.raises(ValueError, match=r"probability of sub/0\.png must lie in \[0, 1\], got nan"):
        mistakes.draw([cases[0]._replace(probability=math.nan)])


def test_large_pictures_are_reduced_and_small_ones_are_not(tmp_path):
    Image.new("L", (2000, 1000)).save(tmp_path / "large.png")
    assert mistakes.thumbnail(tmp_path / "large.png").shape == (120, 240, 3)
    assert mistakes.thumbnail(np.zeros((8, 9), np.uint8)).shape == (8, 9, 3)


# ------------------------------------------------------------------------------------------------------- attention
def test_rollout_is_the_product_of_the_mixed_maps(rng):
    maps = random_maps(rng, 4, 3, 5, 5).astype(np.float32)
    expected = np.eye(5)
    for layer in range(4):
        mixed = np.zeros((5, 5))
        for i in range(5):
            for j in range(5):
                mixed[i, j] = 0.5 * np.mean([float(maps[layer, head, i, j]) for head in range(3)]) + 0.5 * (i == j)
        expected = np.array([row / row.sum() for row in mixed]) @ expected
    found = attention.rollout(maps)
    assert found.dtype == np.float64 and np.allclose(found, expected, rtol=1e-12)
    assert np.allclose(found.sum(axis=1), 1, rtol=1e-12)
    last = np.zeros((2, 1, 3, 3))  # the first block moves token 2 to 0, the second token 0 to 1
    last[0, 0], last[1, 0] = np.eye(3)[[2, 1, 2]], np.eye(3)[[0, 0, 2]]
    assert np.allclose(attention.rollout(last), [[0.5, 0, 0.5], [0.25, 0.5, 0.25], [0, 0, 1]])


@pytest.mark.parametrize("wrong", [np.ones((2, 3, 3)), np.ones((1, 1, 2, 3)), np.ones((0, 1, 2, 2))])
def test_maps_of_a_wrong_shape_are_refused(wrong):
    with pytest.raises(ValueError, match=r"maps must have shape \(layers, heads, T, T\)"):
        attention.rollout(wrong)


def test_maps_with_wrong_values_are_refused():
    for value in (-1, math.nan):
        with pytest.raises(ValueError, match="maps must hold finite numbers of at least 0"):
            attention.rollout(np.full((1, 1, 2, 2), value))


@pytest.mark.parametrize(
    "options, rows", [({}, [0]), (dict(registers=2, dist_token=True), [0]), (dict(pool="mean"), range(6)),
                      (dict(pool="mean", registers=1), range(1, 7)), (dict(class_token=2), [0, 1])],
)  # fmt: skip
def test_the_prediction_attends_by_the_class_token_or_by_all_patches(rng, options, rows):
    config = ViTConfig(**SMALL, **options)
    matrix = random_maps(rng, config.tokens, config.tokens)
    row = attention.query_row(matrix, config)
    assert np.allclose(row, matrix[list(rows)].mean(axis=0))
    grid = attention.patch_map(row, config)
    assert grid.shape == (3, 2) and np.isclose(grid.sum(), 1)
    patches = row[config.prefix_tokens :]
    assert np.isclose(grid[2, 1], patches[5] / patches.sum()) and np.isclose(grid[1, 0], patches[2] / patches.sum())
    with pytest.raises(ValueError, match="row must have shape"):
        attention.patch_map(row[1:], config)
    with pytest.raises(ValueError, match="row must attend to some patch"):
        attention.patch_map(np.zeros(config.tokens), config)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_attention_on_a_picture(rng, monkeypatch, channels):
    how = Preprocessing(size=(12, 8), mean=(0.4,) * channels, std=(0.2,) * channels)
    model = ViT(ViTConfig(**SMALL, channels=channels), preprocessing=how)
    maps = random_maps(rng, 1, 3, 2, 7, 7)
    asked = []

    def given(self, x, layers=None):
        asked.append(layers)
        return maps if layers is None else maps[:, layers]

    monkeypatch.setattr(ViT, "attention", given, raising=False)
    picture = rng.integers(0, 256, (12, 8, 3), np.uint8)
    whole = attention.of_picture(model, picture)
    assert asked == [[0, 1, 2]]
    expected = (
        picture if channels == 3 else np.repeat(np.asarray(Image.fromarray(picture).convert("L"))[..., None], 3, 2)
    )
    assert np.array_equal(whole.seen, expected)
    assert np.allclose(whole.last, attention.patch_map(maps[0, 2].mean(axis=0)[0], model.config))
    assert np.allclose(whole.rollout, attention.patch_map(attention.rollout(maps[0])[0], model.config))
    monkeypatch.setattr(attention, "ROOM", 1)  # a block at a time, to the same result
    parts = attention.of_picture(model, picture)
    assert asked[1:] == [[0], [1], [2]]
    assert np.allclose(whole.rollout, parts.rollout, rtol=1e-12) and np.array_equal(whole.last, parts.last)
    shown = attention.draw(whole, "a.png", "cat 98.0 %")
    assert "a.png: cat 98.0 %" in texts(shown)
    with pytest.raises(ValueError, match="the model must have a block"):
        attention.of_picture(ViT(ViTConfig(**SMALL | dict(depth=0))), picture)


def test_an_overlay_is_bright_where_the_share_is_large():
    shares = np.array([[0.0, 0.1], [0.2, 0.7]])
    laid = attention.overlay(np.full((400, 600, 3), 128, np.uint8), shares)
    assert laid.shape == (400, 600, 3) and laid.dtype == np.uint8
    yellow, violet = laid[-1, -1].astype(int), laid[0, 0].astype(int)
    assert yellow[0] > 150 and yellow[1] > 150 and yellow[2] < 100 and violet[1] < 80
    assert attention.overlay(np.zeros((8, 8, 3), np.uint8), shares).shape == (448, 448, 3)


# ------------------------------------------------------------------------------------------- positions and filters
@pytest.mark.parametrize("options", [{}, dict(registers=2, pos_tokens="class"), dict(pos_tokens="patches")])
def test_similarity_is_the_cosine_of_the_patches_positions(options):
    model = ViT(ViTConfig(**SMALL, **options), seed=3)
    rows = model.layout.views(model.weights)["pos_embed"][-6:].astype(float)
    rows[2] = model.layout.views(model.weights)["pos_embed"][-4] = 0  # a position of zeros is like no other
    found = positions.similarity(model)
    for i in range(6):
        for j in range(6):
            length = np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
            assert np.isclose(found[i, j], rows[i] @ rows[j] / length if length else 0, atol=1e-7)
    mosaic = positions.draw(model).axes[0].images[0].get_array()
    assert mosaic.shape == (3 * 4 - 1, 2 * 3 - 1)
    assert np.allclose(mosaic[4:7, 3:5], found[3].reshape(3, 2))  # the patch in row 1, column 1


def test_of_a_large_grid_some_patches_are_shown():
    model = ViT(ViTConfig(image_size=(52, 28), patch_size=2, width=8, depth=0, heads=1, classes=0))
    shown = positions.draw(model)
    axes, found = shown.axes[0], positions.similarity(model)
    assert [int(tick.get_text()) for tick in axes.get_yticklabels()] == list(range(1, 26, 3))
    assert [int(tick.get_text()) for tick in axes.get_xticklabels()] == [1, 4, 7, 10, 13]
    assert np.allclose(axes.images[0].get_array()[27:53, :14], found[3 * 14].reshape(26, 14))
    assert "one patch in 3 each way" in axes.get_title()


@pytest.mark.parametrize("rope, why", [(Rope(), "its positions are rotary"), (None, "it has no positions")])
def test_models_without_learned_positions_are_refused(rope, why):
    model = ViT(ViTConfig(**SMALL, pos_tokens="none", rope=rope))
    with pytest.raises(ValueError, match=f"must have a learned position embedding for this plot, but {why}"):
        positions.draw(model)


def test_filters_are_columns_of_the_patch_embedding():
    model = ViT(ViTConfig(**SMALL))
    matrix = model.layout.views(model.weights)["patch_embed.weight"]
    found = filters.filters_of(model)
    assert found.shape == (16, 3, 4, 4) and np.array_equal(found[5].ravel(), matrix[:, 5])
    shown = filters.draw(model)
    drawn = [axes.images[0].get_array() for axes in shown.axes if axes.images]
    assert len(drawn) == 16 and np.array_equal(drawn[5], filters.pixels(found[5]))
    assert "The 16 filters of the patch embedding" in texts(shown)


@pytest.mark.parametrize("channels, patch, count", [(3, 4, 28), (1, 4, 16)])
def test_principal_components_are_those_of_scikit_learn(channels, patch, count):
    decomposition = pytest.importorskip("sklearn.decomposition")
    config = ViTConfig(**SMALL | dict(width=64, patch_size=patch, channels=channels))
    found = filters.filters_of(ViT(config))
    ours, shares = filters.components(found)
    pca = decomposition.PCA(n_components=count, svd_solver="full").fit(found.reshape(64, -1))
    assert len(ours) == count and np.allclose(shares, pca.explained_variance_ratio_)
    assert np.allclose(np.abs(ours.reshape(count, -1)), np.abs(pca.components_), atol=1e-6)
    assert (ours.reshape(count, -1).max(axis=1) == np.abs(ours.reshape(count, -1)).max(axis=1)).all()
    shown = filters.draw(ViT(config))
    drawn = [axes.images[0].get_array() for axes in shown.axes if axes.images]
    assert len(drawn) == count and drawn[0].shape == ((4, 4, 3) if channels == 3 else (4, 4))


def test_pixels_of_a_filter_have_zero_in_the_middle():
    assert np.array_equal(filters.pixels(np.array([[[-1.0, 0.0], [0.5, 0.25]]])), [[0, 0.5], [0.75, 0.625]])
    assert (filters.pixels(np.zeros((3, 2, 2))) == 0.5).all()
    with pytest.raises(ValueError, match="the model must have 1 or 3 channels for this plot, got 4"):
        filters.draw(ViT(ViTConfig(**SMALL, channels=4)))


# ----------------------------------------------------------------------------------------------------- all of them
def drawn_with(names):
    """Every plot, with hostile names in the places of classes and files."""
    share = np.full((2, 2), 0.25)
    picture = np.zeros((8, 8, 3), np.uint8)
    model = ViT(ViTConfig(**SMALL | dict(width=64)))
    return {
        "curves": curves.draw(History(epochs(3))),
        "confusion": confusion.draw(np.eye(len(names), dtype=int), names),
        "mistakes": mistakes.draw([Mistake(name, picture, name, name, 0.5) for name in names]),
        "attention": attention.draw(attention.Attention(picture, share, share), names[-1], names[0]),
        "positions": positions.draw(model),
        "filters": filters.draw(model),
    }


@pytest.mark.filterwarnings("error")
def test_every_plot_is_a_png_of_a_sane_size_whatever_the_names_are(tmp_path):
    drawn = drawn_with(HOSTILE)
    assert set(drawn) == {plot.name for plot in PLOTS}
    for plot in PLOTS:
        assert callable(importlib.import_module(f"cvit.plots.{plot.name}").draw)
        path = tmp_path / f"{plot.name}.png"
        figure.write(drawn[plot.name], path)
        assert figure.is_own(path)
        width, height = size_of(path.read_bytes())
        assert 300 < width < 2000 and 200 < height < 2000, plot.name
        pixels = np.asarray(Image.open(path).convert("L"))
        assert (pixels[0] == 255).all() and (pixels[:, -1] == 255).all()  # nothing is cut off at the edge
        assert pixels.std() > 5


def test_a_picture_of_someone_else_is_not_taken_for_a_plot(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("tEXtSoftware\0cvit")
    assert not figure.is_own(tmp_path / "other.png") and not figure.is_own(tmp_path / "text.png")


def test_labels_are_one_line_of_bounded_length():
    assert figure.label(" a\n b\x07\udcff ") == "a b\\x07\\udcff"
    assert figure.label("0123456789", 5) == "01…89" and figure.shortened("0123456789", 5) == "0123…"


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r'plots need matplotlib: pip install "cvit-cpu\[plots\]"'):
        curves.draw(History())


def test_optional_packages_are_imported_when_something_is_drawn():
    modules = ", ".join(f"cvit.plots.{plot.name}" for plot in PLOTS)
    program = f"import sys, cvit, cvit.plots.report, cvit.plots.lookup, cvit.cli.plot, {modules}\n"
    program += "print([name for name in ('matplotlib', 'PIL', 'jinja2', 'pandas') if name in sys.modules])\n"
    program += "assert 'cvit.plots' not in __import__('subprocess').check_output([sys.executable, '-c', "
    program += "'import sys, cvit; print(list(sys.modules))'], text=True)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "[]\n", run.stderr
