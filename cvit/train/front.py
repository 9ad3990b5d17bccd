"""A frozen front, computed once: what the trained part of a model starts from, kept for as long as pictures repeat.

Where the embedding and the first blocks are frozen and no augmentation changes a picture, a picture's rows before the
first trained block are the same in every epoch. They are kept by the picture's number, as long as `most_bytes` lasts;
what does not fit is computed again. An image's rows do not depend on its batch, so that both give the same bits. Once
the rows of all pictures are kept, `behind` makes a feed of them, and no picture is decoded any more.
"""

from __future__ import annotations

import numpy as np

from .evaluation import Evaluation, evaluation_of


class Front:
    """Rows before block `first` (or the head's input, for "head") of a model's images, some of them kept.

    `first` is that of `ViT.loss_and_grad`; None means that nothing is frozen, and images are handed on as they are.
    With `keep` rows are kept by the numbers that a batch gives.
    """

    def __init__(self, model, first: int | str | None, *, keep: bool, most_bytes: int):
        self.model, self.first = model, first
        self.room = most_bytes if first is not None else 0
        self.keep = keep
        self.kept: dict[int, np.ndarray] = {}
        self.passed = False  # whether batches hold rows already, see `behind`

    def rows(self, images: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        """What `loss_and_grad(…, first=first)` starts from, for images (n, C, H, W) with these numbers (n,)."""
        if self.first is None or self.passed:
            return images
        if numbers is None or not self.keep:
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

    def behind(self, feed):
        """A feed of all pictures' rows, in the order in which `feed` gives the pictures; `feed` itself as long as not
        all of them are kept."""
        if self.first is None or self.passed or not self.keep or len(self.kept) < feed.images:
            return feed
        from ..data.array_feed import ArrayFeed

        rows = np.stack([self.kept.pop(number) for number in range(feed.images)])
        self.passed = True
        return ArrayFeed(
            rows, feed.labels, feed.batch_size, seed=feed.seed, weights=feed.weights, classes=self.model.config.classes
        )


class KeptTest:
    """The evaluation of a model of which at most the final norm, the pooling and the head are trained, on rows that are
    computed once: a pass over the test pictures costs no more than these."""

    CHUNK = 1024  # images whose logits are computed at a time

    def __init__(self, front: Front, batches):
        parts = [(front.model.front(batch.images, front.first), batch.targets) for batch in batches]
        self.first = front.first
        self.rows, self.labels = (np.concatenate(side) for side in zip(*parts))

    def __call__(self, model, scratch: np.ndarray) -> Evaluation:
        """The evaluation of `model`, whose frozen part is that of the front; `scratch` (size,) is written to."""
        logits = []
        for start in range(0, len(self.rows), self.CHUNK):
            some = slice(start, start + self.CHUNK)
            model.loss_and_grad(self.rows[some], self.labels[some], first=self.first, out=scratch)
            logits.append(model.logits)
        return evaluation_of(np.concatenate(logits), self.labels)

    @staticmethod
    def suits(front: Front, images: int) -> bool:
        """Whether rows of so many test pictures are worth keeping, and the front has the room for them."""
        if not front.keep or front.first not in ("head", front.model.config.depth):
            return False
        config, size = front.model.config, front.model.dtype.itemsize
        row = config.feature_width if front.first == "head" else config.tokens * config.width
        needed = images * row * size
        if needed > front.room:
            return False
        front.room -= needed
        return True
