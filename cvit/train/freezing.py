"""What of a model is trained: freezing by name, all but the last blocks, or all but the head.

trained, first = freezing(model.layout, last_blocks=2)
optimizer = AdamW(model, trained=trained)
loss, grad = model.loss_and_grad(x, y, first=first)       # the frozen front has no backward
"""

from __future__ import annotations

from collections.abc import Iterable

from ..base.errors import check
from ..base.numbers import as_int
from ..model.blocks import head
from ..model.layout import Layout
from .groups import matching


def freezing(
    layout: Layout, patterns: Iterable[str] = (), last_blocks: int | None = None, head_only: bool = False
) -> tuple[frozenset[str], int | str | None]:
    """The tensors that are trained, and where the backward of a training step may end.

    Parameters
    ----------
    layout : Layout
        Of the model, `model.layout`.
    patterns : names or patterns
        What is frozen, as shells match files: "blocks.0.*", "patch_embed.*", "*.bias".
    last_blocks : int
        From 0 to depth: freezes the embedding and all but so many last blocks.
    head_only : bool
        Freezes all but the layer that gives the logits, and that of the distillation token.

    Returns
    -------
    trained : frozenset of str
        The names of all other tensors, for the optimizers and `EMA`.
    first : None, int or "head"
        For `ViT.loss_and_grad`: None where a tensor of the embedding is trained; else the first block with a trained
        tensor, depth where there is none; "head" where nothing but the layer that gives the logits is trained.

    Raises
    ------
    TypeError, ValueError
        A wrong argument; a pattern that matches nothing, with the names near it; nothing left to train.
    """
    if not isinstance(layout, Layout):
        raise TypeError(f"layout must be a Layout, as model.layout is, got {type(layout).__name__}")
    depth = layout.config.depth
    frozen = set(matching("patterns", layout, patterns))
    if last_blocks is not None:
        kept = depth + 1 - as_int("last_blocks", last_blocks, minimum=0, maximum=depth)
        frozen |= {entry.name for entry in layout.entries.values() if entry.row.layer < kept}
    logits = _head_names(layout)
    if head_only:
        check(bool(logits), "head_only needs a model with a head, but this one has no classes")
        frozen |= layout.entries.keys() - logits
    trained = frozenset(layout.entries.keys() - frozen)
    check(bool(trained), "patterns, last_blocks and head_only must leave a tensor to train, but they freeze all")
    return trained, first_trained(layout, trained)


def first_trained(layout: Layout, trained: frozenset[str]) -> int | str | None:
    """Where the backward of a training step may end for these tensors: `first` of `freezing`."""
    if trained and trained <= _head_names(layout):
        return "head"
    layer = min((layout.entries[name].row.layer for name in trained), default=0)
    return None if layer == 0 else layer - 1


def _head_names(layout: Layout) -> frozenset[str]:
    """The tensors of the layers that give the logits."""
    parts = [part for part in head(layout.config) if part.target == "logits"]
    return frozenset(tensor.name for part in parts for tensor in part.tensors)
