"""Shapes as ONNX Runtime sees them, which is what Triton's C++ backend holds a config against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritongen.errors import ModelError
from tritongen.repository.model_config import ServedTensors
from tritongen.tensors import DataType, TensorSpec, from_name

_LEVELS = {None: 99, 0: 99, -1: 1, 1: 2, 2: 0}
"""`optimization { graph { level } }` → GraphOptimizationLevel, as the C++ backend maps them."""

_NAMES = {"float": "float32", "double": "float64"}


def onnx_served_tensors(model: Path, graph_level: int | None = None) -> ServedTensors:
    """Inputs and outputs as an ONNX Runtime session reports them; ModelError if it cannot be opened.

    They can be stricter than the graph declares: shape inference replaces a symbolic name by a size that it
    can prove, and the C++ backend compares outputs exactly, −1 only matching −1.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel(_LEVELS.get(graph_level, 99))
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise ModelError(
            f"ONNX Runtime cannot open {model}",
            found=str(error).splitlines()[0],
            expected=f"a model that ONNX Runtime {onnxruntime.__version__} reads",
            fix="build the model again",
        ) from error
    return ServedTensors(
        tuple(_spec(node) for node in session.get_inputs()),
        tuple(_spec(node) for node in session.get_outputs()),
    )


def _spec(node: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, (int, str)) else "?" for dim in node.shape)
    return TensorSpec(node.name, _dtype(node), shape)


def _dtype(node: Any) -> DataType:
    name = str(node.type).removeprefix("tensor(").removesuffix(")")
    try:
        return from_name(_NAMES.get(name, name))
    except KeyError:
        raise ModelError(
            f"tensor '{node.name}' has an element type that Triton cannot carry",
            found=str(node.type),
            fix="cast it inside the model",
        ) from None
