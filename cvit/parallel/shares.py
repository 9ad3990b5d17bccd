"""Which parts of a batch, and which pictures, are whose: equal shares, in order, from whole numbers alone."""

from __future__ import annotations

from ..base.errors import check


def part_slices(images: int, parts: int) -> list[slice]:
    """`parts` shares of `images` images, in order, as equal as can be; some are empty where images are fewer."""
    return [slice(part * images // parts, (part + 1) * images // parts) for part in range(parts)]


def own_parts(rank: int, size: int, parts: int) -> range:
    """The parts of a batch that a rank computes: at least one, so `parts` must be at least the number of ranks."""
    check(size <= parts, f"parts must be at least the number of ranks, {size}, got {parts}")
    return range(rank * parts // size, (rank + 1) * parts // size)


def own_pictures(count: int, rank: int, size: int) -> slice:
    """A rank's share of `count` pictures that every rank knows of; it may be empty."""
    return part_slices(count, size)[rank]
