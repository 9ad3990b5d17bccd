"""How a `ViT` is copied and pickled: what makes it again, without lock, engines and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .vit import ViT

ABOUT = ("precision", "checkpoint", "preprocessing", "class_names", "origin")  # arguments of the constructor
# What a model holds beside attributes that a caller adds.
ATTRIBUTES = frozenset([
    *(f"_{name}" for name in ABOUT), "_config", "_layout", "_size", "_token_rows", "_dtype", "_state", "_gradients",
    "_most", "_most_in_piece", "_own", "_lock",
])  # fmt: skip


def state_of(model: ViT) -> dict[str, Any]:
    """What `restore` makes the model of. Attributes that the caller added go along."""
    inside = {name: getattr(model, name) for name in ABOUT}
    inside |= dict(config=model.config, weights=model.weights, frozen=model.frozen)
    return {"model": inside, "added": {name: v for name, v in vars(model).items() if name not in ATTRIBUTES}}


def restore(model: ViT, state: dict[str, Any], construct: Callable[..., None]) -> None:
    """Make `model`, which has nothing yet, that of `state`, by the constructor `construct`."""
    inside = state["model"]
    construct(model, inside["config"], inside["weights"], **{name: inside.get(name) for name in ABOUT})
    if inside["frozen"]:
        model.freeze()
    vars(model).update(state["added"])
