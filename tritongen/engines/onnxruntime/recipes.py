"""INT8 recipes for ONNX Runtime's CPU kernels, as bench/int8_recipes.py measured them (docs/accuracy.md)."""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tritongen.precision.recipe import Int8Recipe

# Relu and Clip vanish into the uint8 output of the operator before them.
_WEIGHTED = ("Conv", "Gemm", "MatMul", "Relu", "Clip")
_BETWEEN = (
    "Add", "Mul", "Concat", "Resize", "AveragePool", "GlobalAveragePool", "MaxPool",
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice",
)  # fmt: skip

_U8S8 = Int8Recipe(
    name="u8s8",
    operators=_WEIGHTED,
    activation="uint8",
    symmetric_activations=False,
    quantize_outputs=True,
    quantize_bias=True,
)


def int8_recipes() -> Sequence[Int8Recipe]:
    """The recipes worth trying here, best first.

    Measured without VNNI, one thread, batch 1 and 8, against FP32: uint8 activations with int8 weights 1.2 to
    2.5 × on the MLP, transformer, CNN and text recognizer of the bench; uint8 weights 1.0 to 1.2 × (a slower
    kernel); symmetric int8 activations 0.4 to 0.9 × but for the MLP (no kernel of their own). Keeping
    operators between the weighted ones in integers is worth another tenth on transformers and the recognizer,
    for a little accuracy. Depthwise and narrow convolutions are best left to the trials: rapidocr's mobile
    classifier loses in every form (0.4 to 0.8 ×).
    """
    # Without VNNI two products u8·s8 are added in 16 bits, which saturate: 12 % relative error on that
    # classifier and up to 40 % in a single MatMul; with 7-bit weights 1.4 % at the same speed.
    exact = has_exact_products()
    plain = replace(_U8S8, name="u8s8" if exact else "u8s8-7bit", reduce_range=not exact)
    # Two methods, the widest and the most exact: all four would double the trials for a tenth of speed.
    wide = replace(
        plain, name=f"{plain.name}-wide", operators=(*_WEIGHTED, *_BETWEEN), methods=("minmax", "mse")
    )
    return (plain, wide)


@functools.cache
def has_exact_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether 8-bit products are summed in 32 bits here (VNNI or AMX on x86; any ARM)."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))
