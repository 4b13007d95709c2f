"""Percentiles, warm-up, and the rule that decides an objective. Pure functions of raw samples.

The rule is built for latencies of a queue, which resemble their neighbours: a binomial test that ignores
this passes what it should not. The share of requests over a limit gets a Korn-Graubard interval (Survey
Methodology 24(2), 1998) on an effective sample size from batch means; looks are few and fixed beforehand, and
share the error probability (alpha spending).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from tritongen.loadtest.distributions import beta_cdf, beta_quantile, normal_quantile, student_t_quantile

Values = NDArray[np.float64]

ALPHA = 0.01
"""Probability of a wrong PASS at the limit, and of a wrong FAIL, over all looks together."""
BATCHES = 32
"""K, the number of equal consecutive batches."""
FIRST_LOOK = 2500
"""The first look, and so the fewest requests that a PASS takes; each later look has twice as many."""
FEWEST_TO_FAIL = 10 * BATCHES
"""A miss may be plain much earlier: simulated queues at the limit fail wrongly in < 0.3 % of such runs."""
MOST_REQUESTS = 10**9
"""Beyond this nobody runs a test."""
_REFERENCE_PERCENTS = (80.0, 90.0, 95.0)
AUTOCORRELATION_Z = 1.28
_TREND_Z = 3.3
"""One in a thousand for batch means without a trend."""


class Decision(str, Enum):
    """What one look says about one objective."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Interval:
    """A one-sided bound on each side, each with confidence 1 - alpha."""

    low: float
    high: float


@dataclass(frozen=True)
class ShareJudgement:
    """What the data say about the share of requests over a limit."""

    decision: Decision
    requests: int
    over: int
    share: float
    interval: Interval
    design_effect: float
    """How many correlated requests tell as much as one independent one."""
    autocorrelation: float
    """Lag 1, of the batch means; a large one means that batches are too short to be independent."""
    alpha: float
    reason: str


def percentile(values: Values, percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `percent` % do not exceed; or NaN."""
    if len(values) == 0:
        return math.nan
    rank = max(1, math.ceil(len(values) * percent / 100 - 1e-9))
    return float(np.partition(values, rank - 1)[rank - 1])


def percentile_interval(values: Values, percent: float, alpha: float = 0.025) -> Interval:
    """Bounds of a percentile, each with confidence 1 - alpha: order statistics at Korn-Graubard ranks."""
    if len(values) < 2 * BATCHES:
        return Interval(0.0, math.inf)
    share = 1 - percent / 100
    effect = design_effect(values, percentile(values, percent))
    bounds = share_interval(share * len(values), len(values), effect, alpha)
    ordered = np.sort(values)
    low = math.ceil(len(ordered) * (1 - bounds.high)) - 1
    high = math.ceil(len(ordered) * (1 - bounds.low))
    return Interval(
        float(ordered[low]) if low >= 0 else 0.0,
        float(ordered[high]) if high < len(ordered) else math.inf,
    )


def batch_shares(over: NDArray[np.bool_]) -> Values:
    """The share that is over a limit in each of K equal consecutive batches; a short rest is left out."""
    size = len(over) // BATCHES
    return np.asarray(over[: size * BATCHES].reshape(BATCHES, size).mean(axis=1))


def design_effect(values: Values, threshold: float, over: NDArray[np.bool_] | None = None) -> float:
    """max(1, (n/K)·s²/(p(1-p))) over the threshold and P80, P90, P95: defined even if nothing is over."""
    own = _effect(values > threshold if over is None else over)
    return max(1.0, own, *(_effect(values > percentile(values, percent)) for percent in _REFERENCE_PERCENTS))


def _effect(over: NDArray[np.bool_]) -> float:
    share = float(over.mean())
    if not 0 < share < 1 or len(over) < BATCHES:
        return 1.0
    variance = float(batch_shares(over).var(ddof=1))
    return (len(over) // BATCHES) * variance / (share * (1 - share))


def share_interval(over: float, requests: int, effect: float, alpha: float) -> Interval:
    """The Korn-Graubard interval of a share: Clopper-Pearson on n* = (n/D)·(z/t)² effective requests."""
    effective = _effective(requests, effect, alpha)
    hits = over / requests * effective
    return Interval(
        beta_quantile(alpha, hits, effective - hits + 1),
        beta_quantile(1 - alpha, hits + 1, effective - hits),
    )


def _effective(requests: int, effect: float, alpha: float) -> float:
    """n*, which also pays for the effect being known from K batches only."""
    ratio = normal_quantile(1 - alpha) / student_t_quantile(1 - alpha, BATCHES - 1)
    return requests / effect * ratio**2


def autocorrelation(means: Values) -> float:
    """The lag-1 autocorrelation of batch means; 0 when they do not vary."""
    deviations = means - means.mean()
    total = float(deviations @ deviations)
    return float(deviations[:-1] @ deviations[1:]) / total if total > 0 else 0.0


def judge_share(
    values: Values,
    threshold: float,
    allowed: float,
    alpha: float = ALPHA,
    over: NDArray[np.bool_] | None = None,
) -> ShareJudgement:
    """Whether at most the share `allowed` of requests is over `threshold`, by one look at `values`.

    `values` are latencies in the order of scheduling, infinite where a request failed; `over` replaces the
    comparison with the threshold where something else is counted (failures).
    """
    over = values > threshold if over is None else over
    requests, count = len(values), int(over.sum())
    if requests < FEWEST_TO_FAIL:
        return _too_few(requests, count, alpha)
    effect = design_effect(values, threshold, over)
    bounds = share_interval(count, requests, effect, alpha)
    correlation = autocorrelation(batch_shares(values > percentile(values, 90)))
    decision, reason = _decide(bounds, allowed, correlation)
    if bounds.low > allowed and bool((batch_shares(over) > allowed).all()):
        # However slowly they swing: queues at the limit do this in under 0.6 % of runs, even at load 0.98.
        decision, reason = Decision.FAIL, f"each of {BATCHES} batches is over what is allowed"
    if requests < FIRST_LOOK and decision is not Decision.FAIL:
        decision, reason = Decision.UNDECIDED, f"a PASS takes at least {FIRST_LOOK} requests"
    return ShareJudgement(
        decision, requests, count, count / requests, bounds, effect, correlation, alpha, reason
    )


def _decide(bounds: Interval, allowed: float, correlation: float) -> tuple[Decision, str]:
    if correlation > AUTOCORRELATION_Z / math.sqrt(BATCHES):
        return Decision.UNDECIDED, "latencies swing more slowly than this run can average out"
    if bounds.high <= allowed:
        return Decision.PASS, "even the upper bound is within what is allowed"
    if bounds.low > allowed:
        return Decision.FAIL, "even the lower bound is over what is allowed"
    return Decision.UNDECIDED, "what is allowed lies inside the confidence interval"


def _too_few(requests: int, count: int, alpha: float) -> ShareJudgement:
    share = count / requests if requests else math.nan
    reason = f"{requests} requests are too few to judge by (a PASS takes at least {FIRST_LOOK})"
    return ShareJudgement(
        Decision.UNDECIDED, requests, count, share, Interval(0.0, 1.0), 1.0, 0.0, alpha, reason
    )


def requests_needed(share: float, effect: float, allowed: float, alpha: float) -> int | None:
    """The fewest requests (2500·2^j) that decide if share and design effect stay; None beyond 10^9."""
    requests = FIRST_LOOK
    while requests < MOST_REQUESTS:
        effective = _effective(requests, effect, alpha)
        hits = share * effective
        passes = beta_cdf(allowed, hits + 1, effective - hits) >= 1 - alpha
        if passes or beta_cdf(allowed, hits, effective - hits + 1) < alpha:
            return requests
        requests *= 2
    return None


def look_sizes(requests: int) -> list[int]:
    """The looks of a run of at most `requests`: 2500·2^j, the last one at everything there is."""
    sizes = []
    size = FIRST_LOOK
    while size <= requests:
        sizes.append(size)
        size *= 2
    return [*sizes[:-1], requests] if sizes else []


@dataclass(frozen=True)
class MeanJudgement:
    """What the data say about a mean (of latencies, or of counts per slice of time)."""

    mean: float
    interval: Interval
    autocorrelation: float


def judge_mean(values: Values, alpha: float = ALPHA) -> MeanJudgement:
    """The mean with Student's interval on K batch means (Law, Simulation Modeling and Analysis, 9.5)."""
    if len(values) < BATCHES:
        return MeanJudgement(
            float(values.mean()) if len(values) else math.nan, Interval(-math.inf, math.inf), 0
        )
    size = len(values) // BATCHES
    means = values[: size * BATCHES].reshape(BATCHES, size).mean(axis=1)
    half = student_t_quantile(1 - alpha, BATCHES - 1) * float(means.std(ddof=1)) / math.sqrt(BATCHES)
    mean = float(values.mean())
    return MeanJudgement(mean, Interval(mean - half, mean + half), autocorrelation(means))


@dataclass(frozen=True)
class WarmUp:
    """Where MSER-5 says that a series settles."""

    settled: int
    """d*: how many leading values do not belong to the steady state."""
    stable: bool
    """False when d* is at its limit, half of the series."""


def mser5(values: Values) -> WarmUp:
    """MSER-5: d* = argmin over d ≤ n/2 of Σ_{i>d}(Z_i - Z̄_d)²/(n-d)² on means Z of five.

    White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69, 1997.
    """
    count = len(values) // 5
    if count < 4:  # noqa: PLR2004
        return WarmUp(0, stable=True)
    means = values[: count * 5].reshape(count, 5).mean(axis=1)
    rest = count - np.arange(count // 2 + 1)
    # Suffix sums give every truncation's sum of squares in one pass; centring first keeps their digits.
    centred = means - means.mean()
    sums = np.cumsum(centred[::-1])[::-1][: len(rest)]
    squares = np.cumsum(centred[::-1] ** 2)[::-1][: len(rest)]
    scores = (squares - sums**2 / rest) / rest.astype(float) ** 2
    best = int(np.argmin(scores))
    return WarmUp(best * 5, stable=best < count // 2)


def trend(values: Values) -> float:
    """The Mann-Kendall z of K batch means: beyond ±3.3 they rise or fall from first to last."""
    if len(values) < BATCHES:
        return 0.0
    size = len(values) // BATCHES
    means = values[: size * BATCHES].reshape(BATCHES, size).mean(axis=1)
    score = float(np.sign(means[None, :] - means[:, None])[np.triu_indices(BATCHES, 1)].sum())
    variance = BATCHES * (BATCHES - 1) * (2 * BATCHES + 5) / 18
    return (score - math.copysign(1, score)) / math.sqrt(variance) if score else 0.0


def drifts(values: Values) -> bool:
    """Whether values rise or fall over the whole run, beyond what chance does."""
    return abs(trend(values)) > _TREND_Z
