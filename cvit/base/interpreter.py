"""Refuses to be imported in any but the main interpreter of a process: NumPy's compiled modules and cvit's have one
state for all of them."""

from __future__ import annotations

import importlib
import sys


def is_main() -> bool:
    """Whether this is the interpreter that the process began with."""
    try:  # what the standard library and CPython's own tests use
        interpreters = importlib.import_module("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    except ImportError:  # a Python that has but one
        return True
    return interpreters.get_current() == interpreters.get_main()


if not is_main():
    raise ImportError("cvit works in the main interpreter of a process alone: use threads, or processes")
