"""INT8 recipes for ONNX Runtime's CPU kernels, as bench/int8_recipes.py measured them (docs/accuracy.md)."""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tritongen.precision.recipe import Int8Recipe

# Relu and Clip vanish into the uint8 output of the operator before them. Element-wise operators stay in
# floating point: quantizing them too gained nothing that a second run confirmed, and costs accuracy.
_OPERATORS = ("Conv", "Gemm", "MatMul", "Relu", "Clip")

_U8S8 = Int8Recipe(
    name="u8s8",
    operators=_OPERATORS,
    activation="uint8",
    symmetric_activations=False,
    quantize_outputs=True,
    quantize_bias=True,
)


def int8_recipes() -> Sequence[Int8Recipe]:
    """The recipes worth trying here, best first."""
    if has_exact_products():
        return (_U8S8,)
    # Without VNNI two products u8·s8 are added in 16 bits, which saturate: 12 % relative error on rapidocr's
    # classifier and up to 40 % in a single MatMul, against 1.4 % with 7-bit weights at the same speed.
    return (replace(_U8S8, name="u8s8-reduced", reduce_range=True),)


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
