"""gRPC through grpcio's asyncio client, with ready-made ModelInferRequest bytes."""

from __future__ import annotations

import asyncio
from typing import Any

from tritongen.loadtest import samples
from tritongen.loadtest.transport import Finish

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Workers and repeated runs must not share a connection behind our back.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that comes back is found again within a second, not after grpc's exponential backoff.
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class GrpcTransport:
    """One channel; each request is a call of its own on it."""

    def __init__(self, host: str, port: int, requests: list[bytes], finish: Finish) -> None:
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._requests = requests
        self._finish = finish
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._channel: Any = None
        self._call: Any = None

    async def open(self, connections: int) -> None:  # noqa: ARG002
        """Open the channel; what fails now will be counted when it is needed."""
        import grpc.aio

        self._channel = grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS)
        self._call = self._channel.unary_unary(METHOD)
        try:
            await asyncio.wait_for(self._channel.channel_ready(), 5)
        except asyncio.TimeoutError:
            return

    def send(self, row: int, request: int) -> None:
        """Start a call."""
        self._tasks[row] = asyncio.ensure_future(self._infer(row, self._requests[request]))

    def abandon(self, row: int) -> None:
        """Cancel the call."""
        task = self._tasks.pop(row, None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Cancel every call; the channel goes with the process."""
        for row in list(self._tasks):
            self.abandon(row)

    async def _infer(self, row: int, request: bytes) -> None:
        import grpc.aio

        try:
            answer = await self._call(request)
            status, detail = (samples.OK, "") if answer else (samples.GARBAGE, "an empty answer")
        except grpc.aio.AioRpcError as error:
            status, detail = grpc_status(error.code().value[0], error.details() or "")
        if self._tasks.pop(row, None) is not None:
            self._finish(row, status, detail)


def grpc_status(code: int, detail: str) -> tuple[int, str]:
    """The sample status of a failed call; grpc reports a broken connection as UNAVAILABLE, in words only."""
    lowered = detail.lower()
    if code == 14:  # noqa: PLR2004
        if "failed to connect" in lowered or "connection refused" in lowered:
            return samples.REFUSED, detail
        if any(word in lowered for word in ("socket closed", "reset", "broken pipe", "goaway", "connection")):
            return samples.LOST, detail
    return samples.GRPC_FIRST + code, detail
