"""The statistics against brute force, closed forms, SciPy, and simulations with fixed seeds."""

from __future__ import annotations

import math
import statistics as plain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tritongen.loadtest import statistics
from tritongen.loadtest.correlation import BATCHES, NOTICED, above_headroom, swing_cost
from tritongen.loadtest.distributions import beta_cdf, beta_quantile, normal_quantile, student_t_quantile
from tritongen.loadtest.looks import look_sizes
from tritongen.loadtest.statistics import Decision, bursts_of, judge_share

Values = NDArray[np.float64]


def sojourn_times(random: np.random.Generator, count: int, rho: float) -> Values:
    """Response times of an M/M/1 queue in its steady state: mean service 1, P99 = ln 100 / (1 - rho)."""
    if rho == 0:
        return random.exponential(1, count)
    service, gaps = random.exponential(1, count), random.exponential(1 / rho, count)
    first = random.exponential(1 / (1 - rho)) if random.random() < rho else 0.0
    steps = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    # Lindley's recursion, unrolled.
    waits = np.maximum(first + steps, steps - np.minimum.accumulate(steps))
    return np.asarray(waits + service)


def true_p99(rho: float) -> float:
    return math.log(100) / (1 - rho)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([1, 50, 90, 99, 99.9]))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = statistics.percentile(np.array(values), percent)
    enough = [
        value for value in values if 100 * sum(v <= value for v in values) >= percent * len(values) - 1e-6
    ]
    assert found == min(enough)


def test_a_percentile_of_nothing_and_of_failures() -> None:
    assert math.isnan(statistics.percentile(np.array([]), 99))
    assert statistics.percentile(np.array([1.0, math.inf, 2.0]), 99) == math.inf
    assert statistics.percentile(np.array([1.0, math.inf, 2.0]), 50) == 2.0


def test_quantiles_agree_with_scipy() -> None:
    scipy = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    for _ in range(100):
        a, b = 10 ** random.uniform(-1, 5, 2)
        p = random.uniform(1e-4, 1 - 1e-4)
        assert beta_quantile(p, a, b) == pytest.approx(scipy.beta.ppf(p, a, b), rel=1e-8)
    for freedom in (1, 2, 5, 31, 200):
        for p in (0.001, 0.1, 0.5, 0.9, 0.99, 0.99999):
            expected = scipy.t.ppf(p, freedom)
            assert student_t_quantile(p, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)
            assert normal_quantile(p) == pytest.approx(scipy.norm.ppf(p), abs=1e-9)


@settings(max_examples=50)
@given(st.floats(0.001, 0.999), st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_a_beta_quantile_inverts_its_distribution(p: float, a: float, b: float) -> None:
    x = beta_quantile(p, a, b)
    assert 0 <= x <= 1
    if 1e-12 < x < 1 - 1e-9:
        assert beta_cdf(x, a, b) == pytest.approx(p, abs=1e-5)


def test_the_edges_of_the_beta_distribution() -> None:
    assert beta_quantile(0.5, 0, 3) == 0
    assert beta_quantile(0.5, 3, 0) == 1
    for tiny in (1e-300, 1e-17, 1e-14):
        assert beta_quantile(0.01, 3000, tiny) == pytest.approx(1)
        assert beta_quantile(0.99, tiny, 3000) == pytest.approx(0, abs=1e-9)
    # Nothing over in n: the bound is 1 - alpha^(1/n).
    assert beta_quantile(0.99, 1, 500) == pytest.approx(1 - 0.01 ** (1 / 500))


@settings(max_examples=60)
@given(st.lists(st.floats(0, 100), min_size=20, max_size=200))
def test_mser5_minimises_what_it_says(values: list[float]) -> None:
    series = np.array(values)
    found = statistics.mser5(series)
    means = [plain.fmean(values[i : i + 5]) for i in range(0, len(values) - 4, 5)]

    def score(cut: int) -> float:
        rest = means[cut:]
        centre = plain.fmean(rest)
        return sum((z - centre) ** 2 for z in rest) / len(rest) ** 2

    best = min(score(cut) for cut in range(len(means) // 2 + 1))
    assert score(found.settled // 5) == pytest.approx(best, abs=1e-9)
    assert found.stable == (found.settled // 5 < len(means) // 2)


def test_mser5_finds_a_warm_up_and_a_run_that_never_settles() -> None:
    random = np.random.default_rng(3)
    steady = random.exponential(1, 1000)
    slow_start = np.concatenate([steady[:100] + 20, steady])
    assert statistics.mser5(slow_start).settled == pytest.approx(100, abs=10)
    rising = steady + np.linspace(0, 50, 1000)
    assert not statistics.mser5(rising).stable


def test_the_design_effect_by_hand() -> None:
    random = np.random.default_rng(5)
    values = random.exponential(1, 3205)
    size = len(values) // BATCHES
    effects = [1.0]
    for threshold in (4.0, *(statistics.percentile(values, p) for p in (80, 90, 95))):
        over = values > threshold
        shares = [float(over[i * size : (i + 1) * size].mean()) for i in range(BATCHES)]
        p = float(over.mean())
        effects.append(size * plain.variance(shares) / (p * (1 - p)))
    assert statistics.design_effect(values, 4.0) == pytest.approx(max(effects))


def test_correlated_latencies_have_a_larger_design_effect() -> None:
    random = np.random.default_rng(6)
    effects = [
        np.mean(
            [statistics.design_effect(sojourn_times(random, 5000, rho), true_p99(rho)) for _ in range(20)]
        )
        for rho in (0, 0.5, 0.8)
    ]
    assert effects[0] < 2.5
    assert effects == sorted(effects)
    assert effects[2] > 5


@given(
    st.integers(2500, 50_000),
    st.integers(0, 500),
    st.floats(1, 30),
    st.floats(0.001, 0.2),
    st.floats(0.0001, 0.1),
)
@settings(max_examples=50)
def test_intervals_hold_the_seen_share_and_widen_with_the_design_effect(
    requests: int, over: int, effect: float, alpha: float, more: float
) -> None:
    bounds = statistics.share_interval(over, requests, effect, alpha)
    assert 0 <= bounds.low <= over / requests <= bounds.high <= 1
    wider = statistics.share_interval(over, requests, effect * (1 + more), alpha)
    assert wider.high >= bounds.high
    assert wider.low <= bounds.low


@pytest.mark.parametrize(
    ("exceeding", "expected"),
    [(0.0, Decision.PASS), (0.005, Decision.PASS), (0.01, Decision.UNDECIDED), (0.02, Decision.FAIL)],
)
def test_clear_cases_are_decided(exceeding: float, expected: Decision) -> None:
    values = np.random.default_rng(8).permutation(np.arange(10_000) / 10_000)
    judged = judge_share(values, 1 - exceeding - 1e-9, 0.01)
    assert judged.decision is expected
    assert judged.over == round(10_000 * exceeding)


def test_too_few_requests_never_decide() -> None:
    for values in (np.zeros(2499), np.zeros(319), np.full(319, math.inf), np.array([])):
        judged = judge_share(values, 1.0, 0.01)
        assert judged.decision is Decision.UNDECIDED
        assert "at least 2500" in judged.reason
    assert judge_share(np.zeros(2500), 1.0, 0.01).decision is Decision.PASS
    assert judge_share(np.full(320, math.inf), 1.0, 0.01).decision is Decision.FAIL


def test_more_requests_are_asked_for_when_the_limit_is_near() -> None:
    near = statistics.requests_needed(0.008, 1.0, 0.01, 0.01)
    far = statistics.requests_needed(0.002, 1.0, 0.01, 0.01)
    correlated = statistics.requests_needed(0.002, 8.0, 0.01, 0.01)
    assert far is not None
    assert correlated is not None
    assert near is not None
    assert far <= correlated <= near
    assert statistics.requests_needed(0.01, 1.0, 0.01, 0.01) is None


def test_slow_swings_are_never_decided() -> None:
    """A server that is slow for the second half of a run: no figure describes it."""
    values = np.concatenate([np.zeros(2500), np.ones(2500)]) + np.random.default_rng(2).random(5000) / 10
    judged = judge_share(values, 5.0, 0.01)
    assert judged.decision is Decision.UNDECIDED
    assert "swing" in judged.reason
    assert statistics.drifts(values)
    assert not statistics.drifts(np.random.default_rng(2).random(5000))


def test_looks() -> None:
    assert look_sizes(2499) == []
    assert look_sizes(2500) == [2500]
    assert look_sizes(12_000) == [2500, 5000, 12_000]


def test_swings_do_not_hide_a_miss_that_never_stops() -> None:
    swinging = 100 + 50 * np.sin(np.linspace(0, 6, 5000)) + np.random.default_rng(2).random(5000)
    judged = judge_share(swinging, 20.0, 0.01)
    assert judged.autocorrelation > 0.5
    assert judged.decision is Decision.FAIL
    assert judge_share(swinging, 145.0, 0.01).decision is Decision.UNDECIDED
    random = np.random.default_rng(19)
    runs = [judge_share(sojourn_times(random, 1000, 0.98), true_p99(0.98), 0.01) for _ in range(300)]
    assert sum(judged.decision is Decision.FAIL for judged in runs) <= 6


def test_swings_far_below_the_limit_do_not_matter() -> None:
    swinging = 10 + 5 * np.sin(np.linspace(0, 6, 5000)) + np.random.default_rng(2).random(5000)
    assert judge_share(swinging, 20.0, 0.01).decision is Decision.UNDECIDED
    assert judge_share(swinging, 200.0, 0.01).decision is Decision.PASS
    swinging[7] = math.inf
    assert judge_share(swinging, 200.0, 0.01).decision is Decision.PASS
    random = np.random.default_rng(23)
    passed = 0
    for _ in range(200):
        values = sojourn_times(random, 2500, 0.9)
        passed += judge_share(values, true_p99(0.9), 0.01).decision is Decision.PASS
    assert passed <= 4


@given(st.lists(st.floats(0, 1000), min_size=64, max_size=300), st.floats(1, 1000))
@settings(max_examples=60)
def test_headroom_takes_away_only_what_lies_below_a_third_of_the_limit(
    values: list[float], limit: float
) -> None:
    series = np.array(values)
    seen = above_headroom(series, limit)
    assert (np.array_equal(seen, series)) or (np.array_equal(seen, np.maximum(series, limit / 3)))
    assert np.array_equal(series > limit, seen > limit)
    size = len(values) // BATCHES
    parts = [values[i * size : (i + 1) * size] for i in range(BATCHES)]
    means = [plain.fmean(min(v, limit) for v in part) for part in parts]
    reach = max(means) + 10 * (max(means) - min(means))
    if abs(reach - limit) > 1e-6 * limit:
        assert np.array_equal(seen, np.maximum(series, limit / 3) if reach <= limit else series)


def test_swings_cost_what_an_autoregression_says() -> None:
    assert float(swing_cost(np.asarray(0.1))) == 1.0
    assert float(swing_cost(np.asarray(0.5 - 1 / BATCHES))) == pytest.approx(3)
    assert float(swing_cost(np.asarray(1.0))) == pytest.approx(19)


def test_few_bursts_are_told_from_many_and_from_single_requests() -> None:
    over = np.zeros(12_000, bool)
    assert not bursts_of(over, 0.01).few
    over[3000:3008] = True
    seen = bursts_of(over, 0.01)
    assert (seen.count, seen.largest, seen.few) == (1, 8, True)
    over[3008:3100:30] = True  # with gaps that are short against 1 %
    assert bursts_of(over, 0.01).count == 1
    singles = np.arange(12_000) % 400 == 0
    assert (bursts_of(singles, 0.01).count, bursts_of(singles, 0.01).few) == (30, False)
    often = np.arange(12_000) % 400 < 2
    assert not bursts_of(often, 0.01).few


def test_the_obvious_rule_is_as_wrong_as_that() -> None:
    """Why there is a rule of our own: the binomial test passes a queue that it should not."""
    random = np.random.default_rng(70)
    passed = 0
    for _ in range(100):
        values = sojourn_times(random, 5000, 0.7)
        over = int((values > true_p99(0.7)).sum())
        passed += beta_quantile(0.99, over + 1, 5000 - over) <= 0.01
    assert passed > 10


@pytest.mark.parametrize(("rho", "requests"), [(0.0, 5000), (0.5, 40_000)])
def test_a_server_that_keeps_its_promise_gets_a_pass(rho: float, requests: int) -> None:
    """At half of the allowed share: most runs of this length decide."""
    random = np.random.default_rng(11)
    limit = math.log(200) / (1 - rho)
    passed = sum(
        judge_share(sojourn_times(random, requests, rho), limit, 0.01).decision is Decision.PASS
        for _ in range(40)
    )
    assert passed >= 24


def test_the_interval_of_a_percentile_covers_it() -> None:
    random = np.random.default_rng(12)
    covered = 0
    for _ in range(100):
        bounds = statistics.percentile_interval(sojourn_times(random, 20_000, 0.5), 99)
        covered += bounds.low <= true_p99(0.5) <= bounds.high
    assert covered >= 88


@pytest.mark.parametrize("rho", [0.5, 0.7])
def test_a_mean_at_its_limit_hardly_ever_passes(rho: float) -> None:
    random = np.random.default_rng(17)
    limit = 1 / (1 - rho)
    judged = [statistics.judge_mean(sojourn_times(random, 5000, rho)) for _ in range(400)]
    passed = sum(each.interval.high <= limit and each.autocorrelation <= NOTICED for each in judged)
    assert passed <= 8


def test_the_interval_of_a_mean_covers_it_and_failures_do_not_break_it() -> None:
    random = np.random.default_rng(13)
    covered = sum(
        (bounds := statistics.judge_mean(sojourn_times(random, 20_000, 0.5), 0.025).interval).low
        <= 2
        <= bounds.high
        for _ in range(100)
    )
    assert covered >= 88
    assert math.isinf(statistics.judge_mean(np.ones(10)).interval.high)
    assert math.isnan(statistics.judge_mean(np.array([])).mean)
