"""`loadtest --compose`: up, ready, test, down; only what it started, and also when something goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.conftest import MODEL
from tests.integration.conftest import CommandLine
from tritongen.serving.container.compose import CPU_FILE, ENV_FILE
from tritongen.serving.container.engine import Engine, Image, Project, find_compose
from tritongen.serving.ports import free_ports

pytestmark = [pytest.mark.docker, pytest.mark.server, pytest.mark.slow]

TEST = ("loadtest", MODEL, "--rate", "20", "--duration", "2s", "--compose", "--compose-file", CPU_FILE)


@pytest.fixture
def folder(built: Path, image: Image, tmp_path: Path) -> Iterator[Path]:
    """A project of its own, not up."""
    place = tmp_path / f"session{os.getpid()}"
    shutil.copytree(built, place)
    ports = zip(("HTTP_PORT", "GRPC_PORT", "METRICS_PORT"), free_ports(3), strict=True)
    own = {**dict(ports), "TRITONGEN_IMAGE": image.tags[0]}
    lines = (place / ENV_FILE).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in own]
    (place / ENV_FILE).write_text("\n".join([*kept, *(f"{k}={v}" for k, v in own.items()), ""]))
    yield place
    project_of(place).call("down", check=False)


def project_of(folder: Path) -> Project:
    return Project(find_compose(), folder, (CPU_FILE,), env_file=ENV_FILE)


def containers(folder: Path, engine: Engine) -> list[str]:
    label = f"label=com.docker.compose.project.working_dir={folder}"
    return [each.state for each in engine.containers(label, stopped=True)]


def test_it_starts_tests_and_stops(folder: Path, tritongen: CommandLine, engine: Engine) -> None:
    done = tritongen(*TEST, cwd=folder)
    assert "100.00%" in done.stdout
    assert containers(folder, engine) == []


def test_what_ran_before_goes_on(folder: Path, tritongen: CommandLine, engine: Engine) -> None:
    project_of(folder).call("up", "--detach", "triton")
    assert "it ran before" in tritongen(*TEST, cwd=folder).stderr
    assert containers(folder, engine) == ["running"]


def test_a_server_that_does_not_get_ready_shows_its_log(
    folder: Path, tritongen: CommandLine, engine: Engine
) -> None:
    next((folder / "model_repository" / MODEL).glob("*/model.onnx")).write_bytes(b"no model")
    done = tritongen(*TEST, "--compose-timeout", 60, cwd=folder, code=5)
    assert "cannot load model.onnx" in done.stderr
    assert containers(folder, engine) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_takes_down_what_it_started(
    number: int, folder: Path, tritongen: CommandLine, engine: Engine
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tritongen", *TEST[:4], "--duration", "60s", *TEST[6:]],
        cwd=folder,
        env=tritongen.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        while not containers(folder, engine):
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(number)
        assert running.wait(120) == 128 + number
    assert containers(folder, engine) == []


def test_without_a_compose_file(tritongen: CommandLine, tmp_path: Path) -> None:
    done = tritongen(*TEST[:-2], cwd=tmp_path, code=2)
    assert "tritongen compose init" in done.stderr
    assert "two servers" in tritongen(*TEST, "--url", "127.0.0.1:1", cwd=tmp_path, code=2).stderr
