"""Which servers `tritongen serve` has running: one small file each, outside the repository they serve.

<state>/tritongen/servers/<digest of the repository's path>.json
<state>/tritongen/logs/<the same digest>-<time>-<PID>.log           of those in the background

A record whose process is gone (or whose PID now belongs to another process) is stale and is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tritongen.errors import InputError, RequirementError
from tritongen.files import locked, write_text
from tritongen.serving.supervisor import children

SCHEMA = "tritongen/server/1"
DEFAULT_REPOSITORY = Path("model_repository")
"""The one that is meant where none is named."""
KEPT_LOGS = 10
"""Per repository, the newest included."""


@dataclass(frozen=True)
class RunningServer:
    """A server that `tritongen serve` started."""

    repository: str
    """Absolute, without links."""
    pid: int
    """The supervisor's; SIGTERM to it ends the server."""
    process: str
    """Tells this process from a later one with the same PID."""
    http_url: str
    grpc_url: str
    metrics_url: str
    log_file: str | None
    background: bool

    @property
    def alive(self) -> bool:
        return process_identity(self.pid) == self.process

    @property
    def started_s(self) -> float:
        """When the process was started, in seconds since the epoch."""
        after_boot_s = int(self.process.rpartition(":")[2]) / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + after_boot_s


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where records and logs are kept: XDG's state folder, or the temporary one where there is no home.

    RequirementError if that one is somebody else's, whose records would have us signal processes.
    """
    base = Path(environment.get("XDG_STATE_HOME", ""))
    if base.is_absolute():  # others are to be ignored, by XDG's rule
        return base / "tritongen"
    home = Path(environment.get("HOME", ""))
    if home.is_absolute() and os.access(home, os.W_OK):
        return home / ".local" / "state" / "tritongen"
    shared = Path(tempfile.gettempdir()) / f"tritongen-{os.getuid()}"
    if shared.exists() and shared.stat().st_uid != os.getuid():
        raise RequirementError(
            f"{shared} belongs to another user",
            found=f"user {shared.stat().st_uid}",
            fix="set XDG_STATE_HOME to a folder of your own",
        )
    return shared


def record_path(state: Path, repository: Path) -> Path:
    """The record of the server of `repository`."""
    digest = hashlib.sha256(os.fsencode(repository.resolve())).hexdigest()[:16]
    return state / "servers" / f"{digest}.json"


def new_log(state: Path, repository: Path) -> Path:
    """Where the log of a new server of `repository` goes; of the earlier ones the last few are kept."""
    stem, folder = record_path(state, repository).stem, state / "logs"
    logs = sorted(folder.glob(f"{stem}*.log"), key=lambda path: path.stat().st_mtime_ns)
    for old in logs[: max(0, len(logs) - KEPT_LOGS + 1)]:
        old.unlink(missing_ok=True)
    return folder / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def register(state: Path, server: RunningServer) -> None:
    """Remember a running server; RequirementError if another one serves its repository by now.

    Also if the state folder cannot be written.
    """
    path = record_path(state, Path(server.repository))
    try:
        with _locked(state):
            if (other := _read(path)) is not None and other.alive and other.pid != server.pid:
                raise already_served(other)
            write_text(path, json.dumps({"schema": SCHEMA, **asdict(server)}, indent=2) + "\n")
    except OSError as error:
        raise RequirementError(
            "cannot remember the running server",
            found=str(error),
            fix="set XDG_STATE_HOME to a writable folder",
        ) from error


def already_served(server: RunningServer) -> RequirementError:
    """The error for a second server of one repository: `reload` and `stop` would know only one of them."""
    return RequirementError(
        "this repository is being served already",
        found=listing([server]),
        fix=f"use that one, or end it first: tritongen stop {shlex.quote(server.repository)}",
    )


def forget(state: Path, repository: Path, pid: int) -> None:
    """Remove the record of the server of `repository` if it is the one with this PID."""
    path = record_path(state, repository)
    if path.exists():
        with _locked(state):
            if (server := _read(path)) is not None and server.pid == pid:
                path.unlink(missing_ok=True)


def running_servers(state: Path) -> list[RunningServer]:
    """Every server that runs now; stale records are removed."""
    servers = []
    for path in sorted((state / "servers").glob("*.json")):
        server = _read(path)
        if server is not None and server.alive:
            servers.append(server)
            continue
        with _locked(state):  # a new server may have been written down meanwhile
            if (server := _read(path)) is None or not server.alive:
                path.unlink(missing_ok=True)
    return servers


def find_server(state: Path, repository: Path) -> RunningServer | None:
    """The running server of `repository`, or None."""
    wanted = str(repository.resolve())
    return next((each for each in running_servers(state) if each.repository == wanted), None)


def choose_server(state: Path, repository: Path | None) -> RunningServer | None:
    """The server that a command without an address means, or None if none runs.

    The server of `repository` if one is named; otherwise that of ./model_repository, or without models there
    the only one that runs. InputError if several run and none of them is meant more than the others.
    """
    if repository is not None:
        return find_server(state, repository)
    if own := find_server(state, DEFAULT_REPOSITORY):
        return own
    servers = running_servers(state)
    if any(path.is_dir() for path in DEFAULT_REPOSITORY.glob("*")) or not servers:
        return None  # what runs is of other projects
    if len(servers) == 1:
        return servers[0]
    raise InputError(
        f"several servers run, and none of them serves ./{DEFAULT_REPOSITORY}",
        found=listing(servers),
        fix="name the repository of one of them; `tritongen ps` lists them",
    )


def listing(servers: Sequence[RunningServer]) -> str:
    """Servers in one line: repository, address and PID of each."""
    return "; ".join(f"{each.repository} at {each.http_url} (PID {each.pid})" for each in servers)


def process_identity(pid: int) -> str:
    """What tells a process from others that get its PID later: the boot and its start time; "" if gone."""
    with contextlib.suppress(OSError, IndexError):
        # The name in parentheses may hold spaces; field 3 (the state) is the first after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] != "Z":
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return f"{boot}:{fields[19]}"
    return ""


def dead_instances(pid: int) -> int:
    """How many processes of the server's instances have ended; Triton starts none again, and says "ready"."""
    instances = (each for triton in children(pid) for each in children(triton))
    return sum(not process_identity(each) for each in instances)


def _locked(state: Path) -> contextlib.AbstractContextManager[None]:
    """Alone with the records for the moment that it takes to look at one and to change it."""
    return locked(state / "servers" / ".lock")


def _read(path: Path) -> RunningServer | None:
    try:
        content = json.loads(path.read_text())
        return RunningServer(**content) if content.pop("schema") == SCHEMA else None
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
