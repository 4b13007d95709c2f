"""ONNX → ONNX with Q/DQ nodes: ranges and placement are ours, the emitter is onnxruntime.quantization's."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tritongen.errors import BuildError, ModelError
from tritongen.files import write_text
from tritongen.precision.calibration import Range
from tritongen.precision.fp8 import int8_to_float8
from tritongen.precision.placement import FLOATS, Placement, place, shared_ranges
from tritongen.precision.prepare import is_prepared, load, opset_of, prepare, save
from tritongen.precision.recipe import Int8Recipe
from tritongen.precision.weights import channel_scales, fold_weights


@dataclass(frozen=True)
class QuantizationSummary:
    """What `quantize` did."""

    operators: dict[str, int]
    """Quantized nodes by operator type."""
    quantize_nodes: int
    """QuantizeLinear nodes in the result."""
    dequantize_nodes: int
    """DequantizeLinear nodes in the result."""
    opset: int
    notes: tuple[str, ...]
    """What stayed in floating point, and why."""


def tensors_to_calibrate(model: Path, recipe: Int8Recipe) -> list[str]:
    """The activations that need a range, in graph order; names are those of the prepared model.

    BuildError if the recipe finds nothing to quantize.
    """
    with prepared(model, recipe) as ready:
        return list(place(load(ready), recipe, ready.name).activations)


def quantize(
    model: Path,
    ranges: Mapping[str, Range],
    recipe: Int8Recipe,
    out: Path,
    *,
    only: Collection[str] | None = None,
    held: Collection[str] = (),
) -> QuantizationSummary:
    """Write `model` with Q/DQ nodes by `recipe` to `out`; nodes that lack a range stay in floating point.

    Mixed precision: `only` names the nodes (of the prepared model) that may be quantized, `held` those that
    may not.

    BuildError if there is nothing to quantize or the result does not open; ModelError for weights that are
    not finite.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with prepared(model, recipe, beside=out) as ready:
        proto = load(ready)
        placement = place(proto, recipe, model.name, ranges, only=only, held=held)
        state_kernel_shapes(proto)
        quantized = _emit(proto, placement, shared_ranges(placement, ranges), recipe)
    for key in ("onnx.infer", "tritongen.prepared"):
        _drop_property(quantized, key)
    if recipe.float8:
        int8_to_float8(quantized)
    save(quantized, out)
    _check_opens(out)
    kinds = Counter(node.op_type for node in quantized.graph.node)
    return QuantizationSummary(
        operators=placement.operators,
        quantize_nodes=kinds["QuantizeLinear"],
        dequantize_nodes=kinds["DequantizeLinear"],
        opset=opset_of(quantized),
        notes=placement.notes,
    )


@contextmanager
def prepared(model: Path, recipe: Int8Recipe, beside: Path | None = None) -> Iterator[Path]:
    """The model in the form that placement works on: itself if `prepare` made it, else a temporary copy."""
    if is_prepared(load(model, weights=False), recipe.min_opset):
        yield model
        return
    with tempfile.TemporaryDirectory(
        prefix=".prepared-", dir=beside.parent if beside else None, ignore_cleanup_errors=True
    ) as folder:
        yield prepare(model, Path(folder) / model.name, min_opset=recipe.min_opset)


def write_ranges(model: Path, ranges: Mapping[str, Range], recipe: Int8Recipe, out: Path) -> Path:
    """For an implicit recipe: the prepared model at `out`, and beside it its tensors' ranges as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with prepared(model, recipe, beside=out) as ready:
        save(load(ready), out)
    path = out.with_suffix(".ranges.json")
    write_text(
        path, json.dumps({"ranges": {name: list(extent) for name, extent in ranges.items()}}, indent=1)
    )
    return path


def write_samples(
    model: Path, calls: Iterable[Mapping[str, NDArray[Any]]], recipe: Int8Recipe, out: Path, *, cache: Path
) -> Path:
    """For an engine with a calibrator of its own: the prepared model at `out`, samples beside it as .npz.

    `cache`: where the engine keeps what it finds. Returns the JSON file beside `out` that names both.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with prepared(model, recipe, beside=out) as ready:
        save(load(ready), out)
    samples = out.with_suffix(".samples.npz")
    np.savez(
        samples, **{f"{i}/{name}": array for i, call in enumerate(calls) for name, array in call.items()}
    )
    path = out.with_suffix(".calibration.json")
    write_text(path, json.dumps({"samples": str(samples), "cache": str(cache)}))
    return path


def _emit(proto: Any, placement: Placement, ranges: Mapping[str, Range], recipe: Int8Recipe) -> Any:
    """The model with Q/DQ nodes; BuildError if the recipe cannot be applied, ModelError for NaN weights."""
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    _refuse_unfinite_weights(proto, placement)
    add_infer_metadata(proto)  # shapes are inferred already; without the mark the model is copied for it
    quantizer = _quantizer(proto, placement, ranges, recipe)
    try:
        quantized = quantizer.quantize_model()
    except Exception as error:
        raise BuildError(
            f"recipe '{recipe.name}' cannot be applied", found=" ".join(str(error).split())
        ) from error
    _read_past_pairs(quantized, recipe.float_readers)
    if not recipe.weights_as_pairs:
        fold_weights(quantized)
        quantizer.model.clean_initializers()
    return quantized


def _read_past_pairs(proto: Any, operators: Collection[str]) -> None:
    """Give nodes of these types the tensors themselves in place of what comes out of their Q/DQ pairs."""
    nodes = proto.graph.node
    quantized = {node.output[0]: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    sources = {
        node.output[0]: quantized[node.input[0]]
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }
    for node in nodes:
        if node.op_type in operators:
            for index, name in enumerate(node.input):
                node.input[index] = sources.get(name, name)


def _quantizer(proto: Any, placement: Placement, ranges: Mapping[str, Range], recipe: Int8Recipe) -> Any:
    """ONNX Runtime's quantizer, told to put Q/DQ pairs where the placement wants them."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    wanted = set(placement.activations)

    class PlacedQuantizer(QDQQuantizer):  # type: ignore[misc]
        """Emits a Q/DQ pair only where the placement wants one."""

        def quantize_activation_tensor(self, tensor_name: str) -> None:
            if tensor_name in wanted or tensor_name in self.initializers:
                super().quantize_activation_tensor(tensor_name)

        def quantize_output_same_as_input(self, output_name: str, input_name: str, node_name: str) -> None:
            if recipe.shared_ranges:  # a group's range holds, whatever the operator
                self.quantize_activation_tensor(output_name)
            else:
                super().quantize_output_same_as_input(output_name, input_name, node_name)

    types = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
    overrides = {}
    if recipe.per_channel and recipe.weight == "int8" and recipe.symmetric_weights:
        overrides = channel_scales(proto, set(placement.nodes), reduce_range=recipe.reduce_range)
    quantizer = PlacedQuantizer(
        proto,
        recipe.per_channel,
        recipe.reduce_range,
        types[recipe.weight],
        types[recipe.activation],
        {
            name: TensorData(lowest=np.float32(ranges[name][0]), highest=np.float32(ranges[name][1]))
            for name in placement.activations
        },
        list(placement.nodes),
        [],
        list(recipe.operators),
        {
            "ActivationSymmetric": recipe.symmetric_activations,
            "WeightSymmetric": recipe.symmetric_weights,
            "QuantizeBias": recipe.quantize_bias,
            "AddQDQPairToWeight": True,
            "DedicatedQDQPair": False,
            "TensorQuantOverrides": overrides,
        },
    )
    for name in placement.moved:  # no node that is quantized asks for these
        quantizer.quantize_activation_tensor(name)
    return quantizer


def _refuse_unfinite_weights(proto: Any, placement: Placement) -> None:
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    chosen = set(placement.nodes)
    for node in proto.graph.node:
        for name in node.input if node.name in chosen else ():
            if name in weights and weights[name].data_type in FLOATS:
                values = onnx.numpy_helper.to_array(weights[name])
                if not np.isfinite(values).all():
                    raise ModelError(
                        f"weight '{name}' holds values that are not finite", found="NaN or infinity"
                    )


def state_kernel_shapes(proto: Any) -> None:
    """Give convolutions their kernel_shape: with a weight behind Q/DQ, TensorRT 8.6 does not infer it."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        stated = any(attribute.name == "kernel_shape" for attribute in node.attribute)
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in weights and not stated:
            sizes = list(weights[node.input[1]].dims)[2:]
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", sizes))


def _drop_property(proto: Any, key: str) -> None:
    kept = {entry.key: entry.value for entry in proto.metadata_props if entry.key != key}
    onnx.helper.set_model_props(proto, kept)


def _check_opens(model: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BuildError(
            "the quantized model does not open in ONNX Runtime", found=" ".join(str(error).split())
        ) from error
