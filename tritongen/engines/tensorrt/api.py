"""The one module that knows how TensorRT's versions differ: by asking for features, never for numbers.

8.6 was run on a GPU. The shape of 11 is run without one, through `tensorrt_rtx`. 10 was only written.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritongen.errors import BuildError, RequirementError
from tritongen.spec import Precision

INSTALL = "pip install 'tritongen[tensorrt]'"


@dataclass(frozen=True)
class Features:
    """What the installed TensorRT offers."""

    weakly_typed: bool
    """Precisions are builder flags (8.6, 10), so that a plain FP32 graph can become FP16 or INT8."""
    strongly_typed: bool
    """Networks can take their precisions from the graph (10, 11)."""
    explicit_batch_flag: bool
    """Networks must ask for explicit batches (8.6)."""
    implicit_int8: bool
    """INT8 from ranges or a calibrator, without Q/DQ nodes (8.6, 10)."""
    bf16: bool
    fp8: bool
    """FP8 Q/DQ nodes, in strongly typed networks alone (8.6 has the flag, and no parser for them)."""
    build_routes: bool
    """`config.build_route`: the supported search over the compiler's choices (11.1)."""
    progress_monitor: bool
    tiling: bool
    tactic_sources: tuple[str, ...]


def load(module: str = "tensorrt") -> Any:
    """TensorRT's Python module; RequirementError where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise RequirementError(
            "TensorRT cannot be imported", found=" ".join(str(error).split()), fix=INSTALL
        ) from error


def features(trt: Any) -> Features:
    """What this TensorRT module offers."""
    flags, creation = trt.BuilderFlag, trt.NetworkDefinitionCreationFlag
    return Features(
        weakly_typed=hasattr(flags, "FP16"),
        strongly_typed=hasattr(creation, "STRONGLY_TYPED"),
        explicit_batch_flag=hasattr(creation, "EXPLICIT_BATCH"),
        implicit_int8=hasattr(flags, "INT8") and hasattr(trt, "IInt8EntropyCalibrator2"),
        bf16=hasattr(flags, "BF16") or not hasattr(flags, "FP16"),
        fp8=hasattr(creation, "STRONGLY_TYPED") and hasattr(getattr(trt, "DataType", None), "FP8"),
        build_routes=hasattr(trt.IBuilderConfig, "build_route"),
        progress_monitor=hasattr(trt, "IProgressMonitor"),
        tiling=hasattr(trt.IBuilderConfig, "tiling_optimization_level"),
        tactic_sources=tuple(name for name in _SOURCES if hasattr(trt.TacticSource, name)),
    )


def require(trt: Any, options: Collection[str]) -> None:
    """RequirementError for the first of these builder options that this TensorRT does not have."""
    flags, config, has = trt.BuilderFlag, trt.IBuilderConfig, features(trt)
    known = {
        "optimization_level": (hasattr(config, "builder_optimization_level"), "8.6 or newer"),
        "aux_streams": (hasattr(config, "max_aux_streams"), "8.6 or newer"),
        "tiling": (has.tiling, "10.8 or newer"),
        "build_route": (has.build_routes, "11.1 or newer, on Linux"),
        "sparsity": (hasattr(flags, "SPARSE_WEIGHTS"), "8.0 or newer"),
        "refit": (hasattr(flags, "REFIT"), "a version with refittable plans"),
        "version_compatible": (hasattr(flags, "VERSION_COMPATIBLE"), "8.6 or newer"),
        "hardware_compatible": (hasattr(trt, "HardwareCompatibilityLevel"), "8.6 or newer"),
    }
    for name in options:
        has_it, needed = known.get(name, (True, ""))
        if not has_it:
            raise RequirementError(
                f"TensorRT {trt.__version__} does not have tensorrt.{name}",
                expected=f"TensorRT {needed}",
                fix=f"leave {name} out, or install another TensorRT",
            )


def require_tactic_sources(trt: Any, names: Collection[str]) -> None:
    """RequirementError for a tactic source that this TensorRT does not have."""
    has = features(trt).tactic_sources
    for name in names:
        if name not in has:
            raise RequirementError(
                f"TensorRT {trt.__version__} has no tactic source '{name}'",
                found=name,
                expected=", ".join(has),
                fix="name one of these in tensorrt.tactic_sources",
            )


_SOURCES = ("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
OWN_SOURCES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""Tactic sources that need no other library; the newer versions have no others."""


def create_network(trt: Any, builder: Any, *, strongly_typed: bool) -> Any:
    """An empty network with explicit batches; BuildError if it cannot be of the kind asked for."""
    has = features(trt)
    creation = trt.NetworkDefinitionCreationFlag
    bits = 0
    if strongly_typed:
        if not has.strongly_typed:
            raise BuildError(
                f"TensorRT {trt.__version__} has no strongly typed networks", expected="10.0 or newer"
            )
        bits |= 1 << int(creation.STRONGLY_TYPED)
    elif not has.weakly_typed:
        raise BuildError(f"TensorRT {trt.__version__} has only strongly typed networks")
    elif has.explicit_batch_flag:
        # 10 still accepts it, and 8.6 refuses ONNX models without it.
        bits |= 1 << int(creation.EXPLICIT_BATCH)
    return builder.create_network(bits)


def set_precision(trt: Any, config: Any, precision: Precision, *, tf32: bool, strongly_typed: bool) -> None:
    """The builder flags of a precision; INT8 allows FP16 beside it. Strongly typed ones have only TF32."""
    flags = trt.BuilderFlag
    (config.set_flag if tf32 else config.clear_flag)(flags.TF32)
    if strongly_typed:
        return
    if precision is Precision.BF16:
        config.set_flag(flags.BF16)
    elif precision is not Precision.FP32:
        config.set_flag(flags.FP16)
    if precision is Precision.INT8:
        config.set_flag(flags.INT8)


def set_tactic_sources(trt: Any, config: Any, names: Sequence[str]) -> None:
    """Allow exactly these tactic sources, as far as this version has them."""
    bits = 0
    for name in names:
        if hasattr(trt.TacticSource, name):
            bits |= 1 << int(getattr(trt.TacticSource, name))
    config.set_tactic_sources(bits)


def set_workspace(trt: Any, config: Any, nbytes: int) -> None:
    """How much GPU memory tactics may use while they run."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, nbytes)


def device_memory_bytes(engine: Any) -> int:
    """GPU memory that one execution context takes for activations."""
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


def tensor_dtypes(trt: Any) -> dict[Any, str]:
    """TensorRT's data types by our names; those that Triton cannot carry are absent."""
    names = {
        "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32",
        "INT64": "int64", "UINT8": "uint8", "BOOL": "bool",
    }  # fmt: skip
    return {getattr(trt.DataType, own): ours for own, ours in names.items() if hasattr(trt.DataType, own)}


def parser_problems(parser: Any) -> list[dict[str, str]]:
    """What the ONNX parser objected to: node, operator (where the version tells) and its words."""
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        problems.append(
            {
                # 8.6 tells only the node's place in the graph.
                "index": str(error.node()),
                "node": str(error.node_name()) if hasattr(error, "node_name") else "",
                "operator": str(error.node_operator()) if hasattr(error, "node_operator") else "",
                "reason": " ".join(str(error.desc()).split()),
            }
        )
    return problems


def node_text(model: Path, problem: Mapping[str, str]) -> str:
    """Operator and name of the node that a parser error is about; 8.6 gives only its index."""
    found = [problem.get("operator", ""), problem.get("node", "")]
    if not any(found) and model.is_file() and problem.get("index", "").isdigit():
        import onnx

        nodes = onnx.load(model, load_external_data=False).graph.node
        index = int(problem["index"])
        if index < len(nodes):
            found = [nodes[index].op_type, nodes[index].name]
    return " ".join(filter(None, found)) or f"node #{problem.get('index', '?')}"


def target_without_gpu(trt: Any, config: Any, capability: str) -> None:
    """Build for a compute capability ("8.9") instead of this machine's GPU (tensorrt_rtx alone)."""
    if not hasattr(config, "set_compute_capability"):
        raise BuildError(f"TensorRT {trt.__version__} builds only for the GPU at hand")
    config.num_compute_capabilities = 1
    value = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
    config.set_compute_capability(value, 0)
