"""One candidate, built and measured in a child process: rewrite, build, accuracy gate, latency curve."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tritongen.autotune.accuracy import judge
from tritongen.autotune.candidates import RANGES, RECIPE
from tritongen.autotune.holding import Built, build_holding
from tritongen.autotune.inputs import CallInputs, call_inputs, storable
from tritongen.autotune.jobs import TrialJob, prepared_graph, resolved_inputs
from tritongen.autotune.latency import EFFORTS, Curve, latency_curve
from tritongen.autotune.memory import peak_bytes
from tritongen.autotune.preparation import calibration_data, opened_data
from tritongen.engines import load_engine
from tritongen.errors import BuildError, ModelError
from tritongen.files import digest_json, replacing
from tritongen.graph import Graph, inspect_model
from tritongen.precision.recipe import Fp16Recipe, Int8Recipe, Recipe
from tritongen.runs.build import Preparation
from tritongen.runs.events import Event, EventSink
from tritongen.runs.records import Accuracy, Artifact, Candidate, Outcome, Trial
from tritongen.runs.store import read_record, write_record
from tritongen.samples import synthetic_dataset
from tritongen.spec import ModelSpec, Precision

if TYPE_CHECKING:
    from tritongen.engines import Engine, Runner
    from tritongen.samples import Dataset

FILENAME = "trial.json"
_MADE_UP_SAMPLES = 16
_CALIBRATOR_SAMPLES = 128
"""For an engine's own calibrator; they are written to a file."""
SAMPLES, REFERENCE = "samples.npz", "reference.npz"


def run_trial(job_file: Path, events: EventSink) -> None:
    """Write trial.json beside `job_file`, and with it the artifact, samples.npz and reference.npz.

    Raises what is wrong with the data or the candidate; the parent decides what that means.
    """
    started = time.perf_counter()
    job, folder = read_record(job_file, TrialJob), job_file.parent
    graph = prepared_graph(job.spec, job.preparation)
    _check_unchanged(graph, job)
    shapes = resolved_inputs(graph, job.preparation)
    engine = load_engine(job.candidate.engine).configured(job.spec, job.effort)
    engine = engine.with_shapes(shapes, job.max_batch_size)
    validation = validation_data(job.spec, graph, job.preparation)
    built = _build(engine, graph, job, folder, events)
    artifact = built.result
    with engine.open(folder, artifact, job.runtimes[0][0]) as candidate:
        accuracy = gate(candidate, graph, job.spec, validation, job.candidate.precision,
                        batch_size=max(job.sizes), events=events)  # fmt: skip
    inputs = call_inputs(
        validation, shapes, batched=graph.batched, largest=max(job.sizes), seed=job.spec.seed
    )
    curve = _measured(engine, artifact, folder, inputs, job, passed=accuracy.passed, events=events)
    _keep_arrays(engine, artifact, folder, inputs, curve)
    record = Trial(
        key=job.key,
        candidate=job.candidate.model_copy(update={"held": built.held}),
        outcome=Outcome.PASSED if accuracy.passed else Outcome.REJECTED,
        reason=accuracy.summary,
        artifact=artifact,
        accuracy=accuracy,
        curve=curve.points,
        memory_bytes=curve.memory_bytes,
        peak_memory_bytes=peak_bytes(),
        notes=built.notes,
        machine=job.machine,
        seconds=time.perf_counter() - started,
    )
    write_record(folder / FILENAME, record)


def _check_unchanged(graph: Graph, job: TrialJob) -> None:
    if graph.digest != job.graph_digest:
        raise ModelError(
            f"{graph.path} changed while it was being built",
            found=graph.digest[:12],
            expected=job.graph_digest[:12],
            fix="run the build again when the file is complete",
        )


def _build(engine: Engine, graph: Graph, job: TrialJob, folder: Path, events: EventSink) -> Built[Artifact]:
    """The artifact, and what had to stay in floating point because the engine lacks a kernel for it."""
    scratch = folder / "rewritten"
    out = scratch / "model.onnx"

    def build(model: Path) -> Artifact:
        events(Event("trial", "progress", "building"))
        return engine.build(model, job.candidate, folder, events)

    try:
        if RECIPE not in job.candidate.options:
            return Built(build(graph.path))
        recipe = recipe_of(engine, job.candidate)
        if not isinstance(recipe, Int8Recipe):
            from tritongen.precision.fp16 import to_half

            events(Event("trial", "progress", f"rewriting to {job.candidate.precision}"))
            to_half(graph.path, recipe, out)
            return Built(build(out))
        from tritongen.precision.int8 import prepared

        scratch.mkdir(parents=True, exist_ok=True)
        with prepared(graph.path, recipe, beside=out) as ready:
            return _build_int8(ready, graph, recipe, job, out, build=build, events=events)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build_int8(
    ready: Path,
    graph: Graph,
    recipe: Int8Recipe,
    job: TrialJob,
    out: Path,
    *,
    build: Callable[[Path], Artifact],
    events: EventSink,
) -> Built[Artifact]:
    """From the prepared model with Q/DQ nodes at `out`, or as it is with ranges or samples beside it."""
    from tritongen.autotune.calibrate import calibrate
    from tritongen.precision.int8 import quantize, write_ranges, write_samples

    if job.preparation.calibration is None:
        raise BuildError(f"{job.candidate.precision} needs calibration data", fix="add --calibration-data")
    data = calibration_data(job.spec, graph, job.preparation.calibration)
    if recipe.own_calibrator:
        name = f"calibrator-{digest_json([graph.digest, data.digest])[:16]}.txt"
        calls = islice(data.batches(1), 0, None, max(1, math.ceil(data.count / _CALIBRATOR_SAMPLES)))
        write_samples(ready, calls, recipe, out, cache=job.calibration_folder / name)
        return Built(build(out))
    calibration = calibrate(
        ready, recipe, data, job.calibration_folder, model_digest=graph.digest, events=events
    )
    ranges = calibration.by(str(job.candidate.options[RANGES]))
    if recipe.implicit:
        write_ranges(ready, ranges, recipe, out)
        return Built(build(out))

    def write(held: Collection[str]) -> Path:
        events(Event("trial", "progress", "quantizing"))
        quantize(ready, ranges, recipe, out, held=held)
        if recipe.half:
            from tritongen.precision.fp16 import to_half

            to_half(out, Fp16Recipe(name="half"), out)
        return out

    return build_holding(
        ready, recipe, write=write, build=build, ranges=ranges, held=job.candidate.held, events=events
    )


def _measured(
    engine: Engine,
    artifact: Artifact,
    folder: Path,
    inputs: CallInputs,
    job: TrialJob,
    *,
    passed: bool,
    events: EventSink,
) -> Curve:
    """The curve; of one that did not pass, and cannot be selected, only its ends, for the record."""
    return latency_curve(
        engine,
        folder,
        artifact,
        inputs=inputs,
        sizes=job.sizes if passed else sorted({min(job.sizes), max(job.sizes)}),
        runtimes=job.runtimes,
        events=events,
        effort=EFFORTS[job.effort],
    )


def recipe_of(engine: Engine, candidate: Candidate) -> Recipe:
    """The recipe that a candidate's options name; BuildError if this machine's engine has no such."""
    name = candidate.options.get(RECIPE)
    for recipe in engine.recipes(candidate.precision):
        if recipe.name == name:
            return recipe
    raise BuildError(f"{engine.name} has no recipe '{name}' for {candidate.precision} on this machine")


def gate(
    candidate: Runner,
    graph: Graph,
    spec: ModelSpec,
    dataset: Dataset,
    precision: Precision,
    *,
    batch_size: int,
    events: EventSink,
) -> Accuracy:
    """An entered candidate against the reference model on `validation_data`."""
    from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner

    given = spec.accuracy.reference
    reference = inspect_model(given) if given is not None else None
    # A label may stand for an item although the model takes several at once (a static batch).
    per_item = dataset.labels is not None and len(dataset.labels) != dataset.count
    with OnnxRuntimeRunner(reference.path if reference else graph.path) as exact:
        return judge(
            exact,
            candidate,
            dataset,
            spec.accuracy,
            precision,
            batch_size=batch_size,
            batched=graph.batched or per_item,
            by_itself=reference is None and (graph.quantized or graph.half),
            reference_inputs=reference.inputs if reference else None,
            spec_folder=spec.folder,
            events=events,
        )


def validation_data(spec: ModelSpec, graph: Graph, preparation: Preparation) -> Dataset:
    """The validation data; else the calibration data, if no ranges are from them; else made-up inputs."""
    unseen = None if graph.quantized else spec.data.calibration
    source = spec.data.validation or unseen
    if source is not None:
        return opened_data(spec, graph, source)
    inputs = resolved_inputs(graph, preparation)
    return synthetic_dataset(inputs, _MADE_UP_SAMPLES, batched=graph.batched, seed=spec.seed)


def _keep_arrays(engine: Engine, artifact: Artifact, folder: Path, inputs: CallInputs, curve: Curve) -> None:
    """samples.npz: raw latencies; reference.npz: inputs and the outputs that this artifact gives for them."""
    call = inputs(min(2, len(inputs.samples)))
    with engine.open(folder, artifact, curve.points[0].runtime) as runner:
        outputs = runner.infer(call)
    for name, arrays in (
        (SAMPLES, curve.samples),
        (REFERENCE, {**storable(call, "input"), **storable(dict(outputs), "output")}),
    ):
        with replacing(folder / name) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)
