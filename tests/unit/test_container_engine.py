"""Docker and Compose that are missing, old, out of reach or unwilling: one error that says what mends it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tritongen.errors import InputError, RequirementError
from tritongen.serving.container.engine import (
    Compose,
    Container,
    Output,
    Project,
    call,
    failure,
    find_compose,
    find_engine,
)
from tritongen.serving.container.session import cause_in, compose_project, serving


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


def test_an_error_of_several_lines_is_told_from_its_start() -> None:
    said = """services are read
yaml.parser.ParserError: while parsing a block mapping
  in "./bad.yml", line 2, column 3
expected <block end>, but found '<block mapping start>'
"""
    assert Output(("docker-compose",), 1, "", said).complaint == (
        'yaml.parser.ParserError: while parsing a block mapping in "./bad.yml", line 2, column 3 '
        "expected <block end>, but found '<block mapping start>'"
    )


def scripted(folder: Path, config: str) -> Project:
    """A project whose Compose reads `config`, and can neither start nor stop anything; nothing runs."""
    scripts = {
        "docker": """[ "$1" = ps ] || echo '{"ServerVersion": "28.0"}'""",
        "docker-compose": f"""case " $* " in
            *" config "*) echo "{config}" ;;
            *" up "*) echo "ERROR: the cause" >&2; exit 1 ;;
            *" down "*) echo "ERROR: the clean-up" >&2; exit 1 ;;
            esac""",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return Project(Compose((str(folder / "docker-compose"),), (1, 29)), folder)


def test_a_project_lives_where_its_first_file_is(tmp_path: Path) -> None:
    compose = Compose(("docker-compose",), (1, 29))
    for name in ("deploy/docker-compose.yml", "deploy/triton.env", "over/lay.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    files = ("deploy/docker-compose.yml", "over/lay.yml")
    project = compose_project(files, tmp_path, compose)
    assert project.command == (
        "docker-compose", "--file=docker-compose.yml", "--file=../over/lay.yml", "--env-file=triton.env",
    )  # fmt: skip
    assert project.folder == tmp_path / "deploy"
    with pytest.raises(InputError, match=r"no Compose file over/none\.yml"):
        compose_project((*files, "over/none.yml"), tmp_path, compose)


@pytest.mark.parametrize(
    ("bound", "reached"),
    [("0.0.0.0", "127.0.0.1:9"), ("::1", "[::1]:9"), ("10.0.0.1", "10.0.0.1:9")],  # noqa: S104
)
def test_where_a_port_of_a_container_is_reached(bound: str, reached: str) -> None:
    container = Container("", "", "", "", None, 0, 0, "", 0, False, {8000: (bound, 9)}, {})  # noqa: FBT003
    assert (container.address(8000), container.address(8001)) == (reached, None)


def test_the_first_failure_is_told_and_not_that_of_the_clean_up(only: Path) -> None:
    project = scripted(only, "services: {triton: {image: x}}")
    with pytest.raises(RequirementError, match="up --detach") as caught, serving(project, 1.0):
        pass
    assert caught.value.found == "ERROR: the cause"


def test_a_taken_port_is_said_before_anything_starts(only: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        project = scripted(only, f"services: {{triton: {{image: x, ports: ['127.0.0.1:{port}:8000']}}}}")
        held = rf"port {port} \(HTTP\) is held by"
        with pytest.raises(RequirementError, match=held) as caught, serving(project, 1.0):
            pass
    assert "HTTP_PORT in triton.env" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (
            (
                "triton_1  | error: Triton ended before it was ready\n"
                "triton_1  |   found:    E1 cannot open: system error number 13\n"
                "triton_1  |   fix:      look\n"
            ),
            "Triton ended before it was ready: E1 cannot open: Permission denied",
        ),
        ("triton_1 | E0101 12:00 nothing to poll\ntriton_1 | I0101 bye\n", "E0101 12:00 nothing to poll"),
    ],
)
def test_the_cause_is_read_from_the_containers_log(log: str, cause: str) -> None:
    assert cause_in(log).startswith(cause)


def test_a_command_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"did not end within 0\.2 s"):
        call(("sleep", "5"), timeout_s=0.2)


def test_variables_win(tmp_path: Path) -> None:
    assert call(("sh", "-c", "echo $ONE"), variables={"ONE": "a b"}).stdout == "a b\n"
