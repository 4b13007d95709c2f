"""Runs that end when they can tell, and the search for the highest rate, on real sockets."""

from __future__ import annotations

import json
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kserve import MODEL, Act, NullServer, freezing
from tritongen.cli import run
from tritongen.loadtest.peak import find_max
from tritongen.loadtest.run import run_load_test
from tritongen.loadtest.settings import Settings
from tritongen.runs.events import Event
from tritongen.runs.loadtest import LoadOutcome, LoadReport
from tritongen.runs.peak import PeakReport
from tritongen.slo import parse_slo

PAGE = Path(__file__).parents[2] / "docs" / "loadtest.md"


def load(url: str, slo: str, **settings: Any) -> LoadReport:
    wanted: dict[str, Any] = {
        "rate": 500,  # a PASS takes 2500 requests; at more a second a busy machine may be late with them
        "duration_s": 60.0,
        "min_duration_s": 1.0,
        "warmup_s": 0.5,
        "timeout_s": 10.0,
        **settings,
    }
    return run_load_test(Settings(MODEL, url, slos=(parse_slo(slo),), **wanted))


def test_a_clear_pass_ends_the_run_early() -> None:
    with NullServer() as server:
        report = load(server.http_url, "p99<=9s")
    assert report.outcome is LoadOutcome.PASS, report.reasons
    assert report.window_s < 40
    assert report.requests >= 2499
    assert len(report.looks) >= 1
    assert report.looks[-1].outcome is LoadOutcome.PASS
    assert report.objectives[0].alpha < 0.01
    assert not report.partial
    # The claim is about the requests until the look; what was sent meanwhile is not in it.
    assert report.requests == report.answered


@pytest.mark.parametrize(
    ("delay_s", "mode"),
    [(1.0, {"min_duration_s": 10}), (0.2, {"concurrency": 100, "rate": None, "timeout_s": 0.5})],
)
def test_a_clear_miss_ends_the_run_early(delay_s: float, mode: dict[str, Any]) -> None:
    with NullServer(lambda _number, _elapsed: Act(delay_s=delay_s)) as server:
        settings = {"min_duration_s": 3.0, "max_in_flight": 2000, **mode}
        report = load(server.http_url, f"p99<={delay_s / 2}s", **settings)
    assert report.outcome is LoadOutcome.FAIL, report.reasons
    # Also before the shortest window that may decide, where it is plain.
    assert report.window_s == pytest.approx(5 if "min_duration_s" in mode else 3, abs=0.1)
    assert report.objectives[0].alpha < 0.01


def test_what_stays_undecided_is_followed_to_the_end_and_no_further() -> None:
    def borderline(number: int, _elapsed_s: float) -> Act:
        return Act(delay_s=1.6 if number % 100 == 7 else 0.0)

    events: list[Event] = []
    with NullServer(borderline) as server:
        settings = Settings(
            MODEL,
            server.http_url,
            rate=500,
            slos=(parse_slo("p99<=1.4s"),),
            duration_s=8.0,
            min_duration_s=1.0,
            warmup_s=1.0,
        )
        report = run_load_test(settings, events=events.append)
    assert report.outcome is LoadOutcome.INVALID
    assert report.window_s == 7.0
    assert len(report.looks) == 2
    helps = ("--max-duration", "too close to the limit", "a quieter machine or a looser limit")
    assert any(words in report.reasons[0] for words in helps), report.reasons
    assert any("not decided yet" in event.message for event in events if event.status == "note")
    assert any(event.data.get("rate") for event in events if event.status == "progress")


def test_freezes_show_in_the_open_loop_only_and_nothing_takes_them_away() -> None:
    """The reason for open loops: a caller that waits for answers sends next to nothing into a freeze."""
    settings: dict[str, Any] = {"duration_s": 6.0, "min_duration_s": None, "warmup_s": 0.5, "timeout_s": 5.0}
    with NullServer(freezing(2.5, 0.5)) as server, ThreadPoolExecutor() as pool:
        tests = [
            pool.submit(load, server.http_url, "p99<=100ms", **mode, **settings)
            for mode in ({"rate": 300}, {"rate": None, "concurrency": 1})
        ]
        opened, closed = (test.result() for test in tests)
    assert (opened.response_ms.percentiles["p99"] or 0) > 300
    assert (opened.response_ms.percentiles["p90"] or 0) > 20
    assert opened.outcome is not LoadOutcome.PASS
    assert (closed.response_ms.percentiles["p99"] or 0) < 100
    assert (closed.response_ms.maximum or 0) > 300
    # Nothing but the announced warm-up is left out, and the freezes are no drift.
    assert opened.warm_up.seconds == 0.5
    assert sum(point.rate for point in opened.series) == pytest.approx(
        opened.requests + opened.warm_up.requests, rel=0.01
    )
    assert not any("drift" in reason for reason in opened.reasons)


def test_the_highest_rate_of_a_server_that_drowns_beyond_750_a_second() -> None:
    taken: deque[float] = deque()

    def at_most(_number: int, elapsed_s: float) -> Act:
        while taken and taken[0] < elapsed_s - 2:
            taken.popleft()
        taken.append(elapsed_s)
        return Act(delay_s=0.0 if len(taken) < 1500 else 4.0)

    with NullServer(at_most) as server:
        settings = Settings(
            MODEL,
            server.http_url,
            rate=500,
            slos=(parse_slo("p99<=3s"),),
            duration_s=6.0,
            warmup_s=0.5,
            max_in_flight=20_000,
        )
        report = find_max(settings, tolerance=1.0)
    assert report.outcome is LoadOutcome.PASS, report
    assert (report.passed, report.failed) == (500, 1000)
    assert report.confirmed
    assert [probe.confirms for probe in report.probes] == [False, False, True]


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"x.{name}" for name in ("npz", "xml", "prom", "json")}
    flags = ["--duration", "1s", "--warmup", "200ms", "--rate", "50", "--p99-ms", "500"]
    flags += ["--samples", str(files["npz"]), "--junit", str(files["xml"])]
    flags += ["--prometheus", str(files["prom"]), "--json", str(files["json"])]
    with NullServer() as server:
        assert run(["loadtest", MODEL, "--url", server.http_url, *flags]) == 4
        search = ["--find-max", "--duration", "1s", "--rate", "20", "--p99-ms", "500"]
        search += ["--json", str(tmp_path / "p.json"), "--svg", str(tmp_path / "p.svg")]
        shown = capsys.readouterr().out
        assert run(["loadtest", MODEL, "--url", server.http_url, *search]) == 4
    assert shown.rstrip().splitlines()[-1].startswith("INVALID")
    report = LoadReport.model_validate_json(files["json"].read_text())
    with np.load(files["npz"]) as arrays:
        assert len(arrays["status"]) == report.requests + report.warm_up.requests
    assert "<testsuites" in files["xml"].read_text()
    assert "tritongen_loadtest_outcome" in files["prom"].read_text()
    peak = PeakReport.model_validate_json((tmp_path / "p.json").read_text())
    assert peak.passed is None
    assert "too few for a verdict" in peak.reason
    assert json.loads((tmp_path / "p.json").read_text())["schema"] == "tritongen/peak/1"
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


def test_the_python_of_the_page_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    with NullServer() as server:
        ready = code.replace("http://127.0.0.1:8000", server.http_url).replace('"digits"', f'"{MODEL}"')
        ready = ready.replace("duration_s=300", "duration_s=2").replace(
            "min_duration_s=60", "min_duration_s=1"
        )
        found: dict[str, Any] = {}
        exec(compile(ready, str(PAGE), "exec"), found)  # noqa: S102
    assert isinstance(found["report"], LoadReport)
    assert found["report"].answered > 0
