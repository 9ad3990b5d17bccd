"""Images in, batches out: data sets found and checked, seeded order, augmentation, and batches made ahead.

found.py      `find`, `from_arrays`: a path or arrays to a data set, by the readers folder, table, archive, builtin
inspecting.py what is checked, held out and remarked on         parts.py    what a reader hands over
pictures.py   `Pictures`: labels and a source of pictures       sources.py  files, bytes, floats
feed.py       `Feed`: batches made ahead (ahead.py), out of a `Cache` (cache.py)
arrays.py     a model's own inputs in memory: `Dataset`, `batches`, and `ArrayFeed` (array_feed.py)
augmentation.py, mixing.py   what a `Feed` does to pictures and to batches, out of draws.py
"""

from typing import TYPE_CHECKING

from .arrays import Dataset, batches

if TYPE_CHECKING:
    from .array_feed import ArrayFeed
    from .augment import Affine, random_affine
    from .augmentation import Augmentation
    from .builtin import digits, stratified_mask
    from .cache import Cache
    from .draws import uniforms
    from .feed import Batch, Feed
    from .found import Found, find, from_arrays
    from .mixing import Mixing
    from .pictures import Pictures

__all__ = [
    "Affine", "ArrayFeed", "Augmentation", "Batch", "Cache", "Dataset", "Feed", "Found", "Mixing", "Pictures",
    "batches", "digits", "find", "from_arrays", "random_affine", "stratified_mask", "uniforms",
]  # fmt: skip

# Imported when they are asked for: `import cvit` needs none of them, and would take half as long again.
MODULES = {
    "Affine": "augment", "ArrayFeed": "array_feed", "Augmentation": "augmentation", "Batch": "feed", "Cache": "cache",
    "Feed": "feed", "Found": "found", "Mixing": "mixing", "Pictures": "pictures", "digits": "builtin", "find": "found",
    "from_arrays": "found", "random_affine": "augment", "stratified_mask": "builtin", "uniforms": "draws",
}  # fmt: skip


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f"module 'cvit.data' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
