"""What listens at an address that does not answer as it should: Triton has three ports, easily mixed up."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import replace
from typing import Literal

from tritongen.errors import ServerError
from tritongen.loadtest.target import Address

Listener = Literal["http", "grpc", "metrics", "tls"]

_PATIENCE_S = 2.0
_MOST_BYTES = 1 << 20
_SETTINGS = 4
_ALERT = b"\x15\x03"
_NAMES = {"http": "an HTTP port", "grpc": "a gRPC port", "metrics": "a metrics port", "tls": "a TLS port"}


def explain_wrong_port(error: ServerError, address: Address) -> ServerError:
    """The error that names what really listens there; the same error where that is not the trouble."""
    found = listener(address.host, address.port)
    if found is None or found == ("tls" if address.secure else address.protocol):
        return error
    return ServerError(
        f"{address.url} is {_NAMES[found]}",
        found=error.found if (error.found or "").isprintable() else None,
        expected=f"the server's {'HTTP' if address.protocol == 'http' else 'gRPC'} port"
        + (" with TLS" if address.secure else ""),
        fix=_fix(found, address),
    )


def listener(host: str, port: int) -> Listener | None:
    """What listens there, asked in plain HTTP/1.1; None for nobody, or something else."""
    answer = _ask(host, port, "/v2")
    if answer.startswith(_ALERT):
        return "tls"
    if answer[3:4] == bytes([_SETTINGS]) and not answer.startswith(b"HTTP/"):
        return "grpc"
    if not answer.startswith(b"HTTP/1."):
        return None
    if "extensions" in _object(answer):
        return "http"
    return "metrics" if b"\n# TYPE " in _ask(host, port, "/metrics") else None


def _fix(found: Listener, address: Address) -> str:
    if found == "metrics":
        return (
            "give its HTTP port (Triton's own choice: 8000) as http://… or its gRPC port (8001) as grpc://…"
        )
    if found == "tls":
        return f"--url {replace(address, secure=True).url}"
    other = replace(address, protocol=found, secure=False, prefix="")
    if address.protocol == found:  # the right port, but TLS was asked for
        return f"--url {other.url}"
    usual = "8000" if address.protocol == "http" else "8001"
    return f"--url {other.url}, or the other port (Triton's own choice: {usual})"


def _ask(host: str, port: int, path: str) -> bytes:
    """What comes back for a GET, as far as it comes in time."""
    received = b""
    with contextlib.suppress(OSError), socket.create_connection((host, port), _PATIENCE_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        while len(received) < _MOST_BYTES and (data := connection.recv(1 << 16)):
            received += data
            if not received.startswith(b"HTTP/1."[: len(received)]):
                break
    return received


def _object(answer: bytes) -> dict[str, object]:
    """The JSON object in the body of an answer; empty if there is none."""
    try:
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
