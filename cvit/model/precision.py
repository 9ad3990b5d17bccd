"""The precisions that a model computes in, by name, and the weights that each needs.

    f32         float32 throughout
    f64         float64 throughout
    bf16        operands of products rounded to bfloat16, all else float32, as docs/bfloat16.md defines it: the same
                bits on every machine
    bf16-fast   the same operands, summed as the CPU's own bfloat16 instruction does it: other bits, on a CPU that has
                it, and never chosen without being asked for
    auto        bf16 where the kernels in use make it faster than f32, else f32; no model keeps this name

Weights, gradient, images and results are float64 for f64, float32 for all others.
"""

from __future__ import annotations

import numpy as np

from ..base.arrays import float_dtype
from ..base.errors import check
from ..base.numbers import shown
from ..engine import team

DTYPES: dict[str, np.dtype] = {  # of weights, gradient, images and results
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "bf16": np.dtype(np.float32),
    "bf16-fast": np.dtype(np.float32),
    "auto": np.dtype(np.float32),
}
NAMES = tuple(DTYPES)


def dtype_of(precision: str) -> np.dtype:
    """The dtype of the weights that a precision needs; a `ValueError` where there is none of that name."""
    known = isinstance(precision, str) and precision in NAMES
    check(known, f"precision must be one of {', '.join(map(repr, NAMES))}, got {shown(precision)}")
    return DTYPES[precision]


def resolved(precision: str | None, dtype, name: str = "dtype") -> str:
    """The precision that this machine computes in with weights of `dtype`, float32 or float64; None is the dtype's own.

    `name` is what the dtype is of: "dtype" itself, or an array.

    Raises
    ------
    ValueError
        There is no such precision or dtype, or this machine has no kernels for it.
    ValueError or, where `name` is an array, TypeError
        The two do not go together.
    """
    dtype = float_dtype(name, dtype)
    if precision is None:
        return "f64" if dtype == np.float64 else "f32"
    needed = dtype_of(precision)
    if dtype != needed:
        kind = ValueError if name == "dtype" else TypeError
        raise kind(f"{name} must be {needed} for precision {precision!r}, got {dtype}")
    if precision == "auto":
        precision = "bf16" if team.bf16_is_faster() else "f32"
    check(
        team.has_precision(precision),
        f"precision {precision!r} needs a CPU with AVX512-BF16 and kernels that use it, and those in use are for "
        f"{team.get_isa()}; 'bf16' runs everywhere",
    )
    return precision


def settled(precision: str | None, dtype) -> tuple[str | None, np.dtype | None]:
    """Precision and dtype, each of which may be None for that of the other; without both, both are None."""
    if dtype is None:
        if precision is None:
            return None, None
        dtype = dtype_of(precision)
    return resolved(precision, dtype), np.dtype(dtype)


def kernels_of(precision: str) -> str:
    """The instruction set whose kernels compute in this precision now."""
    return team.isa_of(precision)
