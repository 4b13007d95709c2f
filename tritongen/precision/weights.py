"""Stored weights as integers, whole arrays at once: ONNX Runtime's emitter takes them channel by channel."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a weight; they are what INT8 speeds up."""

_RANK_OF_A_MATRIX = 2


def channel_scales(
    proto: Any, nodes: Collection[str], *, reduce_range: bool
) -> dict[str, list[dict[str, Any]]]:
    """Symmetric int8 scales per output channel of the weights of `nodes`, as `TensorQuantOverrides`.

    Weights that are no FP32 matrix or filter, or that two nodes take along different axes, are absent.
    """
    from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType

    lowest, highest = get_qmin_qmax_for_qType(
        onnx.TensorProto.INT8, reduce_range=reduce_range, symmetric=True
    )
    steps = float(highest) - float(lowest)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    axes: dict[str, set[int | None]] = {}
    for node in proto.graph.node:
        if node.name in nodes and node.op_type in WEIGHTED and node.input[1] in weights:
            axes.setdefault(node.input[1], set()).add(_channel_axis(node, weights[node.input[1]]))
    found = {}
    for name, (axis, *more) in axes.items():
        if axis is not None and not more:
            scales = _scales(onnx.numpy_helper.to_array(weights[name]), axis, steps)
            found[name] = [{"axis": axis, "scale": scale, "zero_point": 0} for scale in scales]
    return found


def fold_weights(proto: Any) -> None:
    """Compute the QuantizeLinear nodes of stored weights, in place; the weights themselves are left there."""
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in constants:
            kept.append(node)
            continue
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
        values, scale, zero_point = (onnx.numpy_helper.to_array(constants[name]) for name in node.input)
        graph.initializer.append(
            onnx.numpy_helper.from_array(_integers(values, scale, zero_point, axis), node.output[0])
        )
    del graph.node[:]
    graph.node.extend(kept)


def _channel_axis(node: Any, weight: Any) -> int | None:
    """The axis of the output channels; None where the emitter is left to find out."""
    if weight.data_type != onnx.TensorProto.FLOAT:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return int(node.op_type == "ConvTranspose")
    if len(weight.dims) != _RANK_OF_A_MATRIX:
        return None
    return int(not any(entry.name == "transB" and entry.i for entry in node.attribute))


def _scales(weight: NDArray[np.float32], axis: int, steps: float) -> NDArray[np.float32]:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.maximum(weight.max(axis=others), -weight.min(axis=others)).astype(np.float64)
    scales = 2 * largest / steps
    return np.where(scales < np.finfo(np.float32).tiny, 1.0, scales).astype(np.float32)


def _integers(
    values: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any], axis: int
) -> NDArray[np.generic]:
    """QuantizeLinear: values ÷ scale, rounded half to even, moved by the zero point and clipped."""
    if scale.ndim:
        along = [-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]
        scale, zero_point = scale.reshape(along), zero_point.reshape(along)
    limits = np.iinfo(zero_point.dtype)
    result = np.asarray(values.astype(np.float32) / scale)
    np.round(result, out=result)
    result += zero_point
    return np.clip(result, limits.min, limits.max, out=result).astype(zero_point.dtype)
