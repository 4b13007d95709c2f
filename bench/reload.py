"""Reloads under load: how many requests fail, and what clients feel of it.

`python bench/reload.py` measures (8 to 12 minutes) and writes bench/results/reload.json;
`python bench/reload.py --table` writes what is there into docs/benchmarks.md.

The embedded Triton serves a small model with two instances; the load generator sends at a fixed rate, open
loop, first to a server that is left alone, then while one version after the other is built and taken over.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from page import write_section

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.versions import NAME, write_version  # noqa: E402
from tritongen.autotune.machine import current_machine  # noqa: E402
from tritongen.loadtest.run import run_load_test  # noqa: E402
from tritongen.loadtest.settings import Settings  # noqa: E402
from tritongen.reload.run import reload_model  # noqa: E402
from tritongen.runs.events import Event  # noqa: E402
from tritongen.runs.loadtest import LoadReport  # noqa: E402
from tritongen.serving.control import connect  # noqa: E402
from tritongen.serving.embedded import EmbeddedServer  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "reload.json"
RELOADS, RATE, BEFORE_S = 20, 200.0, 30.0
PROTOCOLS = ("http", "grpc")


class Updates:
    """Builds and reloads one version after the other, in a thread of its own, until it is told to stop."""

    def __init__(self, base: Path, url: str) -> None:
        self.base, self.control = base, connect(url)
        self.seconds: list[tuple[float, float, float]] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.error: Exception | None = None

    def once(self) -> None:
        write_version(self.base, 2 + len(self.seconds), instances=2)
        started = time.perf_counter()
        report = reload_model(self.control, self.base / "repository", NAME)
        self.seconds.append((report.load_s, report.switch_s, time.perf_counter() - started))

    def _run(self) -> None:
        try:
            while not self.stop.is_set():
                self.once()
        except Exception as error:  # noqa: BLE001  (handed to the main thread)
            self.error = error


def measure(protocol: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_version(base, 1, instances=2)
        with EmbeddedServer(base / "repository", load=["*"]) as server:
            url = server.http_url if protocol == "http" else server.grpc_url
            updates = Updates(base, url)
            updates.once()
            started = time.perf_counter()
            updates.once()
            one_s = time.perf_counter() - started
            updates.seconds.clear()
            before = run_load_test(Settings(NAME, url, rate=RATE, duration_s=BEFORE_S))

            def begin(event: Event) -> None:
                if event.status == "started" and not updates.thread.ident:
                    updates.thread.start()

            lasts_s = 1.5 * RELOADS * one_s
            during = run_load_test(Settings(NAME, url, rate=RATE, duration_s=lasts_s), events=begin)
            done = len(updates.seconds)
            updates.stop.set()
            updates.thread.join()
            if updates.error is not None:
                raise updates.error
    loads, switches, wholes = (statistics.median(column) for column in zip(*updates.seconds, strict=True))
    return {
        "protocol": protocol,
        "reloads": done,
        "load_s": loads,
        "switch_s": switches,
        "whole_s": wholes,
        "before": figures(before),
        "during": figures(during),
    }


def figures(report: LoadReport) -> dict[str, Any]:
    latency = report.response_ms
    return {
        "requests": report.requests,
        "failed": report.requests - report.answered,
        "seconds": report.window_s,
        "p50_ms": latency.percentiles["p50"],
        "p99_ms": latency.percentiles["p99"],
        "max_ms": latency.maximum,
    }


def table(found: dict[str, Any]) -> str:
    rows = [
        f"| {each['protocol']} | {phase} | {what['requests']:,} | **{what['failed']}** "
        f"| {what['p50_ms']:.1f} | {what['p99_ms']:.1f} | {what['max_ms']:.0f} |"
        for each in found["runs"]
        for phase, what in (
            ("left alone", each["before"]),
            (f"{each['reloads']} reloads", each["during"]),
        )
    ]
    times = "; ".join(
        f"{each['protocol']}: {each['load_s']:.1f} s until the new version was loaded beside the old one, "
        f"{each['switch_s']:.1f} s for the switch, {each['whole_s']:.1f} s in all"
        for each in found["runs"]
    )
    return f"""## Reloads under load

`python bench/reload.py && python bench/reload.py --table` repeats it. Taken on {found["date"]} with
{found["cores"]} cores ({found["cpu"]}), which server, load generator, build and reload share; load average
{found["load_average"]}. {found["rate"]:g} requests/s, open loop, to a small model with two instances on the
embedded Triton {found["triton"]}, while one version after the other was built and taken over without a pause.

| protocol | server | requests | failed | P50, ms | P99, ms | longest, ms |
|---|---|---:|---:|---:|---:|---:|
{chr(10).join(rows)}

Medians per reload: {times}.
{_caveat(found)}
"""


def _caveat(found: dict[str, Any]) -> str:
    if float(found["load_average"].split()[0]) <= found["cores"]:
        return "The builds of the new versions run on the same cores, and show in the latencies too."
    return (
        "Other work ran on the same cores meanwhile (the load average), so that the latencies do not show\n"
        "what reloads cost. The failures are what counts."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the results into docs/benchmarks.md")
    if parser.parse_args().table:
        write_section("reload", table(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    loads = [os.getloadavg()[0]]
    runs = [measure(protocol) for protocol in PROTOCOLS]
    loads.append(os.getloadavg()[0])
    found = {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "cpu": current_machine().cpu,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": f"{loads[0]:.1f} to {loads[1]:.1f}",
        "triton": "2.51",
        "rate": RATE,
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
