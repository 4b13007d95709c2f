"""INT8 Q/DQ graphs as FP8 ones (E4M3): the same places, with scales for a grid that ends at 448."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

LARGEST = 448.0
"""The largest number of float8 E4M3 (FN: without infinities)."""

_INT8_STEPS = 127.0
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def int8_to_float8(proto: Any) -> None:
    """Rewrite the symmetric INT8 Q/DQ pairs of `proto` (opset 19 or higher) in place."""
    graph = proto.graph
    pairs = [node for node in graph.node if node.op_type in _PAIR]
    scales = {node.input[1] for node in pairs}
    zeros = {node.input[2] for node in pairs}
    quantized = {node.output[0] for node in pairs if node.op_type == "QuantizeLinear"}
    for tensor in graph.initializer:
        if tensor.name in scales:
            values = onnx.numpy_helper.to_array(tensor)
            scaled = (values.astype(np.float64) * (_INT8_STEPS / LARGEST)).astype(values.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))
        elif tensor.name in zeros:
            count = int(np.prod(tensor.dims))
            tensor.CopyFrom(
                onnx.TensorProto(
                    name=tensor.name,
                    data_type=onnx.TensorProto.FLOAT8E4M3FN,
                    dims=tensor.dims,
                    raw_data=bytes(count),
                )
            )
    for value in graph.value_info:
        if value.name in quantized:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT8E4M3FN
