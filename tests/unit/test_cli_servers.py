"""Which server a command without an address means, and the list of those that run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest

from tritongen.cli import run
from tritongen.cli.servers import Server, compose_command, find_server, is_served
from tritongen.errors import ServerError
from tritongen.serving.container.compose import init
from tritongen.serving.container.host import has_no_gpu
from tritongen.serving.registry import SCHEMA, RunningServer, process_identity, record_path

Listen = Callable[[], int]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty repository, and no server of `tritongen serve`."""
    here = tmp_path / "here"
    (here / "model_repository").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("BIND_ADDRESS", "HTTP_PORT", "GRPC_PORT", "METRICS_PORT"):
        monkeypatch.delenv(name, raising=False)
    return here


@pytest.fixture
def listen() -> Iterator[Listen]:
    """`listen()` → a port of this machine on which somebody listens."""
    sockets: list[socket.socket] = []

    def start() -> int:
        sockets.append(socket.create_server(("127.0.0.1", 0)))
        return int(sockets[-1].getsockname()[1])

    yield start
    for each in sockets:
        each.close()


def write_env(folder: Path, http_port: int, address: str = "127.0.0.1") -> None:
    lines = ["# ports", f"BIND_ADDRESS={address}", f'HTTP_PORT="{http_port}"', "GRPC_PORT = 9001"]
    (folder / "triton.env").write_text("\n".join(lines), encoding="utf-8")


def serve(folder: Path, repository: Path, port: int, pid: int | None = None) -> None:
    """A record of `tritongen serve`, whose process is `pid` or this one."""
    pid = pid or os.getpid()
    record = RunningServer(
        repository=str(repository.resolve()),
        pid=pid,
        process=process_identity(pid),
        http_url=f"http://127.0.0.1:{port}",
        grpc_url=f"grpc://127.0.0.1:{port + 1}",
        metrics_url=f"http://127.0.0.1:{port + 2}/metrics",
        log_file=None,
        background=True,
    )
    path = record_path(folder.parent / "state" / "tritongen", repository)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": SCHEMA, **asdict(record)}), encoding="utf-8")


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_the_ports_of_triton_env(address: str, folder: Path, listen: Listen) -> None:
    port = listen()
    write_env(folder, port, address)
    assert find_server(None, None) == Server(
        url=f"http://127.0.0.1:{port}",
        grpc_url="grpc://127.0.0.1:9001",
        metrics_url="http://127.0.0.1:8002/metrics",
        repository=Path("model_repository"),
        own=False,
    )


def test_remarks_and_the_repository_that_is_mounted(folder: Path, listen: Listen) -> None:
    port = listen()
    mounted = folder.parent / "b"
    mounted.mkdir()
    lines = (f"HTTP_PORT={port}  # ours", "GRPC_PORT='9001' # theirs", "MODEL_REPOSITORY=../b")
    (folder / "triton.env").write_text("\n".join(lines), encoding="utf-8")
    found = find_server(None, None)
    assert (found.url, found.grpc_url) == (f"http://127.0.0.1:{port}", "grpc://127.0.0.1:9001")
    assert found.repository is not None
    assert found.repository.resolve() == mounted


def test_what_the_environment_says_wins_as_with_compose(
    folder: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_env(folder, 1)
    port = listen()
    monkeypatch.setenv("HTTP_PORT", str(port))
    assert find_server(None, None).url == f"http://127.0.0.1:{port}"


def test_where_nothing_answers_the_error_names_the_place_that_was_meant(folder: Path) -> None:
    write_env(folder, 1)
    found = find_server(None, Path("elsewhere"))
    if found.url != "http://127.0.0.1:8000":  # somebody may have a server there while this runs
        assert found.url == "http://127.0.0.1:1"
    assert found.repository == Path("elsewhere")


def test_a_server_of_ones_own_comes_first(folder: Path, listen: Listen) -> None:
    write_env(folder, listen())
    own = listen()
    serve(folder, folder / "model_repository", own)
    found = find_server(None, None)
    assert (found.url, found.own) == (f"http://127.0.0.1:{own}", True)
    assert found.address("grpc") == f"grpc://127.0.0.1:{own + 1}"


def test_but_not_one_of_another_repository(folder: Path, listen: Listen) -> None:
    port = listen()
    write_env(folder, port)
    serve(folder, folder.parent / "another", listen())
    assert find_server(None, None).url == f"http://127.0.0.1:{port}"
    assert find_server(None, folder.parent / "another").own


def test_nor_where_this_folder_has_models_and_no_server_of_its_own(folder: Path, listen: Listen) -> None:
    port = listen()
    serve(folder, folder.parent / "another", port)
    write_env(folder, port)  # also where it took the ports that are meant here
    assert find_server(None, None).own
    (folder / "model_repository" / "tiny").mkdir()
    for repository in (None, Path("model_repository")):
        with pytest.raises(ServerError, match="no server of model_repository runs") as caught:
            find_server(None, repository)
        assert f"another at http://127.0.0.1:{port}" in str(caught.value.found)
    assert find_server(f"127.0.0.1:{port}", None).own


def test_a_port_that_a_server_of_ours_has_is_refused_by_its_name(
    folder: Path, listen: Listen, capsys: pytest.CaptureFixture[str]
) -> None:
    port = listen()
    serve(folder, folder.parent / "another", port)
    assert run(["serve", "--metrics-port", str(port)]) == 1
    stderr = capsys.readouterr().err
    assert f"port {port} is taken" in stderr
    assert f"by the server of {folder.parent / 'another'} at http://127.0.0.1:{port}" in stderr
    assert run(["serve", "--metrics-port", str(port), "--http-port", str(port)]) == 1
    assert "any free ones be chosen: --http-port 0 --metrics-port 0" in capsys.readouterr().err


def test_what_a_build_may_say_next(folder: Path, listen: Listen) -> None:
    repository = folder / "model_repository"
    assert not is_served(repository)
    assert compose_command(repository) is None
    init(folder, repository, "cpu")
    write_env(folder, listen())  # somebody else's: Docker knows of no container of this folder
    assert not is_served(repository)
    command = compose_command(repository)
    assert command is not None
    # The plugin, or the program where only that is there.
    words = "-f docker-compose.cpu.yml --env-file triton.env up -d --build"
    assert command in {f"docker compose {words}", f"docker-compose {words}"}
    assert compose_command(folder / "another") is None
    serve(folder, repository, listen())
    assert is_served(repository)


def test_files_that_ask_for_a_gpu_are_no_advice_without_one(folder: Path) -> None:
    repository = folder / "model_repository"
    init(folder, repository, "gpu")
    command = compose_command(repository)
    assert (command is None) == has_no_gpu()
    init(folder, repository, "cpu")
    assert ("docker-compose.cpu.yml" in str(compose_command(repository))) == has_no_gpu()


def test_a_given_address(folder: Path, listen: Listen) -> None:
    own, port = listen(), listen()
    serve(folder, folder.parent / "another", own)
    write_env(folder, port)
    assert find_server(f"127.0.0.1:{own}", None).own
    assert find_server(f"http://127.0.0.1:{own}", None).repository == folder.parent / "another"
    composed = find_server(f"http://127.0.0.1:{port}", None)
    assert (composed.repository, composed.metrics_url) == (
        Path("model_repository"),
        "http://127.0.0.1:8002/metrics",
    )
    elsewhere = find_server("http://there:8000", None)
    assert elsewhere == Server("http://there:8000", None, None, None, own=False)
    assert elsewhere.address("grpc") == "http://there:8000"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that may be stopped."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_ps_lists_what_runs_and_drops_what_is_gone(
    folder: Path, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ps"]) == 0
    assert capsys.readouterr().out == "no server runs\n"
    serve(folder, folder / "model_repository", 1, process.pid)
    before_s = time.time()
    assert run(["ps"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["pid", "ready", "up", "HTTP", "gRPC", "metrics", "repository"]
    wanted = rf"{process.pid} +no answer +\d+ s +http://127.0.0.1:1 +2 +3 +{folder}/model_repository"
    assert re.fullmatch(wanted, line)
    assert run(["ps", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["servers"]
    assert (listed["pid"], listed["state"]) == (process.pid, "no answer")
    assert listed["repository"] == str(folder / "model_repository")
    assert abs(datetime.fromisoformat(listed["started"]).timestamp() - before_s) < 60
    process.kill()
    process.wait()
    assert run(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["servers"] == []


def test_stop_without_a_name_spares_the_server_of_another_project(
    folder: Path, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model_repository" / "net").mkdir()
    serve(folder, folder.parent / "another", 1, process.pid)
    assert run(["stop"]) == 0
    assert f"no server of model_repository runs; but {folder.parent}/another" in capsys.readouterr().out
    assert process.poll() is None
    (folder / "model_repository" / "net").rmdir()
    assert run(["stop"]) == 0
    assert process.wait() == -signal.SIGTERM
