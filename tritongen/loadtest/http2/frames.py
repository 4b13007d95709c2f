"""HTTP/2 frames (RFC 9113): names, the bytes that we send, and the peer's settings."""

from __future__ import annotations

import struct
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = struct.Struct(">HBBBL")
"""Length (two parts), type, flags, stream: the nine bytes in front of every frame."""
HEAD_BYTES = HEAD.size

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE = 0x1
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

LARGEST_WINDOW = 0x7FFF_FFFF
LAST_STREAM = 0x7FFF_FFFF
DEFAULT_WINDOW = 65_535
STREAM_WINDOW = 1 << 30
"""Of each answer; room for the peer's own sums below the largest that HTTP/2 allows."""
DEFAULT_FRAME_SIZE = 16_384
LARGEST_FRAME_SIZE = 0xFF_FFFF

ERRORS = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)
PROTOCOL_ERROR = 1
CANCEL = 8


class ProtocolError(Exception):
    """The peer does not keep to HTTP/2."""


def error_name(code: int) -> str:
    return ERRORS[code] if code < len(ERRORS) else f"error {code}"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def headers(block: bytes, stream: int, most: int) -> bytes:
    """A header block in a HEADERS frame, and in CONTINUATION frames what is beyond `most` bytes."""
    return b"".join(
        frame(
            CONTINUATION if start else HEADERS,
            END_HEADERS if start + most >= len(block) else 0,
            stream,
            block[start : start + most],
        )
        for start in range(0, len(block), most)
    )


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", key, value) for key, value in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(code: int) -> bytes:
    """We take no streams from the peer, so the last one that we looked at is 0."""
    return frame(GOAWAY, 0, 0, (0).to_bytes(4, "big") + code.to_bytes(4, "big"))


GREETING = (
    PREFACE
    # Without a dynamic table every header block of the peer means the same whenever it comes: what a block
    # means can be looked up, and blocks of abandoned streams can be passed over.
    + settings({HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: STREAM_WINDOW})
    + window_update(0, LARGEST_WINDOW - DEFAULT_WINDOW)
)
"""What a client says first. Windows are so large that the peer never waits for us."""


@dataclass
class Peer:
    """What the peer allows us; the defaults hold until it says otherwise."""

    header_table_size: int = 4096
    max_concurrent_streams: int = LARGEST_WINDOW
    initial_window: int = DEFAULT_WINDOW
    max_frame_size: int = DEFAULT_FRAME_SIZE
    max_header_list_size: int | None = None
    """None: it does not say."""

    def apply(self, payload: bytes) -> None:
        """Take over a SETTINGS frame's payload; ProtocolError for values that are not allowed."""
        if len(payload) % 6:
            raise ProtocolError(f"a SETTINGS frame of {len(payload)} bytes")
        for key, value in struct.iter_unpack(">HL", payload):
            if key == HEADER_TABLE_SIZE:
                self.header_table_size = value
            elif key == MAX_CONCURRENT_STREAMS:
                self.max_concurrent_streams = value
            elif key == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise ProtocolError(f"INITIAL_WINDOW_SIZE {value}")
                self.initial_window = value
            elif key == MAX_FRAME_SIZE:
                if not DEFAULT_FRAME_SIZE <= value <= LARGEST_FRAME_SIZE:
                    raise ProtocolError(f"MAX_FRAME_SIZE {value}")
                self.max_frame_size = value
            elif key == MAX_HEADER_LIST_SIZE:
                self.max_header_list_size = value


def body(flags: int, payload: bytes, *, kind: int) -> bytes:
    """The payload of DATA or HEADERS without padding and priority; ProtocolError if they do not fit."""
    start, padding = 0, 0
    if flags & PADDED:
        if not payload:
            raise ProtocolError("a padded frame without a padding length")
        start, padding = 1, payload[0]
    if kind == HEADERS and flags & WITH_PRIORITY:
        start += 5
    end = len(payload) - padding
    if start > end:
        raise ProtocolError("more padding than frame")
    return payload[start:end]
