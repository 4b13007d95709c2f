"""The stages of one model's build that run in child processes: preparation, trials, the final comparison."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.autotune import jobs
from tritongen.autotune.child import run_child
from tritongen.autotune.judging import Goal, Judged, close_call
from tritongen.autotune.latency import batch_sizes
from tritongen.autotune.machine import identity
from tritongen.autotune.selection import selectable
from tritongen.errors import BuildError, DataError, RequirementError, SpecError, TritongenError
from tritongen.files import digest_files, digest_json
from tritongen.graph import BatchStatus
from tritongen.runs.build import Preparation
from tritongen.runs.events import Event, EventSink
from tritongen.runs.fingerprint import library_versions
from tritongen.runs.records import Candidate, Comparison, Machine, Options, Outcome, Record, Trial
from tritongen.runs.store import RunDirectory, read_record, write_record
from tritongen.spec import ModelSpec, is_function

if TYPE_CHECKING:
    from tritongen.engines import Engine
    from tritongen.graph import Graph

DEFAULT_MAX_BATCH_SIZE = 8
_PREPARE_TIMEOUT_S = 1800.0
_TRIAL_TIMEOUT_S = 3600.0
_COMPARISON_TIMEOUT_S = 600.0
_FULL = ("No space left on device", "Disk quota exceeded", "File too large", "SIGXFSZ")


@dataclass(frozen=True)
class Setting:
    """What all stages of one model share."""

    name: str
    spec: ModelSpec
    run: RunDirectory
    machine: Machine
    events: EventSink
    effort: str = "normal"


def prepare_model(setting: Setting) -> Preparation:
    """Data, shapes and batch axis, looked at in a child; raises what is wrong with them."""
    folder = setting.run.preparation
    setting.events(Event("inspect", "started", "looking at the data and the batch axis", setting.name))
    failure = _in_child(setting, folder, jobs.PreparationJob(spec=setting.spec), "preparation:prepare",
                        subject=setting.name, timeout_s=_PREPARE_TIMEOUT_S)  # fmt: skip
    if failure is not None:
        raise BuildError(
            f"{setting.spec.path} and its data could not be looked at: the process that did so {failure}",
            expected="data that can be read, and a model that ONNX Runtime runs on this machine",
            fix=f"read {folder / 'log.txt'}",
        )
    prepared = read_record(folder / "preparation.json", Preparation)
    setting.events(Event("inspect", "finished", prepared.batch_reason, setting.name))
    return prepared


def largest_batch(spec: ModelSpec, *, batched: bool) -> int:
    """`max_batch_size` for a model: the spec's, its default, or 0 where the model does not batch.

    SpecError if latency is to be judged at a batch size beyond it.
    """
    wanted = Goal.parse(spec.objective).batch_size or 1
    if not batched:
        largest = 0
    elif spec.max_batch_size is None:
        largest = max(DEFAULT_MAX_BATCH_SIZE, wanted)
    else:
        largest = spec.max_batch_size
    if wanted > max(1, largest):
        raise SpecError(
            f"the objective {spec.objective} lies beyond the largest batch",
            found=f"max_batch_size {largest}" if batched else "a model that does not batch",
            expected=f"a batch of at most {max(1, largest)}",
            fix=f"use --objective latency@{max(1, largest)}{' or raise --max-batch-size' * batched}",
        )
    return largest


def run_trials(
    setting: Setting, engine: Engine, graph: Graph, preparation: Preparation, candidates: Sequence[Candidate]
) -> list[Trial]:
    """One trial after the other, each in its own child; finished ones with an equal key are not repeated."""
    done = []
    for candidate in candidates:
        job = _trial_job(setting, engine, graph, preparation, candidate)
        folder = setting.run.trial(candidate.id)
        known = _finished(folder, job.key)
        if known is None:
            setting.events(Event("trial", "started", "starting", candidate.id, fraction=0.0))
            trial = _run_trial(setting, job, folder)
        else:
            trial = known
        setting.events(_told(trial, again=known is None))
        done.append(trial)
    return done


def compare_leaders(
    setting: Setting, trials: Sequence[Trial], preparation: Preparation, goal: Goal
) -> tuple[Comparison, ...]:
    """The leaders of two precisions measured in alternation, where their curves are too close to tell."""
    call = close_call([trial for trial in trials if selectable(trial)], goal)
    if call is None:
        return ()
    one, other = call
    about = f"{one.id} (batch {one.point.batch_size}) against {other.id} (batch {other.point.batch_size})"
    setting.events(Event("compare", "started", f"too close to tell: {about}", setting.name))
    batched = BatchStatus(preparation.batch_status) is BatchStatus.CONFIRMED
    job = jobs.ComparisonJob(
        spec=setting.spec,
        preparation=preparation,
        max_batch_size=largest_batch(setting.spec, batched=batched),
        by_latency=goal.batch_size is not None,
        contenders=(_contender(setting, one), _contender(setting, other)),
    )
    folder = setting.run.comparison
    failure = _in_child(setting, folder, job, "comparison:compare",
                        subject=setting.name, timeout_s=_COMPARISON_TIMEOUT_S)  # fmt: skip
    if failure is not None:
        setting.events(Event("compare", "warning", f"{about}: the comparison {failure}", setting.name))
        return ()
    found = read_record(folder / "comparison.json", Comparison)
    setting.events(Event("compare", "finished", f"{about}: ratio {found.ratio:.3f} "
                         f"({found.low:.3f} to {found.high:.3f})", setting.name))  # fmt: skip
    return (found,)


def _in_child(
    setting: Setting, folder: Path, job: Record, main: str, *, subject: str, timeout_s: float
) -> str | None:
    """Run a stage in an emptied folder; why it died, or None. RequirementError if the disk is full."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_record(folder / jobs.FILENAME, job)
    try:
        failure = run_child(
            f"tritongen.autotune.{main}",
            folder / jobs.FILENAME,
            timeout_s=timeout_s,
            events=setting.events,
            subject=subject,
        )
        reason = failure.reason if failure else None
    except BuildError as error:
        if not _is_full(f"{error.message} {error.found}"):
            raise
        reason = error.found
    if reason is not None and _is_full(reason):
        raise RequirementError(
            f"{folder} could not be written: the disk is full",
            found=reason,
            fix="make room, or choose another folder with --run-dir",
        )
    return reason


def _is_full(text: str) -> bool:
    return any(sign in text for sign in _FULL)


def _run_trial(setting: Setting, job: jobs.TrialJob, folder: Path) -> Trial:
    subject = job.candidate.id
    try:
        failure = _in_child(
            setting, folder, job, "trial:run_trial", subject=subject, timeout_s=_TRIAL_TIMEOUT_S
        )
    except (DataError, SpecError, RequirementError):
        raise  # wrong for every candidate
    except TritongenError as error:
        failure = error.message + (f" ({error.found})" if error.found else "")
    else:
        failure = failure and f"its process {failure}"
    if failure is None:
        return read_record(folder / "trial.json", Trial)
    trial = Trial(
        key=job.key,
        candidate=job.candidate,
        outcome=Outcome.FAILED,
        reason=failure,
        machine=setting.machine,
        seconds=0.0,
    )
    write_record(folder / "trial.json", trial)
    return trial


def _finished(folder: Path, key: str) -> Trial | None:
    """The trial that was measured before, if it still answers the same question; failures are tried again."""
    try:
        trial = read_record(folder / "trial.json", Trial)
    except (OSError, TritongenError):
        return None
    if trial.key != key or trial.outcome is Outcome.FAILED or trial.artifact is None:
        return None
    files = (trial.artifact.file, *trial.artifact.extra_files)
    return trial if all((folder / name).is_file() for name in files) else None


def _trial_job(
    setting: Setting, engine: Engine, graph: Graph, preparation: Preparation, candidate: Candidate
) -> jobs.TrialJob:
    spec = setting.spec
    largest = largest_batch(spec, batched=graph.batched)
    wanted = Goal.parse(spec.objective).batch_size
    job = jobs.TrialJob(
        key="",
        candidate=candidate,
        spec=spec,
        graph_digest=graph.digest,
        preparation=preparation,
        max_batch_size=largest,
        sizes=tuple(sorted({*batch_sizes(largest), wanted or 1})),
        runtimes=tuple(runtime_pairs(engine, graph, setting.machine.cores, spec.serving.instances)),
        effort=setting.effort,
        calibration_folder=setting.run.calibration.absolute(),
        machine=setting.machine,
    )
    return job.model_copy(update={"key": _key(job, engine)})


def runtime_pairs(
    engine: Engine, graph: Graph, cores: int, instances: int | None
) -> list[tuple[Options, int]]:
    """What to measure: the engine's (runtime setting, instances) pairs, or those that the spec leaves."""
    pairs = list(engine.runtimes(graph, cores))
    if instances is None:
        return pairs
    fitting = [pair for pair in pairs if pair[1] == instances]
    nearest = min(pairs, key=lambda pair: abs(pair[1] - instances))
    return fitting or [(nearest[0], instances)]


def _key(job: jobs.TrialJob, engine: Engine) -> str:
    """Digest of all that the trial's result depends on."""
    spec, preparation = job.spec, job.preparation
    quantized = "ranges" in job.candidate.options
    reference = spec.accuracy.reference
    return digest_json(
        {
            "graph": job.graph_digest,
            "candidate": job.candidate.model_dump(mode="json"),
            "inputs": [entry.model_dump(mode="json") for entry in preparation.inputs],
            "batch": preparation.batch_status,
            "max_batch_size": job.max_batch_size,
            "sizes": job.sizes,
            "runtimes": job.runtimes,
            "effort": job.effort,
            "calibration": preparation.calibration and quantized and preparation.calibration.digest,
            "validation": preparation.validation and preparation.validation.digest,
            "accuracy": spec.accuracy.model_dump(mode="json", exclude={"reference"}),
            "metric": metric_file(spec) and digest_files([metric_file(spec)]),  # type: ignore[list-item]
            "reference": reference and digest_files([reference]),
            "seed": spec.seed,
            "versions": {**library_versions(), **engine.versions()},
            "machine": identity(job.machine),
        }
    )


def metric_file(spec: ModelSpec) -> Path | None:
    """The file of a metric that the user wrote, if it is one and can be found beside the spec."""
    metric = spec.accuracy.metric
    if metric is None or not is_function(metric):
        return None
    relative = Path(*metric.partition(":")[0].split(".")).with_suffix(".py")
    return next((place / relative for place in (Path(), spec.folder) if (place / relative).is_file()), None)


def _contender(setting: Setting, one: Judged) -> jobs.Contender:
    trial = one.trial
    if trial.artifact is None:
        raise BuildError(f"{one.id} passed without an artifact")
    return jobs.Contender(
        candidate=one.id,
        folder=setting.run.trial(one.id).absolute(),
        engine=trial.candidate.engine,
        artifact=trial.artifact,
        runtime=one.point.runtime,
        instances=one.point.instances,
        batch_size=one.point.batch_size,
    )


def _told(trial: Trial, *, again: bool) -> Event:
    subject = trial.candidate.id
    if trial.outcome is Outcome.FAILED:
        return Event("trial", "failed", trial.reason, subject)
    words = "passed" if trial.outcome is Outcome.PASSED else "rejected"
    best = max(trial.curve, key=lambda p: p.throughput)
    message = (
        f"{words}: {trial.reason}; up to {best.throughput:,.0f} inferences/s "
        f"(batch {best.batch_size} x {best.instances})"
    )
    if not again:
        return Event("trial", "skipped", f"measured before, {message}", subject)
    return Event("trial", "finished", message, subject)
