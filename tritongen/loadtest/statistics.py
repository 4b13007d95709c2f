"""Percentiles, warm-up, and the rule that decides an objective. Pure functions of raw samples.

The rule is built for latencies of a queue, which resemble their neighbours: a binomial test that ignores
this passes what it should not. The share of requests over a limit gets a Korn-Graubard interval (Survey
Methodology 24(2), 1998) on an effective sample size from batch means; looks are few and fixed beforehand, and
share the error probability (alpha spending). A PASS must also survive more of what the worst batch had more
than the others: where few stalls were seen, both their share and their clustering are underrated together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from tritongen.loadtest.correlation import (
    BATCHES,
    FURTHER,
    NOTICED,
    TOO_SLOW,
    Values,
    above_headroom,
    autocorrelations,
    batch_means,
    batch_shares,
    correlation_of,
    swing_cost,
)
from tritongen.loadtest.distributions import beta_cdf, beta_quantile, normal_quantile, student_t_quantile

ALPHA = 0.01
"""Probability of a wrong PASS at the limit, and of a wrong FAIL, over all looks together."""
FIRST_LOOK = 2500
"""The first look, and so the fewest requests that a PASS takes; each later look has twice as many."""
FEWEST_TO_FAIL = 10 * BATCHES
"""A miss may be plain much earlier: simulated queues at the limit fail wrongly in < 0.3 % of such runs."""
MORE_OF_THE_WORST = 1.5
"""Times what the worst batch has more than an average one: so much more may have been missed."""
WORST_OF_A_MEAN = 4.5
"""The same for a mean: simulated queues up to a load of 0.7 then pass wrongly in about 1 % of runs."""
FEW_BURSTS = 24
"""Simulated stalls: with fewer to expect in the first look, a wrong PASS is likelier than promised."""
_BURST_CONFIDENCE = 0.9
MOST_REQUESTS = 10**9
"""Beyond this nobody runs a test."""
_TREND_Z = 3.3
"""One in a thousand for batch means without a trend."""
NEARLY_ALL = 0.9
"""Of the requests of a batch: with so many over a limit, its quickest tenth tells how far that is."""


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
    unseen: float = 0.0
    """How many more requests over the limit a PASS must bear (`unseen_over`)."""


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


def design_effect(values: Values, threshold: float) -> float:
    """How many of these requests tell as much as one independent one, about their share over `threshold`."""
    seen = correlation_of(values, values > threshold)
    return float(seen.effect * swing_cost(seen.lag_1))


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
    seen = correlation_of(above_headroom(values, threshold), over)
    effect, correlation = float(seen.effect), float(seen.lag_1)
    shares = batch_shares(over)
    unseen = float(unseen_over(shares, requests))
    decision = decide_share(
        over=count,
        unseen=unseen,
        requests=requests,
        effect=effect,
        lag_1=correlation,
        allowed=allowed,
        alpha=alpha,
        steady_miss=bool(misses_always(shares, allowed)),
    )
    paid = effect * float(swing_cost(seen.lag_1))
    bounds = Interval(
        share_interval(count, requests, effect, alpha).low,
        share_interval(min(count + unseen, requests), requests, paid, alpha).high,
    )
    within = count <= allowed * requests
    effect = paid if within else effect
    reason = _reason(decision, requests, correlation, within=within)
    return ShareJudgement(
        decision, requests, count, count / requests, bounds, effect, correlation, alpha, reason, unseen
    )


def unseen_over(shares: Values, requests: int) -> Values:
    """How many more requests over the limit there may be than were seen, for want of stalls in the window.

    One and a half times what the worst batch has more than an average one: much where few batches have them
    all, next to nothing where all batches are alike.
    """
    excess = shares.max(axis=-1) - shares.mean(axis=-1)
    return np.asarray(MORE_OF_THE_WORST * excess * (requests // BATCHES))


@dataclass(frozen=True)
class Bursts:
    """Requests over a limit, counted in bursts: those with fewer than half of the usual gap between them."""

    count: int
    largest: int
    """Requests over the limit in the largest one."""
    few: bool
    """Too few to exclude that, more often and longer by what chance does, they were a miss."""


def bursts_of(over: NDArray[np.bool_], allowed: float) -> Bursts:
    """In what bursts requests are over the limit; `few` where a PASS is wrong more often than promised.

    That is where 90 % bounds of both the number of bursts (binomial) and their mean size (exponential, so
    2k/χ²; Wilson and Hilferty's quantile) would take the share beyond what is allowed.
    """
    (hits,) = np.nonzero(over)
    if len(hits) == 0:
        return Bursts(0, 0, few=False)
    # At the share that is allowed, there are 1/allowed requests from one over the limit to the next.
    starts = np.concatenate([[0], np.nonzero(np.diff(hits) > 0.5 / allowed)[0] + 1])
    sizes = np.diff([*starts, len(hits)])
    count = len(sizes)
    often = beta_quantile(_BURST_CONFIDENCE, count + 1, len(over) - count)
    spread = 1 / (9 * count)
    long = len(hits) / count / (1 - spread - normal_quantile(_BURST_CONFIDENCE) * math.sqrt(spread)) ** 3
    few = count < FEW_BURSTS and len(hits) >= 2 * count and often * long > allowed
    return Bursts(count, int(sizes.max()), few=few)


def misses_always(shares: Values, allowed: float) -> NDArray[np.bool_]:
    """Whether most requests of every batch are over the limit: no swing, however slow, explains that.

    For a share q in the long run, no stationary process does this more often than q/c, c = (1 + allowed)/2
    (Markov's inequality); queues even at load 0.98 do it in well under 1 % of runs.
    """
    return np.asarray((shares > (1 + allowed) / 2).all(axis=-1))


def decide_share(
    *,
    over: float,
    unseen: float,
    requests: int,
    effect: float,
    lag_1: float,
    allowed: float,
    alpha: float,
    steady_miss: bool = False,
) -> Decision:
    """The rule: PASS if the upper bound is within what is allowed, FAIL if the lower one is beyond it.

    `over` of the requests are over the limit; a PASS must bear `unseen` more. Slow swings that can be noticed
    cost a PASS effective requests, those too slow for K batches to measure exclude it; either excludes a
    FAIL, unless requests miss all the time (`steady_miss`).
    """
    effective = _effective(requests, effect, alpha)
    hits = over / requests * effective
    if hits / effective > allowed:
        if lag_1 > NOTICED and not steady_miss:
            return Decision.UNDECIDED
        # The Beta quantile at alpha exceeds `allowed`: no more than alpha of it lies below.
        missed = beta_cdf(allowed, hits, effective - hits + 1) < alpha
        return Decision.FAIL if missed else Decision.UNDECIDED
    effective = _effective(requests, effect * float(swing_cost(np.asarray(lag_1))), alpha)
    hits = min(over + unseen, requests) / requests * effective
    enough = requests >= FIRST_LOOK and lag_1 <= TOO_SLOW
    passed = enough and beta_cdf(allowed, hits + 1, effective - hits) >= 1 - alpha
    return Decision.PASS if passed else Decision.UNDECIDED


def _reason(decision: Decision, requests: int, lag_1: float, *, within: bool) -> str:
    if decision is Decision.PASS:
        return "even the upper bound is within what is allowed"
    if decision is Decision.FAIL:
        return "even the lower bound is over what is allowed"
    if within and requests < FIRST_LOOK:
        return f"a PASS takes at least {FIRST_LOOK} requests"
    if lag_1 > (TOO_SLOW if within else NOTICED):
        return "latencies swing more slowly than this run can average out"
    return "what is allowed lies inside the confidence interval"


def _too_few(requests: int, count: int, alpha: float) -> ShareJudgement:
    share = count / requests if requests else math.nan
    reason = f"{requests} requests are too few to judge by (a PASS takes at least {FIRST_LOOK})"
    return ShareJudgement(
        Decision.UNDECIDED, requests, count, share, Interval(0.0, 1.0), 1.0, 0.0, alpha, reason
    )


def confidence(judged: ShareJudgement, allowed: float) -> float:
    """With which confidence the share is within what is allowed, or beyond it, whichever is likelier."""
    effective = _effective(judged.requests, judged.design_effect, judged.alpha)
    if judged.share > allowed:
        hits = judged.share * effective
        return 1 - beta_cdf(allowed, hits, effective - hits + 1)
    hits = min(judged.over + judged.unseen, judged.requests) / judged.requests * effective
    return beta_cdf(allowed, hits + 1, effective - hits)


def fewest_to_pass(allowed: float, alpha: float) -> int:
    """How many independent requests a PASS takes where not one is over the limit: BetaInv(1−α; 1, n*) = p."""
    # Above a half FIRST_LOOK is more; a share that no run can resolve would give a number that is none.
    effective = math.log(alpha) / math.log1p(-min(max(allowed, 1 / MOST_REQUESTS), 0.5))
    return max(FIRST_LOOK, math.ceil(effective / _effective(1, 1.0, alpha)))


def requests_needed(
    share: float, effect: float, allowed: float, alpha: float, unseen: float = 0.0
) -> int | None:
    """The fewest requests (2500·2^j) that decide if share and design effect stay; None beyond 10^9."""
    requests = FIRST_LOOK
    while requests < MOST_REQUESTS:
        decision = decide_share(
            over=share * requests,
            unseen=unseen,
            requests=requests,
            effect=effect,
            lag_1=0.0,
            allowed=allowed,
            alpha=alpha,
        )
        if decision is not Decision.UNDECIDED:
            return requests
        requests *= 2
    return None


@dataclass(frozen=True)
class MeanJudgement:
    """What the data say about a mean (of latencies, or of counts per slice of time)."""

    mean: float
    interval: Interval
    autocorrelation: float


def judge_mean(values: Values, alpha: float = ALPHA, swings: Values | None = None) -> MeanJudgement:
    """The mean with Student's interval on K batch means (Law, Simulation Modeling and Analysis, 9.5).

    That is too narrow where few batches are slow, since a window without them has a low mean and little
    variance as well. So each side is wider by what several more batches like its worst one would change.
    `swings` are the same values above their headroom, for the autocorrelation.
    """
    if len(values) < BATCHES:
        return MeanJudgement(
            float(values.mean()) if len(values) else math.nan, Interval(-math.inf, math.inf), 0
        )
    means = batch_means(values)
    lag_1 = float(autocorrelations(means if swings is None else batch_means(swings)))
    half = student_t_quantile(1 - alpha, BATCHES - 1) * float(means.std(ddof=1)) / math.sqrt(BATCHES)
    mean = float(values.mean())
    more = WORST_OF_A_MEAN / BATCHES
    low = mean - half - more * max(0.0, mean - float(means.min()))
    high = mean + half + more * max(0.0, float(means.max()) - mean)
    return MeanJudgement(mean, Interval(low, high), lag_1)


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
    means = batch_means(values)
    score = float(np.sign(means[None, :] - means[:, None])[np.triu_indices(BATCHES, 1)].sum())
    variance = BATCHES * (BATCHES - 1) * (2 * BATCHES + 5) / 18
    return (score - math.copysign(1, score)) / math.sqrt(variance) if score else 0.0


def drifts(values: Values) -> bool:
    """Whether values rise or fall over the whole run, beyond what chance does."""
    return abs(trend(values)) > _TREND_Z


def falls_towards(values: Values, limit: float) -> bool:
    """Whether even the quickest requests get quicker, so much that ten times as much would keep the limit.

    So does a server that gets warm or works off a backlog. The quickest tenth of each batch is asked, since
    whatever else swings (neighbours, stalls, the sender) hardly moves it.
    """
    size = len(values) // BATCHES
    if not size:
        return False
    rank = min(size - 1, int(size * (1 - NEARLY_ALL)))
    floors = np.sort(values[: size * BATCHES].reshape(BATCHES, size), axis=1)[:, rank]
    first, last = (float(np.median(part)) for part in (floors[: BATCHES // 4], floors[-BATCHES // 4 :]))
    return trend(floors) < -_TREND_Z and last - FURTHER * (first - last) <= limit
