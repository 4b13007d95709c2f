"""INT8 recipes for ONNX Runtime's CPU kernels; bench/int8_recipes.py measures them."""

from __future__ import annotations

from collections.abc import Sequence

from tritongen.precision.recipe import Int8Recipe

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def int8_recipes() -> Sequence[Int8Recipe]:
    """The recipes worth trying, best first."""
    return (
        Int8Recipe(
            name="u8s8-per-channel",
            operators=_WEIGHTED,
            activation="uint8",
            symmetric_activations=False,
            quantize_outputs=True,
            quantize_bias=True,
        ),
    )
