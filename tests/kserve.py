"""A small KServe v2 server of our own on real sockets, HTTP and gRPC, that can also misbehave.

It answers from a table, so it costs next to nothing: what a load test measures on it is mostly the load test.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

MODEL = "null"
SERVER = {"name": "null-server", "version": "1", "extensions": ["binary_tensor_data"]}
TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
OUTPUT = {"name": "y", "datatype": "FP32", "shape": [-1, 1]}
METADATA = {"name": MODEL, "versions": ["1"], "platform": "null", "inputs": [TENSOR], "outputs": [OUTPUT]}
ANSWER = json.dumps(
    {"model_name": MODEL, "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}]}
).encode()


@dataclass(frozen=True)
class Act:
    """What the server does with one inference request."""

    kind: Literal["answer", "refuse", "garbage", "drop", "hang"] = "answer"
    delay_s: float = 0.0


Behaviour = Callable[[int, float], Act]
"""(number of the inference request from 0, seconds since the server started) → what to do."""


def well(_number: int, _elapsed_s: float) -> Act:
    """Answer at once."""
    return Act()


def freezing(period_s: float, length_s: float) -> Behaviour:
    """Stop for `length_s` every `period_s`; what comes meanwhile is answered when the freeze ends."""

    def behave(_number: int, elapsed_s: float) -> Act:
        return Act(delay_s=max(0.0, length_s - elapsed_s % period_s))

    return behave


@dataclass
class NullServer:
    """Serves from entering to leaving, in a thread of its own."""

    behaviour: Behaviour = well
    ready: bool = True
    http_port: int = 0
    grpc_port: int = 0
    inferences: int = 0
    _connections: set[Any] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(up,), daemon=True)
        self._thread.start()
        assert up.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.die()

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def act(self) -> Act:
        self.inferences += 1
        return self.behaviour(self.inferences - 1, time.monotonic() - self._started)

    def die(self) -> None:
        """Close everything, as a server that crashes."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)

    def _run(self, up: threading.Event) -> None:
        asyncio.run(self._serve(up))

    async def _serve(self, up: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        http = await self._loop.create_server(
            lambda: _HttpConnection(self), "127.0.0.1", self.http_port, reuse_address=True
        )
        self.http_port = http.sockets[0].getsockname()[1]
        grpc_server = await _grpc_server(self)
        up.set()
        await self._end.wait()
        http.close()
        for connection in list(self._connections):
            connection.abort()
        await grpc_server.stop(0)


class _HttpConnection(asyncio.Protocol):
    def __init__(self, server: NullServer) -> None:
        self._server = server
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server._connections.add(transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._server._connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].decode().lower()
            length = (
                int(head.split("content-length:")[1].split("\r\n")[0]) if "content-length:" in head else 0
            )
            if len(self._data) < end + 4 + length:
                return
            path = self._data.split(b" ", 2)[1].decode()
            self._is_last = "connection: close" in head
            self._data = self._data[end + 4 + length :]
            if path.endswith("/infer"):
                self._infer(self._server.act())
            else:
                self._send(*self._about(path))

    def _about(self, path: str) -> tuple[int, bytes]:
        if path.endswith("/ready"):
            return (200 if self._server.ready else 400), b""
        answers = {"/v2/health/live": {}, "/v2": SERVER, f"/v2/models/{MODEL}": METADATA}
        if path in answers:
            return 200, json.dumps(answers[path]).encode()
        return 404, json.dumps({"error": f"Request for unknown model or path: {path} is not found"}).encode()

    def _infer(self, act: Act) -> None:
        if act.delay_s > 0:
            asyncio.get_running_loop().call_later(act.delay_s, self._infer, Act(act.kind))
        elif act.kind == "drop":
            self._transport.abort()
        elif act.kind == "garbage":
            self._transport.write(b"\x00\x01 this is not HTTP \r\n\r\n")
        elif act.kind == "refuse":
            self._send(503, b'{"error": "the queue is full"}')
        elif act.kind == "answer":
            self._send(200, ANSWER)

    def _send(self, status: int, body: bytes) -> None:
        if not self._transport.is_closing():
            head = f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + body)
            if self._is_last:
                self._transport.close()


async def _grpc_server(null: NullServer) -> Any:
    import grpc
    from tritonclient.grpc import service_pb2 as pb

    answer = pb.ModelInferResponse(model_name=MODEL)
    answer.outputs.add(name="y", datatype="FP32", shape=[1, 1])
    answer.raw_output_contents.append(b"\x00\x00\x00\x3f")
    metadata = pb.ModelMetadataResponse(name=MODEL, versions=["1"], platform="null")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 4])
    metadata.outputs.add(name="y", datatype="FP32", shape=[-1, 1])
    canned = {
        "ServerLive": lambda: pb.ServerLiveResponse(live=True),
        "ServerReady": lambda: pb.ServerReadyResponse(ready=null.ready),
        "ModelReady": lambda: pb.ModelReadyResponse(ready=null.ready),
        "ServerMetadata": lambda: pb.ServerMetadataResponse(**SERVER),
        "ModelMetadata": lambda: metadata,
    }

    async def infer(_request: bytes, context: Any) -> bytes:
        act = null.act()
        await asyncio.sleep(act.delay_s)
        if act.kind == "hang":
            await asyncio.sleep(3600)
        if act.kind == "refuse":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the queue is full")
        if act.kind == "drop":
            await context.abort(grpc.StatusCode.INTERNAL, "dropped")
        return b"" if act.kind == "garbage" else answer.SerializeToString()

    def handler(name: str) -> Any:
        async def about(_request: bytes, _context: Any) -> bytes:
            return bytes(canned[name]().SerializeToString())

        return grpc.unary_unary_rpc_method_handler(infer if name == "ModelInfer" else about)

    methods = {name: handler(name) for name in [*canned, "ModelInfer"]}
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
    )
    null.grpc_port = server.add_insecure_port(f"127.0.0.1:{null.grpc_port}")
    await server.start()
    return server
