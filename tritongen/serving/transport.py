"""The KServe v2 protocol over HTTP, with Triton's extensions."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tritongen.errors import ServerError
from tritongen.serving.access import Access

if TYPE_CHECKING:
    from numpy.typing import NDArray


_LOCKED = frozenset({401, 403, 407})
"""HTTP status of who may not ask."""
_OF_A_SERVER = frozenset({200, 400, 502, 503, 504})
"""Which an inference server, or the proxy of one that is down, answers to whether it lives.

Triton says 400 where it does not.
"""


class Refusal(Exception):  # noqa: N818  (it is an answer, not a failure of ours)
    """The server answered that it will not; the text is its own."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status, or its nearest for a gRPC status."""


class HttpTransport:
    """One HTTP request per call."""

    def __init__(self, host: str, port: int, prefix: str, access: Access, timeout_s: float) -> None:
        self._address = f"{'https' if access.secure else 'http'}://{host}:{port}"
        self._host, self._port, self._access = host, port, access
        self._tls = access.context()
        self._prefix = prefix.rstrip("/")
        self._timeout_s = timeout_s

    def server_live(self) -> bool:
        return self._status("/v2/health/live", _OF_A_SERVER)

    def server_ready(self) -> bool:
        return self._status("/v2/health/ready")

    def model_ready(self, name: str, version: str) -> bool:
        return self._status(f"{_model(name, version)}/ready")

    def server_metadata(self) -> dict[str, Any]:
        return self._object("/v2")

    def model_metadata(self, name: str, version: str) -> dict[str, Any]:
        return self._object(_model(name, version))

    def model_config(self, name: str, version: str) -> dict[str, Any]:
        return self._object(f"{_model(name, version)}/config")

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        return self._object(f"{_model(name, version)}/stats")

    def index(self) -> list[dict[str, Any]]:
        answer = self._json("POST", "/v2/repository/index", {})
        return answer if isinstance(answer, list) else []

    def load(self, name: str, config: str | None, timeout_s: float) -> None:
        body = {} if config is None else {"parameters": {"config": config}}
        self._json("POST", f"/v2/repository/models/{quote(name, safe='')}/load", body, timeout_s)

    def unload(self, name: str, timeout_s: float) -> None:
        self._json("POST", f"/v2/repository/models/{quote(name, safe='')}/unload", {}, timeout_s)

    def infer(
        self, name: str, version: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        """One call; tensors in binary form."""
        from tritonclient.http import InferenceServerClient

        from tritongen.serving.tensors import as_arrays, http_inputs

        body, size = InferenceServerClient.generate_request_body(http_inputs(inputs))
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(size)}
        status, content, header_size = self._send(
            "POST", f"{_model(name, version)}/infer", bytes(body), headers, timeout_s
        )
        if status != http.client.OK:
            raise Refusal(_error(content) or f"HTTP status {status}", status)
        length = None if header_size is None else int(header_size)
        return as_arrays(InferenceServerClient.parse_response_body(content, header_length=length))

    def share_memory(self, name: str, key: str, size: int) -> None:
        path = f"/v2/systemsharedmemory/region/{quote(name, safe='')}/register"
        self._json("POST", path, {"key": key, "offset": 0, "byte_size": size})

    def unshare_memory(self, name: str) -> None:
        self._json("POST", f"/v2/systemsharedmemory/region/{quote(name, safe='')}/unregister", {})

    def share_cuda_memory(self, name: str, handle: bytes, device: int, size: int) -> None:
        body = {"raw_handle": {"b64": handle.decode()}, "device_id": device, "byte_size": size}
        self._json("POST", f"/v2/cudasharedmemory/region/{quote(name, safe='')}/register", body)

    def unshare_cuda_memory(self, name: str) -> None:
        self._json("POST", f"/v2/cudasharedmemory/region/{quote(name, safe='')}/unregister", {})

    def text(self, path: str) -> str:
        """The body of a plain GET."""
        status, body = self._exchange("GET", path, None)
        if status != http.client.OK:
            raise ServerError(f"{self._address}{path} answers with HTTP status {status}")
        return body.decode(errors="replace")

    def close(self) -> None:
        """Nothing is kept open."""

    def _status(self, path: str, known: frozenset[int] = frozenset()) -> bool:
        status, content = self._exchange("GET", path, None)
        if status in _LOCKED:
            said = _error(content)
            raise ServerError(
                f"{self._address} lets nobody in who does not prove who it is",
                found=f"HTTP status {status}" + (f": {said}" if said else ""),
                fix="give --token-env, --token-file or --header, whichever the proxy in front of it asks for",
            )
        if known and status not in known:
            raise self._not_v2(f"HTTP status {status} for {path}")
        return status == http.client.OK

    def _object(self, path: str) -> dict[str, Any]:
        answer = self._json("GET", path)
        if not isinstance(answer, dict):
            raise self._not_v2("the answer is not a JSON object")
        return answer

    def _json(
        self, verb: str, path: str, body: dict[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        status, content = self._exchange(verb, path, body, timeout_s)
        if status != http.client.OK:
            raise Refusal(_error(content) or f"HTTP status {status} for {path}", status)
        try:
            answer = json.loads(content) if content else {}
        except ValueError:
            answer = None
        if answer is None:
            raise self._not_v2("the answer is not JSON")
        return answer

    def _exchange(
        self, verb: str, path: str, body: dict[str, Any] | None, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        status, content, _ = self._send(verb, path, data, {"Content-Type": "application/json"}, timeout_s)
        return status, content

    def _send(
        self, verb: str, path: str, data: bytes | None, headers: dict[str, str], timeout_s: float | None
    ) -> tuple[int, bytes, str | None]:
        """Status, body, and the length of the JSON in front of binary tensors, if the server says one."""
        timeout = timeout_s or self._timeout_s
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=timeout)
            if self._tls is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        )
        try:
            connection.request(verb, self._prefix + path, data, {**headers, **dict(self._access.headers)})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("Inference-Header-Content-Length")
        except OSError as error:
            raise unreachable(self._address, error) from None
        except http.client.HTTPException as error:
            raise self._not_v2(f"{type(error).__name__}: {error!s:.60}") from None
        finally:
            connection.close()

    def _not_v2(self, found: str) -> ServerError:
        return ServerError(
            f"{self._address} does not speak the KServe v2 protocol over HTTP",
            found=found,
            fix="if this is the server's gRPC port, use grpc:// instead of http://",
        )


def unreachable(address: str, error: OSError) -> ServerError:
    """The error for a connection that could not be made or broke."""
    if isinstance(error, ConnectionRefusedError):
        return ServerError(
            f"no server listens at {address}",
            found="connection refused",
            fix="start one with `tritongen serve`, or give its address with --url",
        )
    if isinstance(error, ssl.SSLError):
        return ServerError(
            f"{address} and we do not agree on TLS",
            found=str(error),
            fix="check --tls-ca and --tls-cert, or trust any certificate with --tls-insecure",
        )
    if isinstance(error, socket.gaierror):
        return ServerError(f"the host of {address} is unknown", found=str(error), fix="check --url")
    if isinstance(error, TimeoutError):
        return ServerError(f"{address} did not answer in time", fix="check the server's log and load")
    if isinstance(error, ConnectionResetError):
        return ServerError(
            f"{address} closed the connection",
            found=str(error),
            fix="see its log: it may be starting or ending; if this is its gRPC port, use grpc://",
        )
    return ServerError(f"{address} cannot be reached", found=str(error))


def _error(content: bytes) -> str:
    """What the server says of an error; empty if it is not in the protocol's form."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def _model(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path
