"""What tensors do not say of timm's architectures."""

from __future__ import annotations

from typing import Any

TABLE: dict[str, list[tuple[dict[str, Any], str]]] = {"vit": [], "eva": []}


def architecture(table: str, name: Any) -> dict[str, Any] | None:
    """Fields of the configuration of timm's architecture `name` that its tensors do not say; None if unknown."""
    for fields, names in TABLE[table]:
        if name in names.split():
            return fields
    return None
