"""Wrong verdicts where the truth lies exactly at the limit are as rare as promised; fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from tritongen.loadtest.distributions import beta_quantile
from tritongen.loadtest.simulation import (
    Outcomes,
    Process,
    independent,
    md1_wait_cdf,
    queue,
    stalls,
    swings_below,
    try_early,
    try_rule,
)

RUNS = 2000
PROMISE = 0.01
BAND = beta_quantile(0.995, PROMISE * RUNS + 1, RUNS * (1 - PROMISE))
"""The upper end of the 99 % band of 1 % over this many runs."""
DOUBLING = (2500, 5000, 10_000)
MINUTE = (12_000, 24_000)
"""200 requests/s from the default minimum of a minute on: a stall in 2.5 s on average is 24 stalls."""
QUEUES = [queue(service, rho) for service in ("M", "D") for rho in (0.5, 0.7, 0.9)]


def judge(process: Process, share: float, looks: tuple[int, ...], runs: int) -> Outcomes:
    random = np.random.default_rng(2026)
    chunk = 4_000_000 // looks[-1]
    parts = [
        try_rule(process, share, looks, min(chunk, runs - start), random) for start in range(0, runs, chunk)
    ]
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


@pytest.mark.parametrize(
    ("process", "looks"),
    [(process, DOUBLING) for process in [independent(), *QUEUES]]
    + [(process, MINUTE) for process in (stalls(2, 200), stalls(5, 500), swings_below(5, 500))],
    ids=lambda value: value.name if isinstance(value, Process) else "",
)
def test_wrong_verdicts_at_the_limit_are_as_rare_as_promised(
    process: Process, looks: tuple[int, ...]
) -> None:
    seen = judge(process, PROMISE, looks, RUNS)
    assert seen.runs == RUNS
    assert sum(seen.passed) / RUNS <= BAND
    assert sum(seen.failed) / RUNS <= BAND


@pytest.mark.parametrize("process", [independent(), *QUEUES], ids=lambda process: process.name)
@pytest.mark.parametrize("requests", [320, 1250])
def test_a_quick_miss_is_hardly_ever_a_wrong_one(process: Process, requests: int) -> None:
    seen = judge(process, PROMISE, (requests,), RUNS)
    assert sum(seen.failed) / RUNS <= BAND
    assert sum(seen.passed) == 0


@pytest.mark.parametrize("process", [*QUEUES, stalls(5, 500)], ids=lambda process: process.name)
def test_a_plain_miss_before_the_first_look_is_next_to_never_a_wrong_one(process: Process) -> None:
    seen = try_early(process, PROMISE, (1500, 3000), RUNS, np.random.default_rng(2026))
    assert sum(seen.failed) / RUNS <= BAND / 5


@pytest.mark.parametrize("share", [0.005, 0.02])
def test_clear_cases_are_decided_rightly(share: float) -> None:
    seen = judge(independent(), share, (2500, 5000, 10_000, 20_000), 200)
    right, wrong = (seen.passed, seen.failed) if share < PROMISE else (seen.failed, seen.passed)
    assert sum(right) >= 190
    assert sum(wrong) == 0


def test_swings_far_below_the_limit_do_not_keep_a_healthy_server_from_its_pass() -> None:
    seen = judge(swings_below(2, 2000), 0.001, MINUTE, 200)
    assert sum(seen.passed) >= 190


def test_a_very_slow_queue_is_not_taken_for_one_with_headroom() -> None:
    """At a load of 0.98, 2500 requests are a quarter of the time in which the queue forgets."""
    seen = judge(queue("M", 0.98), PROMISE, (2500,), RUNS)
    assert sum(seen.passed) / RUNS <= 2 * BAND


@pytest.mark.parametrize("process", [independent(), *QUEUES, stalls(5, 500)], ids=lambda each: each.name)
@pytest.mark.parametrize("share", [0.005, 0.01, 0.02])
def test_the_limits_are_where_they_claim_to_be(process: Process, share: float) -> None:
    values = process.draw(np.random.default_rng(4), 200, 10_000)
    assert float((values > process.limit(share)).mean()) == pytest.approx(share, rel=0.2)


def test_the_waits_of_constant_service() -> None:
    # P(W = 0) = 1 - rho, and the mean wait is rho / (2 (1 - rho)).
    assert md1_wait_cdf(0.7, 0) == pytest.approx(0.3)
    mean = 0.05 * sum(1 - md1_wait_cdf(0.7, (step + 0.5) / 20) for step in range(400))
    assert mean == pytest.approx(0.7 / 0.6, rel=0.01)
