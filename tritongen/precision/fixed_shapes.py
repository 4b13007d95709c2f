"""Fixing the sizes of inputs and folding what followed from them, the batch axis left dynamic.

Exporters compute anchors and grids from the sizes of the input at run time. ONNX Runtime folds none of that
while one axis is dynamic. So each tensor that follows from shapes alone is computed for two batch sizes, and
where both agree it becomes a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tritongen.errors import ModelError
from tritongen.precision.prepare import load, prepare, save

_LIMIT_BYTES = 16 << 20
_BATCHES = (1, 3)


def fix_shapes(model: Path, shapes: Mapping[str, Sequence[int]], out: Path, *, min_opset: int = 13) -> Path:
    """Write `model` with the inputs in `shapes` fixed (sizes without the batch axis) and folded to `out`.

    ModelError if an input does not exist or has another rank.
    """
    proto = load(model)
    _set_sizes(proto, shapes)
    save(proto, out)
    prepare(out, out, min_opset=min_opset)
    proto = load(out)
    found = _constants(proto, shapes)
    kept = [node for node in proto.graph.node if not all(name in found for name in node.output)]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in found.items())
    save(proto, out)
    return prepare(out, out, min_opset=min_opset)


def _set_sizes(proto: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    inputs = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    for name, sizes in shapes.items():
        if name not in inputs or len(inputs[name]) != len(sizes) + 1:
            raise ModelError(
                f"the sizes {list(sizes)} do not fit the input '{name}'",
                found=f"rank {len(inputs[name])}" if name in inputs else f"inputs {', '.join(inputs)}",
                expected=f"rank {len(sizes) + 1}",
            )
        for dim, size in zip(list(inputs[name])[1:], sizes, strict=True):
            dim.dim_value = size
    # What was inferred before was inferred for other sizes.
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        for dim in list(value.type.tensor_type.shape.dim)[1:]:
            if not dim.HasField("dim_value"):
                dim.Clear()


def _constants(proto: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Values of the tensors that follow from shapes alone and are the same for every batch size."""
    names = _shape_derived(proto)
    if not names:
        return {}
    runs = [_run(proto, names, shapes, batch) for batch in _BATCHES]
    return {
        name: one
        for name, one, other in zip(names, *runs, strict=True)
        if one.nbytes <= _LIMIT_BYTES and one.shape == other.shape and np.array_equal(one, other)
    }


def _shape_derived(proto: Any) -> list[str]:
    known = {tensor.name for tensor in proto.graph.initializer}
    derived: list[str] = []
    for node in proto.graph.node:
        has_subgraph = any(a.HasField("g") or a.graphs for a in node.attribute)
        if node.op_type == "Shape" or (
            node.input and not has_subgraph and all(name in known or not name for name in node.input)
        ):
            known.update(node.output)
            derived.extend(name for name in node.output if name)
    return derived


def _run(proto: Any, names: Sequence[str], shapes: Mapping[str, Sequence[int]], batch: int) -> list[Any]:
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        value.name: np.zeros(
            (batch, *shapes[value.name]),
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in proto.graph.input
        if value.name in shapes
    }
    return list(session.run(list(names), feeds))
