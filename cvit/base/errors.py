"""One way to say that an argument is wrong: which one, what came, what is needed."""

from collections.abc import Iterable


def check(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def short(value, most: int = 60) -> str:
    """`value` as text for a message, cut to `most` characters: what stands in a file may be of any length."""
    try:
        text = str(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a message, sorted: the first `most` of them, each `short`, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(short(name) for name in names[:most]) + more
