"""HTTP/2 frames and header blocks: bytes that are none, connections that end, ours read as written."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.h2_peer import SENT
from tritongen.loadtest import samples
from tritongen.loadtest.http2 import frames
from tritongen.loadtest.http2.headers import BlockReader, RequestHeaders
from tritongen.loadtest.transport_h2 import H2Transport


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
