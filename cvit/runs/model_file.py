"""A run's model files: weights with the names of the data's classes and what is done to its pictures."""

from __future__ import annotations

from ..formats import checkpoint
from ..model.vit import ViT
from ..train.history import Epoch
from .folder import Folder
from .job import Job


def write_model(folder: Folder, name: str, model: ViT, job: Job, epoch: Epoch | None) -> None:
    """Write `model` to the run's file `name`, with notes of the data and of the epoch that it is from."""
    known = ViT(
        model.config, model.weights, precision=model.precision, preprocessing=job.how,
        class_names=job.found.class_names, origin=job.model.origin,
    )  # fmt: skip
    notes = {"data": job.found.name}
    if epoch is not None:
        notes |= {"epoch": str(epoch.epoch), "validation_accuracy": f"{epoch.test_accuracy:.4f}"}
    checkpoint.save(folder.file(name), known, metadata=notes)
