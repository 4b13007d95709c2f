"""The search for the highest rate, on simulated servers in virtual time."""

from __future__ import annotations

import numpy as np
import pytest

from tritongen.loadtest.peak import knee, make_peak_report
from tritongen.loadtest.search import MOST_PROBES, ProbeRequest, find_peak
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.simulation import Service, queue
from tritongen.loadtest.statistics import Decision, judge_share
from tritongen.report.peak import curve_svg, render
from tritongen.runs.loadtest import LoadOutcome
from tritongen.runs.peak import PeakProbe, PeakReport
from tritongen.slo import parse_slo

OUTCOMES = {
    Decision.PASS: LoadOutcome.PASS,
    Decision.FAIL: LoadOutcome.FAIL,
    Decision.UNDECIDED: LoadOutcome.INVALID,
}


def answer(request: ProbeRequest, outcome: LoadOutcome, **changes: object) -> PeakProbe:
    fields: dict[str, object] = {"reason": "", "requests": 10_000, **changes}
    return PeakProbe.model_validate(
        {
            "rate": request.rate,
            "outcome": outcome,
            "alpha": request.alpha,
            "seed": request.seed,
            "confirms": request.confirms,
            **fields,
        }
    )


class VirtualServer:
    """An M/M/1 or M/D/1 server that serves `mu` requests a second; a probe looks at 2500·2^j of them."""

    def __init__(self, service: Service, mu: float, limit_ms: float, most: int = 2_560_000) -> None:
        self.service, self.mu, self.limit_ms, self.most = service, mu, limit_ms, most

    def probe(self, request: ProbeRequest) -> PeakProbe:
        random = np.random.default_rng(request.seed + 77)
        rho = request.rate / self.mu
        if rho >= 0.99:
            return answer(request, LoadOutcome.FAIL, reason="overload")
        looks = [int(self.most / 2**j) for j in range(10, -1, -1)]
        values = queue(self.service, rho).draw(random, 1, self.most)[0] * 1000 / self.mu
        for look in looks:
            judged = judge_share(values[:look], self.limit_ms, 0.01, request.alpha / len(looks))
            if judged.decision is not Decision.UNDECIDED:
                break
        p99 = float(np.percentile(values[: judged.requests], 99))
        return answer(request, OUTCOMES[judged.decision], p99_ms=p99, requests=judged.requests)


@pytest.mark.parametrize(
    ("service", "rho", "start"),
    [
        ("M", 0.35, 50),
        ("M", 0.5, 1200),
        ("M", 0.7, 333),
        ("M", 0.85, 50),
        ("D", 0.1, 333),
        ("D", 0.23, 50),
        ("D", 0.5, 33),
        ("D", 0.85, 333),
    ],
)
def test_the_peak_is_within_five_percent_of_the_truth(service: Service, rho: float, start: float) -> None:
    truth = 1000 * rho
    server = VirtualServer(service, 1000, queue(service, rho).limit(0.01))
    peak = find_peak(server.probe, start, tolerance=0.05)
    assert peak.passed is not None
    assert peak.failed is not None
    assert peak.confirmed
    assert peak.passed <= truth <= peak.failed * 1.0001
    assert peak.passed >= truth * 0.95
    assert peak.failed <= truth * 1.05


def test_where_latency_hardly_depends_on_the_rate_the_bracket_is_wider_but_holds() -> None:
    """At a load of 0.23, a rate 5 % lower has 7 % fewer requests over the limit: hardly to be told."""
    server = VirtualServer("M", 1000, queue("M", 0.23).limit(0.01))
    peak = find_peak(server.probe, 333, tolerance=0.05)
    assert peak.confirmed
    assert peak.passed is not None
    assert peak.failed is not None
    assert 0.9 * 230 <= peak.passed <= 230 <= peak.failed <= 1.1 * 230


def sharp(limit: float) -> object:
    """Passes up to a rate and fails beyond it, with certainty."""

    def probe(request: ProbeRequest) -> PeakProbe:
        outcome = LoadOutcome.PASS if request.rate <= limit else LoadOutcome.FAIL
        return answer(request, outcome, p99_ms=5 / (1.02 - min(request.rate / limit, 1)))

    return probe


@pytest.mark.parametrize("start", [1.0, 99.0, 1000.0, 6000.0])
def test_halving_doubling_and_bisecting(start: float) -> None:
    peak = find_peak(sharp(100.0), start)  # type: ignore[arg-type]
    assert peak.confirmed
    assert peak.passed is not None
    assert peak.failed is not None
    assert peak.passed <= 100 < peak.failed <= peak.passed * 1.05
    assert "--max-duration" not in peak.reason
    assert all(probe.alpha == 0.01 / MOST_PROBES for probe in peak.probes if not probe.confirms)
    seeds = [probe.seed for probe in peak.probes]
    assert len(set(seeds)) == len(seeds)


def test_nothing_passes() -> None:
    peak = find_peak(lambda request: answer(request, LoadOutcome.FAIL), 100)
    assert peak.passed is None
    assert not peak.confirmed
    assert "nothing passed" in peak.reason


def test_an_undecided_probe_inside_the_bracket_ends_the_bisection() -> None:
    def probe(request: ProbeRequest) -> PeakProbe:
        if request.rate <= 100:
            return answer(request, LoadOutcome.PASS)
        return answer(request, LoadOutcome.FAIL if request.rate >= 145 else LoadOutcome.INVALID)

    peak = find_peak(probe, 100)
    assert peak.passed == pytest.approx(100)
    # Closer on either side of the undecided one at 141 requests/s.
    assert peak.failed == pytest.approx(2**0.5 * 105)
    assert "inside the bracket" in peak.reason
    assert "known only to within 48%: longer probes (--max-duration)" in peak.reason
    assert peak.confirmed


def test_a_sender_at_its_limit_ends_the_search_without_an_upper_end() -> None:
    def probe(request: ProbeRequest) -> PeakProbe:
        if request.rate <= 100:
            return answer(request, LoadOutcome.PASS)
        return answer(request, LoadOutcome.INVALID, client_limited=True, reason="client-limited: …")

    peak = find_peak(probe, 100)
    assert (peak.passed, peak.failed) == (100, None)
    assert "own limit" in peak.reason


def test_a_peak_that_does_not_pass_twice_moves_down() -> None:
    def probe(request: ProbeRequest) -> PeakProbe:
        limit = 80 if request.confirms else 100
        return answer(request, LoadOutcome.PASS if request.rate <= limit else LoadOutcome.FAIL)

    peak = find_peak(probe, 70)
    assert not peak.confirmed or (peak.passed or 0) <= 80
    assert (peak.failed or 0) <= 100


def test_a_confirmation_that_cannot_tell_is_tried_a_little_lower() -> None:
    def probe(request: ProbeRequest) -> PeakProbe:
        if request.confirms and request.rate > 95:
            return answer(request, LoadOutcome.INVALID)
        return answer(request, LoadOutcome.PASS if request.rate <= 100 else LoadOutcome.FAIL)

    peak = find_peak(probe, 70)
    assert peak.confirmed
    assert 95 / 1.05 <= (peak.passed or 0) <= 95
    assert (peak.failed or 0) >= 100


@pytest.mark.parametrize("outcome", [LoadOutcome.ERROR, LoadOutcome.INVALID])
def test_a_confirmation_that_cannot_be_run_ends_the_search(outcome: LoadOutcome) -> None:
    def probe(request: ProbeRequest) -> PeakProbe:
        if request.confirms:
            return answer(request, outcome, reason="the server died", requests=100)
        return answer(request, LoadOutcome.PASS if request.rate <= 100 else LoadOutcome.FAIL)

    peak = find_peak(probe, 70)
    assert not peak.confirmed
    assert ("the server died" if outcome is LoadOutcome.ERROR else "no confirmation") in peak.reason


@pytest.mark.parametrize("stops_at", [1, 2, 5, 100])
def test_a_search_that_is_stopped_keeps_what_it_has_found(stops_at: int) -> None:
    count = 0

    def probe(request: ProbeRequest) -> PeakProbe | None:
        nonlocal count
        count += 1
        if count > stops_at or request.confirms:
            return None
        return answer(request, LoadOutcome.PASS if request.rate <= 100 else LoadOutcome.FAIL)

    peak = find_peak(probe, 70)
    assert peak.stopped
    assert not peak.confirmed
    assert peak.passed is not None
    assert len(peak.probes) <= stops_at
    assert peak.reason == "stopped by the user"
    found = make_peak_report(Settings("m"), peak, "now")
    assert (found.partial, found.outcome) == (True, LoadOutcome.INVALID)
    assert "stopped by the user" in render(found)


def test_a_server_that_goes_away_ends_the_search_at_once() -> None:
    seen: list[ProbeRequest] = []

    def probe(request: ProbeRequest) -> PeakProbe:
        seen.append(request)
        if request.rate > 100:
            return answer(request, LoadOutcome.ERROR, reason="the server stopped answering")
        return answer(request, LoadOutcome.PASS)

    peak = find_peak(probe, 70)
    assert (peak.passed, peak.confirmed) == (70, False)
    assert [request.rate for request in seen] == [70, 140]
    assert peak.reason == "at 140 requests/s: the server stopped answering"


def report() -> PeakReport:
    settings = Settings("m", slos=[parse_slo("p99<=20ms")])
    return make_peak_report(settings, find_peak(sharp(100.0), 10), "now")  # type: ignore[arg-type]


def test_the_report_shows_bracket_curve_and_knee() -> None:
    found = report()
    assert found.outcome is LoadOutcome.PASS
    assert found.knee is not None
    assert 20 < found.knee <= 105
    text = render(found)
    assert text.splitlines()[-1].startswith("PASS: ")
    assert "knee" in text
    assert PeakReport.model_validate_json(found.model_dump_json(by_alias=True)) == found
    svg = curve_svg(found)
    assert svg.startswith("<svg")
    assert svg.count("<circle") == len({probe.rate for probe in found.probes if not probe.confirms})


def test_a_knee_needs_three_points() -> None:
    assert knee(report().probes[:1]) is None
