"""The learning rate over a run: warm-up, then half a cosine."""

from __future__ import annotations

import math

from ..base.errors import check
from ..base.numbers import as_int, finite


def warmup_cosine(
    step: int, total: int, warmup: int, base_lr: float, final_lr: float = 0.0, warmup_lr: float | None = None
) -> float:
    """Learning rate of step 0, 1, …: `warmup` steps up to `base_lr`, then half a cosine to `final_lr`.

    Without `warmup_lr` step `i` of the warm-up has `base_lr * (i + 1) / warmup`, so that step `warmup - 1` has
    `base_lr`. With it the warm-up begins at `warmup_lr` in step 0 and reaches `base_lr` in step `warmup`, in equal
    steps, as timm's and DeiT's does (from 1e-6). Step `total` and all after it have `final_lr` (Loshchilov & Hutter
    2017, arXiv:1608.03983).
    `functools.partial(warmup_cosine, total=1000, warmup=50, base_lr=1e-3)` is the schedule that `cvit.train.fit` takes.
    """
    base_lr, final_lr = finite("base_lr", base_lr), finite("final_lr", final_lr)
    step, total = as_int("step", step, minimum=0), as_int("total", total, minimum=0)
    warmup = as_int("warmup", warmup, minimum=0)
    check(warmup <= total, f"warmup must lie between 0 and total = {total}, got {warmup}")
    if warmup_lr is not None:
        warmup_lr = finite("warmup_lr", warmup_lr)
    if step < warmup:
        if warmup_lr is None:
            return base_lr * (step + 1) / warmup
        return warmup_lr + (base_lr - warmup_lr) * step / warmup
    if step >= total:
        return final_lr
    progress = (step - warmup) / (total - warmup)
    return final_lr + (base_lr - final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
