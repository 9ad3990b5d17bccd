"""`python -m cvit` is the command `cvit`."""

from .cli import main

raise SystemExit(main())
