"""Training: the loop, its history, evaluation, optimizers and schedules."""

from .ema import EMA
from .evaluation import Evaluation, confusion_matrix, evaluate
from .freezing import freezing
from .history import Epoch, History, Step
from .loop import fit
from .optim import SGD, AdamW, clip, warmup_cosine

__all__ = [
    "EMA", "SGD", "AdamW", "Epoch", "Evaluation", "History", "Step", "clip", "confusion_matrix", "evaluate", "fit",
    "freezing", "warmup_cosine",
]  # fmt: skip
