"""HTTP/1.1 by hand over asyncio: ready-made bytes out, status and length in; no pipelining."""

from __future__ import annotations

import asyncio
import errno
import ssl
from dataclasses import dataclass

from tritongen.loadtest import samples
from tritongen.loadtest.transport import Finish

_MAX_HEAD_BYTES = 64 * 1024
_KEPT_BYTES = 1024
_HTTP_OK = 200


class GarbageError(Exception):
    """What came is not HTTP."""


@dataclass(frozen=True)
class Head:
    """The part of a response head that matters here."""

    status: int
    length: int | None
    """Bytes of the body; None when it is chunked or ends with the connection."""
    chunked: bool
    keep_alive: bool
    encoded: bool = False
    """Whether the body is compressed."""

    @property
    def is_usual(self) -> bool:
        """Whether it is how a good answer begins, whose length says where it ends."""
        return self.status == _HTTP_OK and self.length is not None and self.keep_alive and not self.encoded


def parse_head(head: bytes) -> Head:
    """The head of a response, without its empty line; GarbageError if it is none."""
    lines = head.split(b"\r\n")
    version, _, rest = lines[0].partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit() or rest[:1] == b"0":
        raise GarbageError(repr(bytes(lines[0][:60])))
    fields = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (line.partition(b":") for line in lines[1:])
    }
    length = fields.get(b"content-length")
    if length is not None and not length.isdigit():
        raise GarbageError(f"Content-Length {length!r}")
    chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
    closing = fields.get(b"connection") == b"close" or version == b"HTTP/1.0"
    framed = chunked or length is not None
    return Head(
        status=int(rest[:3]),
        length=None if chunked or length is None else int(length),
        chunked=chunked,
        keep_alive=framed and not closing,
        encoded=fields.get(b"content-encoding", b"identity") != b"identity",
    )


class HttpTransport:
    """A pool of connections that grows to what is in flight; the last one used is used first."""

    def __init__(
        self,
        host: str,
        port: int,
        requests: list[bytes],
        finish: Finish,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.requests = requests
        self.finish = finish
        self.idle: list[Connection] = []
        self.active: dict[int, Connection] = {}
        self.heads: dict[bytes, Head] = {}
        self.usual = b"\0", 0
        """How the last good answer that came in one piece began, up to its body's first byte; its length."""
        self._address = (host, port)

    async def open(self, connections: int) -> None:
        """Connect up to `connections` times; what fails now will be counted when it is needed."""
        fresh = [Connection(self) for _ in range(connections)]
        await asyncio.gather(*(self._dial(connection) for connection in fresh))

    def send(self, row: int, request: int) -> None:
        """Send on an idle connection, else on a new one."""
        if self.idle:
            connection = self.idle.pop()
            self.active[row] = connection
            connection.start(row, request)
            return
        connection = Connection(self)
        self.active[row] = connection
        connection.waiting = (row, request)
        connection.dial = asyncio.ensure_future(self._dial(connection))

    def abandon(self, row: int) -> None:
        """Close the connection, since the answer would still come on it."""
        connection = self.active.pop(row, None)
        if connection is not None:
            connection.drop()

    def close(self) -> None:
        """Drop every connection."""
        for connection in [*self.idle, *self.active.values()]:
            connection.drop()
        self.idle.clear()
        self.active.clear()

    def ended(self, row: int, status: int, detail: str) -> None:
        """A connection's request ended."""
        if self.active.pop(row, None) is not None:
            self.finish(row, status, detail)

    async def _dial(self, connection: Connection) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: connection, *self._address, ssl=self._tls)
        except ssl.SSLError as error:
            connection.fail(samples.TLS, str(error))
        except OSError as error:
            connection.fail(refusal(error), str(error))


def refusal(error: OSError) -> int:
    """The status of a connection that could not be made; too few open files are a limit of this side."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return samples.NOT_SENT
    return samples.LOST if error.errno in (errno.ECONNRESET, errno.EPIPE) else samples.REFUSED


class Connection(asyncio.Protocol):
    """One connection: at most one request in flight, its response parsed as it comes."""

    def __init__(self, pool: HttpTransport) -> None:
        self.waiting: tuple[int, int] | None = None
        self.dial: asyncio.Task[None] | None = None
        self._pool = pool
        self._row: int | None = None
        self._transport: asyncio.Transport | None = None
        self._dropped = False
        self._head: Head | None = None
        self._buffer = b""
        self._left = 0
        self._kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._dropped:
            transport.close()
        elif self.waiting is not None:
            row, request = self.waiting
            self.waiting = None
            self.start(row, request)
        else:
            self._pool.idle.append(self)

    def start(self, row: int, request: int) -> None:
        """Write a ready-made request."""
        self._row = row
        assert self._transport is not None  # noqa: S101
        self._transport.write(self._pool.requests[request])

    def data_received(self, data: bytes) -> None:
        start, size = self._pool.usual
        if len(data) == size and data.startswith(start) and self._awaits_answer:
            self._row, row = None, self._row
            self._pool.idle.append(self)
            self._pool.ended(row, samples.OK, "")  # type: ignore[arg-type]
            return
        try:
            if self._head is None:
                self._receive_head(self._buffer + data if self._buffer else data)
            else:
                self._receive_body(data)
        except GarbageError as error:
            self.fail(samples.GARBAGE, str(error))
            self.drop()

    def eof_received(self) -> bool:
        if self._head is not None and self._head.length is None and not self._head.chunked:
            self._complete()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._dropped = True
        if self in self._pool.idle:
            self._pool.idle.remove(self)
        self.fail(
            samples.LOST, str(error) if error else "the server closed the connection before it answered"
        )

    @property
    def _awaits_answer(self) -> bool:
        return self._row is not None and self._head is None and not self._buffer

    def fail(self, status: int, detail: str) -> None:
        """Report the request in flight, if there is one, as failed."""
        row = self._row if self.waiting is None else self.waiting[0]
        self._row = self.waiting = None
        if row is not None:
            self._pool.ended(row, status, detail)

    def drop(self) -> None:
        """Close at once."""
        self._dropped = True
        self._row = self.waiting = None
        if self._transport is not None:
            self._transport.abort()
        elif self.dial is not None:
            self.dial.cancel()

    def _receive_head(self, data: bytes) -> None:
        if self._row is None:
            raise GarbageError("an answer that nobody asked for")
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MAX_HEAD_BYTES or not b"HTTP/1.".startswith(data[:7]):
                raise GarbageError(repr(data[:60]))
            self._buffer = data
            return
        self._buffer = b""
        raw = data[:end]
        head = self._pool.heads.get(raw)
        if head is None:
            head = parse_head(raw)
            if len(self._pool.heads) < 64:  # noqa: PLR2004
                self._pool.heads[raw] = head
        if head.status < _HTTP_OK:  # it says that the answer is still to come
            self._receive_head(data[end + 4 :])
            return
        if head.is_usual and len(data) == end + 4 + (head.length or 0) and data[end + 4 : end + 5] == b"{":
            self._pool.usual = data[: end + 5], len(data)
        self._head = head
        self._left = head.length or 0
        self._kept = b""
        self._receive_body(data[end + 4 :])

    def _receive_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None  # noqa: S101
        if head.chunked:
            self._receive_chunks(data)
            return
        if len(self._kept) < _KEPT_BYTES:
            self._kept += data[: _KEPT_BYTES - len(self._kept)]
        if head.length is None:
            return
        self._left -= len(data)
        if self._left < 0:
            raise GarbageError("more bytes than Content-Length says")
        if self._left == 0:
            self._complete()

    def _receive_chunks(self, data: bytes) -> None:
        """Walk over whole chunks; `_left` is what the current one still lacks, its line end included."""
        self._buffer += data
        while True:
            if self._left:
                taken = min(self._left, len(self._buffer))
                if len(self._kept) < _KEPT_BYTES:
                    self._kept += self._buffer[: min(taken, _KEPT_BYTES)]
                self._buffer = self._buffer[taken:]
                self._left -= taken
                if self._left:
                    return
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise GarbageError(f"chunk size {line[:20]!r}") from None
            if size == 0:
                if rest != b"\r\n" and not rest.endswith(b"\r\n\r\n"):  # after trailers
                    return
                self._buffer = b""
                self._complete()
                return
            self._buffer = rest
            self._left = size + 2

    def _complete(self) -> None:
        head, row, kept = self._head, self._row, self._kept
        self._head, self._row = None, None
        assert head is not None  # noqa: S101
        if row is None:
            return
        if head.keep_alive:
            self._pool.idle.append(self)
        else:
            self.drop()
        if head.status != _HTTP_OK:
            self._pool.ended(row, head.status, kept.decode("utf-8", "replace"))
        elif not kept.startswith(b"{") and not (head.encoded and kept):
            self._pool.ended(row, samples.GARBAGE, f"answer begins with {kept[:60]!r}")
        else:
            self._pool.ended(row, samples.OK, "")
