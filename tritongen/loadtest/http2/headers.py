"""HPACK (RFC 7541): the header block of our requests, made once, and the meaning of the peer's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from tritongen.loadtest.http2.frames import ProtocolError

Fields = Sequence[tuple[str, str]]

_METHOD_POST, _SCHEME_HTTP, _SCHEME_HTTPS = b"\x83", b"\x86", b"\x87"
_NEVER_INDEXED = b"\x10"
_NO_TABLE = b"\x20"
_FIRST_DYNAMIC = 62
_ENTRY_OVERHEAD = 32
_KEPT_BLOCKS = 1024
_GRPC = "application/grpc"
_MOST_STATUS = 999


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return _integer(len(raw), 7, 0) + raw


def _integer(value: int, bits: int, pattern: int) -> bytes:
    """An integer with an N-bit prefix (RFC 7541, 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([pattern | value])
    value -= most
    digits = bytearray([pattern | most])
    while value >= 128:  # noqa: PLR2004
        digits.append(value % 128 | 128)
        value //= 128
    digits.append(value)
    return bytes(digits)


class RequestHeaders:
    """The request headers of a gRPC call, which are the same for every call of a connection.

    `first` puts them into the peer's dynamic table, `again` refers to them there with one byte each;
    `stateless` is for peers whose table is too small. Headers of the user's are never put there: they may
    be secrets.
    """

    def __init__(self, authority: str, path: str, *, secure: bool, extra: Fields = ()) -> None:
        common = [
            (":path", path),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", _GRPC),
            ("user-agent", "tritongen"),
            ("grpc-accept-encoding", "identity, deflate, gzip"),
        ]
        start = _METHOD_POST + (_SCHEME_HTTPS if secure else _SCHEME_HTTP)
        end = b"".join(_NEVER_INDEXED + _text(name.lower()) + _text(value) for name, value in extra)
        plain = [_text(name) + _text(value) for name, value in common]
        pseudo = [(":method", "POST"), (":scheme", "https" if secure else "http")]
        self.list_size = sum(
            _ENTRY_OVERHEAD + len(name.encode()) + len(value.encode())
            for name, value in (*pseudo, *common, *extra)
        )
        """As SETTINGS_MAX_HEADER_LIST_SIZE counts (RFC 9113, 6.5.2)."""
        self.first = start + b"".join(b"\x40" + each for each in plain) + end
        places = range(_FIRST_DYNAMIC + len(common) - 1, _FIRST_DYNAMIC - 1, -1)
        self.again = start + b"".join(_integer(place, 7, 0x80) for place in places) + end
        self.stateless = start + b"".join(b"\x00" + each for each in plain) + end
        self.first_without_table = _NO_TABLE + self.stateless


@dataclass(frozen=True)
class Block:
    """What matters in a header block of a response."""

    http_status: int | None
    grpc_status: int | None
    message: str
    is_grpc: bool


class BlockReader:
    """Header blocks → their meaning; looked up if seen before, which is right without a dynamic table."""

    def __init__(self) -> None:
        from hpack import Decoder

        self._decoder = Decoder(max_header_list_size=1 << 20)
        self._decoder.max_allowed_table_size = 0
        self._decoder.header_table_size = 0
        self._known: dict[bytes, Block] = {}

    def read(self, block: bytes) -> Block:
        """ProtocolError for what is no header block, or refers to a table that we did not allow."""
        found = self._known.get(block)
        if found is None:
            found = self._decode(block)
            if len(self._known) < _KEPT_BLOCKS:
                self._known[block] = found
        return found

    def _decode(self, block: bytes) -> Block:
        from hpack.exceptions import HPACKError

        try:
            fields = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
            http, grpc = fields.get(b":status"), fields.get(b"grpc-status")
            return Block(
                http_status=None if http is None else _status(http, 100),
                grpc_status=None if grpc is None else _status(grpc, 0),
                # Percent-encoded, as gRPC's HTTP/2 mapping says.
                message=unquote_to_bytes(fields.get(b"grpc-message", b"")).decode("utf-8", "replace"),
                is_grpc=fields.get(b"content-type", b"").startswith(_GRPC.encode()),
            )
        except (HPACKError, ValueError) as error:
            raise ProtocolError(f"a header block that cannot be read: {error}") from None


def _status(text: bytes, least: int) -> int:
    """A status that a sample's row has room for; ValueError for what is none."""
    if not least <= int(text) <= _MOST_STATUS:
        raise ValueError(f"status {text!r}")
    return int(text)
