"""From a checked ONNX file to its `Graph`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from tritongen.errors import ModelError
from tritongen.files import digest_files
from tritongen.graph import BatchAxis, BatchStatus, Graph
from tritongen.graph.onnx_file import (
    elements,
    external_files,
    opset_versions,
    read_model,
    walk_nodes,
    walk_tensors,
)
from tritongen.graph.validity import check_valid, drop_large_values
from tritongen.graph.value_ranges import find_ranges
from tritongen.tensors import TensorSpec, from_onnx

_INTEGER_KERNELS = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
     "QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
     "QAttention", "QGemm", "QMoE", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized",
     "QEmbedLayerNormalization", "QOrderedMatMul", "QOrderedAttention")
)  # fmt: skip
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_KINDS = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "an optional",
          "sparse_tensor_type": "a sparse tensor", "opaque_type": "an opaque type"}  # fmt: skip


def inspect(path: Path) -> Graph:
    """What `tritongen.graph.inspect_model` returns."""
    model = read_model(path)
    external = external_files(model, path)
    tensors = list(walk_tensors(model))
    operators = Counter(_operator_name(node.domain, node.op_type) for node, _ in walk_nodes(model))
    parameters = sum(map(elements, tensors))
    half = any(tensor.data_type in _HALF for tensor in tensors)
    stored = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in stored]
    ranges = find_ranges(model, [value.name for value in given])
    drop_large_values(model)
    _complete_outputs(model)
    inputs = tuple(_tensor(value, "input", path) for value in given)
    outputs = tuple(_tensor(value, "output", path) for value in model.graph.output)
    _check_servable(inputs, outputs, path)
    check_valid(model, path)
    imgsz = next((entry.value for entry in model.metadata_props if entry.key == "imgsz"), None)
    size = _image_size(imgsz or "")
    files = [path, *(path.parent / name for name in external)]
    return Graph(
        path=path,
        digest=digest_files(files),
        inputs=inputs,
        outputs=outputs,
        ir_version=model.ir_version,
        opsets=opset_versions(model.opset_import),
        operators=dict(sorted(operators.items())),
        parameters=parameters,
        size_bytes=sum(file.stat().st_size for file in files),
        external_data=external,
        quantized=any(_is_integer_kernel(name) for name in operators),
        half=half,
        batch=propose_batch_axis(inputs, outputs),
        value_ranges={spec.name: ranges[spec.name] for spec in inputs
                      if spec.dtype.is_integer and spec.name in ranges},
        image_size=size,
        unusable_image_size=None if size else imgsz,
    )  # fmt: skip


def _image_size(text: str) -> tuple[int, int] | None:
    """From `imgsz: [height, width]`, or one size for both."""
    match = re.fullmatch(r"\s*[\[(]?\s*([1-9]\d{0,4})\s*(?:,\s*([1-9]\d{0,4})\s*)?[\])]?\s*", text)
    return (int(match[1]), int(match[2] or match[1])) if match else None


def _operator_name(domain: str, op_type: str) -> str:
    return op_type if domain in ("", "ai.onnx") else f"{domain}:{op_type}"


def _is_integer_kernel(name: str) -> bool:
    domain, _, op_type = name.rpartition(":")
    return op_type in _INTEGER_KERNELS or (domain == "com.microsoft" and op_type.startswith("QLinear"))


def _complete_outputs(model: ModelProto) -> None:
    """Add the shapes and types of outputs that the exporter left out, where ONNX can infer them."""
    missing = [value for value in model.graph.output if not _is_complete(value)]
    if not missing:
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - it raises whatever the model provokes; the caller names what is missing
        return
    known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    for value in missing:
        found = known.get(value.name)
        if found is not None and _is_complete(found):
            value.CopyFrom(found)


def _is_complete(value: ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    if kind is None:
        return False
    tensor = value.type.tensor_type
    return kind != "tensor_type" or bool(tensor.elem_type and tensor.HasField("shape"))


def _tensor(value: ValueInfoProto, role: str, path: Path) -> TensorSpec:
    """The input or output as Triton sees it; ModelError naming it where Triton cannot carry it."""
    _check_name(value.name, role, path)
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise ModelError(
            f"{path}: {role} '{value.name}' is {_KINDS.get(kind, kind)}, and Triton serves only tensors",
            found=_KINDS.get(kind, kind),
            expected="a dense tensor",
            fix="export classifiers from scikit-learn with options={'zipmap': False}"
            if role == "output"
            else "export the model with tensor inputs",
        )
    if not _is_complete(value):
        raise ModelError(
            f"{path}: the shape of {role} '{value.name}' is unknown, its rank included",
            found="no shape in the model" if kind else "no type in the model",
            expected="at least the number of dimensions",
            fix="export the model with shapes, or add them with onnx.shape_inference.infer_shapes",
        )
    shape = tuple(_dim(dim) for dim in value.type.tensor_type.shape.dim)
    if 0 in shape:
        raise ModelError(
            f"{path}: {role} '{value.name}' has a dimension of size 0, which Triton does not accept",
            found=str(list(shape)),
            expected="sizes of 1 and more, or dynamic ones",
            fix=f"remove the {role}, or export the dimension as dynamic",
        )
    return TensorSpec(value.name, from_onnx(value.type.tensor_type.elem_type, value.name), shape)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # some exporters write -1 for a dynamic one
        return int(dim.dim_value)
    return str(dim.dim_param) or "?"


def _check_name(name: str, role: str, path: Path) -> None:
    wrong = sorted({char for char in name if char in '"\\' or not (char.isprintable() or char == "\u3000")})
    if not name or wrong:
        raise ModelError(
            f"{path}: the name of {role} {name!r} cannot be written into Triton's config.pbtxt",
            found=", ".join(map(repr, wrong)) or "an empty name",
            expected="printable characters without quotes and backslashes",
            fix=f"rename the {role} in the export",
        )


def _check_servable(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], path: Path) -> None:
    for role, specs in (("input", inputs), ("output", outputs)):
        if not specs:
            raise ModelError(
                f"{path} has no {role}s, and Triton serves only models with inputs and outputs",
                found=f"no {role} besides the stored weights" if role == "input" else "no output",
                fix=f"export the model with at least one {role}",
            )
        (name, count), *_ = Counter(spec.name for spec in specs).most_common(1)
        if count > 1:
            raise ModelError(
                f"{path}: {role} '{name}' is listed {count} times",
                expected="each name once",
                fix="export the model again",
            )


def propose_batch_axis(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> BatchAxis:
    """What the shapes say about batching: declared where axis 0 of all inputs and outputs is dynamic."""
    tensors = [("input", spec) for spec in inputs] + [("output", spec) for spec in outputs]
    if not any(0 in spec.dynamic_axes for _, spec in tensors):
        return BatchAxis(BatchStatus.ABSENT, _why_static(inputs))
    for role, spec in tensors:
        if spec.rank == 0:
            why = f"{role} '{spec.name}' has rank 0, so it has no axis to batch along"
        elif 0 not in spec.dynamic_axes:
            why = f"axis 0 of {role} '{spec.name}' is fixed at {spec.shape[0]}, while others are dynamic"
        else:
            continue
        return BatchAxis(BatchStatus.ABSENT, why)
    names = sorted({str(spec.shape[0]) for _, spec in tensors})
    return BatchAxis(
        BatchStatus.DECLARED,
        f"axis 0 of every input and output is dynamic ({', '.join(names)}); not yet confirmed by a run",
    )


def _why_static(inputs: tuple[TensorSpec, ...]) -> str:
    for spec in inputs:
        if spec.dynamic_axes:
            axis = spec.dynamic_axes[0]
            return (
                f"no axis 0 is dynamic; input '{spec.name}' varies along axis {axis} ('{spec.shape[axis]}')"
            )
    spec = inputs[0]
    size = (
        f"axis 0 of input '{spec.name}' is fixed at {spec.shape[0]}"
        if spec.rank
        else f"input '{spec.name}' has rank 0"
    )
    return f"all shapes are static: {size}"
