"""gRPC over HTTP/2 by hand, against an independent peer (the h2 package) and against peers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritongen.loadtest import samples
from tritongen.loadtest.http2 import frames
from tritongen.loadtest.http2.connection import Connection
from tritongen.loadtest.http2.headers import BlockReader, RequestHeaders
from tritongen.loadtest.job import Compression
from tritongen.loadtest.request import compressed
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


def test_calls_and_answers() -> None:
    stage = play(
        Call.answer,
        lambda client, stage: send(client, stage, 50),
        connections=32,
        extra=[("authorization", "Bearer secret"), ("X-Note", "ä")],
    )
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert len(stage.peers) == 4
    for call in stage.calls:
        assert call.body == message(SENT)
        assert call.headers[":path"] == "/inference.GRPCInferenceService/ModelInfer"
        assert call.headers["authorization"] == "Bearer secret"
        assert call.headers["x-note"] == "ä"
        assert call.headers["te"] == "trailers"


def test_a_small_header_table_is_respected() -> None:
    table = {h2.settings.SettingCodes.HEADER_TABLE_SIZE: 100}
    stage = play(Call.answer, lambda client, stage: send(client, stage, 5), settings=table)
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert all(call.headers["content-type"] == "application/grpc" for call in stage.calls)


@pytest.mark.parametrize("table", [4096, 0])
def test_headers_beyond_one_frame_continue_in_others(table: int) -> None:
    token = "x" * 40_000
    limits = {
        h2.settings.SettingCodes.HEADER_TABLE_SIZE: table,
        h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 60_000,
    }
    extra = [("authorization", token)]
    stage = play(Call.answer, lambda client, stage: send(client, stage, 3), extra=extra, settings=limits)
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert [call.headers["authorization"] for call in stage.calls] == [token] * 3
    assert {call.body for call in stage.calls} == {message(SENT)}


def test_headers_that_the_peer_does_not_take_are_not_sent() -> None:
    limit = {h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 1000}
    extra = [("authorization", "x" * 800)]
    stage = play(Call.answer, lambda client, stage: send(client, stage, 2), extra=extra, settings=limit)
    assert {status for status, _ in stage.ends.values()} == {samples.LOST}
    assert "at most 1000 bytes, and ours have 1" in stage.ends[0][1]
    assert "--header" in stage.ends[0][1]
    assert not stage.calls
    assert ends(Call.answer, extra=[("authorization", "x" * 300)], settings=limit) == [(samples.OK, "")]


@pytest.mark.parametrize("piece", [1, 3, 10, 1000])
def test_answers_in_pieces(piece: int) -> None:
    assert ends(Call.answer, 3, piece=piece) == [(samples.OK, "")] * 3


def test_large_requests_wait_for_the_windows() -> None:
    """The peer raises if a window or a frame size is not kept to."""
    large = bytes(range(256)) * 4000
    limits = {
        h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000,
        h2.settings.SettingCodes.MAX_FRAME_SIZE: 20_000,
    }

    async def act(client: H2Transport, stage: Stage) -> None:
        for row in range(4):
            client.send(row, row % 2)
        await stage.until(lambda: len(stage.ends) == 4)

    stage = play(Call.answer, act, requests=[large, SENT], settings=limits)
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert sorted(len(call.body) for call in stage.calls) == [12, 12, len(large) + 5, len(large) + 5]
    assert all(call.body in {message(large), message(SENT)} for call in stage.calls)


def test_windows_that_change_under_way() -> None:
    large = b"x" * 300_000

    def grow(call: Call) -> None:
        call.server.h2c.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 200_000})
        call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        client.send(0, 0)
        client.send(1, 1)
        client.send(2, 0)
        await stage.until(lambda: len(stage.ends) == 3)

    stage = play(grow, act, requests=[large, SENT])
    assert set(stage.ends.values()) == {(samples.OK, "")}


def test_the_servers_limit_of_calls_is_respected() -> None:
    waiting: list[Call] = []

    def hold(call: Call) -> None:
        waiting.append(call)

    async def act(client: H2Transport, stage: Stage) -> None:
        for row in range(9):
            client.send(row, 0)
        client.abandon(8)
        while len(stage.ends) < 8:
            await stage.until(lambda: bool(waiting))
            assert all(len(peer.h2c.streams) <= 200 for peer in stage.peers)
            call = waiting.pop()
            call.answer()
            call.server.flush()
            await asyncio.sleep(0.005)

    stage = play(hold, act, settings={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2})
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert len(stage.calls) == 8


@pytest.mark.parametrize(
    ("behaviour", "status", "detail"),
    [
        (
            lambda call: call.only_trailers(("grpc-status", "14"), ("grpc-message", "no%20room")),
            1014,
            "no room",
        ),
        (
            lambda call: call.answer(b"", [("grpc-status", "3"), ("grpc-message", "x" * 40_000)]),
            1003,
            "x" * 40_000,
        ),
        (lambda call: call.answer(b"", [("grpc-status", "99")]), 1099, ""),
        (lambda call: call.answer(b"", [("grpc-status", "70000")]), samples.GARBAGE, "cannot be read"),
        (lambda call: call.answer(b"", [("grpc-status", "-900")]), samples.GARBAGE, "cannot be read"),
        (
            lambda call: call.server.h2c.send_headers(call.stream, [(":status", "70000")], end_stream=True),
            samples.GARBAGE,
            "cannot be read",
        ),
        (lambda call: call.answer(b""), samples.GARBAGE, "an empty answer"),
        (lambda call: call.answer(ANSWER[:-1]), samples.GARBAGE, "cut short"),
        (lambda call: call.answer(ANSWER[:3]), samples.GARBAGE, "cut short"),
        (lambda call: call.answer(message(b"")), samples.GARBAGE, "empty"),
        (lambda call: call.answer(ANSWER, [("other", "field")]), samples.GARBAGE, "grpc-status"),
        (lambda call: call.answer(ANSWER, [("grpc-status", "nine")]), samples.GARBAGE, "cannot be read"),
        (
            lambda call: call.server.h2c.send_headers(call.stream, [(":status", "503")], end_stream=True),
            503,
            "",
        ),
        (lambda call: call.server.h2c.reset_stream(call.stream, 7), 1014, "REFUSED_STREAM"),
        (lambda call: call.server.h2c.reset_stream(call.stream, 8), 1001, "CANCEL"),
        (lambda call: call.server.h2c.reset_stream(call.stream, 11), 1008, "ENHANCE_YOUR_CALM"),
        (lambda call: call.server.h2c.reset_stream(call.stream, 2), 1013, "INTERNAL_ERROR"),
        (lambda call: call.server.transport.abort(), samples.LOST, ""),
        (lambda call: call.server.transport.close(), samples.LOST, "closed"),
    ],
)
def test_answers_that_are_failures(behaviour: Behaviour, status: int, detail: str) -> None:
    """Each failure is its own call's; on the same client the next call goes well."""

    def once(call: Call) -> None:
        behaviour(call) if call.number == 0 else call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        await send(client, stage)
        await send(client, stage)

    stage = play(once, act)
    assert stage.ends[0][0] == status
    assert detail in stage.ends[0][1]
    assert stage.ends[1] == (samples.OK, "")


def test_padding_is_passed_over() -> None:
    def padded(call: Call) -> None:
        call.server.h2c.send_headers(call.stream, HEADERS)
        call.server.h2c.send_data(call.stream, ANSWER[:7], pad_length=30)
        call.server.h2c.send_data(call.stream, ANSWER[7:], pad_length=0)
        call.server.h2c.send_headers(call.stream, [("grpc-status", "0")], end_stream=True)

    assert ends(padded) == [(samples.OK, "")]


def test_pings_are_answered() -> None:
    def ping(call: Call) -> None:
        call.server.h2c.ping(b"12345678")
        call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        await send(client, stage)
        await stage.until(
            lambda: any(
                isinstance(event, h2.events.PingAckReceived) and event.ping_data == b"12345678"
                for event in stage.events
            )
        )

    play(ping, act)


def test_going_away_gracefully_loses_nothing() -> None:
    held: list[Call] = []

    def behave(call: Call) -> None:
        if call.number == 0:
            held.append(call)
            goaway = frames.frame(frames.GOAWAY, 0, 0, struct.pack(">LL", frames.LAST_STREAM, 0))
            call.server.transport.write(goaway)
        else:
            call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        client.send(0, 0)
        await stage.until(lambda: bool(client._leaving))
        client.send(1, 0)
        await stage.until(lambda: 1 in stage.ends)
        held[0].answer()
        held[0].server.flush()
        await stage.until(lambda: 0 in stage.ends)

    stage = play(behave, act)
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert len(stage.peers) == 2


def test_going_away_fails_what_will_not_be_looked_at() -> None:
    def behave(call: Call) -> None:
        if call.number < 2:
            call.server.transport.write(
                frames.frame(frames.GOAWAY, 0, 0, struct.pack(">LL", 1, 11) + b"too_many_pings")
            )
            if call.number == 0:
                call.answer()
        else:
            call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        client.send(0, 0)
        client.send(1, 0)
        await stage.until(lambda: len(stage.ends) == 2)
        await send(client, stage)

    stage = play(behave, act)
    assert stage.ends[0] == (samples.OK, "")
    assert stage.ends[1][0] == samples.LOST
    assert "ENHANCE_YOUR_CALM too_many_pings" in stage.ends[1][1]
    assert stage.ends[2] == (samples.OK, "")


def test_stream_numbers_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "last_stream", 7)
    stage = play(Call.answer, lambda client, stage: send(client, stage, 10))
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert len(stage.peers) == 3
    assert max(call.stream for call in stage.calls) == 7


def test_giving_up_resets_the_stream() -> None:
    async def act(client: H2Transport, stage: Stage) -> None:
        client.send(0, 0)
        await stage.until(lambda: bool(stage.calls))
        client.abandon(0)
        client.abandon(0)
        await stage.until(lambda: any(isinstance(event, h2.events.StreamReset) for event in stage.events))
        stage.behaviour = Call.answer
        client.send(1, 0)
        await stage.until(lambda: 1 in stage.ends)

    stage = play(lambda _call: None, act)
    assert stage.ends == {1: (samples.OK, "")}
    assert len(stage.peers) == 1


def test_streaming_ends_with_the_last_answer() -> None:
    error = message(b"\x0a\x05wrong")

    def several(call: Call) -> None:
        call.answer(ANSWER * 3 if call.number else ANSWER + error)

    async def act(client: H2Transport, stage: Stage) -> None:
        await send(client, stage)
        await send(client, stage)

    stage = play(several, act, streaming=True)
    assert stage.calls[0].headers[":path"].endswith("/ModelStreamInfer")
    assert stage.ends == {0: (1002, "wrong"), 1: (samples.OK, "")}


@pytest.mark.parametrize("method", ["gzip", "deflate"])
def test_compressed_answers_of_streams(method: Compression) -> None:
    """A server may compress its answers, as we allow: an error is an error all the same."""
    error, good = b"\x0a\x05wrong", b"\x12\x00"

    def several(call: Call) -> None:
        call.answer(message(compressed(good if call.number else error, method), compressed=True))

    async def act(client: H2Transport, stage: Stage) -> None:
        await send(client, stage)
        await send(client, stage)

    stage = play(several, act, streaming=True)
    assert stage.ends == {0: (1002, "wrong"), 1: (samples.OK, "")}


def raw(answer: bytes, *, close: bool = False) -> tuple[int, str]:
    """How a call ends whose server answers the greeting with these bytes."""
    found: list[tuple[int, str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readexactly(len(frames.GREETING))
            writer.write(answer)
            if not close:
                while await reader.read(1000):
                    pass
            writer.close()
            await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = H2Transport(
            "127.0.0.1",
            server.sockets[0].getsockname()[1],
            [SENT],
            lambda _row, status, detail: found.append((status, detail)),
        )
        client._wanted = 1
        client.send(0, 0)
        for _ in range(1000):
            if found:
                break
            await asyncio.sleep(0.005)
        client.close()
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()

    asyncio.run(main())
    return found[0]


READY = frames.settings({})


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.frame(frames.SETTINGS, 0, 0, b"12345"),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 31}),
        frames.settings({frames.MAX_FRAME_SIZE: 1}),
        READY + frames.frame(frames.HEADERS, 4, 3, b"\x88"),
        READY + frames.frame(frames.HEADERS, 4, 2, b"\x88"),
        READY + frames.frame(frames.DATA, 0, 0, b"x"),
        READY + frames.frame(frames.HEADERS, 0, 1, b"\x88") + READY,
        READY + frames.frame(frames.CONTINUATION, 4, 1, b"\x88"),
        READY + frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(5)),
        READY + frames.frame(frames.HEADERS, 4 | frames.PADDED, 1, b"\xff"),
        READY + frames.frame(frames.HEADERS, 5, 1, b"\xbe"),
        READY + frames.window_update(0, frames.LARGEST_WINDOW),
        READY + frames.window_update(0, 0),
        READY + frames.frame(frames.DATA, 0, 1, bytes(20_000)),
        READY + frames.frame(frames.HEADERS, 4, 1, b"\x00\x01a\x01b"),
    ],
)
def test_garbage_is_called_so(answer: bytes) -> None:
    """What comes after the greeting; the stream 1 is the call."""

    assert raw(answer)[0] == samples.GARBAGE


@pytest.mark.parametrize("answer", [b"", READY, READY[:5], frames.frame(99, 255, 7, b"new")[:0] + READY])
def test_connections_that_end(answer: bytes) -> None:
    assert raw(answer, close=True)[0] == samples.LOST


def test_nobody_there() -> None:
    async def main() -> list[int]:
        found: list[int] = []
        client = H2Transport("127.0.0.1", 9, [SENT], lambda _row, status, _detail: found.append(status))
        await client.open(3)
        client.send(0, 0)
        assert found == [], "the end of a request is never reported from inside `send`"
        for _ in range(200):
            await asyncio.sleep(0.01)
            if found:
                break
        client.close()
        return found

    assert asyncio.run(main()) == [samples.REFUSED]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["te", "x-a", "x-b"]), st.text(max_size=300)), max_size=4))
def test_request_headers_are_read_as_written(extra: list[tuple[str, str]]) -> None:
    import hpack

    headers = RequestHeaders("host:1", "/path", secure=True, extra=extra)
    for blocks in (
        (headers.first, headers.again, headers.again),
        (headers.first_without_table, headers.stateless),
    ):
        decoder = hpack.Decoder()
        for block in blocks:
            read = [(bytes(n).decode(), bytes(v).decode()) for n, v in decoder.decode(block, raw=True)]
            assert read[:4] == [
                (":method", "POST"),
                (":scheme", "https"),
                (":path", "/path"),
                (":authority", "host:1"),
            ]
            assert read[len(read) - len(extra) :] == extra
    assert len(headers.again) < 10 + sum(len(n.encode()) + len(v.encode()) + 8 for n, v in extra)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_block_or_a_protocol_error(block: bytes) -> None:
    reader = BlockReader()
    with contextlib.suppress(frames.ProtocolError):
        assert reader.read(block) == reader.read(block)
    assert reader.read(b"\x88").http_status == 200
