"""The recipe: which tensors of a graph an engine wants in which precision, and in what form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Int8Recipe:
    """How to place Q/DQ nodes so that one engine runs the graph fast; supplied by the engine."""

    name: str
    """Short and stable; part of a candidate's identity ("u8s8-per-channel")."""
    operators: tuple[str, ...]
    """Operator types whose inputs are quantized."""
    activation: Literal["int8", "uint8"] = "int8"
    symmetric_activations: bool = True
    weight: Literal["int8", "uint8"] = "int8"
    symmetric_weights: bool = True
    per_channel: bool = True
    reduce_range: bool = False
    """7-bit weights: needed where 8-bit products saturate 16-bit sums (x86 without VNNI)."""
    quantize_bias: bool = False
    quantize_outputs: bool = False
    """Whether the outputs of weighted operators are quantized too."""
    float_outputs: tuple[str, ...] = ()
    """Operator types whose outputs stay in floating point all the same: the engine dequantizes as it sums."""
    weights_as_pairs: bool = False
    """Weights stay in floating point before a Q/DQ pair, in place of integers before a DQ (TensorRT)."""
    fused_adds: bool = False
    """An Add's input that a weighted operator computes stays in floating point: its kernel takes the sum."""
    shared_ranges: bool = False
    """One range for tensors between which values are only moved (by Concat, Split, …), and pairs in front of
    such operators, so that one INT8 tensor serves all that read it. An Add that no kernel of a weighted
    operator takes is quantized on both inputs, if its sum is wanted in INT8."""
    float_readers: tuple[str, ...] = ()
    """Operator types that read a tensor as it is, where others read it through its Q/DQ pair."""
    half: bool = False
    """What is not quantized becomes FP16 afterwards, for engines that take precisions from the graph."""
    float8: bool = False
    """FP8 (E4M3) in place of INT8, in the same places; needs opset 19."""
    implicit: bool = False
    """No Q/DQ nodes: the graph stays as it is, and the engine is given a range for every tensor."""
    own_calibrator: bool = False
    """Implicit, and the engine finds the ranges itself: it is given samples."""
    methods: tuple[str, ...] = ("minmax", "percentile", "entropy", "mse")
    """Range methods worth trying (`precision.calibration.METHODS`); none wins everywhere."""
    depthwise: bool = True
    """Whether depthwise convolutions are quantized."""
    min_opset: int = 13
    """Per-channel DequantizeLinear needs 13; FP16 scales need 19."""
    min_channels: int = 0
    """Convolutions and matrix products with fewer channels stay in floating point."""
    min_output_channels: int = 0
    """The same, for their output channels alone."""
    float_sources: tuple[str, ...] = ()
    """Operator types after which weighted operators stay in floating point: their kernels write no INT8."""


@dataclass(frozen=True)
class Fp16Recipe:
    """How to rewrite a graph to FP16 or BF16; supplied by the engine."""

    name: str
    keep_fp32: tuple[str, ...] = ()
    """Operator types that stay in FP32."""
    brain: bool = False
    """BF16 in place of FP16."""
    keep_io: bool = True
    """Inputs and outputs stay FP32, so that clients see the same model."""


Recipe = Int8Recipe | Fp16Recipe
