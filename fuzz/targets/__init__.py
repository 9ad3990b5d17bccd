"""Each kind of input, by its name; a module has `TARGET`.

A module is imported in the process that runs its cases, and makes its seeds, small files in order, when it is.
"""

from __future__ import annotations

import importlib

from ..running import Target

NAMES = (
    "containers", "own_models", "published", "npz_models", "npz_data", "pictures", "tables", "class_folders",
    "checkpoints", "runs", "configs", "commands",
)  # fmt: skip


def target_of(name: str) -> Target:
    """The target of that name."""
    return importlib.import_module(f".{name}", __package__).TARGET
