"""Arrays in: anything array-like becomes a C-contiguous NumPy array of the wanted type, or a clear error.

A step on a small model takes no longer than a few dozen of these microseconds, so what every step calls (`as_float`, `as_labels`,
`finite`) returns early and words its error only when there is one.
"""

from __future__ import annotations

import numpy as np

from .errors import check

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INT64 = np.dtype(np.int64)


def as_array(name: str, value) -> np.ndarray:
    """`value` as a NumPy array without copying where possible: arrays, `__array__`, DLPack (torch and JAX on the CPU), lists."""
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        raise TypeError(f"{name} must be an array, got None")
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, TypeError, ValueError, RuntimeError) as error:  # another device, say
            raise TypeError(f"{name} must be an array on the CPU, got {type(value).__name__}: {error}") from None
    if hasattr(value, "requires_grad") and hasattr(value, "detach"):
        value = value.detach()  # a torch tensor under autograd refuses __array__
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}") from None


def as_float(name: str, value, shape: tuple, dtype=None) -> np.ndarray:
    """A C-contiguous, aligned, native array of `dtype` (None: its own, float32 or float64) and `shape`.

    In `shape` a number is that length, a string names a free one. A copy is made only where one is needed.
    """
    array = as_array(name, value)
    if array.dtype not in FLOATS and array.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")
    if array.ndim != len(shape) or not all(w == n or isinstance(w, str) for w, n in zip(shape, array.shape)):
        wanted = "(" + ", ".join(str(length) for length in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")
    dtype = np.dtype(array.dtype.type if dtype is None else dtype)
    return _laid_out(array, dtype)


def as_labels(name: str, value, count: int, classes: int) -> np.ndarray:
    """Integer labels (count,) in [0, classes) as a contiguous int64 vector."""
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer dtype, got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one label an image, got {array.shape}")
    if count:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= classes:
            raise ValueError(f"{name} must lie in [0, {classes}), got values from {low} to {high}")
    return _laid_out(array, INT64)


def _laid_out(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array itself if it is of `dtype`, C-contiguous and aligned, else a copy that is."""
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def common_dtype(**arrays) -> np.dtype:
    """The dtype of the results for arguments of these dtypes: float64 as soon as one is, else float32."""
    dtypes = {name: as_array(name, value).dtype.newbyteorder("=") for name, value in arrays.items()}
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise TypeError(f"{name} must be float32 or float64, got {dtype}")
    return np.result_type(*dtypes.values())


def check_vector(name: str, vector, size: int, dtype: np.dtype, *, writable: bool = False) -> None:
    """Raise unless `vector` is a NumPy array that a pass over the flat tensor can read (or write) in place."""
    if not isinstance(vector, np.ndarray) or vector.dtype != dtype:
        kind = f"{vector.dtype} array" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise TypeError(f"{name} must be a NumPy array of {dtype}, got {kind}")
    check(vector.shape == (size,), f"{name} must have shape ({size},), got {vector.shape}")
    check(vector.flags.c_contiguous and vector.flags.aligned, f"{name} must be contiguous and aligned")
    check(not writable or vector.flags.writeable, f"{name} must be writable, got a read-only array")


def float_dtype(name: str, value) -> np.dtype:
    """`value` as a dtype, float32 or float64."""
    try:
        dtype = None if value is None else np.dtype(value)
    except TypeError:
        dtype = None
    check(
        dtype is not None and dtype in FLOATS,
        f"{name} must be float32 or float64, got {value if dtype is None else dtype}",
    )
    return dtype
