"""Which of Triton's ports an address is, asked over real sockets."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tritongen.errors import ServerError
from tritongen.loadtest.job import Protocol
from tritongen.loadtest.target import Address
from tritongen.loadtest.wrong_port import explain_wrong_port, listener

METRICS = "# HELP nv_x\n# TYPE nv_x counter\nnv_x 1\n"


@contextmanager
def pages(found: dict[str, str]) -> Iterator[int]:
    """An HTTP server with these pages."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = found.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def greeting(data: bytes) -> Iterator[int]:
    """A server that says this to everybody and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(data)
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 16, 0, 0])


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (pages({"/v2": '{"name": "triton", "extensions": []}'}), "http"),
        (pages({"/v2": "", "/metrics": METRICS}), "metrics"),
        (pages({"/v2": "<html>"}), None),
        (greeting(SETTINGS), "grpc"),
        (greeting(b"\x15\x03\x01\x00\x02\x02\x46"), "tls"),
        (greeting(b"220 smtp"), None),
    ],
    ids=["http", "metrics", "other", "grpc", "tls", "nothing we know"],
)
def test_who_listens(server: Any, expected: str | None) -> None:
    with server as port:
        assert listener("127.0.0.1", port) == expected


@pytest.mark.parametrize(
    ("protocol", "secure", "data", "text"),
    [
        ("http", False, SETTINGS, "is a gRPC port.*--url grpc://127.0.0.1"),
        ("grpc", True, SETTINGS, "is a gRPC port.*gRPC port with TLS.*--url grpc://127.0.0.1"),
        ("grpc", False, b"\x15\x03\x01\x00\x02\x02\x46", "is a TLS port.*--url grpcs://127.0.0.1"),
        ("grpc", False, SETTINGS, "^it broke$"),
        ("http", False, b"220 smtp", "^it broke$"),
    ],
)
def test_the_error_names_the_port_and_the_way(
    protocol: Protocol, secure: bool, data: bytes, text: str
) -> None:
    import re

    with greeting(data) as port:
        error = explain_wrong_port(ServerError("it broke"), Address(protocol, "127.0.0.1", port, "", secure))
    shown = " ".join(filter(None, (error.message, error.found, error.expected, error.fix)))
    assert re.search(text, shown), shown


def test_a_failed_handshake_is_one_error_without_the_log_of_a_library() -> None:
    with greeting(b"220 smtp") as port:
        ended = subprocess.run(
            [sys.executable, "-m", "tritongen", "loadtest", "m", "--url", f"grpcs://127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 5
    assert ended.stderr.startswith("error: ")


def test_metrics_are_no_place_for_requests() -> None:
    with pages({"/metrics": METRICS}) as port:
        error = explain_wrong_port(ServerError("it broke"), Address("http", "127.0.0.1", port))
    assert "is a metrics port" in error.message
    assert "8000" in (error.fix or "")
