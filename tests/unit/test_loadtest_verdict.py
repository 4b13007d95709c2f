"""Objectives, precedence and reasons, on made-up samples."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tritongen.errors import ExitCode
from tritongen.loadtest import samples
from tritongen.loadtest.evidence import growing_backlog
from tritongen.loadtest.samples import DTYPE, Samples
from tritongen.loadtest.statistics import drifts, percentile
from tritongen.loadtest.summary import warm_up
from tritongen.loadtest.verdict import (
    EXIT_CODES,
    TRUTH_TABLE,
    Evidence,
    Finding,
    decide,
    find,
    judge_objective,
    plain_miss,
    reach_verdict,
)
from tritongen.runs.loadtest import LoadOutcome, Objective, WarmUpResult
from tritongen.slo import parse_slo

SETTLED = WarmUpResult(seconds=1, requests=100, settled_after=0, settled=True)
RATE = 1000.0


def evidence(
    latency_ms: Any, *, lag_ms: Any = 0.0, failed: Any = False, batch_size: int = 1, **changes: Any
) -> Evidence:
    """Requests at 1000/s with these response times."""
    count = len(latency_ms)
    rows = np.zeros(count, DTYPE)
    rows["scheduled_ns"] = np.arange(count) * 1e9 / RATE
    rows["sent_ns"] = rows["scheduled_ns"] + np.broadcast_to(np.asarray(lag_ms) * 1e6, count).astype(np.int64)
    rows["done_ns"] = rows["scheduled_ns"] + (np.asarray(latency_ms) * 1e6).astype(np.int64)
    rows["status"] = np.where(failed, samples.TIMEOUT, samples.OK)
    rows["batch"] = batch_size
    settled = {"rate": RATE, "timeout_ms": 1000.0, "warm_up": SETTLED, **changes}
    return Evidence(Samples(rows), 0, round(count * 1e9 / RATE), batch_size=batch_size, **settled)


def mixed(count: int, slow_share: float, slow_ms: float = 100.0, seed: int = 0) -> Any:
    """Latencies around 5 ms, this share of them slow, in no order."""
    random = np.random.default_rng(seed)
    values = random.uniform(4, 6, count)
    values[random.permutation(count)[: round(slow_share * count)]] = slow_ms
    return values


GOOD = mixed(10_000, 0.002)
BAD = mixed(10_000, 0.05)
BORDER = mixed(10_000, 0.01)
LATE_AT_TIMES = np.where(np.arange(10_000) % 10 == 0, 15.0, 0.01)
P99 = parse_slo("p99<=20ms")


def judge(text: str, seen: Evidence) -> Objective:
    return judge_objective(parse_slo(text), seen)


@pytest.mark.parametrize(
    ("seen", "outcome", "word"),
    [
        (evidence(GOOD), LoadOutcome.PASS, "p99<=20ms"),
        (evidence(BAD), LoadOutcome.FAIL, "p99<=20ms"),
        (evidence(BORDER), LoadOutcome.INVALID, "cannot tell"),
        (evidence(GOOD[:1000]), LoadOutcome.INVALID, "a PASS takes at least 2500"),
        # The server being gone says more than everything else, a late sender more than any latency …
        (evidence(BAD, lag_ms=50, server_gone="refused"), LoadOutcome.ERROR, "stopped answering: refused"),
        (evidence(BAD, lag_ms=50), LoadOutcome.INVALID, "client-limited"),
        (evidence(GOOD, lag_ms=11), LoadOutcome.INVALID, "client-limited"),
        (evidence(GOOD, failed=True), LoadOutcome.ERROR, "not one request"),
        (evidence(GOOD, failed=True, lag_ms=50), LoadOutcome.INVALID, "client-limited"),
        # … but not more than a limit that no answer kept, the lateness taken off …
        (evidence(GOOD + 60, lag_ms=12), LoadOutcome.FAIL, "from the real send"),
        (evidence(GOOD + 60, lag_ms=30), LoadOutcome.INVALID, "client-limited"),
        (evidence(mixed(10_000, 0.9), lag_ms=LATE_AT_TIMES), LoadOutcome.FAIL, "from the real send"),
        (evidence(mixed(10_000, 0.4), lag_ms=LATE_AT_TIMES), LoadOutcome.INVALID, "client-limited"),
        # … a miss more than doubts about how well it was measured …
        (evidence(BAD, stopped=True), LoadOutcome.FAIL, "p99<=20ms"),
        (evidence(GOOD, stopped=True), LoadOutcome.INVALID, "stopped before its time"),
        (
            evidence(GOOD, warm_up=SETTLED.model_copy(update={"settled": False})),
            LoadOutcome.INVALID,
            "not settled",
        ),
        # … and drift says that the run was no steady state, whatever its percentiles are.
        (evidence(GOOD + np.linspace(0, 10, len(GOOD))), LoadOutcome.INVALID, "swing|drift|cannot tell"),
    ],
)
def test_precedence(seen: Evidence, outcome: LoadOutcome, word: str) -> None:
    verdict = reach_verdict(seen, [P99])
    assert verdict.outcome is outcome, verdict
    assert any(any(each in reason for each in word.split("|")) for reason in verdict.reasons), verdict.reasons


def _by_the_book(findings: set[Finding]) -> LoadOutcome:
    """The precedence, said once more and independently of the table."""
    if Finding.SERVER_GONE in findings:
        return LoadOutcome.ERROR
    if Finding.OUT_OF_REACH in findings:
        return LoadOutcome.FAIL
    if Finding.CLIENT_LIMITED in findings:
        return LoadOutcome.INVALID
    if Finding.UNANSWERED in findings:
        return LoadOutcome.ERROR
    if findings & {Finding.MISSED, Finding.OVERLOADED}:
        return LoadOutcome.FAIL
    return LoadOutcome.INVALID if findings else LoadOutcome.PASS


def test_the_whole_truth_table() -> None:
    """Every combination of findings there can be."""
    for size in range(len(Finding) + 1):
        for chosen in itertools.combinations(Finding, size):
            outcome, decisive = decide({finding: [finding.value] for finding in chosen})
            assert outcome is _by_the_book(set(chosen)), chosen
            assert (decisive in chosen) if chosen else decisive is None
    assert [finding for finding, _ in TRUTH_TABLE] == list(Finding)


def test_the_truth_table_is_published() -> None:
    page = (Path(__file__).parents[2] / "docs" / "loadtest.md").read_text(encoding="utf-8").splitlines()
    rows = [f"| {finding.value} | {outcome.value} |" for finding, outcome in TRUTH_TABLE]
    first = page.index(rows[0])
    assert page[first : first + len(rows)] == rows


@pytest.mark.parametrize(
    ("seen", "finding"),
    [
        (evidence(GOOD, server_gone="refused"), Finding.SERVER_GONE),
        (evidence(GOOD, failed=True), Finding.UNANSWERED),
        (evidence(GOOD + 60, lag_ms=12), Finding.OUT_OF_REACH),
        (evidence(GOOD, lag_ms=50), Finding.CLIENT_LIMITED),
        (evidence(BAD), Finding.MISSED),
        (evidence(np.linspace(0, 500, 10_000)), Finding.OVERLOADED),
        (evidence(GOOD, stopped=True), Finding.STOPPED),
        (evidence(BORDER), Finding.UNDECIDED),
        (evidence(GOOD, warm_up=SETTLED.model_copy(update={"settled": False})), Finding.NOT_SETTLED),
        (evidence(GOOD + np.linspace(0, 10, len(GOOD))), Finding.DRIFTING),
    ],
)
def test_each_finding_is_found(seen: Evidence, finding: Finding) -> None:
    slos = [P99]
    assert finding in find(seen, slos, [judge_objective(slo, seen) for slo in slos])


def test_a_late_sender_is_no_excuse_where_most_answers_miss_anyway() -> None:
    slow = GOOD + 60
    slow[5000] = 14
    assert Finding.OUT_OF_REACH in find(evidence(slow, lag_ms=12), [P99], [])
    assert Finding.OUT_OF_REACH not in find(evidence(slow, lag_ms=12), [parse_slo("mean<=20ms")], [])
    slow[5000:6000] = 14
    assert Finding.OUT_OF_REACH not in find(evidence(slow, lag_ms=12), [P99], [])
    verdict = reach_verdict(evidence(GOOD + 60, lag_ms=LATE_AT_TIMES), [P99])
    assert verdict.outcome is LoadOutcome.FAIL
    assert [note[:14] for note in verdict.notes] == ["client-limited"]
    assert "--rate" not in verdict.notes[0]
    # Nor does what few requests were answered say anything, where they may lack the processor that it takes.
    few = np.arange(len(GOOD)) % 3 > 0
    assert Finding.OUT_OF_REACH not in find(evidence(GOOD + 60, failed=few, lag_ms=12), [P99], [])
    # A sender that is in time needs no such rule: the ordinary one says more.
    assert Finding.OUT_OF_REACH not in find(evidence(GOOD + 60), [P99], [])


def test_objectives_share_the_error_probability() -> None:
    verdict = reach_verdict(evidence(GOOD), [P99, parse_slo("p50<=10ms")], alpha=0.01)
    assert [objective.alpha for objective in verdict.objectives] == [0.005, 0.005]


def test_a_pass_from_few_bursts_says_so() -> None:
    latency = np.random.default_rng(6).uniform(4, 6, 12_000)
    assert reach_verdict(evidence(latency), [P99]).notes == ()
    latency[5000:5008] = 100
    verdict = reach_verdict(evidence(latency), [P99])
    assert verdict.outcome is LoadOutcome.PASS
    assert "8 requests over the limit came in one burst" in verdict.notes[0]
    assert "--min-duration" in verdict.notes[0]


def test_latency_swings_do_not_keep_an_error_rate_from_its_verdict() -> None:
    swinging = 10 + 5 * np.sin(np.linspace(0, 6, 10_000)) + np.random.default_rng(2).random(10_000)
    assert judge("error_rate<=1%", evidence(swinging)).outcome == "pass"
    assert judge("p99<=20ms", evidence(swinging)).outcome == "undecided"


def test_means_and_throughputs_have_the_same_headroom() -> None:
    swinging = 10 + 3 * np.sin(np.linspace(0, 6, 10_000)) + np.random.default_rng(2).random(10_000)
    assert judge("mean<=100ms", evidence(swinging)).outcome == "pass"
    assert judge("mean<=13ms", evidence(swinging)).outcome == "undecided"
    closed = evidence(swinging, rate=None)
    rows = closed.samples.rows
    rows["done_ns"] = np.cumsum(swinging) * 1e5  # one after the other: answers per second swing as well
    closed = dataclasses.replace(closed, end_ns=int(rows["done_ns"][-1]))
    assert judge("throughput>=50req/s", closed).outcome == "pass"
    assert judge("throughput>=900req/s", closed).outcome == "undecided"


def test_drift_far_below_every_limit_is_no_matter() -> None:
    rising = evidence(GOOD[GOOD < 10] + np.linspace(0, 10, int((GOOD < 10).sum())))
    assert reach_verdict(rising, [parse_slo("p99<=25ms")]).outcome is LoadOutcome.INVALID
    assert reach_verdict(rising, [parse_slo("p99<=250ms")]).outcome is LoadOutcome.PASS


def test_only_what_more_requests_may_settle_goes_on() -> None:
    assert reach_verdict(evidence(GOOD), [P99]).final
    assert reach_verdict(evidence(BAD), [P99]).final
    assert reach_verdict(evidence(GOOD, lag_ms=50), [P99]).final
    assert not reach_verdict(evidence(BORDER), [P99]).final


def test_one_freeze_in_a_short_run_says_that_it_swings_and_not_that_a_pass_takes_more() -> None:
    latency = mixed(640, 0.0)
    latency[200:310] = np.linspace(2400, 30, 110)
    judged = judge_objective(P99, evidence(latency))
    assert judged.outcome == "undecided"
    assert "swing more slowly than this run can average out" in judged.reason
    assert "confidence if it did not swing" in judged.reason
    assert "a PASS takes" not in judged.reason


def test_freezes_are_neither_warm_up_nor_drift() -> None:
    """Half a second every ten, of a minute at 1000/s: one request in twenty waits a quarter second."""
    clock = np.arange(60_000) / RATE
    latency = np.random.default_rng(3).uniform(4, 6, len(clock)) + 1000 * np.maximum(0, 0.5 - clock % 10)
    seen = evidence(latency)
    settled = warm_up(seen.samples, 0, 5.0, 1000.0)
    assert settled.requests == 5000  # what the clock says, whatever the latencies are
    verdict = reach_verdict(dataclasses.replace(seen, warm_up=settled), [parse_slo("p99<=100ms")])
    assert verdict.outcome is LoadOutcome.FAIL
    assert not drifts(latency)
    assert percentile(seen.samples.between(5 * 10**9, 60 * 10**9).response_ms, 99) > 300
    # A caller that waits for answers meets each freeze once.
    closed = np.full(10_000, 5.0)
    closed[::2000] = 500
    assert percentile(closed, 99) == 5.0


def test_each_outcome_has_its_exit_code() -> None:
    assert {outcome: EXIT_CODES[outcome] for outcome in LoadOutcome} == {
        LoadOutcome.PASS: ExitCode.OK,
        LoadOutcome.MEASURED: ExitCode.OK,
        LoadOutcome.FAIL: ExitCode.MISSED,
        LoadOutcome.INVALID: ExitCode.UNDECIDED,
        LoadOutcome.ERROR: ExitCode.NOT_READY,
    }


def test_one_missed_objective_is_enough() -> None:
    verdict = reach_verdict(evidence(GOOD), [P99, parse_slo("p50<=1ms"), parse_slo("error_rate<=1%")])
    assert verdict.outcome is LoadOutcome.FAIL
    assert [objective.outcome for objective in verdict.objectives] == ["pass", "fail", "pass"]
    assert verdict.reasons[0].startswith("p50<=1ms")


def test_without_objectives_nothing_is_judged() -> None:
    assert reach_verdict(evidence(BAD), []).outcome is LoadOutcome.MEASURED
    assert reach_verdict(evidence(BAD, stopped=True), []).outcome is LoadOutcome.INVALID


def test_a_little_lag_is_the_machine_and_not_the_end() -> None:
    lag = np.zeros(len(GOOD))
    lag[:40] = 30.0
    assert reach_verdict(evidence(GOOD, lag_ms=lag), [P99]).outcome is LoadOutcome.PASS
    lag[:60] = 30.0
    assert reach_verdict(evidence(GOOD, lag_ms=lag), [P99]).outcome is LoadOutcome.INVALID
    assert reach_verdict(evidence(GOOD, lag_ms=lag, rate=None), [P99]).outcome is LoadOutcome.PASS


def test_failed_requests_count_as_over_the_limit() -> None:
    failed = np.zeros(len(GOOD), bool)
    failed[::20] = True
    seen = evidence(np.full(len(GOOD), 1.0), failed=failed)
    judged = judge("p99<=20ms", seen)
    assert judged.outcome == "fail"
    assert judged.measured is None
    assert judged.share_over == 0.05
    assert judge("p50<=20ms", seen).outcome == "pass"


@pytest.mark.parametrize(
    ("text", "failures", "outcome"),
    [
        ("error_rate<=1%", 10, "pass"),
        ("error_rate<=1%", 100, "undecided"),
        ("error_rate<=1%", 300, "fail"),
        ("error_rate<=0", 0, "pass"),
        ("error_rate<=0", 1, "fail"),
    ],
)
def test_error_rates(text: str, failures: int, outcome: str) -> None:
    failed = np.random.default_rng(1).permutation(np.arange(10_000) < failures)
    judged = judge(text, evidence(GOOD, failed=failed))
    assert judged.outcome == outcome
    assert judged.measured == failures / 10_000


def test_no_failure_in_few_requests_proves_nothing() -> None:
    assert judge("error_rate<=0", evidence(GOOD[:100])).outcome == "undecided"


def test_throughput_of_an_open_loop_is_whether_the_schedule_was_completed() -> None:
    assert judge("throughput>=1000req/s", evidence(GOOD)).outcome == "pass"
    assert judge("throughput>=8000/s", evidence(GOOD, batch_size=8)).outcome == "pass"
    failed = np.arange(len(GOOD)) % 100 == 0
    judged = judge("throughput>=1000req/s", evidence(GOOD, failed=failed))
    assert judged.outcome == "fail"
    assert judged.measured == pytest.approx(990)
    assert judge("throughput>=980req/s", evidence(GOOD, failed=failed)).outcome == "pass"


def test_a_growing_backlog_fails_the_schedule() -> None:
    behind = np.linspace(0, 500, 10_000)
    for slo in ("throughput>=1000req/s", "p99<=5s"):
        verdict = reach_verdict(evidence(behind), [parse_slo(slo)])
        assert verdict.outcome is LoadOutcome.FAIL
        assert any("overload" in reason for reason in verdict.reasons)
    assert reach_verdict(evidence(behind), []).notes[0].startswith("overload")


def test_a_slow_server_that_keeps_up_has_no_growing_backlog() -> None:
    """What it works on when the window begins counts from the beginning."""
    slow = evidence(np.full(3000, 2900.0))
    before = slow.samples.rows.copy()
    for name in ("scheduled_ns", "sent_ns", "done_ns"):
        before[name] -= 3 * 10**9
    assert growing_backlog(slow) is not None
    assert growing_backlog(dataclasses.replace(slow, earlier=Samples(before))) is None


def test_a_stall_at_the_end_is_no_growing_backlog() -> None:
    """Even where the little that was unanswered before happened to grow."""
    calm = np.repeat([1.0, 2.0, 3.0, 4.0], 2_500)
    stalled = np.where(np.arange(10_000) >= 9_940, 100.0, calm)
    verdict = reach_verdict(evidence(stalled), [parse_slo("p99<=5s")])
    assert verdict.outcome is LoadOutcome.PASS, verdict.reasons


def test_throughput_of_a_closed_loop_has_an_interval() -> None:
    seen = evidence(np.random.default_rng(3).uniform(1, 20, 10_000), rate=None)
    assert judge("throughput>=900req/s", seen).outcome == "pass"
    assert judge("throughput>=1100req/s", seen).outcome == "fail"
    assert judge("throughput>=1000req/s", seen).outcome == "undecided"


def test_means() -> None:
    seen = evidence(np.random.default_rng(4).exponential(10, 10_000))
    assert judge("mean<=11ms", seen).outcome == "pass"
    assert judge("mean<=9ms", seen).outcome == "fail"
    assert judge("mean<=10ms", seen).outcome == "undecided"
    half_failed = evidence(np.full(10_000, 1.0), failed=np.arange(10_000) % 2 == 0)
    judged = judge("mean<=100ms", half_failed)
    assert judged.outcome == "fail"
    assert judged.measured == pytest.approx(500.5)


def closed_loop(rates: Any) -> Evidence:
    """Half a second of answers at each of these rates (answers/s), one after the other."""
    done_ns = np.concatenate(
        [
            (at + (np.arange(rate // 2) + 0.5) / rate) * 1e9
            for at, rate in zip(np.arange(32) / 2, rates, strict=True)
        ]
    )
    seen = evidence(np.ones(len(done_ns)), rate=None)
    seen.samples.rows["done_ns"] = done_ns
    return dataclasses.replace(seen, end_ns=16_000_000_000)


def test_slow_swings_do_not_hide_a_hopeless_throughput() -> None:
    swinging = closed_loop([1000] * 12 + [1600] * 12 + [1200] * 8)
    for limit in (50_000, 4000):
        assert judge(f"throughput>={limit}/s", swinging).outcome == "fail"
    near = judge("throughput>=2000/s", swinging)
    assert near.outcome == "undecided"
    assert near.high is not None
    assert near.high < 2000
    assert "swings more slowly than this run can average out" in near.reason
    assert judge("throughput>=2000/s", closed_loop([1000, 1600, 1200, 1500] * 8)).outcome == "fail"
    assert judge("mean<=1ms", evidence(np.repeat([40.0, 41.0], 5000))).outcome == "fail"
    assert judge("mean<=35ms", evidence(np.repeat([40.0, 41.0], 5000))).outcome == "undecided"


def test_an_empty_window_is_an_error_and_not_a_crash() -> None:
    verdict = reach_verdict(
        evidence(np.array([])), [P99, parse_slo("mean<=1ms"), parse_slo("error_rate<=1%")]
    )
    assert verdict.outcome is LoadOutcome.ERROR
    stopped = reach_verdict(evidence(np.array([]), stopped=True), [P99, parse_slo("throughput>=1/s")])
    assert stopped.outcome in (LoadOutcome.INVALID, LoadOutcome.FAIL)


def test_only_a_plain_miss_ends_a_run_before_its_first_look() -> None:
    """Most requests of every batch, for good, and so many that no PASS can come any more."""
    slow = mixed(2000, 0.0) + 30
    falling, rising = np.linspace(200, 21, 2000), np.linspace(0, 2000, 2000)
    spell = np.where(np.arange(2000) < 1500, slow, 5)

    def found(values: Any, *slos: str, part: float = 0.05, **changes: Any) -> bool:
        return plain_miss(evidence(values, **changes), [parse_slo(text) for text in slos], 1e-5, part)

    assert found(slow, "p99<=20ms")
    assert found(slow, "p99<=20ms", "p99<=1s", "mean<=1s", "throughput>=10/s")
    assert found(mixed(2000, 0.9), "p99<=20ms")
    assert found(slow, "error_rate<=1%", failed=np.arange(2000) % 10 > 0)
    # What is met so far is not yet decided.
    verdict = reach_verdict(evidence(GOOD + 30, early=True), [P99, parse_slo("p99<=1s")])
    assert [each.outcome for each in verdict.objectives] == ["fail", "undecided"]
    # Where all are over the limit, no stall, drift or late sender is a reason to wait …
    stalled = slow + np.where(np.arange(2000) % 700 < 60, 500.0, 0.0)
    assert found(stalled, "p99<=20ms", warm_up=SETTLED.model_copy(update={"settled": False}))
    assert found(slow + np.linspace(0, 3, 2000) + stalled, "p99<=20ms")
    assert found(stalled + np.where(np.arange(2000) < 70, 20.0, 0.0), "p99<=2ms", lag_ms=LATE_AT_TIMES[:2000])
    # … but it may still get warm, or catch up.
    assert not found(falling, "p99<=20ms", timeout_ms=10_000.0)
    assert not found(rising, "p99<=20ms", timeout_ms=10_000.0)
    assert not found(spell, "p99<=20ms")
    # The rest of the run may outweigh it.
    assert not found(slow, "p99<=20ms", part=0.009)
    assert not found(slow, "p90<=20ms")
    # A miss, but no plain one; none at all; none of the server's.
    assert not found(mixed(2000, 0.3), "p99<=20ms")
    assert not found(mixed(2000, 0.0), "p99<=20ms")
    assert not found(slow, "p99<=20ms", lag_ms=30.0)
    assert not found(slow[:300], "p99<=20ms")
