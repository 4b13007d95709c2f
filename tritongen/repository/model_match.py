"""Holds config.pbtxt against the ONNX file that it describes, as Triton's onnxruntime backend does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritongen.errors import ModelError
from tritongen.repository.findings import REBUILD, Finding
from tritongen.repository.onnx_versions import onnx_versions
from tritongen.repository.served_tensors import onnx_served_tensors
from tritongen.repository.targets import EMBEDDED, embedded, is_known

if TYPE_CHECKING:
    from tritongen.repository.targets import Target
    from tritongen.tensors import TensorSpec

_REFUSED = "Triton's onnxruntime backend refuses to load the model"


def check_model_file(name: str, path: Path, config: Any, target: Target) -> Iterator[Finding]:
    """Findings about one version's ONNX file: can the target read it, and is it what the config says."""
    label = f"{path.parent.name}/{path.name}"
    try:
        ir_version, opsets = onnx_versions(path)
    except ModelError as error:
        yield Finding(name, "model-file", f"{label}: {error.found}", _REFUSED, REBUILD)
        return
    yield from _target(name, label, ir_version, opsets.get("", 0), target)
    reason = embedded().why_unreadable(ir_version, opsets.get("", 0))
    if reason is not None:
        if target.name != EMBEDDED:
            yield Finding(
                name,
                "tensors",
                f"{label} could not be compared with config.pbtxt: {reason}",
                "names, types and dims are unchecked",
                "pip install --upgrade onnxruntime",
                "warning",
            )
        return
    try:
        tensors = onnx_served_tensors(path, config.optimization.graph.level)
    except ModelError as error:
        yield Finding(name, "model-file", f"{label}: {error.found}", _REFUSED, error.fix or REBUILD)
        return
    problems = (
        *tensor_problems(label, "input", config.input, tensors.inputs, config.max_batch_size),
        *tensor_problems(label, "output", config.output, tensors.outputs, config.max_batch_size),
    )
    for problem in problems:
        yield Finding(name, "tensors", problem, _REFUSED, REBUILD)


def _target(name: str, label: str, ir_version: int, opset: int, target: Target) -> Iterator[Finding]:
    reason = target.why_unreadable(ir_version, opset)
    if reason is not None:
        fix = f"build it for that image: `tritongen build --target {target.name}`, or choose a newer image"
        if not is_known(target.name):
            fix = "export it with an older opset, or use an image with a newer ONNX Runtime"
        if target.name == EMBEDDED:
            fix = "pip install --upgrade onnxruntime, or build it again here"
        yield Finding(name, "target", f"{label}: {reason}", _REFUSED, fix)
    elif target.max_ir_version is None:
        yield Finding(
            name,
            "target",
            f"nothing is known about the ONNX Runtime of {target.name}",
            f"it may refuse {label} (IR version {ir_version}, opset {opset})",
            "use an image of 24.04 or later",
            "warning",
        )
    elif target.onnxruntime is not None and not target.onnxruntime.verified:
        yield Finding(
            name,
            "target",
            f"that {target.name} has ONNX Runtime {target.onnxruntime.version} is unverified",
            f"it may refuse {label} (IR version {ir_version}, opset {opset})",
            "start the image once and see whether the model loads",
            "warning",
        )


def tensor_problems(
    label: str, kind: str, configured: Any, specs: tuple[TensorSpec, ...], max_batch_size: int
) -> Iterator[str]:
    """How the configured tensors of one kind differ from the model's."""
    by_name = {spec.name: spec for spec in specs}
    for tensor in configured:
        spec = by_name.pop(tensor.name, None)
        if spec is None:
            yield f"{label} has no {kind} '{tensor.name}'; it has {', '.join(s.name for s in specs)}"
        elif difference := _difference(kind, tensor, spec, max_batch_size):
            yield difference
    if kind == "input":
        for missing in by_name:
            yield f"config.pbtxt leaves out {label}'s input '{missing}'"


def _difference(kind: str, tensor: Any, spec: TensorSpec, max_batch_size: int) -> str | None:
    """How a configured tensor differs from the model's, in one sentence; None if it does not."""
    types = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    data_type = types[tensor.data_type].name
    if data_type != spec.dtype.config:
        return f"{kind} '{spec.name}' is {data_type} in config.pbtxt and {spec.dtype.config} in the model"
    dims = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    if max_batch_size > 0:
        if shape[:1] != [-1]:
            return (
                f"{kind} '{spec.name}' {shape} has no dynamic axis 0, but max_batch_size is {max_batch_size}"
            )
        shape = shape[1:]
    elif not shape:
        return None if set(dims) <= {1} else f"{kind} '{spec.name}' is rank 0 and has dims {dims}"
    # Inputs may be stricter than the model; outputs are compared exactly.
    fits = len(dims) == len(shape) and all(
        a == b or (kind == "input" and b == -1) for a, b in zip(dims, shape, strict=True)
    )
    return None if fits else f"{kind} '{spec.name}' has dims {dims} in config.pbtxt and {shape} in the model"
