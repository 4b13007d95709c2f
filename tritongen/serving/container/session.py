"""A server of Compose for as long as something is done with it: started, awaited, and taken down again."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tritongen.errors import InputError, RequirementError, ServerError, TritongenError
from tritongen.serving.container.checks import taken_ports
from tritongen.serving.container.compose import ENV_FILE
from tritongen.serving.container.engine import Compose, Container, Engine, Project, find_compose, find_engine
from tritongen.serving.container.service import PORTS, SERVICE, service_of
from tritongen.serving.control import connect
from tritongen.serving.diagnosis import last_error, model_failures, with_names

_POLL_S = 0.25
_UP_TIMEOUT_S = 1800.0
"""An image may have to be pulled or built."""
_LOG_LINES = "60"
_MOST_RESTARTS = 2
_COMPOSE_FILES = ("docker-compose.yml", "docker-compose.yaml", "compose.yml", "compose.yaml")


@dataclass(frozen=True)
class Address:
    """Where this machine reaches the server's ports."""

    http_url: str
    grpc_url: str | None
    metrics_url: str | None


class NotServingError(ServerError):
    """The container did not get ready."""

    def __init__(self, message: str, *, log: str, found: str | None, fix: str | None) -> None:
        super().__init__(message, found=found, fix=fix)
        self.log = log
        """The last lines of the container's log."""


def compose_project(files: Sequence[str | Path], folder: Path, compose: Compose | None = None) -> Project:
    """The project of these Compose files (none: the folder's own), with the triton.env beside the first.

    InputError if there are none; RequirementError if this machine has no Compose and none is given.
    """
    missing = [name for name in files if not (folder / name).is_file()]
    if missing or not (files or any((folder / name).is_file() for name in _COMPOSE_FILES)):
        raise InputError(
            f"there is no Compose file {missing[0] if missing else _COMPOSE_FILES[0]}",
            found=f"nothing of that name in {folder}",
            fix="`tritongen compose init` writes one, or name another with --compose-file",
        )
    home = (folder / files[0]).absolute().parent if files else folder
    names = tuple(os.path.relpath(folder / name, home) for name in files)
    env_file = ENV_FILE if (home / ENV_FILE).is_file() else None
    return Project(compose or find_compose(), home, names, env_file=env_file)


@contextmanager
def serving(project: Project, ready_timeout_s: float) -> Iterator[tuple[Address, bool]]:
    """The project's server, ready; and whether it was started for this, and so is taken down at the end.

    What ran before stays. RequirementError, before anything is started, if the files cannot be read or a port
    that they publish is taken. NotServingError, with the log, if it is not ready in time or ends by itself.
    """
    engine = find_engine()
    before = _running(project, engine)
    if before is not None:
        yield _await(project, engine, ready_timeout_s), False
        return
    _check_ports(project, engine)
    others = _any_running(project)
    try:
        project.call("up", "--detach", SERVICE, timeout_s=_UP_TIMEOUT_S)
        yield _await(project, engine, ready_timeout_s), True
    except BaseException:
        with suppress(TritongenError):  # the first failure is the one to tell
            _take_down(project, others=others)
        raise
    _take_down(project, others=others)


def _check_ports(project: Project, engine: Engine) -> None:
    service = service_of(project.config(), " + ".join(project.files) or "the Compose file")
    for taken in taken_ports(service, engine):
        raise RequirementError(taken.message, fix=taken.fix)


def _running(project: Project, engine: Engine) -> Container | None:
    container = project.container(engine, SERVICE)
    return container if container is not None and container.state in ("running", "restarting") else None


def _any_running(project: Project) -> bool:
    return bool(project.call("ps", "--quiet", check=False).stdout.split())


def _take_down(project: Project, *, others: bool) -> None:
    """The whole project, or only the server where other services of it ran before."""
    if others:
        project.call("rm", "--stop", "--force", SERVICE)
    else:
        project.call("down")


def _await(project: Project, engine: Engine, timeout_s: float) -> Address:
    """Where the server answers, once it is ready."""
    deadline, exit_code = time.monotonic() + timeout_s, 0
    while True:
        container = project.container(engine, SERVICE)
        if container is None:
            raise _not_serving(project, "is gone")
        exit_code = container.exit_code or exit_code  # Docker forgets it with the next start
        if container.restart_count > _MOST_RESTARTS or container.state in ("exited", "dead"):
            # Where it was never seen between two starts, its exit code is not known.
            seen = f"exit code {exit_code}" if exit_code or not container.restart_count else "again and again"
            cause = "memory ran out" if container.out_of_memory else seen
            raise _not_serving(project, f"ended by itself ({cause})")
        if container.state == "running" and PORTS[0] in container.ports:
            address = _address(container)
            if connect(address.http_url, timeout_s=5.0).is_ready():
                return address
        if time.monotonic() > deadline:
            raise _not_serving(project, f"was not ready after {timeout_s:g} s ({container.state})")
        time.sleep(_POLL_S)


def _address(container: Container) -> Address:
    http, grpc, metrics = map(container.address, PORTS)
    return Address(f"http://{http}", grpc and f"grpc://{grpc}", metrics and f"http://{metrics}/metrics")


def _not_serving(project: Project, what: str) -> NotServingError:
    try:
        log = project.call("logs", "--no-color", f"--tail={_LOG_LINES}", SERVICE, check=False).stdout
    except TritongenError as error:
        log = str(error)
    return NotServingError(
        f"the container of service '{SERVICE}' {what}",
        log=log,
        found=cause_in(log),
        fix="see its log above; `tritongen verify --image IMAGE` looks for what is in the way",
    )


def cause_in(log: str) -> str:
    """What the log of a container (as `docker compose logs` prints it) says of its end."""
    text = re.sub(r"^\S+\s+\| ?", "", log, flags=re.MULTILINE)
    if failures := model_failures(text):
        return "; ".join(f"{model}: {cause}" for model, cause in failures.items())
    # tritongen's own image ends with an error of tritongen's.
    own = re.findall(r"^error: (.*)\n\s+found: +(.*)", text, re.MULTILINE)
    return with_names(": ".join(own[-1])) if own else last_error(text)
