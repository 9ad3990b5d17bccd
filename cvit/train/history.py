"""What happened in a training run: its place, its steps and epochs, and its history as a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import math
from typing import NamedTuple

from ..base.files import replacing


class Step(NamedTuple):
    """Where a run stands after an optimizer step; means are over the images of the epoch so far."""

    epoch: int  # from 1
    step: int  # within the epoch, from 1
    images: int  # of the epoch so far
    loss: float
    accuracy: float
    lr: float


class Epoch(NamedTuple):
    """One finished epoch. The training figures are means over its batches, taken while the weights moved."""

    epoch: int  # from 1
    lr: float  # of its last step
    train_loss: float
    train_accuracy: float
    test_loss: float  # nan without test data
    test_accuracy: float
    images_per_second: float  # of training, evaluation not counted


@dataclasses.dataclass
class Position:
    """Where a run stands: the epoch at hand, from 0, and what of it is done."""

    epoch: int = 0
    step: int = 0  # steps of this epoch that are done
    total: int = 0  # steps of the whole run that are done
    images: int = 0  # of this epoch
    loss: float = 0.0  # summed over them
    right: int = 0
    lr: float = 0.0  # of the last step


@dataclasses.dataclass
class History:
    """What happened in a run: its finished epochs, and whether a Ctrl-C or a lack of progress ended it before the
    last."""

    epochs: list[Epoch] = dataclasses.field(default_factory=list)
    interrupted: bool = False
    stopped_early: bool = False

    @property
    def best(self) -> Epoch | None:
        """The epoch of the highest test accuracy, of several the one of the lowest test loss, then the first; None
        without an evaluated epoch."""
        evaluated = [epoch for epoch in self.epochs if not math.isnan(epoch.test_accuracy)]
        return min(evaluated, key=lambda epoch: (-epoch.test_accuracy, epoch.test_loss, epoch.epoch), default=None)

    def write_csv(self, path) -> None:
        """One line an epoch under a line of names, in place of what `path` held."""
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Epoch._fields)
            writer.writerows(self.epochs)


def is_history(path) -> bool:
    """Whether the file `path` begins as `History.write_csv` begins one, in this version or one with other columns at
    the end."""
    begin = ",".join(Epoch._fields[:4]).encode()
    with open(path, "rb") as file:
        return file.read(len(begin)) == begin
