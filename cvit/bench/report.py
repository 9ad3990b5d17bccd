"""What a benchmark says: aligned tables on the terminal, and everything as JSON."""

from __future__ import annotations

import json
import sys

from ..base.files import replacing


class Report:
    """Prints as it goes and keeps what goes into the JSON file.

    Parameters
    ----------
    out : text stream
        Where the tables go. Passing states ("preparing torch …") go to stderr, on a terminal only.
    """

    def __init__(self, out=None):
        self.out = out or sys.stdout
        self.data: dict = {}
        self.faults = 0
        self._noted: set[str] = set()
        self._live = sys.stderr.isatty()

    def line(self, text: str = "") -> None:
        """Print a line."""
        self.status("")
        print(text, file=self.out, flush=True)

    def status(self, text: str) -> None:
        """Show what is being done now; the next line replaces it."""
        if self._live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a remark, once."""
        if text not in self._noted:
            self._noted.add(text)
            self.line(f"  {text}")

    def fault(self, text: str) -> None:
        """Print that something went wrong, and remember it for the exit status."""
        self.faults += 1
        self.data.setdefault("faults", []).append(text)
        self.line(f"  FAILED {text}")

    def add(self, section: str, **entry) -> None:
        """Keep an entry for the JSON file."""
        self.data.setdefault(section, []).append(entry)

    def table(self, title: str, *columns: tuple[str, int]) -> Table:
        """Begin a table: (heading, width) of each column, a negative width for text flush left."""
        return Table(self, title, columns)

    def write(self, file) -> None:
        """Write everything as JSON, in place of what `file` held."""
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")


class Table:
    """Rows printed as they come, under headings printed with the first of them."""

    def __init__(self, report: Report, title: str, columns):
        self.report, self.title, self.columns = report, title, columns
        self._begun = self._gap = False

    def gap(self) -> None:
        """Leave a line free before the next row, if there are rows already."""
        self._gap = self._begun

    def row(self, *cells) -> None:
        """Print one row of already formatted cells; None is an empty cell."""
        if not self._begun:
            self._begun = True
            self.report.line()
            self.report.line(self.title)
            self._print(heading for heading, _ in self.columns)
        if self._gap:
            self._gap = False
            self.report.line()
        self._print(cells)

    def _print(self, cells) -> None:
        columns = zip(cells, (width for _, width in self.columns), strict=True)
        padded = (f"{'' if cell is None else cell:{'<' if width < 0 else '>'}{abs(width)}}" for cell, width in columns)
        self.report.line("  ".join(padded).rstrip())


def milliseconds(seconds: float) -> str:
    """Seconds in ms with three significant digits or more: 0.0123, 4.56, 1234."""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 1 else f"{ms:.4f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def times(ratio: float | None) -> str:
    """A ratio, "2.31x"; empty for None."""
    return "" if ratio is None else f"{ratio:.2f}x"


def megabytes(size: float) -> str:
    """Bytes in MB (10^6)."""
    return f"{size / 1e6:.1f}" if size < 1e8 else f"{size / 1e6:.0f}"
