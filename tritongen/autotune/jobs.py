"""What a child process is told: everything that it needs, in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tritongen.graph import BatchAxis, BatchStatus, Graph, inspect_model
from tritongen.runs.build import Preparation, PreparedInput
from tritongen.runs.records import Artifact, Candidate, Machine, Options, Record
from tritongen.shapes import ResolvedInput
from tritongen.spec import ModelSpec

FILENAME = "job.json"


class PreparationJob(Record):
    """Look at the data and run the model once."""

    spec: ModelSpec


class TrialJob(Record):
    """Build and measure one candidate."""

    key: str
    candidate: Candidate
    spec: ModelSpec
    graph_digest: str
    """The model must still be the one that was prepared."""
    preparation: Preparation
    max_batch_size: int
    sizes: tuple[int, ...]
    """Batch sizes of the latency curve."""
    runtimes: tuple[tuple[Options, int], ...]
    """(runtime setting, instances at once) pairs to measure."""
    effort: str
    """How long each point is measured: a key of `latency.EFFORTS`."""
    calibration_folder: Path
    machine: Machine


class MixingJob(Record):
    """Find the fewest blocks to hold in floating point until an INT8 candidate passes the gate."""

    key: str
    candidate: Candidate
    """The one that failed the gate."""
    spec: ModelSpec
    preparation: Preparation
    max_batch_size: int
    blocks: int
    """At most so many blocks are looked at one by one: each costs one run of the model."""
    effort: str
    """By which the engine knows its recipes."""
    simulated: bool
    """Judge by ONNX Runtime on the engine's Q/DQ nodes, where building the engine takes minutes."""
    calibration_folder: Path


class Contender(Record):
    """A built candidate with the setting under which it was best."""

    candidate: str
    folder: Path
    engine: str
    artifact: Artifact
    runtime: Options
    instances: int
    batch_size: int


class ComparisonJob(Record):
    """Measure two built candidates in alternation."""

    spec: ModelSpec
    preparation: Preparation
    max_batch_size: int
    by_latency: bool
    """Compare median latencies instead of throughputs."""
    contenders: tuple[Contender, Contender]
    """The less exact one first."""


def prepared_graph(spec: ModelSpec, preparation: Preparation) -> Graph:
    """The model as inspected, with its batch axis as the preparation settled it."""
    axis = BatchAxis(BatchStatus(preparation.batch_status), preparation.batch_reason)
    return replace(inspect_model(spec.path), batch=axis)


def resolved_inputs(graph: Graph, preparation: Preparation) -> tuple[ResolvedInput, ...]:
    """The inputs with the sizes and ranges that the preparation settled."""
    by_name = {entry.name: entry for entry in preparation.inputs}
    return tuple(
        ResolvedInput(spec, entry.min, entry.opt, entry.max, entry.value_range)
        for spec in graph.inputs
        for entry in (by_name[spec.name],)
    )


def prepared_input(entry: ResolvedInput) -> PreparedInput:
    """A resolved input as it is kept in the run directory."""
    return PreparedInput(
        name=entry.spec.name, min=entry.min, opt=entry.opt, max=entry.max, value_range=entry.value_range
    )
