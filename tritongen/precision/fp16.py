"""ONNX → ONNX in FP16, for engines that take precisions from the graph; the emitter is onnxruntime's.

Also for graphs with Q/DQ nodes, from opset 19 on, where their scales may be FP16: what INT8 leaves out then
runs in FP16 instead of FP32.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tritongen.errors import BuildError, ModelError
from tritongen.precision.bf16 import float_weights, half_to_brain
from tritongen.precision.prepare import infer_shapes, load, opset_of, prepare, save
from tritongen.precision.recipe import Fp16Recipe

LARGEST = 65504.0
"""The largest finite FP16 number; weights beyond it are refused here, as the converter would clamp them."""

_QDQ_OPSET = 19
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class HalfSummary:
    """What `to_half` did."""

    half_weights: int
    """Weights that are FP16 (BF16) now."""
    casts: int
    """Cast nodes in the result: at inputs and outputs, and around what stays in FP32."""
    kept_fp32: dict[str, int]
    """Operators that stay in FP32, and how many of each."""


def to_half(model: Path, recipe: Fp16Recipe, out: Path) -> HalfSummary:
    """Write `model` in FP16 (or BF16) to `out`; ModelError for weights beyond it, BuildError if it fails."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    out.parent.mkdir(parents=True, exist_ok=True)
    blocked = [*DEFAULT_OP_BLOCK_LIST, *recipe.keep_fp32]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        proto = load(_ready(model, Path(folder)))
    originals = float_weights(proto) if recipe.brain else {}
    if not recipe.brain:
        _refuse_large_weights(proto)
    try:
        infer_shapes(proto)
        half = convert_float_to_float16(
            proto,
            keep_io_types=recipe.keep_io,
            disable_shape_infer=True,  # it would copy the weights, which ends at 2 GiB
            op_block_list=blocked,
            max_finite_val=LARGEST,
        )
    except Exception as error:
        raise BuildError(
            f"{model.name} cannot be converted to FP16", found=" ".join(str(error).split())
        ) from error
    _sort(half.graph)
    if recipe.brain:
        half_to_brain(half, originals)
    save(half, out)
    kinds = Counter(node.op_type for node in half.graph.node)
    return HalfSummary(
        half_weights=sum(w.data_type in _HALVES for w in half.graph.initializer),
        casts=kinds["Cast"],
        kept_fp32={op: kinds[op] for op in blocked if kinds[op]},
    )


def _ready(model: Path, folder: Path) -> Path:
    """The model itself if it has Q/DQ nodes (folding would undo them), raised; else prepared."""
    proto = load(model, weights=False)
    if all(node.op_type != "QuantizeLinear" for node in proto.graph.node):
        return prepare(model, folder / "prepared.onnx", min_opset=13)
    opset = opset_of(proto)
    if opset < _QDQ_OPSET:
        raise BuildError(
            f"{model.name} has Q/DQ nodes of opset {opset}, which take no FP16",
            expected=f"opset {_QDQ_OPSET} or higher",
            fix="quantize with a recipe whose min_opset is 19",
        )
    return model


def _sort(graph: Any) -> None:
    """Put nodes behind what they read; the converter appends its casts at the end."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    needs = {
        index: [makers[name] for name in _reads(node) if name in makers]
        for index, node in enumerate(graph.node)
    }
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise BuildError("the FP16 graph has a cycle") from error
    copies = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(copies)


def _reads(node: Any) -> list[str]:
    """What a node reads, the bodies of its subgraphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            names += [name for inner in body.node for name in _reads(inner)]
    return names


def _refuse_large_weights(proto: Any) -> None:
    for tensor in proto.graph.initializer:
        # A lone number is a limit or a mask (the smallest float before a softmax): clamped, it stays one.
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) == 1:
            continue
        largest = _largest_weight(onnx.numpy_helper.to_array(tensor))
        if not largest <= LARGEST:
            raise ModelError(
                f"weight '{tensor.name}' does not fit into FP16",
                found=f"a magnitude of {largest:g}",
                expected=f"at most {LARGEST:g}",
                fix="leave fp16 out of the precisions",
            )


def _largest_weight(array: NDArray[np.float32]) -> float:
    """The largest magnitude; NaN if there is any.

    Infinities, which FP16 has too, and the extreme floats, which masks have in their place, do not count.
    """
    magnitudes = np.abs(array)
    counted = np.isnan(magnitudes) | (magnitudes < np.finfo(np.float32).max)
    return float(magnitudes.max(initial=0.0, where=counted))
