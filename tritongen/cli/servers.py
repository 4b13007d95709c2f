"""Which server a command without an address means: one of `tritongen serve`, or that of `docker compose`."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.cli.options import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from tritongen.serving.registry import RunningServer

ENV_FILE = Path("triton.env")
_LISTENS_S = 1.0
_EVERY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104


@dataclass(frozen=True)
class Server:
    """A server that is meant, and what is known of it."""

    url: str
    grpc_url: str | None
    """None: only the address that was given is known."""
    metrics_url: str | None
    repository: Path | None
    """What it serves, as far as this machine can tell; ./model_repository for a server of Compose."""
    own: bool
    """Whether `tritongen serve` runs it."""

    def address(self, protocol: str | None) -> str:
        """Its address for a protocol ("http" or "grpc"), where one was not given with the address."""
        return self.grpc_url if protocol == "grpc" and self.grpc_url else self.url


def find_server(url: str | None, repository: Path | None) -> Server:
    """The server at `url`, the one that serves `repository`, or the one that is meant where neither is given.

    Without an address: the server that `tritongen serve` runs for the repository (or the only one that it
    runs); else Triton's own ports on this machine, or those that ./triton.env gives to Compose.
    """
    from tritongen.serving.registry import choose_server, running_servers, state_folder

    state = state_folder(os.environ)
    if url is not None:
        wanted = url.rstrip("/") if "://" in url else f"http://{url}"
        known = (each for each in running_servers(state) if wanted in (each.http_url, each.grpc_url))
        running = next(known, None)
        composed = _compose_server(repository)
        if running is None and wanted in (composed.url, composed.grpc_url):
            return Server(url, composed.grpc_url, composed.metrics_url, composed.repository, own=False)
        return _own(running, url) if running else Server(url, None, None, repository, own=False)
    chosen = choose_server(state, repository)
    composed = _compose_server(repository)
    if chosen is None or (repository is None and _is_nearer(composed, chosen)):
        return composed
    return _own(chosen, chosen.http_url)


def _own(server: RunningServer, url: str) -> Server:
    return Server(url, server.grpc_url, server.metrics_url, Path(server.repository), own=True)


def _is_nearer(composed: Server, other: RunningServer) -> bool:
    """Whether a server answers for this folder's repository, and the other one serves another repository."""
    here = composed.repository
    return here is not None and str(here.resolve()) != other.repository and _listens(composed.url)


def _compose_server(repository: Path | None) -> Server:
    """Where Triton is found by default, or where ./triton.env puts the one of `docker compose`."""
    settings = _settings(ENV_FILE)
    host = settings.get("BIND_ADDRESS", "127.0.0.1")
    host = "127.0.0.1" if host in _EVERY_ADDRESS else host
    http, grpc, metrics = (
        settings.get(name) or usual
        for name, usual in (("HTTP_PORT", "8000"), ("GRPC_PORT", "8001"), ("METRICS_PORT", "8002"))
    )
    here = repository or (DEFAULT_REPOSITORY if DEFAULT_REPOSITORY.is_dir() else None)
    metrics_url = f"http://{host}:{metrics}/metrics"
    return Server(f"http://{host}:{http}", f"grpc://{host}:{grpc}", metrics_url, here, own=False)


def _settings(path: Path) -> dict[str, str]:
    """NAME=value lines, as Compose reads them; what the environment says wins there, and so here."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs} | dict(os.environ)


def _listens(url: str) -> bool:
    host, _, port = url.rpartition("/")[2].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _LISTENS_S):
            return True
    except (OSError, ValueError):
        return False
