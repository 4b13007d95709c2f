"""What happens to a server in mid-run: it is a process of its own here, frozen, killed, or busy for long."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tritongen.loadtest.run import run_load_test
from tritongen.loadtest.settings import Settings
from tritongen.runs.loadtest import LoadOutcome, LoadReport
from tritongen.slo import parse_slo

SERVER = Path(__file__).parents[2] / "bench" / "null_server.py"


@dataclass
class Server:
    """The null server in a process of its own."""

    process: subprocess.Popen[str]
    urls: dict[str, str]
    arrivals: Path

    def when(self, requests: int, act: Callable[[], None]) -> threading.Thread:
        """Do something once so many inference requests have come."""

        def wait() -> None:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and self._count() < requests:
                time.sleep(0.01)
            act()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _count(self) -> int:
        with self.arrivals.open("rb") as file:
            return int(struct.unpack("<q", file.read(8))[0])


@contextmanager
def null_server(folder: Path) -> Iterator[Server]:
    arrivals = folder / "arrivals"
    command = [sys.executable, str(SERVER), "--arrivals", str(arrivals)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        try:
            yield Server(
                process, {name: f"{name}://127.0.0.1:{port}" for name, port in ports.items()}, arrivals
            )
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def load(url: str, *slos: str, **settings: Any) -> LoadReport:
    wanted: dict[str, Any] = {"duration_s": 3.0, "warmup_s": 0.1, "timeout_s": 3.0, **settings}
    return run_load_test(Settings("null", url, slos=tuple(map(parse_slo, slos)), **wanted))


def both(server: Server, *slos: str, **settings: Any) -> list[LoadReport]:
    """The same load over HTTP and gRPC at the same time."""
    with ThreadPoolExecutor() as pool:
        tests = [pool.submit(load, server.urls[name], *slos, **settings) for name in ("http", "grpc")]
        return [test.result() for test in tests]


def test_a_freeze_shows_in_every_request_that_fell_into_it(tmp_path: Path) -> None:
    with null_server(tmp_path) as server:

        def freeze() -> None:
            server.signal(signal.SIGSTOP)
            time.sleep(0.6)
            server.signal(signal.SIGCONT)

        freezer = server.when(150, freeze)
        reports = both(server, rate=150)
        freezer.join()
    for report in reports:
        assert report.answered == report.requests
        assert (report.response_ms.maximum or 0) > 400
        assert (report.response_ms.percentiles["p50"] or 0) < 200


@pytest.mark.parametrize("mode", [{"rate": 100}, {"concurrency": 4}])
def test_a_server_that_never_thaws(
    mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tritongen.loadtest.run._CONTROL_TIMEOUT_S", 2.0)
    with null_server(tmp_path) as server:
        freezer = server.when(200, lambda: server.signal(signal.SIGSTOP))
        reports = both(server, "p99<=100ms", timeout_s=0.5, **mode)
        freezer.join()
    for report in reports:
        assert report.outcome is LoadOutcome.ERROR
        assert "timed out" in {failure.cause for failure in report.failures}


def test_a_killed_server(tmp_path: Path) -> None:
    with null_server(tmp_path) as server:
        killer = server.when(200, server.process.kill)
        reports = both(server, "p99<=100ms", rate=100)
        killer.join()
    for report in reports:
        assert report.outcome is LoadOutcome.ERROR
        assert {failure.cause for failure in report.failures} <= {"connection refused", "connection lost"}
        assert report.answered > 0
        assert report.answered + sum(failure.count for failure in report.failures) == report.requests


def test_many_requests_take_no_memory_but_their_samples(tmp_path: Path) -> None:
    """A leak of 100 bytes per request would be too much here."""
    with null_server(tmp_path) as server, ThreadPoolExecutor() as pool:
        before = set(children())
        test = pool.submit(both, server, concurrency=16, workers=1, duration_s=5.0)
        used: dict[int, list[int]] = {}
        while not test.done():
            time.sleep(0.1)
            for child in set(children()) - before:
                used.setdefault(child, []).append(anonymous_kb(child))
        requests = sum(report.requests for report in test.result())
    assert requests > 1_000
    assert len(used) == 2
    for sizes in used.values():
        known = [size for size in sizes if size]
        half = len(known) // 2  # the start, with its imports, is behind it
        assert max(known[half:]) - known[half] < 1_000 + requests / 2 * 0.05


def children() -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def anonymous_kb(process: int) -> int:
    """Memory that is not of files, as the samples are; 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(each.split()[1]) for each in lines if each.startswith("RssAnon")), 0)
