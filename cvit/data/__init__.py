"""Images in, batches out: data sets, seeded shuffling, and augmentation."""

from .arrays import Dataset, batches
from .augment import random_affine
from .builtin import digits, stratified_mask

__all__ = ["Dataset", "batches", "digits", "random_affine", "stratified_mask"]
