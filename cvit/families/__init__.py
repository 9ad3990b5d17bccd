"""Other libraries' models: the names of their tensors as tables, one file a family, for reading and for writing.

    family.py     what a family is: `Row`, `Family`, `Given`     transform.py   theirs to ours and back
    reading.py    `read` and `write`                             positions.py   positions for another image size

    hf.py, hf_*.py: transformers, of which hf_all.py lists all and hf_module.py reads a module
    timm_vit.py, timm_eva.py, timm_table.py, timm_module.py      torchvision_vit.py      flax_npz.py

A file is of the first family in `FAMILIES` that its config.json names, else of the first that its names fit.
"""

from .family import Family, Given, Row
from .flax_npz import FlaxNpz
from .hf_all import HF_FAMILIES
from .hf_module import from_hf
from .reading import Model, adapted, configuration, given, read, recognise, write
from .timm_eva import TimmEva
from .timm_module import from_timm
from .timm_vit import TimmViT
from .torchvision_vit import Torchvision, from_torchvision

FAMILIES: tuple[Family, ...] = (*HF_FAMILIES, TimmEva(), TimmViT(), Torchvision(), FlaxNpz())


def family_named(name: str) -> Family:
    """The family of this name; an unknown one is a `ValueError` that lists all."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"family must be one of {', '.join(family.name for family in FAMILIES)}, got {name!r}")


__all__ = [
    "FAMILIES", "Family", "Given", "Model", "Row", "adapted", "configuration", "family_named", "from_hf", "from_timm",
    "from_torchvision", "given", "read", "recognise", "write",
]  # fmt: skip
