"""The table of verdicts: as text, as Markdown and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Sequence

from .compare import Verdict

LIBRARIES = ("torch", "timm", "torchvision", "transformers")
HEADER = ("", "names", "equal", "refused", "wrong", "outputs within", "gradients within")


def versions() -> str:
    """The libraries' versions."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return ", ".join([*found, f"Python {platform.python_version()}"])


def groups(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts of each row of the table: timm's, torchvision's, transformers'."""
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.group, []).append(verdict)
    return found


def rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """The table's rows as text, with the largest errors of what is equal."""
    table = []
    for group, members in [*groups(verdicts).items(), ("all", list(verdicts))]:
        count = Counter(one.verdict for one in members)
        equal = [one for one in members if one.verdict == "equal"]
        gradients = [one.gradient for one in equal if one.gradient is not None]
        table.append(
            (
                group,
                *map(str, (len(members), count["equal"], count["refused"], count["wrong"])),
                f"{max(one.error for one in equal):.1e}" if equal else "",
                f"{max(gradients):.1e}" if gradients else "",
            )
        )
    return table


def reasons(verdicts: Sequence[Verdict]) -> list[tuple[str, str, list[str]]]:
    """(group, the part that is not computed, the names) of all that is refused."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in verdicts:
        if one.verdict == "refused":
            found.setdefault((one.group, one.reason.partition(" (")[0]), []).append(one.name)
    return [(group, reason, names) for (group, reason), names in found.items()]


def text(verdicts: Sequence[Verdict]) -> str:
    """For a screen: what is wrong and what is refused, name by name, then the table."""
    lines = [f"WRONG    {one.group}: {one.name}: {one.reason}" for one in verdicts if one.verdict == "wrong"]
    lines += [f"refused  {one.group}: {one.name}: {one.reason}" for one in verdicts if one.verdict == "refused"]
    table = [HEADER, *rows(verdicts)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    lines += ["", *("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)]
    return "\n".join([*lines, "", versions()])


def markdown(verdicts: Sequence[Verdict]) -> str:
    """For docs/families.md."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(verdicts)]
    lines += ["", f"{versions()}. `python -m cvit.families.census --markdown`", "", "| refused | for | names |"]
    lines += ["|---|---|---|"]
    for group, reason, names in reasons(verdicts):
        shown = ", ".join(f"`{name}`" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        lines.append(f"| {group} | {reason} | {shown} |")
    return "\n".join(lines)


def as_json(verdicts: Sequence[Verdict]) -> str:
    """Every verdict, with the versions."""
    return json.dumps({"versions": versions(), "verdicts": [one._asdict() for one in verdicts]}, indent=1)
