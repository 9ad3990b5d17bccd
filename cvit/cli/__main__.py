"""`python -m cvit.cli`, the same as `python -m cvit`."""

import sys

from . import start

sys.exit(start())
