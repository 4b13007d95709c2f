"""An ONNX file, inspected: what goes in, what comes out, and whether it batches.

`onnx_file` reads it, `validity` judges it, `inspection` describes it, `value_ranges` finds index limits,
`proposals` guesses the sizes that it leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tritongen.tensors import TensorSpec


class BatchStatus(str, Enum):
    """What is known about a model's batch axis."""

    DECLARED = "declared"
    """Axis 0 of every input and output is dynamic, or so it says; not yet run."""
    CONFIRMED = "confirmed"
    """Batch 3 was run and equals three times batch 1."""
    REFUTED = "refuted"
    """It was run, and batch 3 differs from three times batch 1."""
    ABSENT = "absent"
    """The shapes rule batching out (static, rank 0, another axis)."""


@dataclass(frozen=True)
class BatchAxis:
    """Whether axis 0 batches, and the reason in one sentence."""

    status: BatchStatus
    reason: str

    @property
    def usable(self) -> bool:
        """True only once running the model has confirmed it."""
        return self.status is BatchStatus.CONFIRMED


@dataclass(frozen=True)
class Graph:
    """What tritongen needs to know about an ONNX file."""

    path: Path
    digest: str
    """SHA-256 over the model file and its external data files, hexadecimal."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ir_version: int
    opsets: dict[str, int]
    """Operator-set version by domain; "" is the default ONNX domain."""
    operators: dict[str, int]
    """How often each operator occurs, subgraphs included ("Conv", "com.microsoft:Attention")."""
    parameters: int
    size_bytes: int
    """The model file and its external data files together."""
    external_data: tuple[str, ...]
    """File names relative to the model's folder."""
    quantized: bool
    """Carries QuantizeLinear/DequantizeLinear or integer kernels already."""
    half: bool
    """Carries FP16 or BF16 weights already."""
    batch: BatchAxis
    value_ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Inclusive range of integer inputs where the graph tells it (a Gather's table)."""
    image_size: tuple[int, int] | None = None
    """(height, width) that the model was exported for, by its metadata (`imgsz`, as in YOLO exports)."""
    unusable_image_size: str | None = None
    """What the metadata have under `imgsz` where that is no size of a picture."""

    @property
    def opset(self) -> int:
        return self.opsets.get("", 0)

    @property
    def batched(self) -> bool:
        """Whether axis 0 is treated as the batch: declared or confirmed, and not refuted by a run."""
        return self.batch.status in (BatchStatus.DECLARED, BatchStatus.CONFIRMED)


def inspect_model(path: Path) -> Graph:
    """Read and check the ONNX file at `path`, never its external data's content but for the digest.

    ModelError says what makes it unusable: not ONNX, damaged, incomplete, invalid, or not servable by Triton.
    """
    from tritongen.graph.inspection import inspect

    return inspect(path)
