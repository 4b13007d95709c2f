"""Which values an integer input may take, where the graph tells: the size of the table that it indexes."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from tritongen.graph.onnx_file import elements, walk_graphs

Range = tuple[int, int]

_CARRIES = frozenset(
    ("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile",
     "Transpose", "Unsqueeze")
)  # fmt: skip
"""Operators whose outputs hold the values of their first input (Concat: of every input), moved around."""

_KEEPS_SHAPE = frozenset(("Cast", "DequantizeLinear", "Identity"))
"""Operators through which a constant table is still a table of the same size."""

_MAX_ARANGE = 1 << 20


def find_ranges(model: ModelProto, inputs: list[str]) -> dict[str, Range]:
    """Inclusive ranges of integer inputs that index constant tables; of several tables, the smallest."""
    search = _Search(model)
    found = {name: search.bounds(name) for name in inputs}
    return {name: (0, min(bounds)) for name, bounds in found.items() if bounds and min(bounds) >= 0}


class _Search:
    """Who reads which value, and which values are constants."""

    def __init__(self, model: ModelProto) -> None:
        self.readers: dict[str, list[tuple[int, NodeProto]]] = defaultdict(list)
        self.constants: dict[str, TensorProto] = {}
        self.makers: dict[str, NodeProto] = {}
        for graph in walk_graphs(model.graph):
            self.constants.update((tensor.name, tensor) for tensor in graph.initializer)
            for node in graph.node:
                for position, name in enumerate(node.input):
                    self.readers[name].append((position, node))
                self.makers.update((output, node) for output in node.output)
                if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                    self.constants[node.output[0]] = node.attribute[0].t

    def bounds(self, name: str) -> list[int]:
        """The largest index that each table reached from `name` allows."""
        found, seen, queue = [], {name}, [name]
        while queue:
            for position, node in self.readers[queue.pop()]:
                limit = self._limit(position, node)
                if limit is not None:
                    found.append(limit)
                elif node.op_type in _CARRIES and (position == 0 or node.op_type == "Concat"):
                    queue += [output for output in node.output if output not in seen]
                    seen.update(node.output)
        return found

    def _limit(self, position: int, node: NodeProto) -> int | None:
        """The largest value that `node` takes at this input, if it is used as an index there."""
        if node.op_type in ("Gather", "GatherElements") and position == 1:
            return self._rows(node.input[0], _attribute(node, "axis", 0))
        if node.op_type == "OneHot" and position == 0:
            depth = self._values(node.input[1])
            return None if depth is None or depth.size != 1 else int(depth.ravel()[0]) - 1
        if node.op_type == "Equal":
            return self._one_hot(node.input[1 - position])
        if "EmbedLayerNorm" in node.op_type and position in (0, 1):
            table = node.input[2 if position == 0 else 4] if len(node.input) > 4 else ""  # noqa: PLR2004
            return self._rows(table, 0)
        return None

    def _rows(self, table: str, axis: int) -> int | None:
        for _ in range(8):  # a chain of casts is short; the limit stops a cyclic one
            if table in self.constants:
                dims = self.constants[table].dims
                return int(dims[axis]) - 1 if -len(dims) <= axis < len(dims) else None
            maker = self.makers.get(table)
            if maker is None or maker.op_type not in _KEEPS_SHAPE or not maker.input:
                return None
            table = maker.input[0]
        return None

    def _one_hot(self, name: str) -> int | None:
        """n - 1 where `name` is the constant 0, 1, … n-1: how one-hot encodings are often written out."""
        values = self._values(name)
        if values is None or values.dtype.kind not in "iu" or max(values.shape, default=0) != values.size:
            return None
        is_arange = values.size > 1 and np.array_equal(values.ravel(), np.arange(values.size))
        return values.size - 1 if is_arange else None

    def _values(self, name: str) -> NDArray[np.generic] | None:
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        if tensor.data_type not in (TensorProto.INT32, TensorProto.INT64) or elements(tensor) > _MAX_ARANGE:
            return None
        try:
            values: NDArray[np.generic] = numpy_helper.to_array(tensor)
        except ValueError:  # its data do not fit its dims; the engine will say so
            return None
        return values


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)
