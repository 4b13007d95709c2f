"""The road through real containers: build → docker compose up → load test, and what happens on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.docker.conftest import CHECKOUT, MODEL, READY_S, Deployment
from tests.integration.conftest import CommandLine
from tritongen.serving.container.compose import CPU_FILE, GPU_FILE, HARDENED_FILE, read_environment
from tritongen.serving.container.engine import Container, Engine, Image, Project, find_compose

pytestmark = [pytest.mark.docker, pytest.mark.server, pytest.mark.slow]

MEGABYTE = 1_000_000
LARGEST_IMAGE_BYTES = 700 * MEGABYTE


def test_the_image_is_small_unprivileged_and_complete(image: Image, engine: Engine) -> None:
    assert image.size_bytes < LARGEST_IMAGE_BYTES
    assert image.user == "1000:1000"
    program = (
        "import importlib.util as u, os;"
        "print(os.getuid(), *(n for n in ('pip', 'cuda', 'onnx.backend.test') if u.find_spec(n)))"
    )
    inside = engine.call(
        "run", "--rm", "--network=none", "--read-only", "--entrypoint=python", image.tags[0], "-c", program
    )
    assert inside.stdout.split() == ["1000"]
    shown = engine.call("run", "--rm", "--network=none", image.tags[0], "doctor")
    assert "build, serve and loadtest work on this machine" in shown.stdout


def test_it_serves_hardened_and_on_loopback(deployment: Deployment) -> None:
    container = deployment.container()
    assert {address for address, _ in container.ports.values()} == {"127.0.0.1"}
    assert set(container.ports) == {8000, 8001, 8002}
    about = _inspect(deployment.engine, container)
    host = about["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert [(m["Destination"], m["RW"]) for m in about["Mounts"]] == [("/models", False)]
    status = Path(f"/proc/{_server_pid(deployment)}/status").read_text()
    assert re.search(r"^Uid:\t1000\t1000", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    refused = deployment.engine.call("exec", container.identity, "touch", "/models/x", check=False)
    assert "Read-only file system" in refused.stderr


def test_a_load_test_from_the_host_finds_it(
    deployment: Deployment, tritongen: CommandLine, tmp_path: Path
) -> None:
    """By the ports in triton.env, with the promises that the manifest knows: no flag names the server."""
    report = tmp_path / "report.json"
    tritongen("loadtest", MODEL, "--duration", "3s", "--json", report, cwd=deployment.folder)
    record = json.loads(report.read_text())
    assert record["outcome"] == "MEASURED"
    assert record["failures"] == [], record


def test_a_load_test_on_the_compose_network(deployment: Deployment) -> None:
    project = _with_profile(deployment.project, "loadtest")
    done = project.call("run", "--rm", "loadtest", MODEL, "--rate", "50", "--duration", "3s", "--json", "-")
    record = json.loads(done.stdout[done.stdout.index("{") :])
    assert record["failures"] == [], record
    assert record["url"] == "http://triton:8000"
    assert record["answered"] > 0


def test_reloads_under_load_lose_no_request(
    deployment: Deployment, tritongen: CommandLine, tmp_path: Path
) -> None:
    """One by the commands that a user types, the others there and back: the mount shows each swap inside."""
    from tritongen.reload.run import reload_model
    from tritongen.serving.control import connect

    folder, report = deployment.folder, tmp_path / "report.json"
    container = deployment.wait_until_healthy()
    with _load(deployment, tritongen, "--duration", "120s", "--json", str(report)) as load:
        tritongen(
            "build", f"{MODEL}.onnx", "--effort", "quick", "--max-batch-size", "8", "--keep", "2", cwd=folder
        )
        told = tritongen("reload", MODEL, cwd=folder)
        assert "clients get version 2" in told.stdout
        address, port = container.ports[8000]
        control = connect(f"http://{address}:{port}")
        for number in range(5):  # twenty are in bench/reload.py
            version = 1 + number % 2
            assert reload_model(control, folder / "model_repository", MODEL, to=version).version == version
        load.send_signal(signal.SIGINT)  # what was measured until then is reported
        stdout, stderr = load.communicate(timeout=120)
    assert load.returncode == 130, f"{stdout}\n{stderr}"
    record = json.loads(report.read_text())
    assert record["failures"] == [], record["failures"]
    assert record["answered"] == record["requests"] > 0
    assert deployment.container().started == container.started


def test_a_killed_server_comes_back_and_the_load_test_says_so(
    deployment: Deployment, tritongen: CommandLine, tmp_path: Path
) -> None:
    """SIGKILL to tritonserver from the host, amid the load: `docker kill` would end the restarts as well."""
    before = deployment.wait_until_healthy()
    report = tmp_path / "report.json"
    options = ("--duration", "300s", "--slo", "error_rate<=0.1%", "--json", str(report))
    with _load(deployment, tritongen, *options) as load:
        _wait_for_requests(deployment, 100)
        os.kill(_server_pid(deployment), signal.SIGKILL)
        after = deployment.wait_until_healthy(starts_after=before.started)
        _wait_for_requests(deployment, 100)  # as it counts anew: two seconds
        load.send_signal(signal.SIGINT)  # what was measured until then is reported
        stdout, stderr = load.communicate(timeout=120)
    assert after.restart_count == before.restart_count + 1
    assert "Triton ended by itself (exit code 137)" in deployment.logs()
    assert load.returncode == 130, f"{stdout}\n{stderr}"
    record = json.loads(report.read_text())
    # One burst of failures is one observation: whether it is missed or cannot be told, it is never met.
    assert record["outcome"] in {"FAIL", "INVALID"}
    assert {each["cause"] for each in record["failures"]} <= {"connection lost", "connection refused"}
    assert 0 < record["answered"] < record["requests"]
    assert record["series"][-1]["failed"] == 0  # it ends with answers


def test_the_dashboard_asks_for_metrics_that_triton_has(deployment: Deployment) -> None:
    from urllib.request import urlopen

    address, port = deployment.container().ports[8002]
    with urlopen(f"http://{address}:{port}/metrics", timeout=10) as answer:
        metrics = set(re.findall(r"^# TYPE (\w+)", answer.read().decode(), re.MULTILINE))
    dashboard = json.loads((CHECKOUT / "docker/monitoring/triton-dashboard.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bnv_\w+", target["expr"])
    }
    # Without a GPU there are none of the GPU's; their names are from Triton's documentation.
    assert {name for name in asked if not name.startswith("nv_gpu_")} <= metrics


@pytest.mark.parametrize("files", [(GPU_FILE,), (GPU_FILE, HARDENED_FILE), (CPU_FILE,)], ids="+".join)
def test_compose_reads_the_files(files: tuple[str, ...]) -> None:
    """With every profile and with triton.env; the commands are split into the words that are meant."""
    project = Project(
        find_compose(),
        CHECKOUT,
        files,
        env_file="triton.env",
        profiles=("build", "loadtest", "monitoring"),
        variables={"TRITON_ARGS": "--backend-config=tensorrt,version-compatible=true", "HTTP_PORT": "9123"},
    )
    config = project.config()
    triton = config["services"]["triton"]
    command = triton["command"]
    words = command.split() if isinstance(command, str) else command
    control = read_environment(CHECKOUT / "triton.env")["TRITON_CONTROL"].split()
    assert words[-4:] == [*control, "--backend-config=tensorrt,version-compatible=true"]
    assert any("9123" in json.dumps(port) for port in triton["ports"])
    assert ("build" in config["services"]) == (GPU_FILE in files)


def _load(deployment: Deployment, tritongen: CommandLine, *options: str) -> subprocess.Popen[str]:
    """A load test from the host, in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "tritongen", "loadtest", MODEL, "--rate", "50", "--warmup", "1s", *options],
        cwd=deployment.folder,
        env=tritongen.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_requests(deployment: Deployment, more: int) -> None:
    """Wait until the server has answered so many more."""
    from tritongen.serving.control import connect

    address, port = deployment.container().ports[8000]
    control = connect(f"http://{address}:{port}")
    wanted = control.statistics(MODEL).inference_count + more
    deadline = time.monotonic() + READY_S
    while control.statistics(MODEL).inference_count < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _with_profile(project: Project, profile: str) -> Project:
    import dataclasses

    return dataclasses.replace(project, profiles=(profile,))


def _inspect(engine: Engine, container: Container) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(engine.call("container", "inspect", container.identity).stdout)[0]
    return about


def _server_pid(deployment: Deployment) -> int:
    """The PID that tritonserver has on this machine."""
    listing = deployment.engine.call("top", deployment.container().identity, "-eo", "pid,comm").stdout
    match = re.search(r"^\s*(\d+)\s+tritonserver$", listing, re.MULTILINE)
    assert match is not None, listing
    return int(match[1])
