"""Arrays in: anything array-like becomes a C-contiguous NumPy array of the wanted type, or a clear error.

A step on a small model takes no longer than a few dozen of these microseconds, so what every step calls (`as_float`,
`as_labels`, `finite`) returns early and words its error only when there is one.
"""

from __future__ import annotations

import mmap

import numpy as np

from .errors import check
from .numbers import shown

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INT64, UINT64 = np.dtype(np.int64), np.dtype(np.uint64)


def as_array(name: str, value) -> np.ndarray:
    """`value` as a plain `np.ndarray`, without copying where possible.

    It may be an array, have `__array__` or DLPack (torch and JAX on the CPU), or be a list. Whatever comes, checks and
    kernels see one and the same object, whose methods are NumPy's own: a subclass of ndarray may answer `shape` or
    `min` with anything. So it is viewed as its base class first; a masked array, whose view would unmask it, is
    refused.
    """
    if type(value) is np.ndarray:
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
    if _is_masked(value) or (isinstance(value, (list, tuple)) and any(map(_is_masked, value))):
        raise _masked(name)
    try:
        array = np.asanyarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}") from None
    if _is_masked(array):  # what `__array__` gave
        raise _masked(name)
    return np.asarray(array)


def _is_masked(value) -> bool:
    return isinstance(value, np.ma.MaskedArray)


def _masked(name: str) -> TypeError:
    return TypeError(f"{name} is a masked array: fill it first, with its method filled()")


def as_float(name: str, value, shape: tuple, dtype=None) -> np.ndarray:
    """A C-contiguous, aligned, native array of `dtype` (None: its own, float32 or float64) and `shape`.

    In `shape` a number is that length, a string names a free one. A copy is made only where one is needed.
    """
    array = any_float(name, value, shape)
    return laid_out(array, np.dtype(array.dtype.type if dtype is None else dtype))


def any_float(name: str, value, shape: tuple) -> np.ndarray:
    """A float32 or float64 array of `shape` as it lies in memory: of any strides, alignment and byte order."""
    array = as_array(name, value)
    if array.dtype not in FLOATS and array.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")
    if array.ndim != len(shape) or not all(w == n or isinstance(w, str) for w, n in zip(shape, array.shape)):
        wanted = "(" + ", ".join(str(length) for length in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")
    return array


def as_labels(name: str, value, count: int, classes: int, tokens: int = 0) -> np.ndarray:
    """Integer labels (count,) in [0, classes) as a contiguous int64 vector of its own.

    With `tokens` every token of an image has a label, (count, tokens), and the vector has all of them in order.

    Kernels use labels as indices. So they are copied before they are checked: what was checked is what the kernels
    read, even if another thread writes to the caller's array meanwhile.
    """
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer dtype, got {array.dtype}")
    if tokens and array.shape != (count, tokens):
        raise ValueError(f"{name} must have shape ({count}, {tokens}), one label a token, got {array.shape}")
    if not tokens and array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one label an image, got {array.shape}")
    labels = array.astype(INT64, "C").reshape(-1)
    if count:  # as unsigned numbers the negative ones, and those that wrapped around in int64, are the largest
        unsigned = labels.view(UINT64)
        if unsigned.item(unsigned.argmax()) >= classes:
            raise ValueError(f"{name} must lie in [0, {classes}), got values from {array.min()} to {array.max()}")
    return labels


def as_targets(name: str, value, count: int, classes: int, dtype: np.dtype, tokens: int = 0) -> np.ndarray:
    """What each row is to be: labels as `as_labels` gives them, or, of floats with an axis more, the classes' shares.

    Targets (count, classes), with `tokens` (count, tokens, classes), are finite and not negative; they come back in
    `dtype`, C-contiguous, and copied only where that is needed.
    """
    array = as_array(name, value)
    rows = (count, tokens) if tokens else (count,)
    if array.dtype.kind != "f" or array.ndim == len(rows):
        return as_labels(name, array, count, classes, tokens)
    targets = any_float(name, array, (*rows, classes))
    with np.errstate(over="ignore"):
        targets = laid_out(targets, dtype)
    if not (targets.size == 0 or (targets.min() >= 0 and targets.max() < np.inf)):
        raise ValueError(
            f"{name} must be finite and not negative in {dtype}, got values from {targets.min()} to {targets.max()}"
        )
    return targets


def as_sample_weight(name: str, value, count: int, dtype: np.dtype) -> np.ndarray:
    """Weights (count,) of any real dtype as a float64 vector of its own, finite in `dtype` and not negative."""
    array = as_array(name, value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one weight an image, got {array.shape}")
    weights = np.array(array, np.float64, order="C")
    if not (count == 0 or (weights.min() >= 0 and weights.max() <= np.finfo(dtype).max)):
        low, high = weights.min(), weights.max()
        raise ValueError(f"{name} must be finite and not negative in {dtype}, got values from {low} to {high}")
    return weights


def laid_out(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array itself if it is of `dtype`, C-contiguous and aligned, else a copy that is."""
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def is_fixed(array: np.ndarray) -> bool:
    """Whether `array` was made of a map that it can only read (`np.frombuffer`), of a file or by `fixed`: nothing
    changes it, as far as this process is concerned."""
    owner = array.base
    view = owner if isinstance(owner, memoryview) else memoryview(owner) if isinstance(owner, mmap.mmap) else None
    return view is not None and view.readonly and isinstance(view.obj, mmap.mmap)


def fixed(array: np.ndarray) -> np.ndarray:
    """A copy of a vector that nobody can write to, or make writable."""
    memory = mmap.mmap(-1, max(array.nbytes, 1))
    np.frombuffer(memory, array.dtype, array.size)[...] = array
    return np.frombuffer(memoryview(memory).toreadonly(), array.dtype, array.size)


def common_dtype(**arrays) -> np.dtype:
    """The dtype of the results for arguments of these dtypes: float64 as soon as one is, else float32."""
    dtypes = {name: as_array(name, value).dtype.newbyteorder("=") for name, value in arrays.items()}
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise TypeError(f"{name} must be float32 or float64, got {dtype}")
    return np.result_type(*dtypes.values())


def as_vector(name: str, vector, size: int, dtype: np.dtype, *, writable: bool = False) -> np.ndarray:
    """`vector` (size,) as a plain `np.ndarray` of the same memory, which kernels can read (or write) in place."""
    if not isinstance(vector, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array of {dtype}, got {type(vector).__name__}")
    array = as_array(name, vector)
    if array.dtype != dtype:
        raise TypeError(f"{name} must be a NumPy array of {dtype}, got {array.dtype} array")
    flags = array.flags
    if array.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {array.shape}")
    if not (flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name} must be contiguous and aligned")
    if writable and not flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    return array


def float_dtype(name: str, value) -> np.dtype:
    """`value` as a dtype, float32 or float64."""
    try:
        dtype = None if value is None else np.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or dtype not in FLOATS:
        raise ValueError(f"{name} must be float32 or float64, got {value if dtype is None else dtype}")
    return dtype


def check_shape(shape: object, label: str, name: str) -> tuple[int, ...]:
    """`shape` as a tuple of lengths that NumPy can hold; what is none is a `ValueError` naming file and tensor."""
    correct = isinstance(shape, (list, tuple)) and len(shape) <= 32  # NumPy 1 has no more axes
    cells = 1
    for length in shape if correct else ():  # type: ignore[attr-defined]
        correct = correct and type(length) is int and 0 <= length <= 2**60
        cells = cells * max(length, 1) if correct else 0
        correct = correct and cells <= 2**60
    check(
        correct, f"{label}: {shown(name)} must have a shape of at most 32 lengths and 2^60 values, got {shown(shape)}"
    )
    return tuple(shape)  # type: ignore[arg-type]
