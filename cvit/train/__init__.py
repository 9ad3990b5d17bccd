"""Training: the loop and its history, optimizers and schedules."""

from .loop import Epoch, Evaluation, History, Step, confusion_matrix, evaluate, fit
from .optim import SGD, AdamW, clip, warmup_cosine

__all__ = [
    "SGD", "AdamW", "Epoch", "Evaluation", "History", "Step", "clip", "confusion_matrix", "evaluate", "fit", "warmup_cosine",
]  # fmt: skip
