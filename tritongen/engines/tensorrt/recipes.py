"""What TensorRT wants of a quantized graph; bench/tensorrt_latency.py measures the placements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tritongen.engines.tensorrt.api import Features
from tritongen.precision.recipe import Fp16Recipe, Int8Recipe, Recipe
from tritongen.spec import Precision

_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool",
)  # fmt: skip
_VECTOR = 4
"""Channels that the narrowest INT8 layout holds side by side."""
METHODS = ("mse", "percentile")
"""Nearest to the reference on three real nets (bench/int8_ranges.py); each one more is a slow build."""


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


def shared_recipe() -> Int8Recipe:
    """One range for tensors between which values are only moved, and sums in INT8: a rival, not timed yet.

    Two kinds of convolutions stay in floating point. With fewer than four output channels, INT8 computes and
    writes four all the same. After a Softmax, no kernel takes the QuantizeLinear along: it reads two bytes
    and writes one, and the convolution, which would have read two, reads that: arithmetic has to pay for it.
    A Resize moves values too, but 8.6.0 has no kernel for one between Q/DQ pairs: it reads floating point.
    """
    (residual,) = int8_recipes()
    return replace(
        residual,
        name="s8-shared",
        operators=tuple(op for op in _OPERATORS if op != "MaxPool"),  # it only moves values
        shared_ranges=True,
        min_output_channels=_VECTOR,
        float_sources=("Softmax",),
        float_readers=("Resize",),
    )


def implicit_recipe() -> Int8Recipe:
    """Ranges for every tensor and no Q/DQ nodes: the builder chooses the layers (8.6 and 10)."""
    return Int8Recipe(name="implicit", operators=(), implicit=True, methods=METHODS)


def calibrator_recipe() -> Int8Recipe:
    """Ranges by TensorRT's own IInt8EntropyCalibrator2 (8.6 and 10): a rival, one more slow build."""
    return Int8Recipe(
        name="calibrator", operators=(), implicit=True, own_calibrator=True, methods=("entropy2",)
    )


def rival_recipes(has: Features) -> Sequence[Int8Recipe]:
    """What `--effort thorough` tries in INT8 besides."""
    if not has.weakly_typed:
        return (_strongly_typed(shared_recipe()),)
    return (shared_recipe(), calibrator_recipe()) if has.implicit_int8 else (shared_recipe(),)


def half_recipe() -> Fp16Recipe:
    """FP16 throughout, with FP32 inputs and outputs: for strongly typed networks (11)."""
    return Fp16Recipe(name="half")


def float8_recipe() -> Int8Recipe:
    """FP8 where INT8 would be, one scale per tensor, FP16 for the rest; its grid needs no clipping."""
    (int8,) = int8_recipes()
    return replace(
        int8, name="f8", float8=True, half=True, min_opset=19, per_channel=False, methods=("minmax",)
    )


def recipes_for(precision: Precision, has: Features) -> Sequence[Recipe]:
    """How a graph is rewritten for a precision on such a TensorRT; empty: builder flags do it."""
    if precision is Precision.FP16:
        return () if has.weakly_typed else (half_recipe(),)
    if precision is Precision.BF16:
        return () if has.weakly_typed else (replace(half_recipe(), name="brain", brain=True),)
    if precision is Precision.FP8:
        return (float8_recipe(),) if has.fp8 else ()
    if precision is not Precision.INT8:
        return ()
    if not has.weakly_typed:
        return tuple(map(_strongly_typed, int8_recipes()))
    return (*int8_recipes(), implicit_recipe()) if has.implicit_int8 else int8_recipes()


def _strongly_typed(recipe: Int8Recipe) -> Int8Recipe:
    """FP16 scales need opset 19, and let everything else run in FP16, too."""
    return replace(recipe, min_opset=19, half=True)
