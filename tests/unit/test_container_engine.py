"""Docker and Compose that are missing, old, out of reach or unwilling: one error that says what mends it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tritongen.errors import RequirementError
from tritongen.serving.container.engine import (
    Compose,
    Output,
    Project,
    call,
    failure,
    find_compose,
    find_engine,
)


def program(folder: Path, name: str, text: str) -> None:
    """A command that prints `text`, in place of one that is not on this machine in that version."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_no_docker(only: Path) -> None:
    with pytest.raises(RequirementError, match="no Docker on this machine") as error:
        find_engine()
    assert "apt-get install docker.io" in str(error.value)
    with pytest.raises(RequirementError, match="no Docker Compose on this machine"):
        find_compose()


def test_an_engine_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("docker") is None:
        pytest.skip("no Docker: the docker command is not there")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(RequirementError, match="the Docker engine does not answer") as error:
        find_engine()
    assert "no.sock" in str(error.value.found)
    assert "dockerd" in str(error.value.fix)


@pytest.mark.docker
def test_a_user_who_may_not_use_the_engine() -> None:
    if os.getuid() != 0:
        pytest.skip("only root may become a user without rights")
    done = subprocess.run(
        ["docker", "ps"],
        user="nobody",
        group="nogroup",
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    error = failure(Output(("docker", "ps"), done.returncode, done.stdout, done.stderr))
    assert error.message == "this user may not use Docker"
    assert "usermod" in str(error.fix)


@pytest.mark.parametrize(
    ("text", "version"),
    [("1.29.2", (1, 29, 2)), ("v2.24.5", (2, 24, 5)), ("2.26.1-4", (2, 26, 1)), ("1.28", (1, 28))],
)
def test_versions_of_compose(text: str, version: tuple[int, ...], only: Path) -> None:
    program(only, "docker-compose", text)
    found = find_compose()
    assert found.version == version
    assert found.words == "docker-compose"


def test_compose_that_is_too_old(only: Path) -> None:
    program(only, "docker-compose", "1.25.0")
    with pytest.raises(RequirementError, match="too old") as error:
        find_compose()
    assert error.value.found == "1.25.0"
    assert str(error.value.expected).startswith("1.28")


def test_the_plugin_comes_first(only: Path) -> None:
    program(only, "docker", "2.24.5")
    program(only, "docker-compose", "1.29.2")
    assert find_compose().words == "docker compose"


def test_the_command_of_a_project(tmp_path: Path) -> None:
    compose = Compose(("/usr/bin/docker", "compose"), (2, 24))
    project = Project(compose, tmp_path, ("a.yml", "b.yml"), "name", "triton.env", ("loadtest",))
    assert project.command == (
        "/usr/bin/docker", "compose", "--file=a.yml", "--file=b.yml", "--project-name=name",
        "--env-file=triton.env", "--profile", "loadtest",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("listen tcp4 127.0.0.1:8000: bind: address already in use", "is taken"),
        (
            'could not select device driver "nvidia" with capabilities: [[gpu]]',
            "cannot give a container the GPU",
        ),
        ("lookup nvcr.io: no such host", "cannot be pulled"),
        ("write /var/lib/docker/x: no space left on device", "the disk is full"),
        ("invalid mount config for type bind: bind source path does not exist: /x", "is not there"),
        ("something else", r"`docker run x` failed \(exit code 125\)"),
    ],
)
def test_what_docker_says_is_explained(said: str, meant: str) -> None:
    error = failure(Output(("/usr/bin/docker", "run", "x"), 125, "", f"first\ndocker: Error: {said}\n"))
    with pytest.raises(RequirementError, match=meant):
        raise error
    assert said in str(error)


def test_a_command_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"did not end within 0\.2 s"):
        call(("sleep", "5"), timeout_s=0.2)


def test_variables_win(tmp_path: Path) -> None:
    assert call(("sh", "-c", "echo $ONE"), variables={"ONE": "a b"}).stdout == "a b\n"
