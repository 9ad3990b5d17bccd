"""TensorBoard's event files, written with the package tensorboard, which needs no framework."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from ..train.history import Epoch

TAGS = ("lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "images_per_second")  # of `Epoch`


def events(folder: str | os.PathLike) -> Callable[[Epoch], None]:
    """A function that writes an epoch's figures to event files in `folder`.

    Raises `ModuleNotFoundError` without tensorboard, which `pip install "cvit-cpu[tensorboard]"` brings.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ModuleNotFoundError:
        raise ModuleNotFoundError('TensorBoard files need tensorboard: pip install "cvit-cpu[tensorboard]"') from None
    writer = EventFileWriter(os.fspath(folder))

    def write(epoch: Epoch) -> None:
        values = [
            Summary.Value(tag=tag, simple_value=getattr(epoch, tag))
            for tag in TAGS
            if not math.isnan(getattr(epoch, tag))
        ]
        writer.add_event(Event(step=epoch.epoch, summary=Summary(value=values)))
        writer.flush()

    return write
