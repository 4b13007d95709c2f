"""What TensorRT wants of a quantized graph; bench/tensorrt_latency.py measures the placements."""

from __future__ import annotations

from collections.abc import Sequence

from tritongen.precision.recipe import Int8Recipe

_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool",
)  # fmt: skip
METHODS = ("mse", "percentile")
"""Nearest to the reference on three real nets (bench/int8_ranges.py); each further one is another slow build."""


def int8_recipes() -> Sequence[Int8Recipe]:
    """Symmetric int8, weights per channel as Q/DQ pairs, floating-point bias: what TensorRT insists on.

    Of an Add, only the input that does not come out of a convolution is quantized, so that the convolution
    takes the sum (and the Relu after it) into its own kernel.
    """
    return (
        Int8Recipe(
            name="s8-residual",
            operators=_OPERATORS,
            weights_as_pairs=True,
            fused_adds=True,
            methods=METHODS,
        ),
    )


def implicit_recipe() -> Int8Recipe:
    """Ranges for every tensor and no Q/DQ nodes: the builder chooses the layers (8.6 and 10)."""
    return Int8Recipe(name="implicit", operators=(), implicit=True, methods=METHODS)
