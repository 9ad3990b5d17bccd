"""A frozen front, computed once: what the trained part of a model starts from, kept for as long as pictures repeat.

Where the embedding and the first blocks are frozen and no augmentation changes a picture, a picture's rows before the
first trained block are the same in every epoch. They are kept by the picture's number, as long as `most_bytes` lasts;
what does not fit is computed again. An image's rows do not depend on its batch, so that both give the same bits. Once
the rows of all pictures are kept, `behind` makes a feed of them, and no picture is decoded any more: each of several
ranks keeps those of the pictures that it has met, and then gets the others'.
"""

from __future__ import annotations

import math

import numpy as np

from ..parallel.ranks import ALONE, Ranks
from .evaluation import Evaluation, evaluation_of, gathered, share_for


class Front:
    """Rows before block `first` (or the head's input, for "head") of a model's images, some of them kept.

    `first` is that of `ViT.loss_and_grad`; None means that nothing is frozen, and images are handed on as they are.
    With `keep` rows are kept by the numbers that a batch gives.
    """

    def __init__(self, model, first: int | str | None, *, keep: bool, most_bytes: int, ranks: Ranks = ALONE):
        self.model, self.first, self.ranks = model, first, ranks
        self.room = most_bytes if first is not None else 0
        self.keep = keep
        self.kept: dict[int, np.ndarray] = {}
        self.passed = False  # whether batches hold rows already, see `behind`

    def rows(self, images: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        """What `loss_and_grad(…, first=first)` starts from, for images (n, C, H, W) with these numbers (n,)."""
        if self.first is None or self.passed or not len(images):
            return images
        if numbers is None or not self.keep:
            return self.model.front(images, self.first)
        missing = [place for place, number in enumerate(numbers.tolist()) if number not in self.kept]
        made = dict(zip(missing, self.model.front(images[missing], self.first) if missing else ()))
        for place, row in made.items():
            self._keep(int(numbers[place]), row)
        return np.stack([made[i] if i in made else self.kept[number] for i, number in enumerate(numbers.tolist())])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a picture's rows."""
        config = self.model.config
        return (config.feature_width,) if self.first == "head" else (config.tokens, config.width)

    @property
    def row_bytes(self) -> int:
        """Of a picture's rows."""
        return math.prod(self.shape) * self.model.dtype.itemsize

    def _keep(self, number: int, row: np.ndarray) -> None:
        if row.nbytes <= self.room:
            self.kept[number] = row.copy()
            self.room -= row.nbytes

    def behind(self, feed):
        """A feed of all pictures' rows, in the order in which `feed` gives the pictures; `feed` itself as long as not
        all of them are kept, or a rank has no room for all."""
        if self.first is None or self.passed or not self.keep:
            return feed
        numbers = self.ranks.allgather(np.array(sorted(self.kept), np.int64))
        room = self.room + len(self.kept) * self.row_bytes
        if len(np.unique(np.concatenate(numbers))) < feed.images or room < feed.images * self.row_bytes:
            return feed
        from ..data.array_feed import ArrayFeed

        own = np.empty((len(self.kept), *self.shape), self.model.dtype)
        for place, number in enumerate(sorted(self.kept)):
            own[place] = self.kept.pop(number)
        rows = np.empty((feed.images, *self.shape), own.dtype)
        for some, values in zip(numbers, self.ranks.allgather(own)):
            rows[some] = values
        self.passed = True
        return ArrayFeed(
            rows, feed.labels, feed.batch_size, seed=feed.seed, weights=feed.weights, classes=self.model.config.classes
        )


class KeptTest:
    """The evaluation of a model of which at most the final norm, the pooling and the head are trained, on rows that are
    computed once: a pass over the test pictures costs no more than these. Each rank has the rows of its share."""

    CHUNK = 1024  # images whose logits are computed at a time

    def __init__(self, front: Front, feed):
        parts = [(front.rows(batch.images, None), batch.targets) for batch in feed.plain(256, share_for(front.ranks))]
        none = np.empty((0, *front.shape), front.model.dtype), np.empty(0, np.int64)
        self.first, self.ranks = front.first, front.ranks
        self.rows, self.labels = (np.concatenate(side) for side in zip(none, *parts))

    def __call__(self, model, scratch: np.ndarray) -> Evaluation:
        """The evaluation of `model`, whose frozen part is that of the front; `scratch` (size,) is written to."""
        parts = []
        for start in range(0, len(self.rows), self.CHUNK):
            some = slice(start, start + self.CHUNK)
            model.loss_and_grad(self.rows[some], self.labels[some], first=self.first, out=scratch)
            parts.append((model.logits, self.labels[some]))
        return evaluation_of(*gathered(parts, model, self.ranks))

    @staticmethod
    def suits(front: Front, images: int) -> bool:
        """Whether rows of so many test pictures are worth keeping, and the front has the room for them."""
        if not front.keep or front.first not in ("head", front.model.config.depth):
            return False
        needed = images * front.row_bytes
        if needed > front.room:
            return False
        front.room -= needed
        return True
