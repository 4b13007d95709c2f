"""What is in a plan: per layer the tactic, the precision and the time; and whether a precision is in it.

Three answers to "is it INT8?": PROVEN, by the share of the time of layers with weights that run so; ABSENT;
or OPAQUE, where the compiler fused everything into nodes that do not tell: then outputs and speed are held
against FP32's once both were measured (`autotune/evidence.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tritongen.spec import Precision

Evidence = Literal["PROVEN", "ABSENT", "OPAQUE"]

_WEIGHTED = re.compile(
    r"conv|gemm|fullyconnected|matmul|matrixmultiply|matrix_multiply|deconv", re.IGNORECASE
)
_OPAQUE = re.compile(r"myelin|foreignnode", re.IGNORECASE)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_FORMATS = (
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8|e4m3", re.IGNORECASE)),
    ("bf16", re.compile(r"bf16|bfloat", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)
_TACTICS = (
    ("int8", re.compile(r"i8i8|_s8_|imma|int8|s8s8", re.IGNORECASE)),
    ("fp16", re.compile(r"f16f16|h16816|h884|h1688|hmma|fp16|_h_|f16_", re.IGNORECASE)),
    ("fp32", re.compile(r"f32f32|tf32|sgemm|scudnn|fp32|s1688|ffma", re.IGNORECASE)),
)
_MATH = (
    ("tf32", re.compile(r"tf32|s1688", re.IGNORECASE)),
    ("fp32", re.compile(r"f32f32|sgemm|scudnn|ffma|simt", re.IGNORECASE)),
)
"""What a layer of FP32 formats multiplies in, by its tactic: sm90_xmma_gemm_f32f32_tf32f32_f32_… is TF32."""


@dataclass(frozen=True)
class Layer:
    """One layer of a plan."""

    name: str
    kind: str
    tactic: str
    precision: str
    """What it computes in as far as it tells: int8, fp16, fp32, …; "opaque" or "unknown"."""
    inputs: tuple[str, ...]
    """Format and type of each input, in TensorRT's words."""
    outputs: tuple[str, ...]
    weighted: bool
    """Convolution, matrix product and the like, alone or fused with others."""
    reformat: bool
    fused: tuple[str, ...] = ()
    """The ONNX nodes that it computes, where it tells; several mean that they were fused."""
    time_ms: float | None = None


@dataclass(frozen=True)
class Proof:
    """Whether a precision is in a plan."""

    evidence: Evidence
    share: float
    """Of the layers with weights, by time where it was measured, by number otherwise."""
    summary: str


def layers_of(trt: Any, engine: Any, context: Any = None) -> tuple[Layer, ...]:
    """The layers of an engine in execution order; needs a plan built with detailed verbosity.

    With a `context`, of the optimization profile that it uses; none where the inspector says nothing.
    """
    # 8.6 said nothing of one plan (rapidocr's recogniser in FP32) with its context, and all without.
    for one in (context, None) if context is not None else (None,):
        inspector = engine.create_engine_inspector()
        if one is not None:
            inspector.execution_context = one
        if text := inspector.get_engine_information(trt.LayerInformationFormat.JSON):
            # 8.6 puts raw control characters (U+001E) into names, which strict JSON forbids.
            return parse_layers(json.loads(text, strict=False))
    return ()


def parse_layers(information: Mapping[str, Any]) -> tuple[Layer, ...]:
    """The inspector's JSON as layers; plans without detail give names only."""
    return tuple(_layer(entry) for entry in information.get("Layers", []))


def with_times(layers: Sequence[Layer], times_ms: Mapping[str, float]) -> tuple[Layer, ...]:
    """The layers with what a profiler measured for each name."""
    return tuple(replace(layer, time_ms=times_ms.get(layer.name)) for layer in layers)


def prove(layers: Sequence[Layer], precision: Precision, *, tf32: bool = False) -> Proof:
    """Whether `precision` is in these layers; `tf32`: whether FP32 layers compute in TF32."""
    if precision is Precision.FP32 and not tf32:
        return Proof("PROVEN", 1.0, "fp32 is what every layer may use")
    wanted, timed = "tf32" if tf32 else str(precision), any(layer.time_ms for layer in layers)
    weights: dict[str, float] = {}
    for layer in layers:
        if layer.weighted or layer.precision == "opaque":
            kind = _math(layer) if tf32 else layer.precision
            weights[kind] = weights.get(kind, 0.0) + ((layer.time_ms or 0.0) if timed else 1.0)
    total, share = sum(weights.values()), weights.get(wanted, 0.0)
    if share > 0:
        by = "time" if timed else "number"
        percent = 100 * share / total
        return Proof(
            "PROVEN", share / total, f"{percent:.0f} % of the layers with weights, by {by}, run in {wanted}"
        )
    silent = [layer for layer in layers if layer.precision == "opaque"]
    if not weights:
        return Proof("OPAQUE", 0.0, "the plan has no details")
    if silent or "unknown" in weights:
        some = f"{len(silent)} fused" if silent else "some"
        return Proof("OPAQUE", 0.0, f"{some} layers with weights do not tell what they compute in")
    return Proof(
        "ABSENT", 0.0, f"no layer runs in {wanted}; those with weights run in {', '.join(sorted(weights))}"
    )


def profile_layers(trt: Any, runner: Any, rounds: int = 20) -> tuple[Layer, ...]:
    """The layers of a runner that was prepared (without CUDA graph), each with its mean time."""
    context = runner.context
    sums: dict[str, float] = {}

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, name: str, ms: float) -> None:
            sums[name] = sums.get(name, 0.0) + ms

    profiler = Profiler()
    for _ in range(3):
        runner.step()
    context.profiler = profiler
    for _ in range(rounds):
        runner.step()
    layers = layers_of(trt, runner.engine, context) or tuple(_layer(name) for name in sums)
    return with_times(layers, {name: total / rounds for name, total in sums.items()})


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        return Layer(entry, "", "", "unknown", (), (), weighted=False, reformat=False)
    name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
    tactic = str(entry.get("TacticName") or entry.get("TacticValue") or "")
    inputs, outputs = (_formats(entry.get(key, [])) for key in ("Inputs", "Outputs"))
    opaque = bool(_OPAQUE.search(kind) or _OPAQUE.search(name))
    return Layer(
        name=name,
        kind=kind,
        tactic=tactic,
        precision="opaque" if opaque else _precision(tactic, inputs),
        inputs=inputs,
        outputs=outputs,
        weighted=not opaque
        and bool(_WEIGHTED.search(kind) or _WEIGHTED.search(str(entry.get("ParameterType", "")))),
        reformat=kind.lower() in ("reformat", "noop") or "reformat" in name.lower(),
        fused=_fused(name, str(entry.get("Metadata", ""))),
    )


def _fused(name: str, metadata: str) -> tuple[str, ...]:
    """The ONNX nodes in a layer: by its metadata, else by its name ("conv1 + relu1")."""
    told = _ONNX_NODE.findall(metadata)
    return tuple(dict.fromkeys(told)) if told else tuple(part.strip() for part in name.split(" + ") if part)


def _formats(tensors: Any) -> tuple[str, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(
        " ".join(
            filter(None, (str(t.get("Format/Datatype") or t.get("Format") or ""), str(t.get("DataType", ""))))
        )
        if isinstance(t, dict)
        else str(t)
        for t in tensors
    )


def _precision(tactic: str, inputs: Sequence[str]) -> str:
    for name, pattern in _FORMATS:
        if inputs and pattern.search(inputs[0]):
            return name
    for name, pattern in _TACTICS:
        if pattern.search(tactic):
            return name
    return "unknown"


def _math(layer: Layer) -> str:
    """`tf32` or `fp32` where a layer of FP32 formats tells by its tactic, else what the layer says."""
    if layer.precision not in ("fp32", "unknown"):
        return layer.precision
    return next((name for name, pattern in _MATH if pattern.search(layer.tactic)), "unknown")
