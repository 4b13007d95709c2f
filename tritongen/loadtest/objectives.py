"""What the samples say about each objective: one rule for all (statistics.py). Pure.

Latency percentiles, the error rate and the throughput of an open loop are shares of requests that may be over
a limit; a mean and the throughput of a closed loop are means over batches. Both are judged on K batches, at
the alpha of the look, on either side.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tritongen.loadtest import statistics
from tritongen.loadtest.correlation import BATCHES, NOTICED, TOO_SLOW, above_headroom, batch_shares, far_over
from tritongen.loadtest.evidence import Evidence, growing_backlog
from tritongen.loadtest.statistics import ALPHA, Decision, ShareJudgement
from tritongen.runs.loadtest import Objective
from tritongen.slo import Slo

UNANSWERED_ALLOWED = 0.005
"""A schedule counts as kept when at least 99.5 % of it was answered: arrivals swing by as much."""
_HOPELESS = 0.5
"""Of a promised throughput: where no slice of the window reaches it, slow swings are no excuse."""
_PRACTICAL_S = 3600.0
"""Nobody waits longer for a verdict: it is the noise, or the limit, that has to change."""
_MOST_SLOWNESS = 1000.0
"""A slice without any answer counts as that many times too slow."""


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
    judged = statistics.judge_share(values, slo.limit, 1 - percent / 100, alpha)
    if math.isfinite(measured):
        shown, what = f"measured {measured:.4g} ms", f"took more than {slo.limit:g} ms"
    else:
        shown, what = "so many requests failed that it is beyond every answer", "took longer or failed"
    words = _in_words(judged, shown, what)
    return _share_objective(slo, evidence, judged, 1 - percent / 100, measured=measured, words=words)


def few_bursts(slo: Slo, evidence: Evidence) -> str | None:
    """A caveat about a PASS that rests on few stalls, as far as they can be seen in the window."""
    found = _over(slo, evidence)
    if found is None:
        return None
    over, allowed = found
    bursts = statistics.bursts_of(over, allowed)
    if not bursts.few:
        return None
    seen = f"{bursts.count} bursts of up to {bursts.largest}" if bursts.count > 1 else "one burst"
    return (
        f"{slo}: the {int(over.sum())} requests over the limit came in {seen}, too few to know how often "
        f"that happens: this PASS is less sure than {1 - ALPHA:.0%}; a longer --min-duration shows more"
    )


def missed_throughout(slo: Slo, evidence: Evidence, part: float) -> bool:
    """Whether most requests of every batch are over the limit, steadily, and no PASS can come any more.

    That is where this window, which is `part` of the longest one, has more requests over the limit than are
    allowed in the whole of it. Latencies that fall or grow may be those of a server that gets warm; where
    nearly all requests of every batch are over the limit, only a fall towards it may.
    """
    found = _over(slo, evidence)
    if found is None or len(found[0]) < BATCHES:
        return False
    over, allowed = found
    values = np.minimum(evidence.samples.response_ms, evidence.timeout_ms)
    limit = slo.limit if slo.unit == "ms" else evidence.timeout_ms
    shares = batch_shares(over)
    if not statistics.misses_always(shares, allowed) or float(over.mean()) * part <= allowed:
        return False
    if far_over(values, limit):
        return True
    if float(shares.min()) >= statistics.NEARLY_ALL:
        return not statistics.falls_towards(values, limit)
    return evidence.warm_up.settled and not statistics.drifts(values)


def _over(slo: Slo, evidence: Evidence) -> tuple[NDArray[np.bool_], float] | None:
    """Which requests are over the limit, and the share that may be; None where requests do not count."""
    if slo.percentile is not None:
        return evidence.samples.response_ms > slo.limit, 1 - slo.percentile / 100
    if slo.metric == "error_rate" and slo.limit > 0:
        return ~evidence.samples.ok, slo.limit
    return None


def _share_objective(
    slo: Slo, evidence: Evidence, judged: ShareJudgement, allowed: float, *, measured: float, words: str
) -> Objective:
    needed = None
    if judged.requests >= statistics.FEWEST_TO_FAIL:
        words += f", allowed {allowed:.3%}"
    confidence = _confidence(judged, allowed)
    if judged.decision is Decision.UNDECIDED:
        needed = _requests_needed(judged, allowed)
        words += f"; cannot tell, since {judged.reason}"
        if confidence is not None:
            side = "met" if judged.share <= allowed else "missed"
            swings = judged.autocorrelation > (TOO_SLOW if judged.share <= allowed else NOTICED)
            words += f" ({side} with {confidence:.1%} confidence{' if it did not swing' if swings else ''}, "
            words += f"{1 - judged.alpha:.2%} is asked for)"
        words += _how_long(needed, judged.requests, evidence)
    return Objective(
        slo=slo.text,
        outcome=judged.decision.value,
        reason=words,
        measured=measured if math.isfinite(measured) else None,
        unit=slo.unit,
        requests=judged.requests,
        share_over=judged.share if judged.requests else None,
        share_allowed=allowed,
        share_low=judged.interval.low,
        share_high=judged.interval.high,
        alpha=judged.alpha,
        confidence=confidence,
        design_effect=judged.design_effect,
        autocorrelation=judged.autocorrelation,
        requests_needed=needed,
    )


def _in_words(judged: ShareJudgement, shown: str, what: str) -> str:
    """What was measured, the share that it comes from, and how well that share is known."""
    if judged.requests < statistics.FEWEST_TO_FAIL:
        return shown
    return (
        f"{shown}; {judged.over} of {judged.requests} requests {what}: {judged.share:.3%}, "
        f"truly {judged.interval.low:.3%} to {judged.interval.high:.3%}"
    )


def _confidence(judged: ShareJudgement, allowed: float) -> float | None:
    """With which confidence the objective is met, or missed, whichever is likelier."""
    if judged.requests < statistics.FEWEST_TO_FAIL:
        return None
    return statistics.confidence(judged, allowed)


def _requests_needed(judged: ShareJudgement, allowed: float) -> int | None:
    """About how many requests would decide it; at least twice as many as did not."""
    if judged.requests < statistics.FIRST_LOOK:
        return statistics.fewest_to_pass(allowed, judged.alpha)
    needed = statistics.requests_needed(
        judged.share, judged.design_effect, allowed, judged.alpha, judged.unseen
    )
    return None if needed is None else max(needed, 2 * judged.requests)


def _how_long(needed: int | None, requests: int, evidence: Evidence) -> str:
    """What to do about an undecided objective, in requests and in time."""
    if needed is None:
        return "; the truth seems too close to the limit for any practical run to tell"
    if not requests:
        return ""
    # The warm-up is part of the duration, and grows with it up to five seconds.
    seconds = needed / (requests / evidence.seconds) * 1.1 + evidence.warm_up.seconds
    if seconds > _PRACTICAL_S and requests >= statistics.FIRST_LOOK:
        return (
            f"; about {needed} requests should decide it, {seconds / 3600:.0f} h at this rate: rather use a "
            "quieter machine or a looser limit"
        )
    flag = "--duration" if evidence.fixed_duration else "--max-duration"
    return f"; about {needed} requests should decide it ({flag} {math.ceil(seconds)}s)"


def _judge_errors(slo: Slo, evidence: Evidence, alpha: float) -> Objective:
    failed = ~evidence.samples.ok
    count, requests = int(failed.sum()), len(failed)
    share = count / requests if requests else math.nan
    if slo.limit > 0:
        judged = _judge_failures(evidence, slo.limit, alpha)
        words = _in_words(judged, f"measured {share:.3%}", "failed")
        return _share_objective(slo, evidence, judged, slo.limit, measured=share, words=words)
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


def _judge_failures(evidence: Evidence, allowed: float, alpha: float) -> ShareJudgement:
    """Whether few enough requests fail; one that does is as slow as the time-out, so that is the limit."""
    values = evidence.samples.response_ms
    return statistics.judge_share(values, evidence.timeout_ms, allowed, alpha, ~evidence.samples.ok)


def _judge_mean(slo: Slo, evidence: Evidence, alpha: float) -> Objective:
    """A failed request counts as the time-out: its true time is at least that."""
    values = np.where(evidence.samples.ok, evidence.samples.response_ms, evidence.timeout_ms)
    judged = statistics.judge_mean(values, alpha, above_headroom(values, slo.limit))
    hopeless = far_over(values, slo.limit)
    outcome = _side(judged, slo, enough=len(values) >= statistics.FIRST_LOOK, hopeless=hopeless)
    return _figure_objective(slo, outcome, judged, requests=len(values), alpha=alpha, unit="ms")


def _judge_throughput(slo: Slo, evidence: Evidence, alpha: float) -> Objective:
    items = evidence.batch_size if slo.unit == "inferences/s" else 1
    requests, answered = len(evidence.samples), int(evidence.samples.ok.sum())
    if evidence.rate is None:
        rates = _completions_per_s(evidence) * items
        # Less is worse here: the headroom is that of the time between two answers.
        swings = above_headroom(1 / np.maximum(rates, slo.limit / _MOST_SLOWNESS), 1 / slo.limit)
        judged = statistics.judge_mean(rates, alpha, 1 / swings)
        hopeless = bool(rates.max() < slo.limit * _HOPELESS) or far_over(-rates, -slo.limit)
        enough = answered >= statistics.FIRST_LOOK
        outcome = _side(judged, slo, enough=enough, hopeless=hopeless)
        return _figure_objective(slo, outcome, judged, requests=requests, alpha=alpha, unit=slo.unit)
    # An open loop offers a rate: the share of it that may go unanswered is what the promise leaves.
    offered = evidence.rate * items
    allowed = max(1 - slo.limit / offered, UNANSWERED_ALLOWED)
    measured = offered * answered / requests if requests else math.nan
    share = _judge_failures(evidence, allowed, alpha)
    shown = f"{measured:.5g} of the offered {offered:g} {slo.unit}"
    words = _in_words(share, shown, "were not answered")
    found = _share_objective(slo, evidence, share, allowed, measured=measured, words=words)
    if growing_backlog(evidence) is None:
        return found
    return found.model_copy(update={"outcome": "fail", "reason": f"{shown}, and the backlog grew"})


def _completions_per_s(evidence: Evidence) -> NDArray[np.float64]:
    """Answers per second in each of K equal slices of the window."""
    done = evidence.samples.rows["done_ns"][evidence.samples.ok]
    counts, _ = np.histogram(done, bins=BATCHES, range=(evidence.start_ns, evidence.end_ns))
    return np.asarray(counts / (evidence.seconds / BATCHES))


def _side(judged: statistics.MeanJudgement, slo: Slo, *, enough: bool, hopeless: bool) -> Decision:
    """On which side of the limit the whole interval lies; `hopeless`: no slow swing reaches the other."""
    interval = judged.interval
    low, high = slo.holds(interval.low), slo.holds(interval.high)
    slow_swings = judged.autocorrelation > NOTICED
    if not enough or low is not high or (slow_swings and (low or not hopeless)):
        return Decision.UNDECIDED
    return Decision.PASS if low else Decision.FAIL


def _figure_objective(
    slo: Slo, outcome: Decision, judged: statistics.MeanJudgement, *, requests: int, alpha: float, unit: str
) -> Objective:
    low, high = judged.interval.low, judged.interval.high
    reason = f"measured {judged.mean:.4g} {unit}, true value between {low:.4g} and {high:.4g}"
    if outcome is Decision.UNDECIDED:
        if requests < statistics.FIRST_LOOK:
            reason += f": cannot tell; run longer (at least {statistics.FIRST_LOOK} requests)"
        elif judged.autocorrelation > NOTICED:
            reason += (
                " if it did not swing, but it swings more slowly than this run can average out: cannot tell; "
                "run longer"
            )
        else:
            reason += ": cannot tell; run longer"
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
