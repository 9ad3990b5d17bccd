"""A frozen front, computed once: what the trained part of a model starts from, kept for as long as pictures repeat.

Where the embedding and the first blocks are frozen and no augmentation changes a picture, a picture's rows before the
first trained block are the same in every epoch. They are kept by the picture's number, as long as `most_bytes` lasts;
what does not fit is computed again. An image's rows do not depend on its batch, so that both give the same bits.
"""

from __future__ import annotations

import numpy as np


class Front:
    """Rows before block `first` (or the head's input, for "head") of a model's images, some of them kept.

    `first` is that of `ViT.loss_and_grad`; None means that nothing is frozen, and images are handed on as they are.
    With `keep` rows are kept by the numbers that a batch gives.
    """

    def __init__(self, model, first: int | str | None, *, keep: bool, most_bytes: int):
        self.model, self.first = model, first
        self.room = most_bytes if keep and first is not None else 0
        self.kept: dict[int, np.ndarray] = {}

    def rows(self, images: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        """What `loss_and_grad(…, first=first)` starts from, for images (n, C, H, W) with these numbers (n,)."""
        if self.first is None:
            return images
        if numbers is None or not self.room:
            return self.model.front(images, self.first)
        missing = [place for place, number in enumerate(numbers.tolist()) if number not in self.kept]
        made = dict(zip(missing, self.model.front(images[missing], self.first) if missing else ()))
        for place, row in made.items():
            self._keep(int(numbers[place]), row)
        return np.stack([made[i] if i in made else self.kept[number] for i, number in enumerate(numbers.tolist())])

    def _keep(self, number: int, row: np.ndarray) -> None:
        if row.nbytes <= self.room:
            self.kept[number] = row.copy()
            self.room -= row.nbytes

    def whole(self, count: int) -> bool:
        """Whether all of `count` images' rows are kept, so that the pictures need not even be decoded."""
        return len(self.kept) == count > 0
