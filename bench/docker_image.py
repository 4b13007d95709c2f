"""The CPU image: its size, how long it takes to make, to start, to come back after a kill, and to stop.

`python bench/docker_image.py` measures (about 3 minutes, with a running Docker and its base image: see
`.ci/docker`) and writes bench/results/docker_image.json; `python bench/docker_image.py --table` writes what
is there into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from page import write_section

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.serving_models import small_repository  # noqa: E402
from tritongen.autotune.machine import current_machine  # noqa: E402
from tritongen.serving.container.compose import CPU_FILE, init  # noqa: E402
from tritongen.serving.container.engine import Engine, Project, find_compose, find_engine  # noqa: E402
from tritongen.serving.embedded import EmbeddedServer  # noqa: E402
from tritongen.serving.ports import free_ports  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "docker_image.json"
TAG, STARTS, KILLS = "tritongen-bench", 5, 3
READY_S = 120.0


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def until_ready(port: int) -> None:
    """Return when /v2/health/ready says yes; the published port answers before the server does."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        address = f"http://127.0.0.1:{port}/v2/health/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
            if answer.status == HTTPStatus.OK:
                return
        time.sleep(0.02)
    raise TimeoutError(f"not ready within {READY_S:g} s")


def build(engine: Engine) -> dict[str, Any]:
    def image() -> None:
        command = [
            "build",
            "--quiet",
            "--no-cache",
            "--tag",
            TAG,
            "--file",
            "docker/cpu.Dockerfile",
            "docker",
        ]
        engine.call(*command, cwd=ROOT, timeout_s=900)

    wheels = timed(lambda: subprocess.run(["make", "wheelhouse"], cwd=ROOT, check=True, capture_output=True))
    seconds = timed(image)
    made, base = engine.image(TAG), engine.image("debian:bookworm-slim")
    if made is None or base is None:
        raise RuntimeError("there is no image after docker build")
    folder = ROOT / "docker" / "wheelhouse"
    return {
        "image_bytes": made.size_bytes,
        "base_bytes": base.size_bytes,
        "wheelhouse_bytes": sum(path.stat().st_size for path in folder.glob("*.whl")),
        "wheelhouse_s": wheels,
        "build_s": seconds,
    }


def serve(engine: Engine, folder: Path) -> dict[str, Any]:
    http, grpc, metrics = map(str, free_ports(3))
    variables = {"HTTP_PORT": http, "GRPC_PORT": grpc, "METRICS_PORT": metrics, "TRITONGEN_IMAGE": TAG}
    project = Project(find_compose(), folder, (CPU_FILE,), name=TAG, variables=variables)
    starts: list[float] = []
    back: list[float] = []
    stops: list[float] = []
    memory = ""
    try:
        for _ in range(STARTS):
            started = time.perf_counter()
            project.call("up", "--detach")
            until_ready(int(http))
            starts.append(time.perf_counter() - started)
            stops.append(timed(lambda: project.call("stop")))
            project.call("down", "--volumes")
        project.call("up", "--detach")
        until_ready(int(http))
        container = project.container(engine, "triton")
        if container is None:
            raise RuntimeError("no container")
        memory = engine.call("stats", "--no-stream", "--format={{.MemUsage}}", container.identity).stdout
        for number in range(1, KILLS + 1):
            listing = engine.call("top", container.identity, "-eo", "pid,comm").stdout
            (pid,) = re.findall(r"^\s*(\d+)\s+tritonserver$", listing, re.MULTILINE)
            killed = time.perf_counter()
            os.kill(int(pid), signal.SIGKILL)
            while (now := engine.container(container.identity)) is None or now.restart_count < number:
                time.sleep(0.02)
            until_ready(int(http))
            back.append(time.perf_counter() - killed)
            time.sleep(11)  # Docker waits longer before each restart, until a start has lasted 10 s
    finally:
        project.call("down", "--volumes", check=False)
    return {
        "start_s": statistics.median(starts),
        "stop_s": statistics.median(stops),
        "back_s": statistics.median(back),
        "memory": memory.partition("/")[0].strip(),
    }


def on_this_machine(repository: Path) -> float:
    """Seconds until the same server is ready without a container."""

    def once() -> float:
        with contextlib.ExitStack() as stack:
            return timed(lambda: stack.enter_context(EmbeddedServer(repository)))

    return statistics.median(once() for _ in range(STARTS))


def table(found: dict[str, Any]) -> str:
    size = {name: found[name] / 1e6 for name in ("image_bytes", "base_bytes", "wheelhouse_bytes")}
    return f"""## The CPU image

`python bench/docker_image.py && python bench/docker_image.py --table` repeats it. Taken on {found["date"]}
with {found["cores"]} cores ({found["cpu"]}), Docker {found["docker"]}, load average {found["load_average"]};
one small model, medians of {STARTS} starts and {KILLS} kills.

| | |
|---|---:|
| image (`docker/cpu.Dockerfile`) | **{size["image_bytes"]:.0f} MB** |
| of which its base, Debian 12 with Python | {size["base_bytes"]:.0f} MB |
| wheelhouse that it is made from | {size["wheelhouse_bytes"]:.0f} MB |
| `make wheelhouse` (wheels from pip's cache) | {found["wheelhouse_s"]:.0f} s |
| `docker build` without its cache | {found["build_s"]:.0f} s |
| `docker compose up` until the model is ready | **{found["start_s"]:.1f} s** |
| the same server without a container | {found["host_start_s"]:.1f} s |
| tritonserver killed, until the model is ready again | {found["back_s"]:.1f} s |
| `docker compose stop`, idle | {found["stop_s"]:.1f} s |
| memory of the whole container, idle | {found["memory"]} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the results into docs/benchmarks.md")
    if parser.parse_args().table:
        write_section("docker", table(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    engine = find_engine()
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = small_repository(folder / "model_repository")
        init(folder, repository, "cpu")
        try:
            found = build(engine) | serve(engine, folder)
        finally:
            engine.call("rmi", "--force", TAG, check=False)
        found["host_start_s"] = on_this_machine(repository)
    loads.append(os.getloadavg()[0])
    found |= {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "cpu": current_machine().cpu,
        "cores": os.cpu_count(),
        "docker": engine.version,
        "load_average": f"{loads[0]:.1f} to {loads[1]:.1f}",
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
