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
_BETWEEN = ("Add", "Mul", "Concat", "Resize", "AveragePool", "GlobalAveragePool")


def int8_recipes() -> Sequence[Int8Recipe]:
    """The recipes worth trying here, best first; docs/accuracy.md has the table they come from."""
    # Without VNNI two products u8·s8 are added in 16 bits, which saturate: 12 % relative error on rapidocr's
    # classifier and up to 40 % in a single MatMul; with 7-bit weights 1.4 % at the same speed.
    exact = has_exact_products()
    plain = Int8Recipe(
        name="u8s8" if exact else "u8s8-7bit",
        operators=_WEIGHTED,
        # Symmetric int8 activations have no kernel of their own here: 0.4 to 0.9 × FP32's speed.
        activation="uint8",
        symmetric_activations=False,
        reduce_range=not exact,
        # A convolution runs on integers only from Q to Q; products can hand out floats as they sum.
        quantize_outputs=True,
        float_outputs=("Gemm", "MatMul"),
        quantize_bias=True,
    )
    # Staying in integers between weighted operators is worth a tenth on some transformers. Two methods, the
    # widest and the most exact: all four would double the trials.
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
