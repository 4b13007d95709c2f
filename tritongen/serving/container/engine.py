"""Docker and Compose, as commands: found once, called with a time limit, their failures explained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritongen.errors import RequirementError
from tritongen.serving.ports import dialled

OLDEST_COMPOSE = (1, 28)
"""The first with profiles and GPU reservations."""
PROBE_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 120.0
_STARTS_ERROR = re.compile(r"(\w+: )?error\b|[\w.]+(Error|Exception): |yaml: ", re.IGNORECASE)
_COMPLAINT_LINES = 6
INSTALL_DOCKER = "apt-get install docker.io docker-compose, or https://docs.docker.com/engine/install/"
INSTALL_COMPOSE = "apt-get install docker-compose, or docker-compose-plugin of Docker's own packages"


@dataclass(frozen=True)
class Output:
    """What a command printed, and its exit code."""

    command: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The line that says most about a failure: the last one of stderr, or of stdout."""
        return (self._lines or ["no output"])[-1]

    @property
    def complaint(self) -> str:
        """What it says of a failure: from the last line on that starts an error, in one line."""
        starts = [number for number, line in enumerate(self._lines) if _STARTS_ERROR.match(line)]
        return " ".join(self._lines[starts[-1] :][:_COMPLAINT_LINES]) if starts else self.last_line

    @property
    def _lines(self) -> list[str]:
        return [line.strip() for line in (self.stderr or self.stdout).splitlines() if line.strip()]


@dataclass(frozen=True)
class Image:
    """An image that is on this machine."""

    identity: str
    """sha256:…"""
    tags: tuple[str, ...]
    size_bytes: int
    user: str
    """"" is root."""
    environment: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Container:
    """A container as it is at one moment."""

    identity: str
    name: str
    image: str
    """The reference that it was started from."""
    state: str
    """"created", "running", "restarting", "exited", …"""
    health: str | None
    """"starting", "healthy", "unhealthy"; None without a health check."""
    pid: int
    """Of its first process, as this machine sees it; 0 when it does not run."""
    restart_count: int
    started: str
    """ISO 8601, UTC; another value means another start."""
    exit_code: int
    out_of_memory: bool
    ports: Mapping[int, tuple[str, int]]
    """Port in the container → address and port on this machine."""
    labels: Mapping[str, str]

    def address(self, port: int) -> str | None:
        """HOST:PORT at which this machine reaches a port of the container; None if it is not published."""
        if port not in self.ports:
            return None
        host, published = self.ports[port]
        return f"{dialled(host)}:{published}"

    @property
    def project(self) -> str | None:
        """The Compose project that it belongs to."""
        return self.labels.get("com.docker.compose.project")

    @property
    def folder(self) -> Path | None:
        """Of that project, on the machine that started it."""
        folder = self.labels.get("com.docker.compose.project.working_dir")
        return Path(folder) if folder else None

    @property
    def service(self) -> str | None:
        """The Compose service that it is an instance of."""
        return self.labels.get("com.docker.compose.service")


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answered."""

    command: str
    """Path of the docker command."""
    version: str
    """The engine's own ("20.10.24")."""
    runtimes: tuple[str, ...]
    """Container runtimes ("runc", "nvidia")."""
    root: str
    """Where it keeps its images."""

    def call(
        self, *arguments: str, check: bool = True, timeout_s: float = CALL_TIMEOUT_S, cwd: Path | None = None
    ) -> Output:
        """Run `docker ARGUMENTS`; RequirementError if it fails (with `check`) or takes too long."""
        return call((self.command, *arguments), check=check, timeout_s=timeout_s, cwd=cwd)

    def image(self, reference: str) -> Image | None:
        """The image as it is on this machine; None if it is not (nothing is pulled)."""
        found = self.call("image", "inspect", reference, check=False)
        return _image(json.loads(found.stdout)[0]) if found.code == 0 else None

    def container(self, identity: str) -> Container | None:
        """The container with this id or name; None if there is none."""
        found = self.call("container", "inspect", identity, check=False)
        return _container(json.loads(found.stdout)[0]) if found.code == 0 else None

    def containers(self, *filters: str, stopped: bool = False) -> tuple[Container, ...]:
        """Those that run (with `stopped`: all), narrowed by filters such as "label=NAME=VALUE"."""
        chosen = [f"--filter={each}" for each in filters]
        ids = self.call(
            "ps", "--quiet", "--no-trunc", *(["--all"] if stopped else []), *chosen
        ).stdout.split()
        each = (self.container(identity) for identity in ids)
        return tuple(container for container in each if container is not None)


def find_engine() -> Engine:
    """The engine that `docker` reaches; RequirementError naming what is in the way."""
    command = shutil.which("docker")
    if command is None:
        raise RequirementError(
            "there is no Docker on this machine", found="no docker command", fix=INSTALL_DOCKER
        )
    answer = call((command, "info", "--format", "{{json .}}"), check=False, timeout_s=PROBE_TIMEOUT_S)
    about = _json_object(answer.stdout)
    if not about.get("ServerVersion"):
        raise _unreachable(answer, about)
    return Engine(
        command=command,
        version=about["ServerVersion"].partition("+")[0],
        runtimes=tuple(sorted(about.get("Runtimes") or ())),
        root=about.get("DockerRootDir", ""),
    )


@dataclass(frozen=True)
class Compose:
    """Docker Compose: the plugin (`docker compose`) or the program (`docker-compose`)."""

    command: tuple[str, ...]
    version: tuple[int, ...]

    @property
    def words(self) -> str:
        """What a user types: "docker compose" or "docker-compose"."""
        return " ".join([Path(self.command[0]).name, *self.command[1:]])


def find_compose() -> Compose:
    """The plugin, or else `docker-compose`; RequirementError if there is none, or only one before 1.28."""
    oldest = ".".join(map(str, OLDEST_COMPOSE))
    docker, standalone = shutil.which("docker"), shutil.which("docker-compose")
    commands = [*([(docker, "compose")] if docker else []), *([(standalone,)] if standalone else [])]
    found = [Compose(each, version) for each in commands if (version := _compose_version(each))]
    for compose in found:
        if compose.version >= OLDEST_COMPOSE:
            return compose
    if found:
        raise RequirementError(
            "this Docker Compose is too old",
            found=".".join(map(str, found[0].version)),
            expected=f"{oldest} or newer (profiles and GPU reservations)",
            fix=INSTALL_COMPOSE,
        )
    raise RequirementError(
        "there is no Docker Compose on this machine",
        found="neither `docker compose` nor `docker-compose`",
        fix=INSTALL_COMPOSE,
    )


@dataclass(frozen=True)
class Project:
    """Compose files that are brought up together, under one name."""

    compose: Compose
    folder: Path
    """Relative paths in the files start here."""
    files: tuple[str, ...] = ()
    """In `folder`; none: Compose's own choice (docker-compose.yml)."""
    name: str | None = None
    """None: Compose's own choice (the folder's name)."""
    env_file: str | None = None
    """In `folder`; where `${VARIABLES}` of the files come from."""
    profiles: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """They win over those of `env_file`."""

    @property
    def command(self) -> tuple[str, ...]:
        """The command up to the subcommand, for `call` or for showing."""
        options = [f"--file={name}" for name in self.files]
        options += [f"--project-name={self.name}"] if self.name else []
        options += [f"--env-file={self.env_file}"] if self.env_file else []
        # `--profile=NAME` is not understood by 1.29.
        options += [word for profile in self.profiles for word in ("--profile", profile)]
        return (*self.compose.command, *options)

    def call(self, *arguments: str, check: bool = True, timeout_s: float = CALL_TIMEOUT_S) -> Output:
        """Run `docker compose … ARGUMENTS`; RequirementError if it fails (with `check`) or takes too long."""
        command = (*self.command, *arguments)
        return call(command, check=check, timeout_s=timeout_s, cwd=self.folder, variables=self.variables)

    def config(self) -> dict[str, Any]:
        """The files as Compose understands them: merged, with every variable filled in."""
        import yaml

        merged: dict[str, Any] = yaml.safe_load(self.call("config").stdout)
        return merged

    def container(self, engine: Engine, service: str) -> Container | None:
        """The first container of a service, also one that does not run; None if there is none."""
        ids = self.call("ps", "--all", "--quiet", service, check=False).stdout.split()
        if not ids and self.compose.version < (2,):  # 1.29 lists stopped ones without --all
            ids = self.call("ps", "--quiet", service, check=False).stdout.split()
        return engine.container(ids[0]) if ids else None


def call(
    command: Sequence[str],
    *,
    check: bool = True,
    timeout_s: float = CALL_TIMEOUT_S,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Output:
    """Run a command to its end; RequirementError if it fails (with `check`), hangs or is not there."""
    # The rest of the environment goes on to it untouched, and only `cli` may read that.
    prefix = ["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []
    shown = " ".join([Path(command[0]).name, *command[1:]])
    try:
        done = subprocess.run(
            [*prefix, *command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RequirementError(
            f"`{shown}` did not end within {timeout_s:g} s",
            fix="see whether the Docker engine hangs: docker info",
        ) from error
    except OSError as error:
        raise RequirementError(f"`{shown}` cannot be run", found=str(error)) from error
    output = Output(tuple(command), done.returncode, done.stdout, done.stderr)
    if check and done.returncode != 0:
        raise failure(output)
    return output


# What Docker and Compose say → what it means, and what mends it.
_KNOWN_FAILURES = (
    (
        r"port is already allocated|address already in use|failed to bind host port",
        "a port that the container is to have on this machine is taken",
        "stop what holds it, or choose other ports in triton.env (HTTP_PORT, GRPC_PORT, METRICS_PORT)",
    ),
    (
        r"could not select device driver|unknown or invalid runtime name: nvidia",
        "Docker cannot give a container the GPU",
        (
            "install the NVIDIA container toolkit and run `nvidia-ctk runtime configure --runtime=docker`, "
            "then restart Docker; or serve without a GPU: -f docker-compose.cpu.yml"
        ),
    ),
    (
        r"pull access denied|manifest unknown|no such host|Temporary failure|i/o timeout|not found: manifest",
        "an image is not on this machine and cannot be pulled",
        (
            "check its name and the network; the CPU image is built, not pulled: "
            "docker compose -f docker-compose.cpu.yml build"
        ),
    ),
    (r"no space left on device", "the disk is full", "docker system df shows what holds it"),
    (
        r"invalid mount config|bind source path does not exist|Mounts denied",
        "a folder that is to be mounted is not there, or Docker may not see it",
        "build the repository first: tritongen build MODEL.onnx",
    ),
)


def failure(output: Output) -> RequirementError:
    """The error for a command of Docker or Compose that failed, with its own words."""
    said = output.stderr or output.stdout
    if _DENIED.search(said) or _DOWN.search(said):
        return _unreachable(output, {})
    shown = " ".join([Path(output.command[0]).name, *output.command[1:]])
    for pattern, meaning, fix in _KNOWN_FAILURES:
        if match := re.search(rf"^.*(?:{pattern}).*$", said, re.MULTILINE | re.IGNORECASE):
            return RequirementError(meaning, found=match[0].strip(), fix=fix)
    return RequirementError(f"`{shown}` failed (exit code {output.code})", found=output.complaint)


_DENIED = re.compile(r"permission denied.*(docker daemon|docker API|docker\.sock)", re.IGNORECASE)
_DOWN = re.compile(r"cannot connect to the docker daemon|couldn't connect to docker daemon", re.IGNORECASE)


def _unreachable(output: Output, about: Mapping[str, Any]) -> RequirementError:
    said = "\n".join([output.stderr, *(about.get("ServerErrors") or ())])
    if _DENIED.search(said):
        return RequirementError(
            "this user may not use Docker",
            found="permission denied on the engine's socket",
            fix="sudo usermod -aG docker $USER, then log in again (this gives the rights of root)",
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return RequirementError(
        "the Docker engine does not answer",
        found=lines[-1] if lines else output.last_line,
        fix="start it: systemctl start docker (without systemd: dockerd &)",
    )


def _compose_version(command: Sequence[str]) -> tuple[int, ...] | None:
    answer = call((*command, "version", "--short"), check=False, timeout_s=PROBE_TIMEOUT_S)
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", answer.stdout.strip())
    return tuple(int(part) for part in match.groups() if part) if match and answer.code == 0 else None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _image(about: dict[str, Any]) -> Image:
    config = about.get("Config") or {}
    return Image(
        identity=about["Id"],
        tags=tuple(about.get("RepoTags") or ()),
        size_bytes=about["Size"],
        user=config.get("User") or "",
        environment=dict(entry.partition("=")[::2] for entry in config.get("Env") or ()),
        labels=config.get("Labels") or {},
    )


def _container(about: dict[str, Any]) -> Container:
    state, config = about["State"], about["Config"]
    published = (about.get("NetworkSettings") or {}).get("Ports") or {}
    return Container(
        identity=about["Id"],
        name=about["Name"].lstrip("/"),
        image=config["Image"],
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status"),
        pid=state["Pid"],
        restart_count=about["RestartCount"],
        started=state["StartedAt"],
        exit_code=state["ExitCode"],
        out_of_memory=state["OOMKilled"],
        ports={
            int(inside.partition("/")[0]): (bound[0]["HostIp"], int(bound[0]["HostPort"]))
            for inside, bound in published.items()
            if bound and inside.endswith("/tcp")
        },
        labels=config.get("Labels") or {},
    )
