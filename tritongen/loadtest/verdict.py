"""Objectives + samples → outcome. Pure.

Precedence when several apply:
    ERROR    the server stopped answering
    INVALID  the sender was late: what was offered is not what was asked for
    ERROR    not one request was answered
    FAIL     an objective is missed, or the backlog grows
    INVALID  undecided, not settled, drifting, too few requests, or stopped by the user
    PASS     every objective is met
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritongen.errors import ExitCode
from tritongen.loadtest import statistics
from tritongen.loadtest.samples import Samples
from tritongen.loadtest.statistics import ALPHA, BATCHES, Decision
from tritongen.runs.loadtest import LoadOutcome, Objective, WarmUpResult
from tritongen.slo import Slo

_LAG_OF_LIMIT = 0.5
"""A send is late when it takes this part of the latency limit, but not below one millisecond."""
_LEAST_LAG_MS = 1.0
_BEHIND_MS = 100.0
"""Without a latency objective: a median lag beyond this means that the sender cannot keep up."""
_BACKLOG_GROWTH = 0.005
"""Of the arrivals; less cannot be told from the swings of a busy queue."""
_LEAST_BACKLOG = 10
_SCHEDULE_COMPLETED = 0.999
"""The schedule counts as completed when this part of the requests was answered."""


@dataclass(frozen=True)
class Evidence:
    """What a run has to show, without the warm-up."""

    samples: Samples
    start_ns: int
    end_ns: int
    """The measured window on the clock of the samples."""
    rate: float | None
    """Offered requests per second; None in a closed loop."""
    batch_size: int
    timeout_ms: float
    warm_up: WarmUpResult
    stopped: bool = False
    """By the user."""
    server_gone: str | None = None
    """Why the server cannot be asked any more."""

    @property
    def seconds(self) -> float:
        return max(self.end_ns - self.start_ns, 1) / 1e9


@dataclass(frozen=True)
class Verdict:
    """The outcome and the reasons for it, the decisive one first."""

    outcome: LoadOutcome
    reasons: tuple[str, ...]
    objectives: tuple[Objective, ...]
    notes: tuple[str, ...] = ()


EXIT_CODES = {
    LoadOutcome.PASS: ExitCode.OK,
    LoadOutcome.MEASURED: ExitCode.OK,
    LoadOutcome.FAIL: ExitCode.MISSED,
    LoadOutcome.INVALID: ExitCode.UNDECIDED,
    LoadOutcome.ERROR: ExitCode.NOT_READY,
}


def reach_verdict(evidence: Evidence, slos: Sequence[Slo], alpha: float = ALPHA) -> Verdict:
    """Judge every objective and apply the precedence above."""
    objectives = tuple(judge_objective(slo, evidence, alpha) for slo in slos)
    broken = _broken(evidence, slos)
    if broken is not None:
        return Verdict(broken[0], (broken[1],), objectives)
    missed = [_sentence(objective) for objective in objectives if objective.outcome == "fail"]
    overload = growing_backlog(evidence)
    unclear = _unclear(evidence, objectives)
    if not slos:
        notes = (*([overload] if overload else []), *unclear)
        outcome = LoadOutcome.INVALID if evidence.stopped else LoadOutcome.MEASURED
        return Verdict(outcome, ("no objective was set, so there is nothing to judge",), objectives, notes)
    if missed or overload:
        return Verdict(LoadOutcome.FAIL, (*missed, *([overload] if overload else [])), objectives)
    if unclear:
        return Verdict(LoadOutcome.INVALID, tuple(unclear), objectives)
    return Verdict(LoadOutcome.PASS, tuple(_sentence(objective) for objective in objectives), objectives)


def _broken(evidence: Evidence, slos: Sequence[Slo]) -> tuple[LoadOutcome, str] | None:
    """What makes the measurement worthless, whatever it shows."""
    if evidence.server_gone:
        return LoadOutcome.ERROR, f"the server stopped answering: {evidence.server_gone}"
    if late := late_sends(evidence, slos):
        return LoadOutcome.INVALID, late
    if not (evidence.stopped or evidence.samples.ok.any()):
        return LoadOutcome.ERROR, "not one request was answered"
    return None


def _unclear(evidence: Evidence, objectives: Sequence[Objective]) -> list[str]:
    reasons = ["stopped before its time"] if evidence.stopped else []
    reasons += [_sentence(objective) for objective in objectives if objective.outcome == "undecided"]
    if not evidence.warm_up.settled:
        reasons.append(
            "latencies had not settled when the warm-up ended (MSER-5); give a longer --warmup and --duration"
        )
    values = evidence.samples.response_ms
    if len(values) >= statistics.FIRST_LOOK and statistics.drifts(np.minimum(values, evidence.timeout_ms)):
        reasons.append("latencies drift over the whole run, so no one figure describes it; run longer")
    return reasons


def _sentence(objective: Objective) -> str:
    return f"{objective.slo}: {objective.reason}"


def late_sends(evidence: Evidence, slos: Sequence[Slo]) -> str | None:
    """Why the sender, and not the server, limits this run; judged by the lag of its sends alone."""
    lag_ms = evidence.samples.lag_ms
    if len(lag_ms) == 0 or evidence.rate is None:
        return None
    fix = "use more --workers, a lower --rate, or another machine for the load"
    for slo in slos:
        if slo.unit != "ms":
            continue
        limit = max(_LEAST_LAG_MS, slo.limit * _LAG_OF_LIMIT)
        allowed = (1 - (slo.percentile if slo.percentile is not None else 50) / 100) / 2
        share = float((lag_ms > limit).mean())
        if share > allowed:
            return (
                f"client-limited: {share:.2%} of the requests left more than {limit:.3g} ms late "
                f"(at most {allowed:.2%} may, to judge {slo}); {fix}"
            )
    behind = statistics.percentile(lag_ms, 50)
    if behind > _BEHIND_MS:
        return f"client-limited: half of the requests left more than {behind:.0f} ms late; {fix}"
    return None


def growing_backlog(evidence: Evidence) -> str | None:
    """Why the server cannot keep up with an open loop: unanswered requests pile up from first to last."""
    rows = evidence.samples.rows
    if evidence.rate is None or len(rows) < BATCHES:
        return None
    edges = np.linspace(evidence.start_ns, evidence.end_ns, BATCHES + 1)
    arrived = np.searchsorted(rows["scheduled_ns"], edges)
    backlog = arrived - np.searchsorted(np.sort(rows["done_ns"]), edges)
    quarters = backlog[1:].reshape(4, -1).mean(axis=1)
    growth = int(backlog[-1] - backlog[1])
    if growth > max(_LEAST_BACKLOG, _BACKLOG_GROWTH * len(rows)) and bool((np.diff(quarters) > 0).all()):
        return (
            f"overload: {int(backlog[-1])} requests were unanswered at the end of the schedule, ever more "
            f"towards the end: the server does not keep up with {evidence.rate:g} requests/s"
        )
    return None


def judge_objective(slo: Slo, evidence: Evidence, alpha: float = ALPHA) -> Objective:
    """What the samples say about one objective."""
    if slo.metric == "throughput":
        return _judge_throughput(slo, evidence, alpha)
    if slo.metric == "error_rate":
        return _judge_errors(slo, evidence, alpha)
    if slo.metric == "mean":
        return _judge_mean(slo, evidence, alpha)
    percent = slo.percentile
    assert percent is not None  # noqa: S101  # the parser knows no other metric
    values = evidence.samples.response_ms
    measured = statistics.percentile(values, percent)
    return _share_objective(
        slo, evidence, values, slo.limit, 1 - percent / 100, measured=measured, alpha=alpha
    )


def _share_objective(
    slo: Slo,
    evidence: Evidence,
    values: NDArray[np.float64],
    threshold: float,
    allowed: float,
    *,
    measured: float,
    alpha: float,
    over: NDArray[np.bool_] | None = None,
) -> Objective:
    judged = statistics.judge_share(values, threshold, allowed, alpha, over)
    reason = _share_in_words(slo, judged, measured, allowed)
    needed = None
    if judged.decision is Decision.UNDECIDED:
        needed = _requests_needed(judged, allowed)
        reason += f"; cannot tell, since {judged.reason}" + _how_long(needed, judged.requests, evidence)
    return Objective(
        slo=slo.text,
        outcome=judged.decision.value,
        reason=reason,
        measured=measured if math.isfinite(measured) else None,
        unit=slo.unit,
        requests=judged.requests,
        share_over=judged.share if judged.requests else None,
        share_allowed=allowed,
        share_low=judged.interval.low,
        share_high=judged.interval.high,
        alpha=alpha,
        design_effect=judged.design_effect,
        autocorrelation=judged.autocorrelation,
        requests_needed=needed,
    )


def _share_in_words(slo: Slo, judged: statistics.ShareJudgement, measured: float, allowed: float) -> str:
    """What was measured, the share that it comes from, and how well that share is known."""
    if slo.unit != "ms":
        shown, what = f"measured {measured:.3%}", "failed"
    elif math.isfinite(measured):
        shown, what = f"measured {measured:.4g} ms", f"took more than {slo.limit:g} ms"
    else:
        shown, what = "so many requests failed that it is beyond every answer", "took longer or failed"
    if judged.requests < statistics.FEWEST_TO_FAIL:
        return shown
    return (
        f"{shown}; {judged.over} of {judged.requests} requests {what}: {judged.share:.3%}, "
        f"truly {judged.interval.low:.3%} to {judged.interval.high:.3%}, allowed {allowed:.3%}"
    )


def _requests_needed(judged: statistics.ShareJudgement, allowed: float) -> int | None:
    """About how many requests would decide it; at least twice as many as did not."""
    if judged.requests < statistics.FIRST_LOOK:
        return statistics.FIRST_LOOK
    needed = statistics.requests_needed(judged.share, judged.design_effect, allowed, judged.alpha)
    return None if needed is None else max(needed, 2 * judged.requests)


def _how_long(needed: int | None, requests: int, evidence: Evidence) -> str:
    """What to do about an undecided objective, in requests and in time."""
    if needed is None:
        return "; the truth seems too close to the limit for any practical run to tell"
    if not requests:
        return ""
    # The warm-up is part of the duration, and grows with it up to five seconds.
    seconds = needed / (requests / evidence.seconds) * 1.1 + evidence.warm_up.seconds
    return f"; about {needed} requests should decide it (--duration {math.ceil(seconds)}s)"


def _judge_errors(slo: Slo, evidence: Evidence, alpha: float) -> Objective:
    failed = ~evidence.samples.ok
    count, requests = int(failed.sum()), len(failed)
    share = count / requests if requests else math.nan
    if slo.limit > 0:
        return _share_objective(
            slo,
            evidence,
            evidence.samples.response_ms,
            math.inf,
            slo.limit,
            measured=share,
            alpha=alpha,
            over=failed,
        )
    # No sample proves that nothing ever fails: this one objective is about the window itself.
    outcome = "undecided" if requests < statistics.FIRST_LOOK and not count else "fail" if count else "pass"
    return Objective(
        slo=slo.text,
        outcome=outcome,
        reason=f"{count} of {requests} requests failed in the measured window"
        + (f"; at least {statistics.FIRST_LOOK} are needed to say more" if outcome == "undecided" else ""),
        measured=share if requests else None,
        unit=slo.unit,
        requests=requests,
        alpha=alpha,
        requests_needed=statistics.FIRST_LOOK if outcome == "undecided" else None,
    )


def _judge_mean(slo: Slo, evidence: Evidence, alpha: float) -> Objective:
    """A failed request counts as the time-out: its true time is at least that."""
    values = np.where(evidence.samples.ok, evidence.samples.response_ms, evidence.timeout_ms)
    judged = statistics.judge_mean(values, alpha)
    outcome = _side(judged.interval, slo, judged.autocorrelation, enough=len(values) >= statistics.FIRST_LOOK)
    return _figure_objective(slo, outcome, judged, requests=len(values), alpha=alpha, unit="ms")


def _judge_throughput(slo: Slo, evidence: Evidence, alpha: float) -> Objective:
    items = evidence.batch_size if slo.unit == "inferences/s" else 1
    requests, answered = len(evidence.samples), int(evidence.samples.ok.sum())
    if evidence.rate is None:
        judged = statistics.judge_mean(_completions_per_s(evidence) * items, alpha)
        outcome = _side(
            judged.interval, slo, judged.autocorrelation, enough=answered >= statistics.FIRST_LOOK
        )
        return _figure_objective(slo, outcome, judged, requests=requests, alpha=alpha, unit=slo.unit)
    offered = evidence.rate * items
    completed = answered / requests if requests else 0.0
    measured = offered * completed
    kept_up = growing_backlog(evidence) is None
    met = kept_up and measured >= slo.limit * _SCHEDULE_COMPLETED
    return Objective(
        slo=slo.text,
        outcome="pass" if met else "fail",
        reason=f"{completed:.2%} of the schedule of {offered:g} {slo.unit} was answered"
        + ("" if kept_up else ", and the backlog grew"),
        measured=measured,
        unit=slo.unit,
        requests=requests,
        alpha=alpha,
    )


def _completions_per_s(evidence: Evidence) -> NDArray[np.float64]:
    """Answers per second in each of K equal slices of the window."""
    done = evidence.samples.rows["done_ns"][evidence.samples.ok]
    counts, _ = np.histogram(done, bins=BATCHES, range=(evidence.start_ns, evidence.end_ns))
    return np.asarray(counts / (evidence.seconds / BATCHES))


def _side(interval: statistics.Interval, slo: Slo, correlation: float, *, enough: bool) -> Decision:
    """On which side of the limit the whole interval lies."""
    if not enough or correlation > statistics.AUTOCORRELATION_Z / math.sqrt(BATCHES):
        return Decision.UNDECIDED
    if slo.holds(interval.low) and slo.holds(interval.high):
        return Decision.PASS
    if not slo.holds(interval.low) and not slo.holds(interval.high):
        return Decision.FAIL
    return Decision.UNDECIDED


def _figure_objective(
    slo: Slo, outcome: Decision, judged: statistics.MeanJudgement, *, requests: int, alpha: float, unit: str
) -> Objective:
    low, high = judged.interval.low, judged.interval.high
    reason = f"measured {judged.mean:.4g} {unit}, true value between {low:.4g} and {high:.4g}"
    if outcome is Decision.UNDECIDED:
        reason += ": cannot tell; run longer"
        if requests < statistics.FIRST_LOOK:
            reason += f" (at least {statistics.FIRST_LOOK} requests)"
    return Objective(
        slo=slo.text,
        outcome=outcome.value,
        reason=reason,
        measured=judged.mean if math.isfinite(judged.mean) else None,
        unit=unit,
        requests=requests,
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        alpha=alpha,
        autocorrelation=judged.autocorrelation,
    )
