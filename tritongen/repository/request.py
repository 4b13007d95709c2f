"""What is asked of the writer: one model with everything that goes into its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritongen.engines import ServingTraits
    from tritongen.graph import Graph
    from tritongen.runs.records import Selection, Trial
    from tritongen.shapes import ResolvedInput
    from tritongen.spec import ModelSpec


@dataclass(frozen=True)
class BuiltCandidate:
    """A trial that passed, and the folder that its artifact's files lie in."""

    trial: Trial
    folder: Path


@dataclass(frozen=True)
class ModelToWrite:
    """All that goes into one model's folder."""

    name: str
    spec: ModelSpec
    graph: Graph
    """With the batch axis confirmed or ruled out."""
    inputs: Sequence[ResolvedInput]
    selection: Selection
    winner: BuiltCandidate
    traits: ServingTraits
    """Of the winner's artifact under the selected runtime."""
    runners_up: Sequence[BuiltCandidate] = ()
    """Kept beside the winner as `model.<precision>.onnx`."""
    sample: Mapping[str, NDArray[Any]] | None = None
    """One item per input, to warm up string inputs with."""
    reference: Mapping[str, NDArray[Any]] | None = None
    """Arrays `input/<name>` and `output/<name>`, kept to compare a served model with."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """More library versions for the manifest."""
    notes: Sequence[str] = ()
    """What was changed on the way, for the manifest."""
