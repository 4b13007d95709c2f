"""The HTTP client by hand: every way in which a response may come in pieces, and what is not HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritongen.loadtest import samples
from tritongen.loadtest.transport_http import GarbageError, HttpTransport, parse_head, refusal

BODY = b'{"outputs": [' + b"1" * 3000 + b"]}"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:2000], BODY[2000:]))
    + b"0\r\n\r\n"
)
UNTIL_END = b"HTTP/1.0 200 OK\r\n\r\n" + BODY
REFUSED = b'HTTP/1.1 429 Busy\r\nContent-Length: 15\r\n\r\n{"error": "no"}'
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def exchange(
    pieces: list[bytes], *, close: bool, requests: int = 1, in_turn: bool = False
) -> list[tuple[int, str]]:
    """Send `requests` requests one after another to a server that answers each in these pieces.

    With `in_turn`, every piece is a whole answer, one for each request.
    """
    ends: list[tuple[int, str]] = []

    served: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            for piece in [pieces[len(ends)]] if in_turn else pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                break

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        over = asyncio.Event()

        def finish(_row: int, status: int, detail: str) -> None:
            ends.append((status, detail))
            over.set()

        client = HttpTransport("127.0.0.1", port, [b"request"], finish)
        await client.open(1)
        for row in range(requests):
            over.clear()
            client.send(row, 0)
            await asyncio.wait_for(over.wait(), 10)
        client.close()
        await asyncio.wait_for(asyncio.gather(*(task for task in served if task)), 10)
        server.close()
        await server.wait_closed()

    asyncio.run(main())
    return ends


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % len(data) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(marks) if a < b]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=6), st.sampled_from([PLAIN, CHUNKED, REFUSED]))
def test_responses_in_pieces(places: list[int], response: bytes) -> None:
    status = 429 if response is REFUSED else samples.OK
    detail = '{"error": "no"}' if response is REFUSED else ""
    assert exchange(cut(response, places), close=False, requests=2) == [(status, detail)] * 2


def test_an_answer_like_the_last_one_is_still_looked_at() -> None:
    """Of a whole answer only the beginning is compared with the last good one, and its length."""
    longer = PLAIN.replace(b"Content", b"X-Other: 1\r\nContent")
    strange = PLAIN.replace(b'{"out', b'<"out')
    twice = PLAIN + PLAIN
    answers = [PLAIN, PLAIN, REFUSED, PLAIN, longer, PLAIN, strange, PLAIN, twice]
    found = [status for status, _ in exchange(answers, close=False, requests=len(answers), in_turn=True)]
    good, bad = samples.OK, samples.GARBAGE
    assert found == [good, good, 429, good, good, good, bad, good, bad]


@pytest.mark.parametrize("place", range(1, 12))
def test_trailers_of_chunks_in_pieces(place: int) -> None:
    """However they are cut: what is left of them must not become the next answer's beginning."""
    trailers = b"0\r\nX-A: 1\r\nX-B: 2\r\n\r\n"
    answer = CHUNKED.removesuffix(b"0\r\n\r\n") + trailers
    cut_at = len(answer) - place * 2
    pieces = [answer[:cut_at], answer[cut_at:-2], answer[-2:]]
    assert exchange(pieces, close=False, requests=2) == [(samples.OK, "")] * 2


def test_answers_before_the_answer() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert exchange([hints + hints + PLAIN], close=False, requests=2) == [(samples.OK, "")] * 2
    assert exchange([hints, PLAIN], close=False, requests=2) == [(samples.OK, "")] * 2


def test_a_body_that_ends_with_the_connection() -> None:
    assert exchange([UNTIL_END], close=True, requests=2) == [(samples.OK, "")] * 2


@pytest.mark.parametrize(
    ("response", "close", "status"),
    [
        (b"SSH-2.0-OpenSSH\r\n", False, samples.GARBAGE),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00", False, samples.GARBAGE),
        (PLAIN + b"more", False, samples.GARBAGE),
        (EMPTY, False, samples.GARBAGE),
        (PLAIN.replace(b"{", b"<"), False, samples.GARBAGE),
        (PLAIN.replace(b"200", b"001"), False, samples.GARBAGE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", False, samples.GARBAGE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", False, samples.GARBAGE),
        (PLAIN[:-1], True, samples.LOST),
        (PLAIN[:10], True, samples.LOST),
        (CHUNKED[:-3], True, samples.LOST),
        (b"", True, samples.LOST),
    ],
)
def test_responses_that_are_none(response: bytes, close: bool, status: int) -> None:
    assert [found for found, _ in exchange([response], close=close)] == [status]


def test_nobody_there() -> None:
    async def main() -> list[int]:
        ends: list[int] = []
        client = HttpTransport(
            "127.0.0.1", 9, [b"request"], lambda _row, status, _detail: ends.append(status)
        )
        await client.open(2)
        client.send(0, 0)
        assert ends == [], "the end of a request is never reported from inside `send`"
        for _ in range(100):
            await asyncio.sleep(0.01)
            if ends:
                break
        return ends

    assert asyncio.run(main()) == [samples.REFUSED]


def test_a_sender_without_files_left_has_not_been_refused_by_the_server() -> None:
    assert refusal(OSError(errno.EMFILE, "Too many open files")) == samples.NOT_SENT
    assert refusal(OSError(errno.ECONNREFUSED, "Connection refused")) == samples.REFUSED


def test_heads() -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\ncontent-LENGTH:  12 \r\nConnection: Close")
    assert (head.status, head.length, head.chunked, head.keep_alive) == (200, 12, False, False)
    assert parse_head(b"HTTP/1.1 204 No").length is None
    for nonsense in (b"", b"HTTP/2 200", b"HTTP/1.1 OK", b"GET / HTTP/1.1"):
        with pytest.raises(GarbageError):
            parse_head(nonsense)
