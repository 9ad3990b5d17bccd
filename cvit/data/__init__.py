"""Images in, batches out: data sets, seeded shuffling, and augmentation."""

from .arrays import Dataset, batches
from .augment import Affine, random_affine
from .augmentation import Augmentation
from .builtin import digits, stratified_mask
from .draws import uniforms
from .mixing import Mixing

__all__ = [
    "Affine", "Augmentation", "Dataset", "Mixing", "batches", "digits", "random_affine", "stratified_mask", "uniforms",
]  # fmt: skip
