"""Which server a command without an address means: one of `tritongen serve`, or that of `docker compose`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.serving.registry import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from tritongen.serving.registry import RunningServer

_COMPOSE_FILES = "*compose*.y*ml"
_LISTENS_S = 1.0


@dataclass(frozen=True)
class Server:
    """A server that is meant, and what is known of it."""

    url: str
    grpc_url: str | None
    """None: only the address that was given is known."""
    metrics_url: str | None
    repository: Path | None
    """What it serves, as far as this machine can tell; what ./triton.env mounts for a server of Compose."""
    own: bool
    """Whether `tritongen serve` runs it."""

    def address(self, protocol: str | None) -> str:
        """Its address for a protocol ("http" or "grpc"), where one was not given with the address."""
        return self.grpc_url if protocol == "grpc" and self.grpc_url else self.url


def find_server(url: str | None, repository: Path | None) -> Server:
    """The server at `url`, the one that serves `repository`, or the one that is meant where neither is given.

    Without an address: the server that `tritongen serve` runs for the repository (or the only one that it
    runs, where no models are here); else the one of Compose: at the ports of ./triton.env, where Docker says,
    or at Triton's own. ServerError if all that runs are servers of `tritongen serve` for other repositories.
    """
    from tritongen.errors import ServerError
    from tritongen.serving.registry import choose_server, listing, running_servers, state_folder

    state = state_folder(os.environ)
    if url is not None:
        wanted = url.rstrip("/") if "://" in url else f"http://{url}"
        known = (each for each in running_servers(state) if wanted in (each.http_url, each.grpc_url))
        running = next(known, None)
        return _own(running, url) if running else _given(url, wanted, repository)
    chosen = choose_server(state, repository)
    meant = repository or DEFAULT_REPOSITORY
    is_here = chosen is not None and chosen.repository == str(meant.resolve())
    if chosen is not None and (is_here or not meant.is_dir()):
        return _own(chosen, chosen.http_url)
    # What `serve` runs is somebody else's, if a server answers for this very folder.
    composed, others = _composed(repository), running_servers(state)
    is_other = composed.url in (each.http_url for each in others)
    if not others or (_listens(composed.url) and not is_other):
        return composed
    if chosen is not None:
        return _own(chosen, chosen.http_url)
    raise ServerError(
        f"no server of {meant} runs",
        found=f"of other repositories: {listing(others)}",
        fix="start it with `tritongen serve`, or give the address of another with --url",
    )


def is_served(repository: Path) -> bool:
    """Whether a server of `tritongen serve`, or of the Compose project here, serves this repository now."""
    from tritongen.serving import registry

    if registry.find_server(registry.state_folder(os.environ), repository) is not None:
        return True
    mounts_it = repository.resolve() == (mounted_repository(Path()) or Path()).resolve()
    return mounts_it and _listens(next(_usual(None)).url) and _published(None) is not None


def compose_command(repository: Path) -> str | None:
    """What starts the server of a repository, where `tritongen compose init` has been here for it.

    None too where its files ask for a GPU and this machine has none.
    """
    from tritongen.serving.container import compose
    from tritongen.serving.container.host import has_no_gpu

    mounts_it = repository.resolve() == compose.repository_of(Path()).resolve()
    if not (mounts_it and compose.RECORD.is_file()):
        return None
    if Path(compose.GPU_FILE).is_file() and not has_no_gpu():
        return compose.up_command(cpu=False)
    return compose.up_command(cpu=True) if Path(compose.CPU_FILE).is_file() else None


def _own(server: RunningServer, url: str) -> Server:
    return Server(url, server.grpc_url, server.metrics_url, Path(server.repository), own=True)


def _given(url: str, wanted: str, repository: Path | None) -> Server:
    """A server that only its address is known of, unless it is where Compose puts one."""
    for each in _usual(repository):
        if wanted in (each.url, each.grpc_url):
            return Server(url, each.grpc_url, each.metrics_url, each.repository, own=False)
    return Server(url, None, None, repository, own=False)


def _composed(repository: Path | None) -> Server:
    """The server at the ports of ./triton.env, where Docker says, or at Triton's own: whichever answers."""
    from tritongen.serving.container.compose import ENV_FILE

    places = list(_usual(repository))
    if Path(ENV_FILE).is_file() and _listens(places[0].url):
        return places[0]
    listening = (each for each in places if _listens(each.url))
    return _published(repository) or next(listening, None) or places[0]


def _usual(repository: Path | None) -> Iterator[Server]:
    """Where ./triton.env puts the server, and Triton's own ports on this machine."""
    from tritongen.serving.container.compose import ENV_FILE, read_environment
    from tritongen.serving.container.service import PORTS
    from tritongen.serving.ports import dialled

    settings = {**read_environment(Path(ENV_FILE)), **os.environ}  # as with Compose
    host = dialled(settings.get("BIND_ADDRESS", ""))
    names = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT")
    ports = (settings.get(name) or usual for name, usual in zip(names, PORTS, strict=True))
    yield _at([f"{host}:{port}" for port in ports], repository)
    yield _at([f"127.0.0.1:{port}" for port in PORTS], repository)


def _published(repository: Path | None) -> Server | None:
    """Where Docker says that the server of this folder's Compose project is; None if it says nothing."""
    from tritongen.errors import TritongenError
    from tritongen.serving.container.engine import find_engine
    from tritongen.serving.container.service import PORTS, SERVICE

    if not any(Path().glob(_COMPOSE_FILES)):
        return None
    folder = f"label=com.docker.compose.project.working_dir={Path.cwd()}"
    try:
        found = find_engine().containers(folder, f"label=com.docker.compose.service={SERVICE}")
    except TritongenError:
        return None
    places = ([container.address(port) for port in PORTS] for container in found)
    return next((_at(place, repository) for place in places if place[0]), None)


def _at(place: Sequence[str | None], repository: Path | None) -> Server:
    """A server by HOST:PORT of each of its ports."""
    http, grpc, metrics = place
    return Server(
        f"http://{http}",
        grpc and f"grpc://{grpc}",
        metrics and f"http://{metrics}/metrics",
        repository or mounted_repository(Path()),
        own=False,
    )


def mounted_repository(folder: Path) -> Path | None:
    """What the Compose files in a folder mount, by the triton.env there; None if that is not there."""
    from tritongen.serving.container.compose import repository_of

    path = repository_of(folder)
    return path if path.is_dir() else None


def _listens(url: str) -> bool:
    host, _, port = url.rpartition("/")[2].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _LISTENS_S):
            return True
    except (OSError, ValueError):
        return False
