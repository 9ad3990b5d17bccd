"""predictions.csv: written, read again, and counted."""

import os

import numpy as np
import pytest

from cvit.train.predictions import Prediction, confusion_of, read_predictions, write_predictions

ROWS = [
    Prediction("a,b.png", "cat", "dog", 0.75),
    Prediction(os.fsdecode(b"\xff.png"), "dog", 'the "dog"', 1.0),
    Prediction("two\nlines.png", "dog", "dog", 1 / 3),
]


def test_predictions_are_read_as_they_were_written(tmp_path):
    write_predictions(tmp_path / "predictions.csv", ROWS)
    assert read_predictions(tmp_path / "predictions.csv") == ROWS
    assert (tmp_path / "predictions.csv").read_bytes().startswith(b"name,true,predicted,probability\r\n")
    (tmp_path / "more.csv").write_text("loss,probability,predicted,true,name\n1,0.5,b,a,x\n")
    assert read_predictions(tmp_path / "more.csv") == [Prediction("x", "a", "b", 0.5)]


def test_the_confusion_matrix_of_predictions():
    counts, names = confusion_of(ROWS)
    assert names == ("cat", "dog", 'the "dog"') and np.array_equal(counts, [[0, 1, 0], [0, 1, 1], [0, 0, 0]])
    counts, names = confusion_of(ROWS[:1], ["owl", "dog", "cat"])
    assert names == ("owl", "dog", "cat") and counts[2, 1] == counts.sum() == 1
    assert confusion_of([Prediction("", "10", "9", 1.0)])[1] == ("9", "10")
    with pytest.raises(ValueError, match='predictions must name classes of the model, but not so the "dog"'):
        confusion_of(ROWS, ["cat", "dog"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must have the columns name, true, predicted, probability, and lacks name, predicted, probability, true"),
        ("name,true,predicted\n", "and lacks probability"),
        ("name,true,predicted,probability\na,b,c,1\na,b,c,x\n", r"line 3: probability must lie in \[0, 1\], got 'x'"),
        ("name,true,predicted,probability\na,b,c\n", r"line 2: probability must lie in \[0, 1\], got ''"),
        ("name,true,predicted,probability\na,b,c,1.5\n", r"line 2: probability must lie in \[0, 1\], got '1\.5'"),
        ("name,true,predicted,probability\n" + "a" * 200_000, "is no table of comma-separated values"),
    ],
)
def test_predictions_that_are_refused(tmp_path, text, message):
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "predictions.csv")
