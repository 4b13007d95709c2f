"""gRPC over HTTP/2 by hand: ready-made messages on a few connections, several times as fast as grpcio."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from tritongen.loadtest import samples
from tritongen.loadtest.http2.connection import Connection
from tritongen.loadtest.http2.headers import BlockReader, Fields, RequestHeaders
from tritongen.loadtest.http2.stream import Stream
from tritongen.loadtest.transport import Finish
from tritongen.loadtest.transport_http import refusal

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_MOST_CONNECTIONS = 4
_CALLS_PER_CONNECTION = 8
_MOST_GROWN = 256
_OPEN_S = 5.0


def message(request: bytes, *, compressed: bool = False) -> bytes:
    """A serialized protobuf with gRPC's prefix."""
    return bytes([compressed]) + len(request).to_bytes(4, "big") + request


class H2Transport:
    """Spreads calls over a few connections; where the server's limits are reached, calls wait."""

    def __init__(
        self,
        host: str,
        port: int,
        requests: list[bytes],
        finish: Finish,
        *,
        tls: ssl.SSLContext | None = None,
        extra: Fields = (),
        streaming: bool = False,
        compression: str | None = None,
        kept_bytes: int = 1024,
    ) -> None:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        fields = [*extra, *([("grpc-encoding", compression)] if compression else [])]
        self.headers = RequestHeaders(
            authority, STREAM_METHOD if streaming else METHOD, secure=tls is not None, extra=fields
        )
        self.blocks = BlockReader()
        self.streaming = streaming
        self.kept_bytes = kept_bytes
        """How much of an answer's last message is kept."""
        self.last: Stream | None = None
        """The call that ended last."""
        self._address = (host, port)
        self._tls = tls
        self._requests = [message(each, compressed=compression is not None) for each in requests]
        self._finish = finish
        self._wanted = 1
        self._ready: list[Connection] = []
        self._dials: dict[Connection, asyncio.Task[None]] = {}
        self._leaving: set[Connection] = set()
        self._waiting: dict[int, int] = {}
        self._active: dict[int, Stream] = {}
        self._turn = 0
        self._settled = asyncio.Event()
        """No connection is being made."""

    async def open(self, connections: int) -> None:
        """Connect as often as that many calls at once need; what fails now will be counted when needed."""
        self._wanted = max(1, min(_MOST_CONNECTIONS, -(-connections // _CALLS_PER_CONNECTION)))
        for _ in range(self._wanted):
            self._dial()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._settled.wait(), _OPEN_S)

    def send(self, row: int, request: int) -> None:
        """Start a call on the next connection with room, else as soon as there is one."""
        ready = self._ready
        if len(ready) < self._wanted:
            self._dial_more()
        for _ in ready:
            self._turn = turn = (self._turn + 1) % len(ready)
            connection = ready[turn]
            if len(connection.streams) < connection.peer.max_concurrent_streams:
                self._active[row] = connection.start(row, self._requests[request])
                return
        self._waiting[row] = request
        if not self._dials and ready:
            self._grow()

    def abandon(self, row: int) -> None:
        """Reset the call's stream."""
        self._waiting.pop(row, None)
        stream = self._active.pop(row, None)
        if stream is not None:
            connection = stream.connection
            connection.cancel(stream)
            self.has_room(connection)

    def close(self) -> None:
        """Drop every connection."""
        self._waiting.clear()
        self._active.clear()
        for task in self._dials.values():
            task.cancel()
        for connection in [*self._ready, *self._dials, *self._leaving]:
            connection.drop()

    def ended(self, stream: Stream, status: int, detail: str) -> None:
        """A call ended."""
        self.last = stream
        if self._waiting:
            self.has_room(stream.connection)
        if self._active.pop(stream.row, None) is not None:
            self._finish(stream.row, status, detail)

    def has_room(self, connection: Connection) -> None:
        """Begin waiting calls on this connection, which may be new."""
        if connection.ready and connection not in self._ready:
            self._ready.append(connection)
            self._dialled(connection)
        while self._waiting and connection.room:
            row = next(iter(self._waiting))
            self._active[row] = connection.start(row, self._requests[self._waiting.pop(row)])

    def is_leaving(self, connection: Connection) -> None:
        """The connection takes no more calls; those in flight on it go on."""
        self._dialled(connection)
        if connection in self._ready:
            self._ready.remove(connection)
        self._leaving.add(connection)
        if self._waiting and not self._ready and not self._dials:
            self._dial()

    def is_over(self, connection: Connection, status: int, detail: str) -> None:
        """The connection has ended; if it was the last hope of calls that wait, so have they."""
        was_dialling = self._dialled(connection)
        if connection in self._ready:
            self._ready.remove(connection)
        self._leaving.discard(connection)
        if self._ready or self._dials:
            return
        if was_dialling:
            waiting, self._waiting = list(self._waiting), {}
            for row in waiting:
                self._finish(row, status, detail)
        elif self._waiting:
            self._dial()

    def _dialled(self, connection: Connection) -> bool:
        """A connection is not being made any more; whether it was."""
        task = self._dials.pop(connection, None)
        if not self._dials:
            self._settled.set()
        return task is not None

    def _dial_more(self) -> None:
        """Replace connections that are gone, one at a time."""
        if not self._dials:
            self._dial()

    def _grow(self) -> None:
        """The server allows few calls per connection: take another one."""
        if len(self._ready) < _MOST_GROWN:
            self._wanted = len(self._ready) + 1
            self._dial()

    def _dial(self) -> None:
        connection = Connection(self)
        self._dials[connection] = asyncio.ensure_future(self._connect(connection))

    async def _connect(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, *self._address, ssl=self._tls)
        except ssl.SSLError as error:
            self.is_over(connection, samples.TLS, str(error))
        except OSError as error:
            self.is_over(connection, refusal(error), str(error))
