"""`--find-max`: real load tests for the search, and its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from tritongen.errors import InputError, TritongenError
from tritongen.loadtest.run import measure
from tritongen.loadtest.search import TOLERANCE, Peak, ProbeRequest, find_peak
from tritongen.loadtest.settings import Settings
from tritongen.runs.events import Event, EventSink, discard
from tritongen.runs.loadtest import LoadOutcome, LoadReport
from tritongen.runs.peak import PeakProbe, PeakReport
from tritongen.runs.records import Machine

DEFAULT_FIRST_RATE = 50.0
_FEWEST_FOR_KNEE = 3
_PATIENCE_S = 120.0
"""How long a probe waits for its first answer: the server may still work off what the last probe left."""


def find_max(
    settings: Settings,
    *,
    tolerance: float = TOLERANCE,
    events: EventSink = discard,
    machine: Machine | None = None,
) -> PeakReport:
    """Search the highest rate at which every objective passes; `settings.rate` is where it begins.

    Each probe is a load test with these settings; the bracket is narrowed to `tolerance`. Ctrl-C, or a server
    that goes away, ends the search with a report of what it has found. InputError without an objective, or
    for a closed loop.
    """
    if not settings.slos or settings.concurrency is not None:
        raise InputError(
            "there is no highest rate to find",
            found="no objective" if not settings.slos else f"--concurrency {settings.concurrency}",
            expected="an open loop and an objective that it can miss",
            fix="give for example --p99-ms 20, and no --concurrency",
        )
    if settings.rate_shape is not None or settings.trace is not None:
        raise InputError("a search tries steady rates", found="a rate that changes", fix="give one --rate")
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    probe = _prober(settings, events, machine)
    start = settings.offered_rate or DEFAULT_FIRST_RATE
    peak = find_peak(probe, start, tolerance=tolerance, alpha=settings.alpha, seed=settings.seed)
    if peak.stopped and not peak.probes:
        raise KeyboardInterrupt
    return make_peak_report(settings, peak, started, machine)


def _prober(
    settings: Settings, events: EventSink, machine: Machine | None
) -> Callable[[ProbeRequest], PeakProbe | None]:
    patience_s = 0.0

    def probe(request: ProbeRequest) -> PeakProbe | None:
        nonlocal patience_s
        wanted = replace(settings, rate=request.rate, alpha=request.alpha, seed=request.seed)
        try:
            report, _ = measure(wanted, events=events, machine=machine, patience_s=patience_s)
        except KeyboardInterrupt:
            return None
        except TritongenError as error:
            if not patience_s:  # the first one: there is nothing to report on
                raise
            return _broken_probe(request, error)
        patience_s = _PATIENCE_S
        if report.partial:
            return None
        found = summarize_probe(report, request)
        what = "confirmation at" if request.confirms else "at"
        p99 = "-" if found.p99_ms is None else f"{found.p99_ms:.3g} ms"
        text = f"{what} {request.rate:.6g} requests/s: {found.outcome.value}, P99 {p99}"
        events(Event("loadtest", "finished", text))
        return found

    return probe


def _broken_probe(request: ProbeRequest, error: TritongenError) -> PeakProbe:
    """A load test that could not be run, after others that could."""
    return PeakProbe(
        rate=request.rate,
        outcome=LoadOutcome.ERROR,
        reason=error.message + (f": {error.found}" if error.found else ""),
        requests=0,
        alpha=request.alpha,
        seed=request.seed,
        confirms=request.confirms,
    )


def summarize_probe(report: LoadReport, request: ProbeRequest) -> PeakProbe:
    """What the search and its curve need of one load test."""
    figures = report.server_figures
    return PeakProbe(
        rate=request.rate,
        outcome=report.outcome,
        reason=report.reasons[0],
        requests=report.requests,
        requests_per_s=report.requests_per_s,
        p50_ms=report.response_ms.percentiles.get("p50"),
        p99_ms=report.response_ms.percentiles.get("p99"),
        mean_batch=figures.mean_batch if figures else None,
        alpha=request.alpha,
        seed=request.seed,
        confirms=request.confirms,
        client_limited=report.reasons[0].startswith("client-limited"),
    )


def make_peak_report(
    settings: Settings, peak: Peak, started: str, machine: Machine | None = None
) -> PeakReport:
    """The search's result in its published form."""
    failed = any(probe.outcome is LoadOutcome.FAIL for probe in peak.probes)
    error = any(probe.outcome is LoadOutcome.ERROR for probe in peak.probes)
    outcome = LoadOutcome.INVALID
    if error:
        outcome = LoadOutcome.ERROR
    elif peak.confirmed and peak.failed is not None:
        outcome = LoadOutcome.PASS
    elif peak.passed is None and failed:
        outcome = LoadOutcome.FAIL
    return PeakReport(
        model=settings.model,
        url=settings.url,
        slos=tuple(slo.text for slo in settings.slos),
        outcome=outcome,
        passed=peak.passed,
        failed=peak.failed,
        confirmed=peak.confirmed,
        confidence=1 - 2 * settings.alpha,
        knee=knee(peak.probes),
        reason=peak.reason,
        partial=peak.stopped,
        probes=peak.probes,
        started=started,
        machine=machine,
    )


def knee(probes: Sequence[PeakProbe]) -> float | None:
    """The rate of the curve's bend: furthest below the chord of its ends (Satopää, Kneedle, 2011).

    Over P99 on a logarithmic scale, each axis from 0 to 1. None with fewer than three points.
    """
    points = sorted({(p.rate, p.p99_ms) for p in probes if p.p99_ms})
    if len(points) < _FEWEST_FOR_KNEE:
        return None
    rates = [rate for rate, _ in points]
    heights = [math.log(p99) for _, p99 in points if p99]
    width, height = rates[-1] - rates[0], heights[-1] - heights[0]
    if width <= 0 or height <= 0:
        return None
    below = [
        (rate - rates[0]) / width - (h - heights[0]) / height for rate, h in zip(rates, heights, strict=True)
    ]
    best = max(range(len(below)), key=lambda i: below[i])
    return rates[best] if below[best] > 0 else None
