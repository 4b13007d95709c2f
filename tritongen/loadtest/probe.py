"""One request before the run, its answer read and checked: load testing error messages helps nobody."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import zlib

from tritongen.errors import ServerError
from tritongen.loadtest import samples
from tritongen.loadtest.job import Job
from tritongen.loadtest.target import Address, ServedModel
from tritongen.loadtest.transport import h2_transport
from tritongen.loadtest.transport_grpc import CHANNEL_OPTIONS, METHOD
from tritongen.loadtest.transport_h2 import H2Transport

MOST_ANSWER_BYTES = 1 << 31
_TRIES = 3
"""A model that answers some requests with errors is to be measured, and not refused by chance."""
_FIXES = (
    ("decoupled", "it answers over gRPC streams only: --protocol grpc --streaming"),
    ("correlation ID", "models of sequences cannot be tested: every request of a load test stands alone"),
)
"""What Triton says about a model that its first request does not suit, and what to do."""
_FIX = "--data, --shape and --range change what is sent; if it is not that, read the server's log"


class _RefusedError(ServerError):
    """The model answered, with an error."""


def probe(model: ServedModel, address: Address, request: bytes, timeout_s: float, job: Job) -> None:
    """Send one ready-made request; ServerError with the server's words unless the answer is whole.

    An error for an answer is taken only where it comes three times.
    """
    exchange = _probe_grpc if address.protocol == "grpc" else _probe_http
    for attempt in range(1, _TRIES + 1):
        try:
            outputs = exchange(model, address, request, timeout_s, job)
            break
        except _RefusedError:
            if attempt == _TRIES:
                raise
    missing = [name for name in model.outputs if name not in outputs]
    if missing:
        raise ServerError(
            f"the answer of model '{model.name}' is incomplete",
            found=f"outputs {', '.join(outputs) or 'none'}",
            expected=", ".join(model.outputs),
            fix="let the model return all outputs that its configuration names",
        )


def _probe_http(
    model: ServedModel, address: Address, request: bytes, timeout_s: float, job: Job
) -> list[str]:
    try:
        tls = job.access.context()
        with (
            socket.create_connection((address.host, address.port), timeout_s) as plain,
            tls.wrap_socket(plain, server_hostname=address.host) if tls else plain as connection,
            contextlib.closing(http.client.HTTPResponse(connection, method="POST")) as response,
        ):
            connection.sendall(request)
            response.begin()
            body = response.read()
            if response.headers.get("Content-Encoding", "identity") != "identity":
                body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body)  # gzip or deflate
    except (OSError, http.client.HTTPException, zlib.error) as error:
        raise _no_answer(model, address, error, timeout_s) from None
    if response.status != http.client.OK:
        raise _refused(model, f"HTTP {response.status}: {_error_text(body)}")
    size = response.headers.get("Inference-Header-Content-Length")
    try:
        head = json.loads(body[: int(size)] if size else body)
        return [str(each["name"]) for each in head["outputs"]]
    except (ValueError, KeyError, TypeError):
        raise ServerError(
            f"the answer of model '{model.name}' is not one of the KServe v2 protocol",
            found=repr(body[:80]),
        ) from None


def _probe_grpc(
    model: ServedModel, address: Address, request: bytes, timeout_s: float, job: Job
) -> list[str]:
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2

    answer = _call_grpcio if job.grpc_client == "grpcio" else _call_h2
    data = answer(model, address, request, timeout_s, job)
    try:
        if job.streaming:
            outputs = service_pb2.ModelStreamInferResponse.FromString(data).infer_response.outputs
        else:
            outputs = service_pb2.ModelInferResponse.FromString(data).outputs
    except DecodeError:
        raise ServerError(
            f"the answer of model '{model.name}' is not one of the KServe v2 protocol",
            found=repr(data[:80]),
        ) from None
    return [str(each.name) for each in outputs]


def _call_grpcio(model: ServedModel, address: Address, request: bytes, timeout_s: float, _job: Job) -> bytes:
    import grpc

    with grpc.insecure_channel(address.host_header, options=CHANNEL_OPTIONS) as channel:
        try:
            return bytes(channel.unary_unary(METHOD)(request, timeout=timeout_s))
        except grpc.RpcError as error:
            raise _refused(model, f"gRPC {error.code().name}: {error.details()}") from None


def _call_h2(model: ServedModel, address: Address, request: bytes, timeout_s: float, job: Job) -> bytes:
    """The last message of the answer, by the transport of the run itself."""
    transport, status, detail = asyncio.run(_one_call(job, request, timeout_s))
    if status in (samples.TIMEOUT, samples.REFUSED, samples.LOST, samples.TLS):
        error = TimeoutError() if status == samples.TIMEOUT else OSError(detail)
        raise _no_answer(model, address, error, timeout_s)
    if status != samples.OK:
        raise _refused(model, f"{samples.cause(status)}: {detail}")
    return transport.last.content if transport.last else b""


async def _one_call(job: Job, request: bytes, timeout_s: float) -> tuple[H2Transport, int, str]:
    ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def finish(_row: int, status: int, detail: str) -> None:
        if not ended.done():
            ended.set_result((status, detail))

    transport = h2_transport(job, [request], finish, kept_bytes=MOST_ANSWER_BYTES)
    transport.send(0, 0)
    try:
        status, detail = await asyncio.wait_for(ended, timeout_s)
    except asyncio.TimeoutError:
        status, detail = samples.TIMEOUT, ""
    transport.close()
    return transport, status, detail


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode("utf-8", "replace")


def _refused(model: ServedModel, found: str) -> _RefusedError:
    return _RefusedError(
        f"model '{model.name}' answered the first request with an error",
        found=found,
        fix=next((fix for words, fix in _FIXES if words in found), _FIX),
    )


def _no_answer(model: ServedModel, address: Address, error: Exception, timeout_s: float) -> ServerError:
    found = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
    return ServerError(
        f"model '{model.name}' at {address.host}:{address.port} did not answer the first request",
        found=found or type(error).__name__,
        fix="read the server's log",
    )
