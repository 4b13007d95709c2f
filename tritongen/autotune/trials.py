"""The trials of one model: each candidate in its own child, the most promising first, within the budget."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tritongen.autotune import jobs
from tritongen.autotune.budget import Budget
from tritongen.autotune.candidates import RANGES, RECIPE
from tritongen.autotune.judging import Goal, judge
from tritongen.autotune.latency import batch_sizes
from tritongen.autotune.machine import identity
from tritongen.autotune.memory import available_bytes, check_largest_batch
from tritongen.autotune.stages import Setting, in_child, largest_batch
from tritongen.autotune.verdicts import figure
from tritongen.errors import DataError, RequirementError, SpecError, TritongenError
from tritongen.files import digest_files, digest_json
from tritongen.runs.build import Preparation
from tritongen.runs.events import Event, EventSink
from tritongen.runs.fingerprint import library_versions
from tritongen.runs.records import Candidate, Options, Outcome, Trial
from tritongen.runs.store import read_record, write_record
from tritongen.spec import ModelSpec, is_function

if TYPE_CHECKING:
    from tritongen.engines import Engine
    from tritongen.graph import Graph

_TRIAL_TIMEOUT_S = 3600.0
"""What runs longer hangs, as a rule; a longer build budget allows more."""
_SLOW_BUILDERS = ("tensorrt", "onnxruntime-tensorrt")
"""Engines that may time kernels for hours, and lose it all if they are ended: only a budget bounds them."""


@dataclass(frozen=True)
class Tried:
    """What came of the candidates, in the order in which they were given."""

    trials: tuple[Trial, ...] = ()
    left_out: tuple[str, ...] = ()
    """Candidates that did not fit into the budget."""
    notes: tuple[str, ...] = ()

    def __add__(self, later: Tried) -> Tried:
        return Tried(self.trials + later.trials, self.left_out + later.left_out, self.notes + later.notes)


@dataclass(frozen=True)
class Search:
    """What all trials of one model share."""

    setting: Setting
    engine: Engine
    graph: Graph
    preparation: Preparation
    budget: Budget


def check_memory(search: Search) -> None:
    """SpecError if the inputs and outputs of the largest batch do not fit into the memory that is free."""
    setting, graph = search.setting, search.graph
    runtimes = runtime_pairs(search.engine, graph, setting.machine.cores, setting.spec.serving.instances)
    check_largest_batch(
        graph,
        jobs.resolved_inputs(graph, search.preparation),
        largest_batch(setting.spec, batched=graph.batched),
        instances=max(instances for _, instances in runtimes),
        available=available_bytes(setting.machine),
    )


def run_trials(search: Search, candidates: Sequence[Candidate], *, fallback: bool = True) -> Tried:
    """Each candidate in its own child, spread over the GPUs; finished ones are not repeated.

    `fallback`: the first candidate is tried whatever the budget says.
    """
    ordered = by_promise(candidates)
    done = _Work(search, fallback=ordered[0] if fallback and ordered else None).all(ordered)
    return Tried(
        tuple(trial for one in candidates if (trial := done[one.id]) is not None),
        tuple(one.id for one in candidates if done[one.id] is None),
    )


def by_promise(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first guess of each precision and recipe, then the second of each, and so on; FP32 leads."""
    seen: Counter[tuple[str, object]] = Counter()
    ranked = []
    for place, one in enumerate(candidates):
        kind = (one.precision.value, one.options.get(RECIPE))
        ranked.append((seen[kind], place, one))
        seen[kind] += 1
    return [one for _, _, one in sorted(ranked, key=lambda entry: entry[:2])]


class _Work:
    """Runs trials, several at once where there are several GPUs."""

    def __init__(self, search: Search, *, fallback: Candidate | None = None) -> None:
        self._search = search
        self._fallback = fallback
        self._fallback_ahead = False
        self._events = search.setting.events
        self._took_s: list[float] = []
        self._stop = threading.Event()

    def all(self, candidates: Sequence[Candidate]) -> dict[str, Trial | None]:
        """The trials by candidate; None for those that the budget had no room for."""
        devices = self._search.setting.devices
        if devices < 2 or len(candidates) < 2:  # noqa: PLR2004
            return {one.id: self.trial(one) for one in candidates}
        self._fallback_ahead = self._fallback is not None and self._known(self._fallback) is None
        self._events = _one_at_a_time(self._events)
        free: SimpleQueue[int] = SimpleQueue()
        for device in range(devices):
            free.put(device)

        def on_a_free_gpu(one: Candidate) -> Trial | None:
            device = free.get()
            try:
                return None if self._stop.is_set() else self.trial(one, device=device)
            except BaseException:  # data that are wrong for every candidate: no use in the others
                self._stop.set()
                raise
            finally:
                free.put(device)

        with ThreadPoolExecutor(devices) as pool:
            try:
                return dict(
                    zip([one.id for one in candidates], pool.map(on_a_free_gpu, candidates), strict=True)
                )
            except BaseException:
                self._stop.set()  # an interrupt
                raise

    def trial(self, candidate: Candidate, *, device: int | None = None) -> Trial | None:
        """The candidate's trial, from an earlier run if it answers the same question; None: no room."""
        setting, budget = replace(self._search.setting, events=self._events), self._search.budget
        job = _trial_job(self._search, candidate)
        folder = setting.run.trial(candidate.id)
        known = _finished(folder, job.key)
        if known is not None:
            setting.events(_told(known, Goal.of(setting.spec), again=False))
            return known
        allowed_s = self._allowed_s(candidate)
        if allowed_s is None:
            setting.events(Event("trial", "skipped", "the build budget has no room for it", candidate.id))
            return None
        setting.events(Event("trial", "started", "starting", candidate.id, fraction=0.0))
        began = time.monotonic()
        timeout_s = min(self._longest_s(), allowed_s)
        trial = _run_trial(setting, job, timeout_s=timeout_s, device=device, stop=self._stop)
        if candidate == self._fallback:
            self._fallback_ahead = False
        cut_short = self._stop.is_set() or (math.isfinite(allowed_s) and budget.left_s() <= 0)
        if cut_short and trial.outcome is Outcome.FAILED:
            (folder / "trial.json").unlink(missing_ok=True)
            setting.events(Event("trial", "skipped", "ended before it was done", candidate.id))
            return None
        if trial.outcome is not Outcome.FAILED:  # failures are tried again: no progress
            budget.progressed()
        self._took_s.append(time.monotonic() - began)
        setting.events(_told(trial, Goal.of(setting.spec), again=True))
        return trial

    def _longest_s(self) -> float:
        """Seconds after which a trial counts as hanging."""
        if self._search.engine.name in _SLOW_BUILDERS:
            return math.inf
        return max(_TRIAL_TIMEOUT_S, 60 * (self._search.budget.minutes or 0.0))

    def _known(self, candidate: Candidate) -> Trial | None:
        folder = self._search.setting.run.trial(candidate.id)
        return _finished(folder, _trial_job(self._search, candidate).key)

    def _allowed_s(self, candidate: Candidate) -> float | None:
        """Seconds that the trial may take; None: no room."""
        budget = self._search.budget
        if candidate == self._fallback:
            return math.inf
        if self._fallback_ahead:  # at work on another GPU: it is the progress that each run makes
            return budget.left_s() if budget.fits(self._took_s) else None
        return budget.allowed_s(self._took_s)


def _one_at_a_time(events: EventSink) -> EventSink:
    lock = threading.Lock()

    def sink(event: Event) -> None:
        with lock:
            events(event)

    return sink


def _run_trial(
    setting: Setting, job: jobs.TrialJob, *, timeout_s: float, device: int | None, stop: threading.Event
) -> Trial:
    subject, folder = job.candidate.id, setting.run.trial(job.candidate.id)
    try:
        failure = in_child(
            setting, folder, job, "trial:run_trial",
            subject=subject, timeout_s=timeout_s, device=device, cancelled=stop.is_set,
        )  # fmt: skip
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
    """The trial that was measured before, if it still answers the same question.

    Failures are tried again, but for those that came to light after all was measured (`evidence`).
    """
    try:
        trial = read_record(folder / "trial.json", Trial)
    except (OSError, TritongenError):
        return None
    if trial.key != key or trial.artifact is None:
        return None
    files = (trial.artifact.file, *trial.artifact.extra_files)
    return trial if all((folder / name).is_file() for name in files) else None


def _trial_job(search: Search, candidate: Candidate) -> jobs.TrialJob:
    setting, engine, graph = search.setting, search.engine, search.graph
    spec = setting.spec
    largest = largest_batch(spec, batched=graph.batched)
    wanted = Goal.parse(spec.objective).batch_size
    job = jobs.TrialJob(
        key="",
        candidate=candidate,
        spec=spec,
        graph_digest=graph.digest,
        preparation=search.preparation,
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
    quantized = RANGES in job.candidate.options
    reference = spec.accuracy.reference
    judged = preparation.validation or preparation.calibration
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
            "validation": judged and judged.digest,
            "accuracy": spec.accuracy.model_dump(mode="json", exclude={"reference"}),
            "metric": metric_file(spec) and digest_files([metric_file(spec)]),  # type: ignore[list-item]
            "reference": reference and digest_files([reference]),
            "plugins": digest_files(spec.tensorrt.plugins) if spec.tensorrt.plugins else None,
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


def _told(trial: Trial, goal: Goal, *, again: bool) -> Event:
    subject = trial.candidate.id
    if trial.outcome is Outcome.FAILED:
        return Event("trial", "failed", trial.reason, subject)
    words = "passed" if trial.outcome is Outcome.PASSED else "rejected"
    message = f"{words}: {trial.reason}; {figure(judge(trial, goal), goal)}"
    if not again:
        return Event("trial", "skipped", f"measured before, {message}", subject)
    return Event("trial", "finished", message, subject)
