"""An HTTP/2 server for gRPC, made of the h2 package, and a client of ours that talks to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from tritongen.loadtest.transport_h2 import H2Transport, message

ANSWER = message(b"the answer")
HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
SENT = b"request"

Settings = dict[Any, int]


@dataclass
class Call:
    """One call as the peer sees it."""

    server: Peer
    stream: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    number: int = 0

    def answer(
        self, body: bytes = ANSWER, trailers: Sequence[tuple[str, str]] = (("grpc-status", "0"),)
    ) -> None:
        h2c = self.server.h2c
        h2c.send_headers(self.stream, HEADERS)
        if body:
            h2c.send_data(self.stream, body)
        h2c.send_headers(self.stream, list(trailers), end_stream=True)

    def only_trailers(self, *fields: tuple[str, str]) -> None:
        self.server.h2c.send_headers(self.stream, [*HEADERS, *fields], end_stream=True)


Behaviour = Callable[[Call], None]


class Peer(asyncio.Protocol):
    """An HTTP/2 server made of the h2 package, which raises when its client breaks a rule."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.h2c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.calls: dict[int, Call] = {}
        if stage.settings:
            self.h2c.local_settings = h2.settings.Settings(client=False, initial_values=stage.settings)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.stage.peers.append(self)
        self.h2c.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self.h2c.receive_data(data):
                self.stage.events.append(event)
                self.handle(event)
        except Exception as error:  # noqa: BLE001  (the test must see it)
            self.stage.errors.append(error)
            self.transport.abort()
        self.flush()

    def handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            headers = {bytes(name).decode(): bytes(value).decode() for name, value in event.headers}
            self.calls[event.stream_id] = Call(self, event.stream_id, headers, number=len(self.stage.calls))
            self.stage.calls.append(self.calls[event.stream_id])
        elif isinstance(event, h2.events.DataReceived):
            self.calls[event.stream_id].body += event.data
            self.h2c.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.stage.behaviour(self.calls[event.stream_id])

    def flush(self) -> None:
        data = self.h2c.data_to_send()
        if not self.transport.is_closing():
            for start in range(0, len(data), self.stage.piece):
                self.transport.write(data[start : start + self.stage.piece])


@dataclass
class Stage:
    """A server, a client, and what they saw of each other."""

    behaviour: Behaviour
    settings: Settings = field(default_factory=dict)
    piece: int = 1 << 30
    peers: list[Peer] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    events: list[h2.events.Event] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    ends: dict[int, tuple[int, str]] = field(default_factory=dict)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(3000):
            if condition() or self.errors:
                break
            await asyncio.sleep(0.002)
        assert not self.errors, self.errors
        assert condition()


def play(
    behaviour: Behaviour,
    act: Callable[[H2Transport, Stage], Any],
    *,
    requests: Sequence[bytes] = (SENT,),
    settings: Settings | None = None,
    connections: int = 1,
    piece: int = 1 << 30,
    **options: Any,
) -> Stage:
    """Run `act` with a client that is connected to a peer that behaves like this."""
    stage = Stage(behaviour, settings or {}, piece)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Peer(stage), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        def finish(row: int, status: int, detail: str) -> None:
            assert row not in stage.ends, "reported twice"
            stage.ends[row] = (status, detail)

        client = H2Transport("127.0.0.1", port, list(requests), finish, **options)
        await client.open(connections)
        try:
            result = act(client, stage)
            if asyncio.iscoroutine(result):
                await result
        finally:
            client.close()
            for peer in stage.peers:
                peer.transport.abort()
            server.close()
            await server.wait_closed()
            await asyncio.sleep(0.01)

    asyncio.run(main())
    return stage


async def send(client: H2Transport, stage: Stage, count: int = 1, request: int = 0) -> None:
    """Send so many at once and wait for their ends."""
    first = len(stage.ends)
    for row in range(first, first + count):
        client.send(row, request)
    await stage.until(lambda: len(stage.ends) == first + count)


def ends(behaviour: Behaviour, count: int = 1, **options: Any) -> list[tuple[int, str]]:
    stage = play(behaviour, lambda client, stage: send(client, stage, count), **options)
    return [stage.ends[row] for row in range(count)]
