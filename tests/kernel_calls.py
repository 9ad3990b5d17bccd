"""The kernels as csrc/cvit.h declares them, for ctypes: its structs by name, and the selected table's functions.

    K = Table(np.float32)
    K.add_rows(call("add_rows", rows=3, n=5, x=matrix(x), factor=2.0, y=matrix(y)))

Members that are not named are zero (NULL).
"""

import contextlib
import ctypes
import re
from pathlib import Path

import numpy as np

from cvit.engine import team

HEADER = (Path(__file__).resolve().parents[1] / "csrc" / "cvit.h").read_text(encoding="utf-8")
PLAIN = {
    "ptrdiff_t": ctypes.c_ssize_t,
    "uint64_t": ctypes.c_uint64,
    "int": ctypes.c_int,
    "double": ctypes.c_double,
    "void": None,
}


def _members(body, structs):
    """[(name, ctype)] of a struct's declarations; every pointer is a void pointer."""
    for declaration in filter(None, (part.strip() for part in body.split(";"))):
        kind, names = re.fullmatch(r"(?:const )?(\w+)\s*(.*)", declaration, re.DOTALL).groups()
        for name in names.split(","):
            pointer = "*" in name
            yield name.strip(" *\n"), ctypes.c_void_p if pointer else PLAIN.get(kind) or structs[kind]


def _parse():
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    structs = {}
    for body, name in re.findall(r"typedef struct \{([^{}]*)\} (\w+);", text):
        if "CVIT_KERNELS" not in body and "cvit_kernels" not in body:
            structs[name] = type(name, (ctypes.Structure,), {"_fields_": list(_members(body, structs))})
    kernels = re.findall(r"K\((\w+), (\w+), \((.*?)\)\)", text.replace("\\\n", "\n"))
    head = re.search(r"typedef struct \{([^{}]*)CVIT_KERNELS\(CVIT_MEMBER\)\s*\} cvit_kernels;", text)[1]
    numbers = [(name, ctypes.c_char_p if kind is ctypes.c_void_p else kind) for name, kind in _members(head, structs)]
    return structs, kernels, type("cvit_kernels", (ctypes.Structure,), {"_fields_": numbers})


STRUCTS, KERNELS, _Head = _parse()


def _prototype(result, arguments):
    kinds = []
    for argument in arguments.split(",") if arguments != "void" else ():
        kind = argument.replace("const ", "").split()[0]
        kinds.append(ctypes.c_void_p if "*" in argument else PLAIN[kind])
    return ctypes.CFUNCTYPE(PLAIN[result], *kinds)


class Table:
    """One table, by its address or the selected one of a dtype: its numbers, and its kernels as functions.

    Each call of a kernel is made in a context of its own, `around()`.
    """

    def __init__(self, dtype=np.float32, address=None, around=contextlib.nullcontext):
        self.dtype, self.around = np.dtype(dtype), around
        self.address = address or team.table_address(dtype)
        head = _Head.from_address(self.address)
        for name, _ in _Head._fields_:
            setattr(self, "panels_bytes" if name == "panels_size" else name, getattr(head, name))
        functions = (ctypes.c_void_p * len(KERNELS)).from_address(self.address + ctypes.sizeof(_Head))
        for (result, name, arguments), pointer in zip(KERNELS, functions, strict=True):
            setattr(self, name, self._function(_prototype(result, arguments)(pointer)))

    def _function(self, function):
        def called(*arguments):
            with self.around():
                return function(*(ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments))

        return called

    def panels_size(self, k, n):
        """Packed elements of a (k, n) right operand, and of each of its rows before column j."""
        return k * (-(-n // 32) * 32)

    def unpacked(self, b, depth, n):
        """(depth, n) from panels, as gemm.inc describes them: panels of nr columns, the last one whole vectors wide."""
        columns = []
        for j in range(0, n, self.nr):
            width = min(self.nr, -(-(n - j) // self.vl) * self.vl)
            columns.append(b[j * depth : j * depth + depth * width].reshape(depth, width)[:, : n - j])
        return np.concatenate(columns, axis=1)


def bf16_table(around=contextlib.nullcontext):
    """The selected table of bfloat16. AMX's kernels want its `enter` before and its `leave` after."""
    return Table(address=team.table_address(precision="bf16"), around=around)


def call(name, **members):
    """The struct that a kernel takes, whose name may be another's: pack_both takes "pack_rows"."""
    made = STRUCTS[f"cvit_{name}"](**members)
    made.members = members  # and with them their arrays: what the struct itself has are copies of them
    return made


def at(array):
    """The address of an array's first element, which does not keep it alive; None stays NULL."""
    return None if array is None else array.ctypes.data


def matrix(array):
    """cvit_matrix of a two-dimensional array whose rows are contiguous; uint16 is bfloat16."""
    if array is None:
        return STRUCTS["cvit_matrix"]()
    return _operand("cvit_matrix", array, array.strides[0] // array.itemsize, array.dtype == np.uint16)


def rows(array, count):
    return _operand("cvit_rows", array, count)


def panels(array, depth, row=0):
    return _operand("cvit_panels", array, depth, row)


def _operand(name, array, *rest):
    """The struct of an array, which it keeps alive."""
    made = STRUCTS[name](at(array), *rest)
    made.array = array
    return made


def aligned(count, dtype, fill=np.nan):
    """A vector on a 64-byte boundary, full of `fill`."""
    raw = np.empty(count * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    vector = raw[start : start + count * np.dtype(dtype).itemsize].view(dtype)
    vector[:] = fill
    return vector
