"""Tensors by name, as another library stored them: shapes and dtypes are known at once, values are read one by one.

`Tensors` is what every container of weights looks like to the families of models: a .safetensors file, a folder of
them, an .npz file, or a dict of arrays. Whatever is stored in two bytes (float16, bfloat16) is widened exactly when it
is read; nothing is ever narrowed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..base.arrays import as_array
from ..base.errors import short
from ..base.numbers import shown

# How the values of each dtype that is read lie in a file: little-endian. bfloat16, which NumPy lacks, as its bits.
STORED = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("float32", "float64", "float16", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
} | {"bfloat16": np.dtype("<u2")}
FLOATS = ("float32", "float64", "float16", "bfloat16")
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a `Tensors`: what is known of it without reading it.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str
        As it is stored: "float32", "float64", "float16", "bfloat16", "bool", "int64" and so on. A dtype that `read`
        refuses stands here by the name that its file gives it.
    label : str
        Where it stands, for messages: the file's path.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    label: str
    stored: Callable[[], np.ndarray] = field(repr=False, compare=False)

    def read(self, *, strict: bool = False) -> np.ndarray:
        """The values, (shape), C-contiguous and read-only: float32 or float64, or the integers or bools stored.

        float16 and bfloat16 become the same numbers in float32. float32 that lies aligned in a file or in the caller's
        array is a view of it and no copy.

        Parameters
        ----------
        strict : bool
            Refuse NaN and infinity.

        Raises
        ------
        ValueError
            The dtype is none of those above, the file's data are damaged, or a value is not finite. Names the file
            and the tensor.
        """
        if self.dtype not in STORED:
            wanted = "float32, float64, float16, bfloat16, integers or bool"
            raise ValueError(f"{self.label}: {shown(self.name)} must be of {wanted}, got {shown(self.dtype)}")
        array = self.stored()
        if self.dtype == "bfloat16" and array.dtype.kind == "u":  # the upper halves of the bits of float32
            array = np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
        elif self.dtype in ("float16", "bfloat16"):
            with np.errstate(invalid="ignore"):  # a NaN stays one
                array = array.astype(np.float32, copy=False)
        array = np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "ALIGNED"]).reshape(self.shape).view()
        array.flags.writeable = False
        if strict and self.dtype in FLOATS:
            self._check_finite(array)
        return array

    def _check_finite(self, array: np.ndarray) -> None:
        """The smallest and the largest value tell, and take no memory: both are NaN if one value is."""
        if array.size == 0:
            return
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(array.min()) and np.isfinite(array.max())
        if not finite:
            count = array.size - np.count_nonzero(np.isfinite(array))
            values = f"{count} of its {array.size} values are" if count > 1 else "one of its values is"
            raise ValueError(f"{self.label}: {shown(self.name)} must be finite, but {values} NaN or infinite")


class Tensors(Mapping[str, StoredTensor]):
    """A read-only mapping from names to `StoredTensor`s, in the container's order.

    Attributes
    ----------
    label : str
        The container, for messages.
    metadata : dict of str to str
        What stands beside the tensors in a .safetensors file; else empty.
    """

    def __init__(self, entries: Mapping[str, StoredTensor], label: str, metadata: Mapping[str, str] | None = None):
        self._entries = dict(entries)
        self.label = label
        self.metadata = dict(metadata or {})

    def __getitem__(self, name: str) -> StoredTensor:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of {self.label}>"


def tensors_of(arrays: Mapping, label: str = "weights") -> Tensors:
    """The `Tensors` that a mapping from names to arrays is: NumPy's, torch's or JAX's, on any device.

    Nothing is copied before a tensor is read. A torch tensor may require a gradient.

    Raises
    ------
    TypeError
        A name is not a string, or a value is no array: a dict within the dict, for instance.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{label} must map names to arrays, got {type(arrays).__name__}")
    entries = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"{label} must map strings to arrays, got the key {shown(name)}")
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise TypeError(f"{label}: {shown(name)} must be an array, got {type(value).__name__}")
        dtype = str(value.dtype).removeprefix("torch.")
        if isinstance(value.dtype, np.dtype):
            dtype = value.dtype.name  # without the byte order
        entries[name] = StoredTensor(name, tuple(map(int, value.shape)), dtype, label, partial(_values, name, value))
    return Tensors(entries, label)


def _values(name: str, value) -> np.ndarray:
    """An array as NumPy's. torch is not imported: its tensors are known by their methods."""
    if not (hasattr(value, "detach") and hasattr(value, "cpu")):
        return as_array(name, value)
    try:
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    except (TypeError, ValueError, RuntimeError) as error:  # one without values ("meta") or a sparse one
        raise ValueError(f"{shown(name)} must be a plain tensor with values: {shown(str(error))}") from None


def refuse_pickle(path: str | os.PathLike) -> None:
    """Raise the `ValueError` for a file whose name says that it is a pickle, and say how to convert it."""
    path = Path(path)
    if path.suffix.lower() not in PICKLES:
        return
    raise ValueError(
        f"{short(path, 500)} is a pickle, which can run any code when it is opened, so it is never opened here. "
        "Convert it once with torch and safetensors.torch imported:\n"
        f"    weights = torch.load({shown(path.name)}, map_location='cpu', weights_only=True)\n"
        "    safetensors.torch.save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, "
        f"{shown(path.with_suffix('.safetensors').name)})"
    )
