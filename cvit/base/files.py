"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Give a temporary `Path` beside `path` to write to; it then takes `path`'s place, or is removed after an error.

    The rename is atomic, so whoever opens `path` finds the old content or the new, also after a crash or a Ctrl-C.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
