"""One HTTP/2 connection of a gRPC client: frames out, frames in, and every way in which it may end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from tritongen.loadtest import samples
from tritongen.loadtest.http2 import frames
from tritongen.loadtest.http2.frames import HEAD, HEAD_BYTES, ProtocolError
from tritongen.loadtest.http2.stream import Stream, Upload, reset_outcome

if TYPE_CHECKING:
    from tritongen.loadtest.transport_h2 import H2Transport

_LONGEST_FRAME = HEAD_BYTES + frames.DEFAULT_FRAME_SIZE
_LONGEST_BLOCK = 1 << 20
_RENEW_AT = 1 << 30
"""Once so much of the receive window is used, it is opened again."""


class Connection(asyncio.Protocol):
    """Calls multiplexed over one socket. Calls begin once the server's SETTINGS have come."""

    last_stream = frames.LAST_STREAM

    def __init__(self, pool: H2Transport) -> None:
        self.streams: dict[int, Stream] = {}
        self.ready = False
        """Whether new calls may begin; False again once the server or we have ended it."""
        self.peer = frames.Peer()
        self.kept_bytes = pool.kept_bytes
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._next = 1
        self._block = pool.headers.first
        self._window = frames.DEFAULT_WINDOW
        self._received = 0
        self._uploads: dict[int, Upload] = {}
        self._out: list[bytes] = []
        self._partial: tuple[int, int, bytes] | None = None
        self._greeted = False
        self._goodbye = ""
        self._ended = False
        self._handlers: tuple[Callable[[int, int, bytes], None], ...] = (
            self._data,
            self._headers,
            self._ignore,  # PRIORITY
            self._rst_stream,
            self._settings,
            self._push_promise,
            self._ping,
            self._goaway,
            self._window_update,
            self._continuation,
        )

    @property
    def room(self) -> bool:
        """Whether another call may begin now."""
        return self.ready and len(self.streams) < self.peer.max_concurrent_streams

    def start(self, row: int, body: bytes) -> Stream:
        """Begin a call with this ready-made message (with gRPC's prefix)."""
        number = self._next
        self._next = number + 2
        stream = self.streams[number] = Stream(self, number, row)
        block = self._block
        if block is not self._pool.headers.again:
            self._block_sent()
        size, allowed = len(body), self.peer
        most = allowed.max_frame_size
        if size <= self._window and size <= allowed.initial_window and size <= most >= len(block):
            self._window -= size
            head = HEAD.pack(len(block) >> 8, len(block) & 0xFF, frames.HEADERS, frames.END_HEADERS, number)
            data = HEAD.pack(size >> 8, size & 0xFF, frames.DATA, frames.END_STREAM, number)
            self.write(b"".join((head, block, data, body)))
        else:
            self.write(frames.headers(block, number, most))
            self._uploads[number] = Upload(body, allowed.initial_window)
            self._upload()
        if self._next > self.last_stream:
            self._leave("its stream numbers are used up")
        return stream

    def cancel(self, stream: Stream) -> None:
        """Give up on a call."""
        self.write(frames.reset(stream.number, frames.CANCEL))
        self._forget(stream)

    def write(self, data: bytes) -> None:
        """Send soon: what is written in one turn of the event loop leaves together, in one system call."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out = self._out
        if out and self._transport is not None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def drop(self) -> None:
        """Close at once; calls in flight are not reported."""
        self._ended, self.ready = True, False
        self.streams.clear()
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._ended:
            transport.close()
            return
        self.write(frames.GREETING)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            self._frames(self._buffer + data if self._buffer else data)
            self._flush()
        except ProtocolError as error:
            self.write(frames.goaway(frames.PROTOCOL_ERROR))
            self._end(samples.GARBAGE, str(error))

    def connection_lost(self, error: Exception | None) -> None:
        reason = self._goodbye or (str(error) if error else "the server closed the connection")
        self._end(samples.LOST, reason)

    def _frames(self, data: bytes) -> None:
        """Walk over the whole frames in `data`; keep the rest."""
        at, end = 0, len(data)
        handlers = self._handlers
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, number = HEAD.unpack_from(data, at)
            stop = at + HEAD_BYTES + (high << 8 | low)
            if stop - at > _LONGEST_FRAME or not (self._greeted or kind == frames.SETTINGS):
                raise ProtocolError(f"no HTTP/2 frame: {data[at : at + 60]!r}")
            if stop > end:
                break
            if self._partial is not None and kind != frames.CONTINUATION:
                raise ProtocolError("a header block without its end")
            if kind < len(handlers):  # what we do not know is to be passed over
                handlers[kind](number, flags, data[at + HEAD_BYTES : stop])
                if self._ended:
                    return
            at = stop
        self._buffer = data[at:]
        if self._received > _RENEW_AT:
            self.write(frames.window_update(0, self._received))
            self._received = 0

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        self._received += len(payload)
        if flags & frames.PADDED:
            payload = frames.body(flags, payload, kind=frames.DATA)
        stream = self.streams.get(number)
        if stream is None:
            self._check_known(number)
            return
        stream.receive(payload)
        if flags & frames.END_STREAM:
            self._finish(stream, *stream.outcome(None, streaming=self._pool.streaming))

    def _headers(self, number: int, flags: int, payload: bytes) -> None:
        if flags & (frames.PADDED | frames.WITH_PRIORITY):
            payload = frames.body(flags, payload, kind=frames.HEADERS)
        if flags & frames.END_HEADERS:
            self._block_received(number, flags, payload)
        else:
            self._partial = (number, flags, payload)

    def _block_received(self, number: int, flags: int, payload: bytes) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self._check_known(number)
            return
        block = self._pool.blocks.read(payload)
        if flags & frames.END_STREAM:
            self._finish(stream, *stream.outcome(block, streaming=self._pool.streaming))
        elif block.http_status is None:
            raise ProtocolError("response headers without a status")
        elif block.http_status >= 200:  # noqa: PLR2004  (1xx says that the headers are still to come)
            stream.http_status = block.http_status

    def _continuation(self, number: int, flags: int, payload: bytes) -> None:
        if self._partial is None or self._partial[0] != number:
            raise ProtocolError("a CONTINUATION of nothing")
        _, first_flags, block = self._partial
        block += payload
        if len(block) > _LONGEST_BLOCK:
            raise ProtocolError("a header block without an end")
        if flags & frames.END_HEADERS:
            self._partial = None
            self._block_received(number, first_flags, block)
        else:
            self._partial = (number, first_flags, block)

    def _settings(self, _number: int, flags: int, payload: bytes) -> None:
        self._greeted = True
        if flags & frames.ACK:
            return
        window = self.peer.initial_window
        self.peer.apply(payload)
        mine, most = self._pool.headers.list_size, self.peer.max_header_list_size
        if most is not None and mine > most:
            limit = f"the server takes headers of at most {most} bytes, and ours have {mine}"
            self._end(samples.LOST, f"{limit}: shorten --header or the token")
            return
        for upload in self._uploads.values():
            upload.window += self.peer.initial_window - window
        if self.peer.header_table_size < frames.Peer.header_table_size:
            self._block = self._pool.headers.first_without_table
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._upload()
        if not self.ready and not self._goodbye:
            self.ready = True
        self._pool.has_room(self)

    def _block_sent(self) -> None:
        headers = self._pool.headers
        self._block = headers.again if self._block is headers.first else headers.stateless

    def _ping(self, _number: int, flags: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _window_update(self, number: int, _flags: int, payload: bytes) -> None:
        increment = int.from_bytes(payload, "big") & frames.LARGEST_WINDOW
        if len(payload) != 4 or not increment:  # noqa: PLR2004
            raise ProtocolError("a WINDOW_UPDATE of nothing")
        if number == 0:
            self._window += increment
            if self._window > frames.LARGEST_WINDOW:
                raise ProtocolError("a window beyond its limit")
        elif number in self._uploads:
            self._uploads[number].window += increment
        if self._uploads:
            self._upload()

    def _rst_stream(self, number: int, _flags: int, payload: bytes) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self._check_known(number)
        else:
            self._uploads.pop(number, None)
            self._finish(stream, *reset_outcome(int.from_bytes(payload, "big")))

    def _goaway(self, _number: int, _flags: int, payload: bytes) -> None:
        """No new calls; those that the server will not look at any more have failed."""
        last = int.from_bytes(payload[:4], "big") & frames.LARGEST_WINDOW
        text = payload[8:].decode("utf-8", "replace")
        code = frames.error_name(int.from_bytes(payload[4:8], "big"))
        self._leave(f"the server says GOAWAY: {code} {text}".rstrip())
        for stream in [each for number, each in self.streams.items() if number > last]:
            self._finish(stream, samples.LOST, self._goodbye)

    def _ignore(self, _number: int, _flags: int, _payload: bytes) -> None:
        """Nothing that matters to us."""

    def _push_promise(self, _number: int, _flags: int, _payload: bytes) -> None:
        raise ProtocolError("a PUSH_PROMISE, which we did not allow")

    def _leave(self, reason: str) -> None:
        """Take no more calls, and close once those in flight have ended."""
        self.ready, self._goodbye = False, reason
        self._pool.is_leaving(self)
        if not self.streams:
            self._close()

    def _finish(self, stream: Stream, status: int, detail: str) -> None:
        """The answer has ended, one way or another."""
        if stream.number in self._uploads:  # the server answered before it had the whole request
            self.write(frames.reset(stream.number, frames.CANCEL))
        self._forget(stream)
        self._pool.ended(stream, status, detail)

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.number]
        self._uploads.pop(stream.number, None)
        if self._goodbye and not self.streams:
            self._close()

    def _upload(self) -> None:
        """Send as much of the waiting request bodies as the windows allow, in the order of the calls."""
        for number, upload in list(self._uploads.items()):
            while not upload.done:
                piece = upload.take(min(self._window, self.peer.max_frame_size))
                if not piece:
                    break
                self._window -= len(piece)
                flags = frames.END_STREAM if upload.done else 0
                self.write(frames.frame(frames.DATA, flags, number, bytes(piece)))
            if upload.done:
                del self._uploads[number]

    def _check_known(self, number: int) -> None:
        """Late frames of calls that are over are passed over; those of calls that never were are not."""
        if number == 0 or number % 2 == 0 or number >= self._next:
            raise ProtocolError(f"a frame of stream {number}, which we did not open")

    def _close(self) -> None:
        self._ended, self.ready = True, False
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _end(self, status: int, detail: str) -> None:
        """The connection is over, and with it every call on it."""
        self._ended, self.ready = True, False
        self._goodbye = self._goodbye or detail
        streams = list(self.streams.values())
        self.streams.clear()
        self._uploads.clear()
        if self._transport is not None:
            self._flush()
            self._transport.close()
        self._pool.is_over(self, status, detail)
        for stream in streams:
            self._pool.ended(stream, status, detail)
