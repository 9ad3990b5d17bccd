"""cvit: Vision Transformers on CPUs, from NumPy arrays to NumPy arrays.

The map of the code, an image's way to its logits and back to the weights:

    base/      errors, numbers, arrays, files, locks
    engine/    program.py (the words), cutting.pyx (tasks), places.pyx (memory), building.pyx (steps), plan.pyx (calls),
               stages.pyx (a pass), steps/ (each part, forward and backward), team.pyx (threads, the door to csrc),
               update.pyx (optimizers' passes)
    ops/       each kernel alone
    model/     config.py, blocks.py (what a ViT is made of: parts.py), rope.py, layout.py, initialize.py, program.py,
               vit.py, functional.py
    families/  other libraries' names, options and positions, as tables: timm, transformers, torchvision, vit_jax
    formats/   load.py (whatever a model comes from), checkpoint.py (cvit's own file), source.py, hub.py, Flax,
               onnx_graph.py (out alone)
    data/      images in, batches out     pictures/  files to images
    parallel/  one process, or the ranks of an MPI world: one gradient out of all of theirs
    train/     loop, optimizers           runs/   from a path to a folder with a trained model
    plots/     curves, attention, the report       estimator/  for scikit-learn
    cli/       the commands                        bench/      `cvit bench`
    ../csrc    the kernels: one source for every instruction set and element type
"""

from .base import interpreter  # first: refuses any but the main one

try:  # then this, since it loads OpenMP
    from .engine.runtime import available_isas, get_isa, get_num_threads, set_isa, set_num_threads
except ImportError:
    from importlib.machinery import EXTENSION_SUFFIXES
    from pathlib import Path

    folder = Path(__file__).parent
    if any("." + path.name.partition(".")[2] in EXTENSION_SUFFIXES for path in folder.glob("engine/*")):
        raise
    raise ImportError(
        f"{folder} holds cvit's sources without its compiled modules for this Python: "
        "start Python elsewhere, or install with pip install -e ."
    ) from None
from os import PathLike
from typing import TYPE_CHECKING

from . import ops
from .base.version import VERSION as __version__
from .formats import checkpoint, flax
from .formats.checkpoint import save
from .formats.flax import from_flax, to_flax
from .model import config, functional, initialize, layout
from .model.config import ViTConfig
from .model.drop import Drop
from .model.functional import (
    pack_weights,
    patch_embed_with_cls,
    unpack_weights,
    vit_block,
    vit_classify,
    vit_forward,
    vit_train_step,
)
from .model.initialize import init_weights
from .model.layout import Layout
from .model.rope import Rope
from .model.vit import Plan, ViT
from .pictures.preprocessing import Preprocessing
from .train import optim
from .train.evaluation import evaluate
from .train.loop import fit as _fit
from .train.optim import SGD, AdamW, warmup_cosine

if TYPE_CHECKING:
    from .estimator import ViTClassifier, ViTFeatures
    from .formats.load import from_hf, from_state_dict, from_timm, from_torchvision, load

__all__ = [
    "SGD", "AdamW", "Drop", "Layout", "Plan", "Preprocessing", "Rope", "ViT", "ViTConfig", "available_isas", "evaluate",
    "fit", "from_flax", "from_hf", "from_state_dict", "from_timm", "from_torchvision", "get_isa", "get_num_threads",
    "init_weights", "load", "ops", "pack_weights", "patch_embed_with_cls", "save", "set_isa", "set_num_threads",
    "to_flax", "unpack_weights", "vit_block", "vit_classify", "vit_forward", "vit_train_step", "warmup_cosine",
]  # fmt: skip


def fit(model, *arguments, **options):
    """Train: a `ViT` in place, or, given a path to pictures, from there to a run's folder.

    `fit(model, train, test, epochs=20, …)` is `cvit.train.fit` and returns a History; `fit("photos/", init=…)` is
    `cvit.runs.train` and returns a Run with model, folder, history and results.
    """
    if isinstance(model, (str, PathLike)):
        from .runs import train

        return train(model, *arguments, **options)
    return _fit(model, *arguments, **options)


# The readers and writers of other libraries' models are imported when they are asked for: they would double the time
# that the import of cvit takes.
LOADERS = ("from_hf", "from_state_dict", "from_timm", "from_torchvision", "load")
# So are the estimators, which need scikit-learn; `from cvit import *` shall do without it.
ESTIMATORS = ("ViTClassifier", "ViTFeatures")


def __getattr__(name: str):
    if name in ESTIMATORS:
        from . import estimator

        return getattr(estimator, name)
    if name not in LOADERS:
        raise AttributeError(f"module 'cvit' has no attribute {name!r}")
    from .formats import load as loading

    for loader in LOADERS:
        globals()[loader] = getattr(loading, loader)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _write(path, model, names, dtype) -> None:
    from .formats.save import save as write

    write(path, model, names, dtype=dtype)


ViT._write = staticmethod(_write)  # the method `save`, for a package that does not know what lies above it
