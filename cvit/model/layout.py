"""The flat weight tensor: the rows of `parts` with their offsets, from which every size and view comes.

Matrices are stored (in, out), so `y = x @ W`. The order is the order of use:

    patch_embed.weight (C·P·P, D)   patch_embed.bias (D)
    cls_token (D)   dist_token (D)   reg_token (R, D)   pos_embed (T, D), or (patches, D)
    for each block i:
        blocks.i.norm1.weight, .bias (D)
        blocks.i.attn.{q,k,v,proj}.weight (D, D), each followed by its .bias (D)   blocks.i.ls1.gamma (D)
        blocks.i.norm2.weight, .bias (D)       -- stands before mlp.fc1
        blocks.i.mlp.{fc1_gate, fc1}.weight (D, F), each followed by its .bias (F)
        blocks.i.mlp.fc2.weight (F, D), .bias (D)   blocks.i.ls2.gamma (D)
    norm.weight, norm.bias (D)   head.weight (D, classes)   head.bias (classes)

Parts that a configuration lacks are left out. For the plain architecture (no biases, no norm parameters, F = D) what is
left is exactly `[w_proj, cls_token, pos_embed, blocks_weights (L, 6, D, D), w_head]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..base.errors import check, listed
from .blocks import rows
from .config import ViTConfig
from .parts import Role, Tensor


class Entry(NamedTuple):
    """One tensor of the flat weight tensor."""

    name: str
    shape: tuple[int, ...]
    offset: int
    decay: bool  # whether weight decay applies: matrices yes; biases, norms, tokens and positions no
    row: Tensor  # its other columns

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def role(self) -> Role:
        """What the tensor does."""
        return self.row.role


class Layout:
    """The table of a configuration's weights: `entries`, `size`, and views, packing and masks made from it."""

    def __init__(self, config: ViTConfig):
        if not isinstance(config, ViTConfig):
            raise TypeError(f"config must be a ViTConfig, got {type(config).__name__}")
        self.config = config
        self.entries: dict[str, Entry] = {}
        offset = 0
        for row in rows(config):
            self.entries[row.name] = Entry(row.name, row.shape, offset, row.decay, row)
            offset += row.size
        self.size = offset

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, config: ViTConfig) -> Layout:
        """The layout of `config`, made once."""
        return cls(config)

    def offset(self, name: str) -> int:
        """Offset of a tensor in the flat tensor, -1 if this configuration lacks it."""
        entry = self.entries.get(name)
        return -1 if entry is None else entry.offset

    def check_flat(self, flat: np.ndarray, name: str = "weights") -> None:
        """Raise unless `flat` is a vector of this layout's size."""
        if not isinstance(flat, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(flat).__name__}")
        check(
            flat.shape == (self.size,),
            f"{name} must have shape ({self.size},) for this configuration, got {flat.shape}",
        )

    def views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Every tensor by name, as zero-copy views of `flat` (size,)."""
        self.check_flat(flat)
        return {e.name: flat[e.offset : e.offset + e.size].reshape(e.shape) for e in self.entries.values()}

    def pack(self, tensors, dtype=None) -> np.ndarray:
        """A new flat tensor from a mapping of name to array; a missing, unknown or misshapen one is a `ValueError`."""
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors must be a mapping of name to array, got {type(tensors).__name__}")
        missing, unknown = self.entries.keys() - tensors.keys(), tensors.keys() - self.entries.keys()
        check(not missing, f"tensors lacks {listed(missing)}")
        check(not unknown, f"tensors has names that this configuration does not know: {listed(map(str, unknown))}")
        arrays = {name: np.asarray(value) for name, value in tensors.items()}
        for name, array in arrays.items():
            shape = self.entries[name].shape
            check(array.shape == shape, f"{name} must have shape {shape}, got {array.shape}")
        if dtype is None:
            dtype = np.result_type(*arrays.values())
        flat = np.empty(self.size, dtype)
        for name, view in self.views(flat).items():
            view[...] = arrays[name]
        return flat

    def pieces(self, first: int | str | None = None) -> list[slice]:
        """The trained part of a gradient, cut as a backward is done with it: the blocks, the last one first, then what
        lies before them, then what lies behind. `first` is where training starts, see `ViT.loss_and_grad`."""
        depth = self.config.depth
        if first == "head":
            return [slice(self.offset("head.weight"), self.size)]
        starts = [self._start(layer) for layer in range(1, depth + 2)]
        least = 0 if first is None else int(first)
        blocks = [slice(starts[i], starts[i + 1]) for i in reversed(range(least, depth))]
        ends = [slice(0, starts[0] if first is None else 0), slice(starts[depth], self.size)]
        return [piece for piece in [*blocks, *ends] if piece.start < piece.stop]

    def _start(self, layer: int) -> int:
        """Where the weights of a layer begin: block i is layer i + 1, what follows the blocks is depth + 1."""
        return min((entry.offset for entry in self.entries.values() if entry.row.layer >= layer), default=self.size)

    def decay_mask(self) -> np.ndarray:
        """A bool vector (size,), true where weight decay applies."""
        mask = np.zeros(self.size, bool)
        for start, stop in self.decay_runs():
            mask[start:stop] = True
        return mask

    def decay_runs(self) -> list[tuple[int, int]]:
        """Where weight decay applies, as maximal runs (start, stop) in increasing order."""
        runs: list[tuple[int, int]] = []
        for entry in self.entries.values():
            if entry.decay:
                stop = entry.offset + entry.size
                if runs and runs[-1][1] == entry.offset:
                    runs[-1] = (runs[-1][0], stop)
                else:
                    runs.append((entry.offset, stop))
        return runs
