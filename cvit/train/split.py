"""An optimizer whose state is shared out among ranks: each has the memory of its own share alone.

Every rank holds all weights and the whole gradient. It updates its share of the weights and gets the others from those
that have updated them: the same bits as if every rank had updated all. This is the first stage of ZeRO (Rajbhandari et
al. 2020, arXiv:1910.02054).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..parallel.ranks import Ranks
from ..parallel.shares import part_slices
from ..parallel.transfers import WEIGHTS_TAG, Transfers, allgather_weights
from .optim import SGD, AdamW


class SplitOptimizer:
    """An SGD or AdamW of which each rank keeps a share of the state. All ranks call a method, or none does."""

    def __init__(self, optimizer: SGD | AdamW, ranks: Ranks):
        if not isinstance(optimizer, (SGD, AdamW)):
            raise TypeError(f"split_optimizer needs an SGD or AdamW, got {type(optimizer).__name__}")
        self.optimizer, self.ranks = optimizer, ranks
        self.shares = part_slices(optimizer.size, ranks.size)
        optimizer.share = self.shares[ranks.rank]

    @property
    def lr(self) -> float:
        return self.optimizer.lr

    @property
    def groups(self):
        """What is trained, of all shares."""
        return self.optimizer.groups

    def step(self, weights: np.ndarray, grad: np.ndarray, *, lr=None, clip_norm=None) -> float | None:
        """As the optimizer's, on every rank the whole weights; the norm is the whole gradient's."""
        norm = self.optimizer.step(weights, grad, lr=lr, clip_norm=clip_norm)
        allgather_weights(self.ranks, weights, self.shares)
        return norm

    def state_dict(self) -> dict:
        """On rank 0, what the optimizer would give had it not been split; on the others None stands for the vectors."""
        return self.optimizer.state_dict(self._whole)

    def _whole(self, vector: np.ndarray) -> np.ndarray | None:
        """A vector of the state out of every rank's share, on rank 0."""
        transfers, own = Transfers(self.ranks, "every rank's share of the optimizer's state"), self.optimizer.share
        whole = None
        if self.ranks.first:
            whole = np.empty_like(vector)
            whole[own] = vector[own]
            for rank in range(1, self.ranks.size):
                transfers.receive(whole[self.shares[rank]], rank, WEIGHTS_TAG)
        else:
            transfers.send(vector[own], 0, WEIGHTS_TAG)
        transfers.finish()
        return whole

    def load_state_dict(self, state: Mapping) -> None:
        """Take over this rank's share of what `state_dict()` gave, on whatever number of ranks."""
        self.optimizer.load_state_dict(state)
