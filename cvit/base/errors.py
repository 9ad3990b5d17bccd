"""One way to say that an argument is wrong: which one, what came, what is needed."""


def check(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition` holds."""
    if not condition:
        raise ValueError(message)
