"""What an ONNX graph is put together with: `Graph`, its nodes and initializers, and `Slots`, where values stand."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from ..model.layout import Layout


class Graph:
    """Nodes and initializers under way: `op` adds a node, `weight` and `constant` an initializer, each once.

    Names of nodes and values begin with the name of the step that they belong to, as "blocks.0.norm1/Mul".
    """

    def __init__(self, onnx: ModuleType, layout: Layout, weights: np.ndarray):
        self.onnx, self.dtype = onnx, weights.dtype
        self.nodes: list = []
        self.initializers: dict = {}
        self.scope = self.prefix = ""
        self.nbytes = 0  # of the initializers
        self._views = layout.views(weights)
        self._names = {entry.offset: entry.name for entry in layout.entries.values()}
        self._flat = weights
        self._used: Counter[str] = Counter()

    @property
    def fusible(self) -> bool:
        """Whether to use forms that onnxruntime fuses into an operator of its own.

        Version 1.20 does so for any dtype: its RMSNorm in float64 is exact to 1e-5 only, its QuickGelu missing.
        """
        return self.dtype == np.float32

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Names of the step `name` within."""
        before, self.scope = self.scope, self.prefix + name
        yield
        self.scope = before

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        """Add a node with one output; the output's name."""
        name = f"{self.scope}/{kind}"
        self._used[name] += 1
        if self._used[name] > 1:
            name = f"{name}_{self._used[name]}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """An initializer; of one name there is one."""
        if name not in self.initializers:
            self.nbytes += array.nbytes
            self.initializers[name] = self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def number(self, value: float) -> str:
        """A scalar of the model's dtype."""
        return self.constant(f"number_{value!r}", np.array(value, self.dtype))

    def ints(self, *values: int) -> str:
        """A vector of int64: a shape, axes or indices."""
        return self.constant("_".join(["ints", *map(str, values)]), np.array(values, np.int64))

    def weight(self, offset: int) -> str:
        """The tensor that begins at `offset` of the flat weights."""
        name = self._names[offset]
        return self.constant(name, self._views[name])

    def values(self, offset: int, *shape: int) -> np.ndarray:
        """The weights from `offset` on, in this shape."""
        return self._flat[offset : offset + math.prod(shape)].reshape(shape)

    def reshape(self, value: str, *shape: int) -> str:
        """Reshape; 0 keeps an axis as it is, -1 is what is left."""
        return self.op("Reshape", value, self.ints(*shape))

    def cut(self, value: str, axis: int, start: int, stop: int) -> str:
        """The part [start, stop) of an axis."""
        return self.op("Slice", value, self.ints(start), self.ints(stop), self.ints(axis))

    def join(self, values: list[str], axis: int = -1) -> str:
        """Values side by side; one alone is itself."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)


class Slots:
    """What stands in the slots: of each, values by their first column, with their widths."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._pieces: dict[str, dict[int, tuple[int, str]]] = {}

    def write(self, slot: str, value: str, width: int, column: int = 0) -> None:
        """Put `value`, `width` columns, into a slot from a column on."""
        self._pieces.setdefault(slot, {})[column] = width, value

    def read(self, slot: str, column: int = 0, width: int = 0) -> str:
        """The columns [column, column + width) of a slot; width 0 is all of it."""
        pieces = sorted(self._pieces[slot].items())
        end = column + width if width else sum(size for _, (size, _) in pieces)
        found = []
        for start, (size, value) in pieces:
            low, high = max(start, column), min(start + size, end)
            if low < high:
                whole = (low, high) == (start, start + size)
                found.append(value if whole else self._graph.cut(value, -1, low - start, high - start))
        return self._graph.join(found)
