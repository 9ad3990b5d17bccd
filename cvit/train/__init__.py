"""Training: the loop, its history, evaluation, optimizers and schedules.

loop.py      `fit`, and a run that can be stopped after any step     optim.py      SGD and AdamW
step.py      a step: loss, gradient in parts, update                 groups.py     learning rates by layer
feeds.py     what `fit` trains on                                    freezing.py   which tensors are trained
front.py     a frozen front's rows, computed once                    clipping.py   the gradient's norm
evaluation.py   loss, accuracy, confusion                            ema.py        the weights' moving average
class_weights.py  rare classes                                       schedule.py   warm-up and cosine
history.py   epochs, as a CSV                                        state.py      checkpoints of a run
agreement.py what ranks must have alike                              split.py      an optimizer shared out among ranks
"""

from .ema import EMA
from .evaluation import Evaluation, confusion_matrix, evaluate, evaluate_checked
from .history import Epoch, History, Step
from .loop import fit
from .optim import SGD, AdamW, clip, warmup_cosine

__all__ = [
    "EMA", "SGD", "AdamW", "Epoch", "Evaluation", "History", "Step", "clip", "confusion_matrix", "evaluate",
    "evaluate_checked", "fit", "warmup_cosine",
]  # fmt: skip
