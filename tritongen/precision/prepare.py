"""Readying a graph for quantization: opset raised, constants folded, nodes named, shapes inferred.

Exporters hide weights behind Identity and Constant nodes and leave BatchNormalization unfused; a quantizer
sees neither weights nor fusable convolutions there. ONNX Runtime's basic optimizations undo that with
standard operators only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter

from tritongen.errors import BuildError, ModelError

MARK = "tritongen.prepared"
_SMALL_BYTES = 4096
# Protobuf ends at 2 GiB, and reading or writing a file with its weights inside holds them five times over
# (bench/build_memory.py): beyond this they go to a file of their own.
_PROTOBUF_LIMIT_BYTES = 256 << 20


def prepare(model: Path, out: Path, *, min_opset: int) -> Path:
    """Write the readied form of `model` to `out` (with external data beside it where it is large).

    Initializers that are also graph inputs become constants. ModelError if the file cannot be read,
    BuildError if its opset cannot be raised.
    """
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=out.parent) as scratch:
        raised = Path(scratch) / "raised.onnx"
        proto = load(model)
        _drop_overridable_inputs(proto)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        _raise_opset(proto, min_opset, model)
        save(proto, raised)
        del proto
        folded = Path(scratch) / "folded.onnx"
        _fold(raised, folded)
        proto = load(folded)
        _name_nodes(proto)
        _drop_unused_domains(proto)
        infer_shapes(proto)
        onnx.helper.set_model_props(proto, {**_properties(proto), MARK: str(min_opset)})
        save(proto, out)
    return out


def is_prepared(proto: Any, min_opset: int) -> bool:
    """Whether `prepare` made this model for that opset or a higher one."""
    return int(_properties(proto).get(MARK, "0")) >= min_opset


def load(model: Path, *, weights: bool = True) -> Any:
    """The ONNX protobuf; ModelError if it cannot be read."""
    try:
        return onnx.load(model, load_external_data=weights)
    except Exception as error:
        raise ModelError(
            f"{model} cannot be read as ONNX", found=" ".join(str(error).split()) or type(error).__name__
        ) from error


def save(proto: Any, out: Path) -> Path:
    """Write the model, its weights to an external file where they outgrow protobuf."""
    data = out.with_name(f"{out.name}.data")
    data.unlink(missing_ok=True)  # onnx would write behind what is there
    if sum(initializer_bytes(tensor) for tensor in proto.graph.initializer) < _PROTOBUF_LIMIT_BYTES:
        onnx.save_model(proto, out)
    else:
        onnx.save_model(proto, out, save_as_external_data=True, location=data.name)
    return out


def initializer_bytes(tensor: Any) -> int:
    """Bytes that an initializer's data takes in memory, the strings' own lengths apart."""
    kind = tensor.data_type
    width = 8 if kind == onnx.TensorProto.STRING else onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * width


def opset_of(proto: Any) -> int:
    """The operator-set version of the default domain; 0 if the model imports none."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _without_weights(proto: Any) -> Any:
    """A copy that has graph inputs in place of the large weights.

    Converters and shape inference copy the whole model several times; they need types, not weights.
    """
    light = onnx.ModelProto(ir_version=proto.ir_version, producer_name=proto.producer_name)
    light.opset_import.extend(proto.opset_import)
    graph = proto.graph
    light.graph.name = graph.name or "graph"
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(graph, field))
    for tensor in graph.initializer:
        if initializer_bytes(tensor) <= _SMALL_BYTES:
            light.graph.initializer.add().CopyFrom(tensor)
        else:
            stub = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(stub)
    return light


def _raise_opset(proto: Any, min_opset: int, model: Path) -> None:
    """Convert in place; the large weights never leave the model."""
    found = opset_of(proto)
    proto.ir_version = max(proto.ir_version, 7)
    if found >= min_opset:
        return
    try:
        raised = onnx.version_converter.convert_version(_without_weights(proto), min_opset)
    except Exception as error:
        raise BuildError(
            f"{model.name} cannot be raised from opset {found} to {min_opset}, which INT8 needs",
            found=" ".join(str(error).split()),
            fix=f"export the model again with opset {min_opset} or higher",
        ) from error
    graph = proto.graph
    for index in reversed(range(len(graph.initializer))):
        if initializer_bytes(graph.initializer[index]) <= _SMALL_BYTES:
            del graph.initializer[index]
    for field in ("node", "input", "output", "value_info"):
        _replace(getattr(graph, field), getattr(raised.graph, field))
    graph.initializer.extend(raised.graph.initializer)
    _replace(proto.opset_import, raised.opset_import)
    _drop_overridable_inputs(proto)


def _fold(source: Path, target: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.disable_prepacking", "1")
    if source.with_name(f"{source.name}.data").exists():
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{target.name}.data"
        )
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BuildError(
            "ONNX Runtime cannot fold the model's constants", found=" ".join(str(error).split())
        ) from error


def infer_shapes(proto: Any) -> None:
    """Replace the types and shapes of inner tensors by what ONNX infers; the weights are not copied."""
    inferred = onnx.shape_inference.infer_shapes(_without_weights(proto), data_prop=True)
    _replace(proto.graph.value_info, inferred.graph.value_info)


def _drop_overridable_inputs(proto: Any) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    _replace(proto.graph.input, [value for value in proto.graph.input if value.name not in constants])


def _drop_unused_domains(proto: Any) -> None:
    """ONNX Runtime stamps every domain that it knows; readers of other versions may refuse them."""
    used = {"", *_domains(proto.graph)}
    _replace(proto.opset_import, [entry for entry in proto.opset_import if entry.domain in used])


def _domains(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield node.domain
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _domains(subgraph)


def _name_nodes(proto: Any) -> None:
    """Placement goes by node names: give each node one of its own."""
    taken: set[str] = set()
    for index, node in enumerate(proto.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)


def _properties(proto: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def _replace(field: Any, values: Any) -> None:
    kept = list(values)
    del field[:]
    field.extend(kept)
