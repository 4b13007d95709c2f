"""One gRPC call on a connection: what of its answer has come, and what of its request is still to go."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from tritongen.loadtest import samples
from tritongen.loadtest.http2.frames import CANCEL, ERRORS, error_name
from tritongen.loadtest.http2.headers import Block

if TYPE_CHECKING:
    from tritongen.loadtest.http2.connection import Connection

_PREFIX_BYTES = 5
"""In front of every gRPC message: whether it is compressed, and its length."""
_HTTP_OK = 200
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_INTERNAL, _UNKNOWN, _UNAVAILABLE = 13, 2, 14
_RESET_CODES = {7: _UNAVAILABLE, CANCEL: 1, 11: 8, 12: 7}
"""gRPC's status for an HTTP/2 error code: refused stream, cancel, enhance your calm, inadequate security."""


class Stream:
    """One call. `left` and `prefix` say how far the current message of the answer has come."""

    __slots__ = (
        "compressed",
        "connection",
        "first",
        "http_status",
        "kept",
        "left",
        "number",
        "prefix",
        "row",
    )

    def __init__(self, connection: Connection, number: int, row: int) -> None:
        self.connection = connection
        self.number = number
        self.row = row
        self.kept = connection.kept_bytes
        self.http_status = 0
        self.left = 0
        self.prefix = b""
        self.first: bytes | bytearray = b""
        """The beginning of the last message, as it came."""
        self.compressed = 0
        """Whether the server compressed it."""

    @property
    def content(self) -> bytes:
        """The beginning of the last message; empty if it cannot be decompressed."""
        if not self.compressed:
            return bytes(self.first)
        try:
            return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(self.first)
        except zlib.error:
            return b""

    def receive(self, data: bytes) -> None:
        """Take in a piece of the answer's body."""
        if not self.prefix and int.from_bytes(data[1:5], "big") == len(data) - _PREFIX_BYTES:
            # The usual case: one frame, one message.
            self.compressed = data[0]
            self.first = data[_PREFIX_BYTES : _PREFIX_BYTES + self.kept]
            return
        while data:
            if self.left:
                taken = data[: self.left]
                self.first += taken[: self.kept - len(self.first)]
                self.left -= len(taken)
                data = data[len(taken) :]
            else:
                missing = _PREFIX_BYTES - len(self.prefix)
                self.prefix += data[:missing]
                data = data[missing:]
                if len(self.prefix) < _PREFIX_BYTES:
                    return
                self.compressed = self.prefix[0]
                self.left = int.from_bytes(self.prefix[1:], "big")
                self.first = bytearray()  # grows in place: an answer of 20 MB comes in 1,200 frames
            if not self.left and len(self.prefix) == _PREFIX_BYTES:
                self.prefix = b""

    def outcome(self, trailers: Block | None, *, streaming: bool) -> tuple[int, str]:
        """The status of the call now that its answer has ended."""
        if trailers is None or trailers.grpc_status is None:
            http = self.http_status or (trailers.http_status if trailers else None) or _HTTP_OK
            garbage = (samples.GARBAGE, "the answer ended without a grpc-status")
            return garbage if http == _HTTP_OK else (http, "")
        if trailers.grpc_status:
            return samples.GRPC_FIRST + trailers.grpc_status, trailers.message
        if self.left or self.prefix or not self.first:
            whole = not (self.left or self.prefix)
            return samples.GARBAGE, "an empty answer" if whole else "the answer's message is cut short"
        if streaming and (content := self.content)[:1] == b"\x0a":  # ModelStreamInferResponse.error_message
            return samples.GRPC_FIRST + _UNKNOWN, error_message(content)
        return samples.OK, ""


def error_message(message: bytes) -> str:
    """The text of a ModelStreamInferResponse that is an error; its beginning is enough."""
    from tritonclient.grpc import service_pb2

    try:
        return str(service_pb2.ModelStreamInferResponse.FromString(message).error_message)
    except Exception:  # noqa: BLE001  (protobuf's error class depends on its implementation)
        return message[3:].decode("utf-8", "replace")


def reset_outcome(code: int) -> tuple[int, str]:
    """The status of a call whose stream the server reset, as gRPC's HTTP/2 mapping has it."""
    known = code < len(ERRORS)
    status = _RESET_CODES.get(code, _INTERNAL if known else _UNKNOWN)
    return samples.GRPC_FIRST + status, f"the server reset the stream: {error_name(code)}"


class Upload:
    """A request body that did not fit into the peer's windows at once."""

    __slots__ = ("data", "sent", "window")

    def __init__(self, data: bytes, window: int) -> None:
        self.data = memoryview(data)
        self.sent = 0
        self.window = window

    def take(self, most: int) -> memoryview:
        """The next piece of at most `most` bytes that the stream's own window lets through; maybe empty."""
        piece = self.data[self.sent : self.sent + max(0, min(most, self.window))]
        self.sent += len(piece)
        self.window -= len(piece)
        return piece

    @property
    def done(self) -> bool:
        return self.sent == len(self.data)
