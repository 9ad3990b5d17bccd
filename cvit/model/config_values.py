"""Values of a configuration's fields that are more than a number or a name, checked and in one form."""

from __future__ import annotations

import numpy as np

from ..base.errors import check, short
from ..base.numbers import finite

NORM_NAMES = (
    "patch_norm", "norm_pre", "norm1", "attn.qk_norm", "attn.norm", "norm2", "mlp.norm", "norm", "pool.norm", "fc_norm",
)  # fmt: skip


def eps(name: str, value) -> float:
    """An epsilon that float32 can hold: what is smaller may count as zero, and a constant row has no variance."""
    eps, tiny = finite(name, value), float(np.finfo(np.float32).tiny)
    check(0 < eps < 1, f"{name} must lie between 0 and 1, got {eps}")
    check(eps >= tiny, f"{name} must be at least {tiny:.2g}, the smallest normal float32, got {eps}")
    return eps


def norm_eps(value) -> tuple[tuple[str, float], ...]:
    """`norm_eps` as sorted pairs."""
    try:
        pairs = sorted(dict(value).items())
    except (TypeError, ValueError):
        raise TypeError(f"norm_eps must be a mapping of norms to numbers, got {short(repr(value))}") from None
    for name, _ in pairs:
        check(name in NORM_NAMES, f"norm_eps: norms must be of {NORM_NAMES}, got {short(repr(name))}")
    return tuple((name, eps(f"norm_eps[{name!r}]", number)) for name, number in pairs)


def three_biases(value) -> tuple[bool, bool, bool] | None:
    """`qkv_bias` for q, k and v, or None."""
    three = value if isinstance(value, (tuple, list)) else (value, value, value)
    if value is not None and (len(three) != 3 or not all(isinstance(one, bool) for one in three)):
        raise TypeError(f"qkv_bias must be None, True, False or three of these, got {short(repr(value))}")
    return None if value is None else tuple(three)


def layer_scale(value) -> tuple[float | None, float | None] | None:
    """`layer_scale` as a pair, or None where neither branch has one."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    check(len(pair) == 2, f"layer_scale must be None, one number or a pair, got {short(repr(value))}")
    largest = float(np.finfo(np.float32).max)
    scales = []
    for one in pair:
        if one is not None:
            one = finite("layer_scale", one, minimum=-largest)
            check(one <= largest, f"layer_scale must be at most {largest:g}, got {one}")
        scales.append(one)
    return None if scales == [None, None] else (scales[0], scales[1])
