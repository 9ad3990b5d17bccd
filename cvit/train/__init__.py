"""Training: the loop, its history, evaluation, optimizers and schedules."""

from .evaluation import Evaluation, confusion_matrix, evaluate, evaluate_checked
from .history import Epoch, History, Step
from .loop import fit
from .optim import SGD, AdamW, clip, warmup_cosine

__all__ = [
    "SGD", "AdamW", "Epoch", "Evaluation", "History", "Step", "clip", "confusion_matrix", "evaluate",
    "evaluate_checked", "fit",
    "warmup_cosine",
]  # fmt: skip
