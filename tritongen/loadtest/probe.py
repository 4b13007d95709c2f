"""One request before the run, its answer read and checked: load testing error messages helps nobody."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass

from tritongen.errors import ServerError
from tritongen.loadtest.target import Address, ServedModel
from tritongen.loadtest.transport_grpc import CHANNEL_OPTIONS, METHOD


@dataclass(frozen=True)
class Answer:
    """The outputs of one request: shape by name."""

    shapes: dict[str, tuple[int, ...]]


def probe(model: ServedModel, address: Address, request: bytes, timeout_s: float) -> Answer:
    """Send one ready-made request; ServerError with the server's words unless the answer is whole."""
    exchange = _probe_grpc if address.protocol == "grpc" else _probe_http
    shapes = exchange(model, address, request, timeout_s)
    missing = [name for name in model.outputs if name not in shapes]
    if missing:
        raise ServerError(
            f"the answer of model '{model.name}' is incomplete",
            found=f"outputs {', '.join(shapes) or 'none'}",
            expected=", ".join(model.outputs),
        )
    return Answer(shapes)


def _probe_http(
    model: ServedModel, address: Address, request: bytes, timeout_s: float
) -> dict[str, tuple[int, ...]]:
    try:
        with (
            socket.create_connection((address.host, address.port), timeout_s) as connection,
            contextlib.closing(http.client.HTTPResponse(connection, method="POST")) as response,
        ):
            connection.sendall(request)
            response.begin()
            body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(model, address, error, timeout_s) from None
    if response.status != http.client.OK:
        raise _refused(model, f"HTTP {response.status}: {_error_text(body)}")
    size = response.headers.get("Inference-Header-Content-Length")
    try:
        head = json.loads(body[: int(size)] if size else body)
        return {each["name"]: tuple(each["shape"]) for each in head["outputs"]}
    except (ValueError, KeyError, TypeError):
        raise ServerError(
            f"the answer of model '{model.name}' is not one of the KServe v2 protocol",
            found=repr(body[:80]),
        ) from None


def _probe_grpc(
    model: ServedModel, address: Address, request: bytes, timeout_s: float
) -> dict[str, tuple[int, ...]]:
    import grpc
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2

    with grpc.insecure_channel(address.host_header, options=CHANNEL_OPTIONS) as channel:
        try:
            answer = channel.unary_unary(METHOD)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _refused(model, f"gRPC {error.code().name}: {error.details()}") from None
    try:
        outputs = service_pb2.ModelInferResponse.FromString(answer).outputs
    except DecodeError:
        raise ServerError(
            f"the answer of model '{model.name}' is not one of the KServe v2 protocol",
            found=repr(answer[:80]),
        ) from None
    return {each.name: tuple(each.shape) for each in outputs}


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode("utf-8", "replace")


def _refused(model: ServedModel, found: str) -> ServerError:
    return ServerError(
        f"model '{model.name}' did not answer the first request",
        found=found,
        fix="--data, --shape and --range change what is sent; if it is not that, read the server's log",
    )


def _no_answer(model: ServedModel, address: Address, error: Exception, timeout_s: float) -> ServerError:
    found = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
    return ServerError(
        f"model '{model.name}' at {address.host}:{address.port} did not answer the first request",
        found=found or type(error).__name__,
        fix="read the server's log",
    )
