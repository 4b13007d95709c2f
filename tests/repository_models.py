"""Models built by the real engine and ready for the repository's writer."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests import models
from tritongen.engines.onnxruntime import OnnxRuntimeEngine
from tritongen.files import digest_files
from tritongen.graph import BatchAxis, BatchStatus, Graph, inspect_model
from tritongen.repository.writer import BuiltCandidate, ModelToWrite
from tritongen.runs.events import discard
from tritongen.runs.records import Accuracy, Candidate, LatencyPoint, Machine, Outcome, Selection, Trial
from tritongen.shapes import ResolvedInput
from tritongen.spec import ModelSpec, Precision

MACHINE = Machine(hostname="here", system="Linux", python="3.11", cpu="a CPU", cores=2, memory_bytes=1 << 33)
RUNTIME = {"intra_op_threads": 1}


def built(model: Path, folder: Path, precision: Precision = Precision.FP32) -> BuiltCandidate:
    """A passed trial of `model`, its artifact made by the real ONNX Runtime engine in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    candidate = Candidate(id=f"onnxruntime-{precision}", engine="onnxruntime", precision=precision)
    artifact = OnnxRuntimeEngine().build(model, candidate, folder, discard)
    point = LatencyPoint(
        batch_size=1,
        instances=1,
        runtime=RUNTIME,
        iterations=100,
        mean_ms=1.0,
        median_ms=1.0,
        p99_ms=2.0,
        throughput=1000.0,
        spread=0.01,
    )
    trial = Trial(
        key="key",
        candidate=candidate,
        outcome=Outcome.PASSED,
        reason="passed",
        artifact=artifact,
        accuracy=Accuracy(basis="synthetic", passed=True, summary="equal"),
        curve=(point,),
        memory_bytes=1000,
        machine=MACHINE,
        seconds=1.0,
    )
    return BuiltCandidate(trial, folder)


def to_write(
    model: Path,
    runs: Path,
    *,
    name: str = "tiny",
    max_batch_size: int | None = None,
    inputs: dict[str, tuple[int, ...]] | None = None,
    ranges: dict[str, tuple[int, int]] | None = None,
    **serving: Any,
) -> ModelToWrite:
    """What `build` would hand to the writer; `max_batch_size` defaults to 4 for a model in tests.BATCHING."""
    graph = confirmed(inspect_model(model), batching=model.stem in models.BATCHING)
    if max_batch_size is None:
        max_batch_size = 4 if graph.batch.usable else 0
    spec = ModelSpec.model_validate({"path": str(model), "serving": serving})
    winner = built(model, runs / "fp32")
    artifact = winner.trial.artifact
    assert artifact is not None
    return ModelToWrite(
        name=name,
        spec=spec,
        graph=graph,
        inputs=resolved(graph, inputs or {}, ranges or {}),
        selection=selection(winner.trial.candidate.id, max_batch_size),
        winner=winner,
        traits=OnnxRuntimeEngine().serving_traits(artifact, dict(RUNTIME)),
    )


def confirmed(graph: Graph, *, batching: bool) -> Graph:
    """The graph with its batch axis decided, as running it would have."""
    status = BatchStatus.CONFIRMED if batching else BatchStatus.ABSENT
    return replace(graph, batch=BatchAxis(status, "decided by the test"))


def resolved(
    graph: Graph, shapes: dict[str, tuple[int, ...]], ranges: dict[str, tuple[int, int]]
) -> tuple[ResolvedInput, ...]:
    """Every dynamic axis 2 wide unless `shapes` says otherwise."""
    found = []
    for spec in graph.inputs:
        dims = spec.shape[1:] if graph.batch.usable else spec.shape
        shape = shapes.get(spec.name, tuple(dim if isinstance(dim, int) else 2 for dim in dims))
        value_range = ranges.get(spec.name, graph.value_ranges.get(spec.name))
        found.append(ResolvedInput(spec, shape, shape, shape, value_range))
    return tuple(found)


def selection(winner: str, max_batch_size: int, instances: int = 1) -> Selection:
    """A selection of the only candidate."""
    return Selection(
        objective="throughput",
        winner=winner,
        reason="it is the only one",
        runtime=RUNTIME,
        instances=instances,
        batch_size=max(1, max_batch_size),
        max_batch_size=max_batch_size,
        losers=(),
        runners_up=(),
    )


def other_linear(tmp_path: Path, seed: int = 7, **serving: Any) -> ModelToWrite:
    """The same tensors with other weights."""
    path = models.save(models.linear(seed=seed), tmp_path / f"seed{seed}" / "linear.onnx")
    return to_write(path, tmp_path / f"runs{seed}", **serving)


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and mode of every file, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (digest_files([path]), stat.S_IMODE(path.stat().st_mode))
        for path in files
    }
