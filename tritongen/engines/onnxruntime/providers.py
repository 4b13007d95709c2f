"""ONNX Runtime's execution providers: which are there, how a session gets them, what config.pbtxt says.

CUDA was run with ONNX Runtime 1.31 in FP32; the TensorRT provider was not. Names and options are from the
documentation of ONNX Runtime and of Triton's onnxruntime backend.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

from tritongen.spec import Precision

CPU, CUDA, TENSORRT = "cpu", "cuda", "tensorrt"
NAMES = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}
"""ONNX Runtime's own name for each."""

INSTALL = "pip uninstall onnxruntime; pip install onnxruntime-gpu"
_WORKSPACE_BYTES = 1 << 30
_EXACT = {"use_tf32": 0}


def unavailable_reason(provider: str) -> str | None:
    """None if a session starts on this provider here, otherwise what is missing and what brings it."""
    import onnxruntime

    if NAMES[provider] not in onnxruntime.get_available_providers():
        return (
            f"ONNX Runtime {onnxruntime.__version__} has no {NAMES[provider]}; `{INSTALL}` brings it where "
            "there is an NVIDIA GPU"
        )
    if provider == CPU:
        return None
    from tritongen.engines.onnxruntime.probe import start_failure

    # Every GPU wheel lists both providers, whether their libraries and a GPU are there or not.
    return start_failure(provider)


def load_libraries() -> None:
    """Load the CUDA libraries of NVIDIA's wheels, which lie where the dynamic linker does not look."""
    import onnxruntime

    if preload := getattr(onnxruntime, "preload_dlls", None):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            preload()


def session_providers(provider: str, precision: Precision, device: int = 0) -> list[Any]:
    """The `providers` of an InferenceSession: this one first, what it leaves out on the next ones."""
    chain: list[Any] = []
    if provider == TENSORRT:
        options = {
            "device_id": device,
            "trt_max_workspace_size": _WORKSPACE_BYTES,
            "trt_fp16_enable": precision is Precision.FP16,
        }
        chain.append((NAMES[TENSORRT], options))
    if provider in (TENSORRT, CUDA):
        options = {"device_id": device}
        if provider == CUDA and precision is Precision.FP32:
            options |= _EXACT  # TF32, the default, rounds like FP16
        chain.append((NAMES[CUDA], options))
    return [*chain, NAMES[CPU]]


def accelerators_text(provider: str, precision: Precision) -> str:
    """The text inside `optimization { }` that makes Triton's onnxruntime backend use this provider.

    Instances of KIND_GPU take CUDA by themselves, but FP32 needs its option.
    """
    if provider == CUDA and precision is Precision.FP32:
        options = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in _EXACT.items())
        return f'execution_accelerators {{ gpu_execution_accelerator {{ name: "cuda" {options} }} }}'
    if provider != TENSORRT:
        return ""
    mode = "FP16" if precision is Precision.FP16 else "FP32"
    return (
        'execution_accelerators { gpu_execution_accelerator { name: "tensorrt" '
        f'parameters {{ key: "precision_mode" value: "{mode}" }} '
        f'parameters {{ key: "max_workspace_size_bytes" value: "{_WORKSPACE_BYTES}" }} }} }}'
    )
