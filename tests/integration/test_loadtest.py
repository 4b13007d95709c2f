"""Load tests against a server of our own on real sockets: one that behaves, and many that do not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kserve import MODEL, Act, Behaviour, NullServer
from tritongen.cli import run
from tritongen.errors import InputError, ServerError
from tritongen.loadtest.run import run_load_test
from tritongen.loadtest.settings import Settings
from tritongen.runs.events import Event, EventSink, discard
from tritongen.runs.loadtest import LoadOutcome, LoadReport
from tritongen.slo import parse_slo

SHORT: dict[str, Any] = {"duration_s": 1.0, "warmup_s": 0.1, "batch_size": 1}


def load(url: str, *slos: str, events: EventSink = discard, **settings: Any) -> LoadReport:
    wanted = {**SHORT, **settings}
    return run_load_test(Settings(MODEL, url, slos=tuple(map(parse_slo, slos)), **wanted), events=events)


def when(server: NullServer, inferences: int, act: Callable[[], None]) -> threading.Thread:
    """Do something to the server once it has been asked this often."""

    def wait() -> None:
        wait_for_load(server, inferences)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def both(behaviour: Behaviour, **settings: Any) -> list[LoadReport]:
    """The same load test over HTTP and over gRPC, on a server each, at the same time."""
    with NullServer(behaviour) as http, NullServer(behaviour) as grpc, ThreadPoolExecutor() as pool:
        tests = [pool.submit(load, url, **settings) for url in (http.http_url, grpc.grpc_url)]
        return [test.result() for test in tests]


def causes(report: LoadReport) -> dict[str, int]:
    return {failure.cause: failure.count for failure in report.failures}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_open_loop_sends_the_whole_schedule(protocol: str) -> None:
    with NullServer() as server:
        report = load(server.http_url if protocol == "http" else server.grpc_url, rate=200)
    assert report.outcome is LoadOutcome.MEASURED
    assert report.protocol == protocol
    assert report.answered == report.requests
    assert 110 < report.requests < 250
    assert report.server == "null-server 1"
    assert report.server_figures is None
    assert report.server_figures_note is not None
    assert report.response_ms.percentiles["p50"] is not None
    assert server.inferences > report.requests


def test_closed_loop_keeps_that_many_in_flight() -> None:
    for report in both(lambda _number, _elapsed: Act(delay_s=0.02), concurrency=4, workers=2):
        # Four callers, 20 ms each: at most 200 a second, however fast the machine is.
        assert 0 < report.requests_per_s <= 205
        assert report.answered == report.requests
        assert any("closed loop" in note for note in report.notes)


def test_both_protocols_and_several_workers_send_the_same_schedule() -> None:
    with NullServer() as server, ThreadPoolExecutor() as pool:
        tests = [
            pool.submit(load, url, rate=150, workers=workers, seed=7)
            for url, workers in ((server.http_url, 1), (server.http_url, 3), (server.grpc_url, 2))
        ]
        reports = [test.result() for test in tests]
    assert len({report.requests for report in reports}) == 1
    assert len({report.warm_up.requests for report in reports}) == 1


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("refuse", ("HTTP 503", "gRPC UNAVAILABLE")),
        ("garbage", ("not a KServe v2 answer", "not a KServe v2 answer")),
        ("drop", ("connection lost", "gRPC INTERNAL")),
        ("hang", ("timed out", "timed out")),
    ],
)
def test_failed_requests_are_data(kind: Any, found: tuple[str, str]) -> None:
    def behave(number: int, _elapsed_s: float) -> Act:
        return Act(kind if number % 5 == 4 else "answer")

    impatient = {"timeout_s": 1.0} if kind == "hang" else {}
    for report, cause in zip(both(behave, rate=100, **impatient), found, strict=True):
        assert set(causes(report)) == {cause}
        assert 0.1 < 1 - report.answered / report.requests < 0.3
        assert report.response_ms.percentiles["p50"] is not None
        assert report.response_ms.percentiles["p99"] is None
        if kind == "refuse":
            assert "queue is full" in report.failures[0].message


def test_a_hung_server_ends_in_bounded_time_and_memory() -> None:
    def behave(number: int, _elapsed_s: float) -> Act:
        return Act("answer" if number < 1 else "hang")

    with NullServer(behave) as server:
        report = load(server.http_url, "p99<=10s", rate=400, max_in_flight=20, timeout_s=0.4)
    assert report.outcome is LoadOutcome.ERROR
    assert set(causes(report)) == {"timed out", "not sent: in-flight limit reached"}
    # Each of the 20 places is free again after the time-out, and not sooner.
    assert causes(report)["timed out"] <= 20 * 4


@pytest.mark.parametrize("mode", [{"rate": 100}, {"concurrency": 3}])
def test_a_server_that_dies_in_mid_run_is_an_error_with_a_whole_report(mode: dict[str, Any]) -> None:
    with NullServer(lambda _number, _elapsed: Act(delay_s=0.01)) as server:
        killer = when(server, 60, server.die)
        report = load(server.http_url, "p99<=1000ms", **{**mode, "duration_s": 2.0})
        killer.join()
    assert report.outcome is LoadOutcome.ERROR
    assert "stopped answering" in report.reasons[0]
    assert "connection refused" in causes(report)
    assert report.answered > 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_comes_back_is_used_again(protocol: str) -> None:
    with NullServer() as first:
        second = NullServer(http_port=first.http_port, grpc_port=first.grpc_port)

        def restart() -> None:
            first.die()
            time.sleep(0.3)
            second.__enter__()

        restarter = when(first, 40, restart)
        url = first.http_url if protocol == "http" else first.grpc_url
        report = load(url, "error_rate<=50%", rate=100, duration_s=4.0)
        restarter.join()
        second.__exit__()
    assert report.outcome is not LoadOutcome.ERROR
    assert report.failures
    assert second.inferences > 20


def test_slow_answers_make_the_backlog_grow_and_the_test_fail() -> None:
    free_at = 0.0

    def one_at_a_time(_number: int, elapsed_s: float) -> Act:
        nonlocal free_at
        free_at = max(free_at, elapsed_s) + 0.01
        return Act(delay_s=free_at - elapsed_s)

    with NullServer(one_at_a_time) as server:
        report = load(server.http_url, "throughput>=200req/s", rate=200, duration_s=2.0, timeout_s=5.0)
    assert report.outcome is LoadOutcome.FAIL
    assert any("overload" in reason for reason in report.reasons)


def test_too_few_requests_are_invalid_and_never_a_pass() -> None:
    with NullServer() as server:
        told: list[str] = []
        report = load(
            server.http_url, "p99<=1000ms", rate=100, events=lambda event: told.append(event.message)
        )
    assert report.outcome is LoadOutcome.INVALID
    assert any("this run cannot end in PASS" in text for text in told)
    assert report.objectives[0].outcome == "undecided"
    assert report.objectives[0].requests_needed == 2500
    assert "(--duration " in report.reasons[0]


def test_a_sender_that_cannot_keep_up_is_invalid() -> None:
    with NullServer() as server:
        report = load(server.http_url, "p99<=20ms", rate=60_000, workers=1)
    # Also where, sharing its cores with the server, it does not get one answer in time.
    assert report.outcome is LoadOutcome.INVALID
    assert "client-limited" in report.reasons[0]


def test_events_tell_the_progress() -> None:
    seen: list[Event] = []
    with NullServer() as server:
        run_load_test(Settings(MODEL, server.http_url, rate=50, **SHORT), events=seen.append)
    assert seen[0].status == "started"
    assert {event.stage for event in seen} == {"loadtest"}
    fractions = [event.fraction for event in seen if event.fraction is not None]
    assert fractions == sorted(fractions)


def test_answers_that_are_awaited_after_the_schedule_are_told() -> None:
    def behave(number: int, _elapsed_s: float) -> Act:
        return Act("answer" if number < 1 else "hang")

    seen: list[Event] = []
    length: dict[str, Any] = {"duration_s": 0.5, "warmup_s": 0.1, "timeout_s": 2.5}
    with NullServer(behave) as server:
        settings = Settings(MODEL, server.http_url, rate=10, arrival="constant", **length)
        run_load_test(settings, events=seen.append)
    (note,) = (event.message for event in seen if event.status == "note")
    assert re.fullmatch(r"everything is sent; waiting for 5 answers, at most [12] s more \(--timeout\)", note)
    assert "waiting for" in [event.message for event in seen if event.status == "progress"][-1]


def test_a_model_that_is_not_ready_or_not_there() -> None:
    with NullServer(ready=False) as server, pytest.raises(ServerError, match="not ready"):
        load(server.http_url, rate=10)
    with NullServer() as server, pytest.raises(ServerError, match="no model 'nul' that is loaded"):
        run_load_test(Settings("nul", server.http_url, rate=10, **SHORT))


@pytest.mark.parametrize("kind", ["refuse", "garbage", "drop", "hang"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_first_answer_is_checked_before_the_run(
    protocol: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "hang":
        monkeypatch.setattr("tritongen.loadtest.run._LEAST_PROBE_TIMEOUT_S", 0.5)
    with NullServer(lambda _number, _elapsed: Act(kind)) as server:
        url = server.http_url if protocol == "http" else server.grpc_url
        with pytest.raises(ServerError) as caught:
            load(url, rate=10, timeout_s=0.5)
        assert server.inferences == (3 if "with an error" in str(caught.value) else 1)
    if kind == "refuse":
        assert "queue is full" in str(caught.value)


def test_what_cannot_be_run_is_refused_before_anything_is_sent() -> None:
    with NullServer() as server:
        for settings, text in (
            ({"rate": 10, "concurrency": 2}, "--rate 10, --concurrency 2"),
            ({"rate": -1}, "--rate must be positive"),
            ({"rate": 10, "warmup_s": 5}, "nothing to measure"),
            ({"concurrency": 2000}, "--max-in-flight"),
        ):
            with pytest.raises(InputError, match=text):
                load(server.http_url, **{**SHORT, **settings})
        with pytest.raises(InputError, match="cannot show"):
            load(server.http_url, "throughput>=500/s", rate=10)
        assert server.inferences == 0


def test_a_server_that_does_not_share_our_memory() -> None:
    with (
        NullServer() as server,
        pytest.raises(ServerError, match=r"(?s)shared memory.*container has its own"),
    ):
        load(server.http_url, rate=10, shared_memory="system")


def test_data_is_sent_in_rotation(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 4), np.float32))
    with NullServer() as server:
        report = load(server.http_url, rate=50, data=str(tmp_path / "x.npy"), batch_size=2)
    assert report.load.prepared_requests == 3
    assert report.inferences_per_s == pytest.approx(2 * report.requests_per_s)


def cli(*arguments: str) -> int:
    return run(["loadtest", MODEL, "--duration", "1s", "--warmup", "200ms", *arguments])


def test_exit_codes_of_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with NullServer() as server:
        url = server.http_url
        rate = ("--url", url, "--rate", "50")
        assert cli(*rate) == 0
        assert "MEASURED" in capsys.readouterr().out
        busy = ("--url", url, "--rate", "500", "--duration", "6s", "--slo", "p99<=9s")
        assert cli(*busy, "--json", str(tmp_path / "r.json")) == 0
        assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("PASS")
        assert json.loads((tmp_path / "r.json").read_text())["schema"] == "tritongen/loadtest/1"
        assert cli(*rate, "--p99-ms", "500") == 4
        assert "INVALID" in capsys.readouterr().out
        assert cli(*rate, "--slo", "p99<20") == 2
        assert cli(*rate, "--concurrency", "2") == 2
        assert cli(*rate, "--duration", "soon") == 2
        assert cli(*rate, "--protocol", "grpc") == 2
        capsys.readouterr()
    assert cli("--url", url, "--rate", "50") == 5
    assert "no server listens" in capsys.readouterr().err
    with NullServer(lambda number, _: Act("refuse" if number > 5 and number % 2 else "answer")) as server:
        assert cli("--url", server.http_url, "--rate", "50", "--slo", "error_rate<=0") == 3
    assert "503" in capsys.readouterr().out


def start_command(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tritongen", "loadtest", MODEL, "--url", url, "--rate", "100", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_load(server: NullServer, inferences: int) -> None:
    deadline = time.monotonic() + 120
    while server.inferences < inferences:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_gives_a_partial_report_marked_so(tmp_path: Path) -> None:
    with NullServer() as server:
        process = start_command(
            server.http_url, "--p99-ms", "900", "--warmup", "0", "--json", str(tmp_path / "r.json")
        )
        wait_for_load(server, 50)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "PARTIAL" in shown
    report = LoadReport.model_validate_json((tmp_path / "r.json").read_text())
    assert report.partial
    assert report.outcome is LoadOutcome.INVALID
    assert report.window_s < 30
    assert report.answered > 10


def test_sigterm_in_the_warm_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with NullServer() as server:
        process = start_command(server.http_url, "--warmup", "30s")
        wait_for_load(server, 10)
        for worker in _workers(process):  # as `timeout` does, which tells the whole group
            os.kill(worker, signal.SIGTERM)
        process.terminate()
        shown, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert shown == "stopped before anything was measured\n"
    assert not list(tmp_path.iterdir())


def _workers(command: subprocess.Popen[str]) -> list[int]:
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [process for process in processes if _parent(process) == command.pid]


def test_no_worker_outlives_a_killed_command_and_the_next_one_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with NullServer() as server:
        process = start_command(server.http_url, "--workers", "2")
        wait_for_load(server, 20)
        workers = _workers(process)
        assert len(workers) == 2
        process.kill()
        process.communicate(timeout=120)
        deadline = time.monotonic() + 60
        while any(_parent(worker) is not None for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (left,) = tmp_path.iterdir()
        assert left.name.startswith("tritongen-loadtest-")
        load(server.http_url, rate=20)
    assert not list(tmp_path.iterdir())


def _parent(pid: int) -> int | None:
    """The parent of a live process; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[1])
