"""What was asked and measured → the report with its verdict."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from tritongen.loadtest import explain, statistics, summary
from tritongen.loadtest.evidence import Evidence, lowest_limit_ms
from tritongen.loadtest.explain import Knobs, Scene
from tritongen.loadtest.inputs import Inputs
from tritongen.loadtest.samples import TIMEOUT, Samples
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.target import Address, ServedModel
from tritongen.loadtest.verdict import Verdict, reach_verdict
from tritongen.runs.loadtest import GpuFigures, Load, LoadReport, LookResult, ServerFigures, Waterfall
from tritongen.runs.records import Machine
from tritongen.serving.statistics import ModelStatistics

_OTHERS, _SOME_MORE = 1.1, 20
"""The server's counts are taken a little before or after the edges of the window."""
_FEWER = 0.5
"""Of the answers in it: a busy machine takes the counts at its beginning late, but not by half of it."""
_CLOSED_LOOP = (
    "closed loop: it sends less while the server is slow, so it hides queueing; test promises with --rate"
)
_NO_FIGURES = "no statistics: they are an extension of Triton that this server does not offer"
_BEGUN_ANEW = (
    "no statistics of the window: the server was restarted in it, or loaded the model again, and counts anew"
)


@dataclass(frozen=True)
class Subject:
    """What was tested, with what, from where."""

    model: ServedModel
    address: Address
    inputs: Inputs
    started: str
    """ISO 8601, UTC."""
    machine: Machine | None
    knobs: Knobs = field(default_factory=Knobs)
    own_requests: int = 1 << 16
    """How many of the prepared requests are for this model; they come first."""


@dataclass(frozen=True)
class Measurement:
    """What a run gathered, warm-up included."""

    samples: Samples
    messages: dict[int, str]
    """By status: what the first request that ended so said."""
    start_ns: int
    end_ns: int
    """Of the schedule, or when it was stopped."""
    before: ModelStatistics | None
    """The server's counts at the end of the warm-up."""
    after: ModelStatistics | None
    stopped: bool
    """By the user."""
    begun_anew: bool = False
    """The server's counts fell in between."""
    alpha: float = statistics.ALPHA
    """That each look may spend."""
    looks: tuple[LookResult, ...] = ()
    """Those before the last one."""
    gpus: tuple[GpuFigures, ...] = ()
    early: bool = False
    """It ended before the first look, by a plain miss."""


def make_report(
    settings: Settings, subject: Subject, measurement: Measurement, *, server_gone: str | None
) -> LoadReport:
    """Cut off the warm-up, judge, and put the figures together."""
    evidence = make_evidence(settings, measurement, server_gone)
    verdict = reach_verdict(evidence, settings.slos, measurement.alpha)
    measured = evidence.samples
    response_ms = measured.response_ms
    interval = statistics.percentile_interval(response_ms, 99)
    answers, items = summary.answers_in(measurement.samples, evidence.start_ns, evidence.end_ns)
    own = _counted(measurement.samples, evidence, subject.own_requests)
    figures, no_figures = _figures(measurement, len(own), subject.model.max_batch_size)
    last_look = [look_result(evidence, verdict, measurement.alpha)] if settings.slos else []
    percents = summary.percents_of(settings.slos)
    response, service, lag = (
        summary.latency(values, percents) for values in (response_ms, measured.service_ms, measured.lag_ms)
    )
    parts, bottleneck = _explained(settings, subject, own, figures)
    return LoadReport(
        model=subject.model.name,
        version=subject.model.version or None,
        url=settings.url,
        protocol=subject.address.protocol,
        server=subject.model.server or None,
        load=_load(settings, subject.inputs),
        outcome=verdict.outcome,
        reasons=verdict.reasons,
        notes=(
            *verdict.notes,
            *_shared(measurement.samples, evidence, subject.own_requests, figures),
            *([_CLOSED_LOOP] if settings.offered_rate is None else []),
        ),
        partial=measurement.stopped,
        started=subject.started,
        window_s=evidence.seconds,
        requests=len(measured),
        answered=int(measured.ok.sum()),
        requests_per_s=answers / evidence.seconds,
        inferences_per_s=items / evidence.seconds,
        response_ms=response,
        service_ms=service,
        sender_lag_ms=lag,
        p99_interval_ms=(summary.finite(interval.low), summary.finite(interval.high)),
        failures=summary.failures(measured, measurement.messages),
        warm_up=evidence.warm_up,
        objectives=verdict.objectives,
        server_figures=figures,
        server_figures_note=no_figures,
        waterfall=parts,
        bottleneck=bottleneck,
        looks=(*measurement.looks, *last_look),
        series=summary.series(
            summary.finished(measurement.samples),
            measurement.start_ns,
            measurement.end_ns,
            evidence.start_ns,
        ),
        machine=subject.machine,
    )


def make_evidence(settings: Settings, measurement: Measurement, server_gone: str | None = None) -> Evidence:
    """The measured window, without the warm-up and what the stop cut off."""
    warmup_s, timeout_ms = settings.effective_warmup_s, settings.timeout_s * 1e3
    window_ns = min(measurement.start_ns + round(warmup_s * 1e9), measurement.end_ns)
    finished = summary.finished(measurement.samples)
    measured = finished.between(window_ns, measurement.end_ns)
    return Evidence(
        samples=measured,
        earlier=finished.between(measurement.start_ns, window_ns),
        start_ns=window_ns,
        end_ns=measurement.end_ns,
        rate=settings.offered_rate,
        batch_size=float(measured.rows["batch"].mean()) if len(measured) else settings.mean_batch,
        timeout_ms=timeout_ms,
        warm_up=summary.warm_up(
            finished, measurement.start_ns, warmup_s, timeout_ms, lowest_limit_ms(settings.slos)
        ),
        stopped=measurement.stopped,
        server_gone=server_gone,
        fixed_duration=settings.min_duration_s is None,
        early=measurement.early,
    )


def _counted(samples: Samples, evidence: Evidence, own_requests: int) -> Samples:
    """The requests that the server's figures are of: this model's that were answered in the window.

    Those of a growing backlog are answered after it: they would look as if the network had been slow.
    """
    rows = samples.rows
    there = (rows["done_ns"] >= evidence.start_ns) & (rows["done_ns"] < evidence.end_ns)
    return Samples(rows[there & samples.ok & (rows["request"] < own_requests)])


def _shared(
    samples: Samples, evidence: Evidence, own_requests: int, figures: ServerFigures | None
) -> list[str]:
    """A note where the server counted clearly more than this test can have sent: others use the model."""
    rows = samples.rows[samples.rows["request"] < own_requests]
    # The server may answer what timed out later, and what the warm-up sent in the window.
    counted = (rows["done_ns"] >= evidence.start_ns) | (rows["status"] == TIMEOUT)
    ours = int(rows["batch"][counted].sum())
    if figures is None or figures.inferences <= _OTHERS * ours + _SOME_MORE:
        return []
    text = (
        f"others used the model meanwhile: the server counted {figures.inferences} inferences in the window, "
        f"at most {ours} of them of this test; latencies and its figures are those of both loads"
    )
    return [text]


def _explained(
    settings: Settings, subject: Subject, own: Samples, figures: ServerFigures | None
) -> tuple[Waterfall | None, str | None]:
    """Where the response time of `own` goes, and what takes most of it; None if the server does not tell."""
    parts = explain.waterfall(summary.latency(own.lag_ms).mean, summary.latency(own.service_ms).mean, figures)
    if figures is None or parts is None:
        return parts, None
    scene = Scene(
        parts,
        figures,
        subject.knobs,
        float(own.rows["batch"].mean()),
        grpc=subject.address.protocol == "grpc",
        shared_memory=settings.shared_memory is not None,
    )
    return parts, explain.bottleneck(scene)


def _figures(
    measurement: Measurement, answers: int, max_batch_size: int | None
) -> tuple[ServerFigures | None, str | None]:
    """The server's counts of the window, in which it gave `answers`; else why there are none to believe."""
    before, after = measurement.before, measurement.after
    if before is None or after is None:
        return None, _missing_figures(measurement)
    if measurement.begun_anew or not after.continues(before):
        changed = before.version != after.version
        versions = f"; version {before.version} at its beginning, {after.version} at its end"
        return None, _BEGUN_ANEW + versions * changed
    untrue = _contradiction(after - before, answers, max_batch_size)
    if untrue is not None:
        return None, f"no statistics of the window: {untrue}"
    figures = summary.server_figures(before, after)
    return figures.model_copy(update={"gpus": measurement.gpus}), None


def _contradiction(window: ModelStatistics, answers: int, max_batch_size: int | None) -> str | None:
    """Why counts that only grew cannot be those of the window all the same."""
    counted = window.success.count
    if counted < _FEWER * answers - _SOME_MORE:
        return (
            f"the server counted {counted} answers in it and gave {answers}; it was restarted or loaded the "
            "model again, or several servers have this address"
        )
    # Triton counts a batch's inferences a little before its execution, and may be asked in between.
    executions = window.execution_count and window.execution_count + _SOME_MORE
    if max_batch_size and executions and window.inference_count > max_batch_size * executions:
        return f"{window.mean_batch:.3g} inferences an execution, and max_batch_size is {max_batch_size}"
    return None


def _missing_figures(measurement: Measurement) -> str:
    """Why there are no counts of the window's two edges."""
    if measurement.before is None and measurement.after is None:
        return _NO_FIGURES
    if measurement.stopped and measurement.before is None:
        return "no statistics of the window: the run was stopped in its warm-up"
    edge = "beginning" if measurement.before is None else "end"
    return f"no statistics of the window: the server did not answer that at its {edge}"


def look_result(evidence: Evidence, verdict: Verdict, alpha: float) -> LookResult:
    """One look in the report's form."""
    return LookResult(
        at_s=evidence.seconds,
        requests=len(evidence.samples),
        alpha=alpha,
        outcome=verdict.outcome,
        reason=verdict.reasons[0],
    )


def _load(settings: Settings, inputs: Inputs) -> Load:
    rate = settings.offered_rate
    return Load(
        mode="rate" if rate is not None else "concurrency",
        rate=rate,
        shape=settings.rate_shape.text if settings.rate_shape is not None else None,
        trace_requests=None if settings.trace is None else round((rate or 0.0) * settings.duration_s),
        arrival=settings.arrival if rate is not None and settings.trace is None else None,
        concurrency=settings.effective_concurrency if rate is None else None,
        batch_size=settings.batch_size,
        batch_sizes=dict(settings.batch_sizes),
        mix=dict(settings.model_weights) if settings.mix else {},
        duration_s=settings.duration_s,
        min_duration_s=settings.min_duration_s,
        warmup_s=settings.effective_warmup_s,
        timeout_s=settings.timeout_s,
        max_in_flight=settings.max_in_flight,
        workers=settings.worker_count(len(os.sched_getaffinity(0))),
        seed=settings.seed,
        inputs=inputs.source,
        prepared_requests=len(inputs.batches),
    )
