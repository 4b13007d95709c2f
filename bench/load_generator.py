"""tritongen's load generator beside perf_analyzer: throughput, CPU per request, and errors of the send times.

`python bench/load_generator.py` measures (8 minutes with --repeats 2), `--memory 1000000` adds what a million
requests take, `--table` writes what bench/results/load_generator.json then has into docs/benchmarks.md.

Both are judged by one measure, taken at the server and not from their own reports: how many requests the
server counted in a window, and when they arrived. They take turns; figures are medians over the repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import mmap
import os
import platform
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import perf_analyzer
from load_generator_page import TOOLS, section
from page import write_section

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "load_generator.json"
CONCURRENCIES = (1, 8, 16, 32)
RATES = (1_000, 5_000, 10_000)
PROTOCOLS = ("http", "grpc")
SETTLE_S = 0.5
SPARE_S = 1.0
"""More than the tools settle for, less than anybody waits."""
CONFIG = """
name: "identity"
backend: "python"
max_batch_size: 0
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
"""
IDENTITY = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse([pb.Tensor("OUTPUT0", tensor.as_numpy())])
            for tensor in (pb.get_input_tensor_by_name(each, "INPUT0") for each in requests)
        ]
"""


@dataclass(frozen=True)
class Target:
    """A server under load, and how often it has answered."""

    name: str
    model: str
    ports: dict[str, int]
    count: Callable[[], int]
    pid: int


@contextlib.contextmanager
def null_server(folder: Path) -> Iterator[tuple[Target, mmap.mmap]]:
    arrivals = folder / "arrivals"
    command = [sys.executable, str(ROOT / "bench" / "null_server.py"), "--arrivals", str(arrivals)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        ports = json.loads(process.stdout.readline() if process.stdout else "")
        with arrivals.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:

            def count() -> int:
                return int(struct.unpack_from("<q", view, 0)[0])

            yield Target("null server", "null", ports, count, process.pid), view
        process.terminate()


@contextlib.contextmanager
def triton(folder: Path, name: str, *, cached: bool) -> Iterator[Target]:
    from tritongen.serving.embedded import EmbeddedServer

    model = folder / "models" / "identity"
    (model / "1").mkdir(parents=True, exist_ok=True)
    (model / "1" / "model.py").write_text(IDENTITY)
    (model / "config.pbtxt").write_text(CONFIG + ("response_cache { enable: true }\n" if cached else ""))
    with EmbeddedServer(model.parent) as server:
        url = f"{server.http_url}/v2/models/identity/stats"

        def count() -> int:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
                stats = json.load(answer)["model_stats"][0]
            return int(stats["inference_stats"]["success"]["count"])

        yield Target(
            name, "identity", {"http": server.http_port, "grpc": server.grpc_port}, count, server.pid
        )


class Tool:
    """One of the two load generators, run as its users run it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.environment = dict(os.environ)
        if name == "perf_analyzer":
            self.program, libraries = perf_analyzer.fetch()
            self.environment["LD_LIBRARY_PATH"] = str(libraries)

    def command(self, target: Target, protocol: str, load: dict[str, int], seconds: float) -> list[str]:
        port, (kind, amount) = target.ports[protocol], next(iter(load.items()))
        if self.name == "perf_analyzer":
            flag = "--concurrency-range" if kind == "concurrency" else "--request-rate-range"
            window = ["-p", str(round(seconds * 1000)), "-r", "1", "--request-distribution", "constant"]
            return [
                str(self.program),
                *("-m", target.model, "-u", f"127.0.0.1:{port}", "-i", protocol),
                *(flag, str(amount), *(window[:4] if kind == "concurrency" else window)),
            ]
        return [
            *(sys.executable, "-m", "tritongen", "loadtest", target.model),
            *("--url", f"{protocol}://127.0.0.1:{port}", f"--{kind}", str(amount)),
            *("--duration", f"{seconds:g}s", "--arrival", "constant"),
        ]

    @contextlib.contextmanager
    def running(
        self, target: Target, protocol: str, load: dict[str, int], seconds: float
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The tool at work: entered once requests have been coming for a moment, ended on leaving."""
        before = target.count()
        command = self.command(target, protocol, load, seconds)
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 30
            while target.count() < before + 50:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} sends nothing: {' '.join(command)}")
                time.sleep(0.05)
            time.sleep(SETTLE_S)
            yield process
        finally:
            # It ends by itself: Triton 2.51 may crash when callers of cached models vanish.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds + 20)
            process.kill()
            process.wait()


def descendants(pid: int) -> list[int]:
    """A process and all that it started, as far as they live."""
    found = [pid]
    for each in found:  # which grows meanwhile
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """CPU time of a process and its children that are alive."""
    total = 0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def anonymous_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(each.split()[1] for each in lines if each.startswith("RssAnon")))


def throughput(
    tool: Tool, target: Target, protocol: str, concurrency: int, window_s: float
) -> dict[str, float]:
    """Requests per second that the server counted, and CPU time per request of both sides."""
    with tool.running(target, protocol, {"concurrency": concurrency}, window_s + SPARE_S) as process:
        began, count = time.monotonic(), target.count()
        client, server = cpu_s(process.pid), cpu_s(target.pid)
        time.sleep(window_s)
        counted, took = target.count() - count, time.monotonic() - began
        return {
            "requests_per_s": counted / took,
            "client_cpu_us": (cpu_s(process.pid) - client) / max(counted, 1) * 1e6,
            "server_cpu_us": (cpu_s(target.pid) - server) / max(counted, 1) * 1e6,
            "load_average": os.getloadavg()[0],
        }


def timing(  # noqa: PLR0917
    tool: Tool, target: Target, view: mmap.mmap, protocol: str, rate: int, window_s: float
) -> dict[str, float]:
    """How far arrivals at the null server are from an even schedule of this rate.

    The schedule is laid so that the earliest 5 % of the arrivals are before it: a common offset costs
    nothing, and whatever comes later, or drifts away, is an error.
    """
    with tool.running(target, protocol, {"rate": rate}, window_s + SPARE_S):
        first = target.count()
        time.sleep(window_s)
        last = target.count()
    arrivals = np.frombuffer(view, "<i8", last - first, offset=8 * (first + 1)) / 1e6
    late_ms = arrivals - np.arange(len(arrivals)) * (1000 / rate)
    error_ms = np.abs(late_ms - np.percentile(late_ms, 5))
    return {
        "sent_per_s": len(arrivals) / window_s,
        "within_1_ms": float(np.mean(error_ms <= 1)),
        "p50_ms": float(np.percentile(error_ms, 50)),
        "p99_ms": float(np.percentile(error_ms, 99)),
        "load_average": os.getloadavg()[0],
    }


def alternate(repeats: int, measure: Callable[[Tool], dict[str, float]]) -> dict[str, Any]:
    """Both tools in turn; each figure's median, and all the main figures."""
    tools = [Tool(name) for name in TOOLS]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TOOLS}
    for repeat in range(repeats):
        for tool in tools if repeat % 2 == 0 else reversed(tools):
            try:
                found[tool.name].append(measure(tool))
            except (RuntimeError, OSError) as error:  # noqa: PERF203
                print(f"  {error}", file=sys.stderr)
    return {
        name: {
            **{key: statistics.median(each[key] for each in runs) for key in runs[0]},
            "all": [next(iter(each.values())) for each in runs],
        }
        for name, runs in found.items()
        if runs
    }


def closed_loops(
    target: Target, repeats: int, window_s: float, concurrencies: tuple[int, ...] = CONCURRENCIES
) -> Iterator[dict[str, Any]]:
    for protocol in PROTOCOLS:
        for concurrency in concurrencies:
            row = {"target": target.name, "protocol": protocol, "concurrency": concurrency}
            row |= alternate(
                repeats, lambda tool, p=protocol, c=concurrency: throughput(tool, target, p, c, window_s)
            )
            print(line(row), flush=True)
            yield row


def open_loops(target: Target, view: mmap.mmap, repeats: int, window_s: float) -> Iterator[dict[str, Any]]:
    for protocol in PROTOCOLS:
        for rate in RATES:
            row = {"target": target.name, "protocol": protocol, "rate": rate}
            row |= alternate(
                repeats, lambda tool, p=protocol, r=rate: timing(tool, target, view, p, r, window_s)
            )
            print(line(row), flush=True)
            yield row


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    figures = {
        tool: {k: round(v, 3) for k, v in row[tool].items() if k != "all"} for tool in TOOLS if tool in row
    }
    return f"{row['target']} {row['protocol']} {row.get('concurrency') or row.get('rate')}: {figures}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (each.partition(":")[2].strip() for each in lines if each.startswith("model name"))
    return next(names, platform.machine())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in the order of the page."""
    results: dict[str, Any] = {
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "repeats": options.repeats,
        "closed": [],
        "open": [],
    }
    repeats, window_s = options.repeats, options.window
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with null_server(folder) as (target, view):
            results["closed"] += closed_loops(target, repeats, window_s)
            results["open"] += open_loops(target, view, repeats, window_s)
        with triton(folder, "Triton, cached", cached=True) as target:
            results["closed"] += closed_loops(target, repeats, window_s)
        with triton(folder, "Triton, Python model", cached=False) as target:
            results["closed"] += closed_loops(target, repeats, window_s, (16,))
    return results


def memory(requests: int) -> dict[str, int]:
    """What the processes hold in memory, files aside: a worker after a tenth of the requests and after all
    of them; their parent while they run and, at its most, while it judges them.
    """
    with tempfile.TemporaryDirectory() as name, null_server(Path(name)) as (target, _view):
        first = target.count()
        with Tool("tritongen").running(target, "grpc", {"concurrency": 32}, requests / 5_000) as process:
            workers = []
            for wanted in (requests // 10, requests):
                while target.count() < first + wanted and process.poll() is None:
                    time.sleep(0.05)
                workers.append(max(map(anonymous_kb, descendants(process.pid)[1:])))
            running_kb = most_kb = anonymous_kb(process.pid)
            sent = target.count() - first
            process.send_signal(signal.SIGINT)
            while process.poll() is None:
                with contextlib.suppress(OSError, StopIteration):  # it ends meanwhile
                    most_kb = max(most_kb, anonymous_kb(process.pid))
                time.sleep(0.005)
    return {
        "requests": sent,
        "worker_early_kb": workers[0],
        "worker_kb": workers[1],
        "parent_kb": running_kb,
        "parent_most_kb": most_kb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window", type=float, default=1.0, metavar="S")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the page from the results")
    parser.add_argument("--memory", type=int, metavar="N", help="only: what so many requests take")
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.table:
        write_section("load generator", section(known))
        return
    if options.memory:
        found = {**known, "memory": memory(options.memory)}
        print(found["memory"])
    else:
        found = {**known, **measure(options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
