"""Before the trials, in a child process: read the data, settle the shapes, confirm the batch axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.autotune.data_review import few_samples, review, same_data
from tritongen.autotune.inputs import call_inputs
from tritongen.autotune.jobs import PreparationJob, prepared_input
from tritongen.autotune.metrics import make_metric
from tritongen.errors import BuildError, DataError, ModelError
from tritongen.graph import BatchAxis, BatchStatus, Graph, inspect_model
from tritongen.runs.build import DataFacts, Preparation
from tritongen.runs.events import Event, EventSink
from tritongen.runs.store import read_record, write_record
from tritongen.samples import Array, Arrays, open_dataset
from tritongen.shapes import ResolvedInput, Shape, resolve_inputs
from tritongen.spec import ModelSpec, is_function
from tritongen.tensors import from_numpy

if TYPE_CHECKING:
    from tritongen.engines import Runner
    from tritongen.samples.streaming import StreamedDataset

FILENAME = "preparation.json"


@dataclass(frozen=True)
class Seen:
    """What several data sets together tell about shapes and values; a `shapes.SeenData`."""

    datasets: Sequence[StreamedDataset]

    @property
    def shapes(self) -> Mapping[str, Mapping[Shape, int]]:
        counts: dict[str, Counter[Shape]] = {}
        for dataset in self.datasets:
            for name, shapes in dataset.shapes.items():
                counts.setdefault(name, Counter()).update(shapes)
        return counts

    @property
    def value_ranges(self) -> Mapping[str, tuple[int, int]]:
        ranges: dict[str, tuple[int, int]] = {}
        for dataset in self.datasets:
            for name, (low, high) in dataset.value_ranges.items():
                before = ranges.get(name, (low, high))
                ranges[name] = (min(low, before[0]), max(high, before[1]))
        return ranges


def prepare(job_file: Path, events: EventSink) -> None:
    """Write preparation.json beside `job_file`; raises what is wrong with the model, the data or the spec."""
    spec = read_record(job_file, PreparationJob).spec
    if spec.accuracy.metric is not None and is_function(spec.accuracy.metric):
        make_metric(spec.accuracy.metric, "", spec.folder)  # that it is there, before minutes of trials
    graph = inspect_model(spec.path)
    if spec.max_batch_size == 0:
        graph = replace(graph, batch=_turned_off(graph))
    prepared, inputs = _look(spec, graph, events)
    axis = _run_once(graph, inputs, prepared, events)
    if axis != graph.batch:
        graph = replace(graph, batch=axis)
        if not graph.batched:  # arrays now mean whole calls; and whether it runs at all is still open
            prepared, inputs = _look(spec, graph, events)
            _run_once(graph, inputs, prepared, events)
    record = Preparation(
        inputs=tuple(prepared_input(entry) for entry in inputs),
        batch_status=graph.batch.status.value,
        batch_reason=graph.batch.reason,
        calibration=prepared.facts("calibration"),
        validation=prepared.facts("validation"),
        warnings=_reviewed(prepared, events),
    )
    write_record(job_file.parent / FILENAME, record)


@dataclass(frozen=True)
class _Data:
    sources: Mapping[str, str]
    opened: Mapping[str, StreamedDataset]

    def facts(self, role: str) -> DataFacts | None:
        if role not in self.opened:
            return None
        dataset = self.opened[role]
        return DataFacts(
            source=self.sources[role],
            samples=dataset.count,
            digest=dataset.digest,
            synthetic=dataset.synthetic,
            labelled=dataset.labels is not None,
        )


def _look(spec: ModelSpec, graph: Graph, events: EventSink) -> tuple[_Data, tuple[ResolvedInput, ...]]:
    given = {"calibration": spec.data.calibration, "validation": spec.data.validation}
    sources = {role: source for role, source in given.items() if source is not None}
    opened = {}
    for role, source in sources.items():
        events(Event("inspect", "progress", f"reading the {role} data"))
        opened[role] = opened_data(spec, graph, source)
    seen = Seen(list(opened.values())) if opened else None
    return _Data(sources, opened), resolve_inputs(graph, spec.shapes, spec.ranges, seen)


def _reviewed(data: _Data, events: EventSink) -> tuple[str, ...]:
    calibration, validation = data.opened.get("calibration"), data.opened.get("validation")
    if calibration is None:
        return ()
    found = same_data(calibration, validation)
    # A function is called again for every look, and may fail in each: not for the sake of warnings.
    if any(map(is_function, data.sources.values())):
        return found + few_samples(calibration.count)
    events(Event("inspect", "progress", "reviewing the calibration data"))
    return found + review(calibration, validation)


def opened_data(spec: ModelSpec, graph: Graph, source: str) -> StreamedDataset:
    """The data set at `source`, as the spec says it is to be read."""
    return open_dataset(source, graph, labels=spec.data.labels, folder=spec.folder, seed=spec.seed)


@dataclass(frozen=True)
class KnownDataset:
    """A `Dataset` whose facts the preparation has found: it is read once its samples are asked for."""

    facts: DataFacts
    read: Callable[[], StreamedDataset]

    @property
    def count(self) -> int:
        return self.facts.samples

    @property
    def digest(self) -> str:
        return self.facts.digest

    @property
    def synthetic(self) -> bool:
        return self.facts.synthetic

    @property
    def labels(self) -> Array | None:
        return self._opened.labels

    def batches(self, size: int) -> Iterator[Arrays]:
        """As `Dataset.batches`; DataError if the data are no longer those that were looked at."""
        return self._opened.batches(size)

    @cached_property
    def _opened(self) -> StreamedDataset:
        opened = self.read()
        if opened.digest != self.digest:
            raise DataError(
                f"{self.facts.source} changed while the model was being built",
                found=opened.digest[:12],
                expected=self.digest[:12],
                fix="run the build again when the data are complete",
            )
        return opened


def calibration_data(spec: ModelSpec, graph: Graph, facts: DataFacts) -> KnownDataset:
    """The calibration data that the preparation has looked at."""
    return KnownDataset(facts, partial(opened_data, spec, graph, facts.source))


def _run_once(graph: Graph, inputs: tuple[ResolvedInput, ...], data: _Data, events: EventSink) -> BatchAxis:
    """The batch axis, confirmed or refuted by running; any other model is run once on one sample."""
    from tritongen.autotune.batch_axis import confirm_batch_axis
    from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner

    events(Event("inspect", "progress", "opening the model in ONNX Runtime"))
    with OnnxRuntimeRunner(graph.path) as runner:
        events(Event("inspect", "progress", "running the model"))
        dataset = next(iter(data.opened.values()), None)
        infer = partial(_infer, runner, graph)
        if graph.batch.status is BatchStatus.DECLARED:
            return confirm_batch_axis(graph, inputs, infer, dataset=dataset)
        call = call_inputs(dataset, inputs, batched=graph.batched, largest=1)(1)
        try:
            infer(call)
        except (BuildError, DataError) as error:
            error.expected = f"a model that runs on {_described(call, inputs)}"
            error.fix = (
                "give sizes (--shape) and values (--range) that belong together, or data that the model takes"
            )
            raise
    return graph.batch


def _infer(runner: Runner, graph: Graph, call: Mapping[str, Array]) -> Mapping[str, Array]:
    """What the model answers; ModelError for an output of another rank than the file says.

    Triton holds the rank that config.pbtxt has from there against the answers, and refuses them.
    """
    answers = runner.infer(call)
    for spec in graph.outputs:
        if answers[spec.name].ndim != spec.rank:
            raise ModelError(
                f"{graph.path}: the model declares another shape for output '{spec.name}' than it has",
                found=f"{list(answers[spec.name].shape)} when it runs",
                expected=str(spec),
                fix=f"export it again, or correct the shape of '{spec.name}' in the file",
            )
    return answers


def _described(call: Mapping[str, Array], inputs: Sequence[ResolvedInput]) -> str:
    """`ids: int64[1, 8] of 0..99; mask: …`."""
    ranges = {entry.spec.name: entry.value_range for entry in inputs}
    texts = []
    for name, array in call.items():
        values = ranges.get(name)
        shown = f" of {values[0]}..{values[1]}" if values else ""
        texts.append(f"{name}: {from_numpy(array.dtype)}[{', '.join(map(str, array.shape))}]{shown}")
    return "; ".join(texts)


def _turned_off(graph: Graph) -> BatchAxis:
    if graph.batch.status is BatchStatus.ABSENT:
        return graph.batch
    return BatchAxis(BatchStatus.REFUTED, "batching is turned off (max_batch_size: 0)")
