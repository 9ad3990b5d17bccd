"""Images in, batches out: data sets, seeded shuffling, and augmentation."""

from importlib import import_module
from typing import TYPE_CHECKING

from .arrays import Dataset, batches
from .augment import Affine, random_affine
from .builtin import digits, stratified_mask

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .draws import uniforms
    from .mixing import Mixing

__all__ = [
    "Affine", "Augmentation", "Dataset", "Mixing", "batches", "digits", "random_affine", "stratified_mask", "uniforms",
]  # fmt: skip

_LATER = {"Augmentation": ".augmentation", "Mixing": ".mixing", "uniforms": ".draws"}  # `import cvit` goes without them


def __getattr__(name: str):
    if name in _LATER:
        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
