"""FP16 graphs as BF16 ones: the same casts and types, with the eight exponent bits of FP32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

_HALF, _BRAIN = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


def float_weights(proto: Any) -> dict[str, NDArray[np.float32]]:
    """The FP32 initializers by name, to be rounded once and not twice."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def half_to_brain(proto: Any, originals: Mapping[str, NDArray[np.float32]]) -> None:
    """Make everything that is FP16 in `proto` BF16; weights come from their FP32 `originals`."""
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            _replace(tensor, originals.get(tensor.name))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == _HALF:
                value.type.tensor_type.elem_type = _BRAIN
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _replace(attribute.t, None)
                if attribute.name in ("to", "dtype") and attribute.i == _HALF:
                    attribute.i = _BRAIN


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(body)


def _replace(tensor: Any, original: NDArray[np.float32] | None) -> None:
    if tensor.data_type != _HALF:
        return
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32) if original is None else original
    made = onnx.TensorProto(
        name=tensor.name,
        data_type=_BRAIN,
        dims=tensor.dims,
        raw_data=values.astype(ml_dtypes.bfloat16).tobytes(),
    )
    tensor.CopyFrom(made)
