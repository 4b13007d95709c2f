"""`tritongen serve` and `tritongen stop` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.serving_models import small_repository
from tritongen.serving.control import connect
from tritongen.serving.registry import RunningServer, find_server, running_servers
from tritongen.serving.supervisor import children

pytestmark = pytest.mark.server

FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state state")}


@pytest.fixture
def state(environment: Mapping[str, str]) -> Path:
    return Path(environment["XDG_STATE_HOME"]) / "tritongen"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return small_repository(tmp_path / "model_repository")


@pytest.fixture
def served(repository: Path, environment: Mapping[str, str]) -> Iterator[subprocess.CompletedProcess[str]]:
    yield _tritongen(["serve", str(repository), "--background", *FREE_PORTS], environment)
    _tritongen(["stop", "--all"], environment)


def _tritongen(
    arguments: list[str], environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tritongen", *arguments],
        env=dict(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@contextmanager
def _foreground(
    repository: Path, environment: Mapping[str, str], *more: str, seen: list[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A foreground server that has said that it is ready; `seen` gets what it said until then."""
    with subprocess.Popen(
        [sys.executable, "-m", "tritongen", "serve", str(repository), *FREE_PORTS, *more],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _await_ready(process, seen)
            yield process
        finally:
            process.kill()  # a test that failed must not wait for it for good


def _await_ready(process: subprocess.Popen[str], seen: list[str] | None) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if seen is not None:
            seen.append(line)
        if line.startswith("Ctrl-C"):
            return
    assert process.stderr is not None
    pytest.fail(f"it did not become ready: {process.stderr.read()}")


def test_background_serves_until_it_is_stopped(
    served: subprocess.CompletedProcess[str],
    repository: Path,
    environment: Mapping[str, str],
    state: Path,
) -> None:
    assert served.returncode == 0, served.stderr
    server = find_server(state, repository)
    assert server is not None
    assert server.background
    assert server.http_url in served.stdout
    assert "Next: tritongen loadtest relu" in served.stdout
    assert connect(server.http_url).is_ready("relu")
    assert server.log_file is not None
    assert "Started HTTPService" in Path(server.log_file).read_text()
    assert not list(repository.glob(".*"))  # nothing that Triton would take for a model
    (listed,) = json.loads(_tritongen(["ps", "--json"], environment).stdout)["servers"]
    assert (listed["pid"], listed["state"]) == (server.pid, "ready")

    second = _tritongen(["serve", str(repository), *FREE_PORTS], environment)
    assert second.returncode == 1
    assert "is being served already" in second.stderr
    assert f"PID {server.pid}" in second.stderr

    # Found without a name: it is ./model_repository.
    stopped = _tritongen(["stop"], environment, repository.parent)
    assert stopped.returncode == 0
    assert "stopped the server of" in stopped.stdout
    assert not connect(server.http_url).is_live()
    assert running_servers(state) == []

    again = _tritongen(["stop"], environment)
    assert (again.returncode, again.stdout) == (0, "no server runs\n")


def test_nothing_runs_on_if_the_background_start_is_killed(
    repository: Path, environment: Mapping[str, str], state: Path, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    command = [sys.executable, "-m", "tritongen", "serve", str(repository), "--background", *FREE_PORTS]
    with subprocess.Popen([*command, "--log-file", str(log)], env=dict(environment)) as process:
        while not (log.exists() and log.stat().st_size):  # Triton's first words: it is there, and loads
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    deadline = time.monotonic() + 60
    while found := _processes_with(str(repository)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    assert running_servers(state) == []


def _processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [command] if word in command else []
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_ends_cleanly(
    repository: Path, environment: Mapping[str, str], state: Path, number: int
) -> None:
    with _foreground(repository, environment) as process:
        (server,) = running_servers(state)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    assert stdout.endswith("stopped\n")
    assert "Traceback" not in stderr
    assert not server.alive
    assert running_servers(state) == []


def test_the_log_and_flags_of_triton_pass_through(
    repository: Path, environment: Mapping[str, str], state: Path
) -> None:
    """As a container runs it: the log on stdout to the last line, and models that can be loaded again."""
    flags = ("--log-file", "-", "--", "--model-control-mode=explicit", "--load-model=*")
    seen: list[str] = []
    with _foreground(repository, environment, *flags, seen=seen) as process:
        (server,) = running_servers(state)
        control = connect(server.http_url)
        control.unload("relu")
        control.load("relu")
        assert control.is_ready("relu")
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert any("Started HTTPService" in line for line in seen)
    assert "successfully unloaded 'relu'" in stdout
    assert stdout.endswith("stopped\n")


def test_a_log_on_stdout_still_explains_a_failed_start(
    repository: Path, environment: Mapping[str, str]
) -> None:
    (repository / "relu" / "1" / "model.onnx").write_bytes(b"no model")
    broken = _tritongen(["serve", str(repository), *FREE_PORTS, "--log-file", "-"], environment)
    assert broken.returncode == 5
    assert "Triton cannot serve model 'relu'" in broken.stderr
    assert "failed to load 'relu'" in broken.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [(["a", "b"], "one server serves one repository"), (["--", "--http-port=1"], "is set by tritongen")],
)
def test_words_that_serve_does_not_take(words: list[str], found: str, environment: Mapping[str, str]) -> None:
    refused = _tritongen(["serve", *words], environment)
    assert refused.returncode == 2
    assert found in refused.stderr


def test_stop_ends_a_foreground_server(repository: Path, environment: Mapping[str, str]) -> None:
    with _foreground(repository, environment) as process:
        assert _tritongen(["stop", str(repository)], environment).returncode == 0
        stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert stdout.endswith("stopped\n")


def test_a_killed_foreground_leaves_no_server(
    repository: Path, environment: Mapping[str, str], state: Path
) -> None:
    with _foreground(repository, environment) as process:
        (server,) = running_servers(state)
        process.kill()
    _wait_for_end(server)
    assert running_servers(state) == []
    assert not connect(server.http_url).is_live()


def test_a_server_that_dies_is_reported(
    repository: Path, environment: Mapping[str, str], state: Path
) -> None:
    with _foreground(repository, environment) as process:
        (server,) = running_servers(state)
        (triton,) = children(server.pid)
        os.kill(triton, signal.SIGKILL)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 5
    assert "Triton ended by itself (exit code 137)" in stderr


def test_a_model_by_name(repository: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    (repository / "broken").mkdir()
    log = tmp_path / "triton.log"
    broken = _tritongen(["serve", str(repository), *FREE_PORTS, "--log-file", str(log)], environment)
    assert broken.returncode == 5
    assert "cannot serve model 'broken'" in broken.stderr
    assert str(log) in broken.stderr
    assert log.stat().st_size

    chosen = _tritongen(
        ["serve", str(repository), "--background", "--model", "relu", *FREE_PORTS], environment
    )
    assert chosen.returncode == 0, chosen.stderr
    assert _tritongen(["stop"], environment, repository.parent).returncode == 0

    unknown = _tritongen(["serve", str(repository), "--model", "relo", *FREE_PORTS], environment)
    assert unknown.returncode == 2
    assert "holds no model 'relo'" in unknown.stderr
    assert "did you mean 'relu'?" in unknown.stderr


def test_doctor_says_that_this_machine_works(environment: Mapping[str, str]) -> None:
    done = _tritongen(["doctor", "--json"], environment)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["works"]
    assert {check["state"] for check in report["checks"]} <= {"ok", "warning", "absent"}
    assert _tritongen(["doctor"], environment).stdout.endswith("work on this machine\n")


def _wait_for_end(server: RunningServer) -> None:
    for _ in range(2400):
        if not server.alive:
            return
        signal.sigtimedwait([], 0.05)
    pytest.fail("the server still runs")
