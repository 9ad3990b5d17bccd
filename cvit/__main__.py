"""`python -m cvit` is the command `cvit`."""

from .cli import start

raise SystemExit(start())
