"""Raw results: one fixed-width row per request, whatever became of it. A failed request is data."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PENDING = 0
"""Not sent, or not answered yet."""
OK = 1
TIMEOUT = 2
REFUSED = 3
LOST = 4
GARBAGE = 5
NOT_SENT = 6
STOPPED = 7
LATE = 8
TLS = 9
HTTP_FIRST, HTTP_LAST = 100, 999
"""An HTTP status that is not 200 is its own code."""
GRPC_FIRST = 1000
"""A gRPC status code is this plus its number."""

_CAUSES = {
    PENDING: "unanswered",
    OK: "ok",
    TIMEOUT: "timed out",
    REFUSED: "connection refused",
    LOST: "connection lost",
    GARBAGE: "not a KServe v2 answer",
    NOT_SENT: "not sent: in-flight limit reached",
    STOPPED: "stopped while in flight",
    LATE: "not sent: the sender was behind by more than the time-out",
    TLS: "TLS handshake failed",
}
_GRPC_NAMES = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]

ROW = struct.Struct("<qqqHHI")
"""scheduled_ns, sent_ns, done_ns (CLOCK_MONOTONIC), status, prepared request, items in the batch."""
DTYPE = np.dtype(
    [
        ("scheduled_ns", "<i8"),
        ("sent_ns", "<i8"),
        ("done_ns", "<i8"),
        ("status", "<u2"),
        ("request", "<u2"),
        ("batch", "<u4"),
    ]
)
_GROWTH_ROWS = 1 << 16


def cause(status: int) -> str:
    """A status code in words ("timed out", "HTTP 503", "gRPC UNAVAILABLE")."""
    if status >= GRPC_FIRST:
        number = status - GRPC_FIRST
        return f"gRPC {_GRPC_NAMES[number] if number < len(_GRPC_NAMES) else number}"
    return _CAUSES.get(status, f"HTTP {status}")


@dataclass(frozen=True)
class Samples:
    """The requests of a run in the order in which they were scheduled."""

    rows: NDArray[np.void]
    """A structured array of DTYPE."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ok(self) -> NDArray[np.bool_]:
        return np.asarray(self.rows["status"] == OK)

    @property
    def response_ms(self) -> NDArray[np.float64]:
        """From the scheduled time to the answer; infinite for requests that failed."""
        return self._elapsed_ms("scheduled_ns")

    @property
    def service_ms(self) -> NDArray[np.float64]:
        """From the real send to the answer; infinite for requests that failed."""
        return self._elapsed_ms("sent_ns")

    @property
    def lag_ms(self) -> NDArray[np.float64]:
        """How late the sender was (in a closed loop: never)."""
        return np.asarray((self.rows["sent_ns"] - self.rows["scheduled_ns"]) / 1e6)

    def between(self, start_ns: int, end_ns: int) -> Samples:
        """The requests that were scheduled in [start_ns, end_ns)."""
        scheduled = self.rows["scheduled_ns"]
        return Samples(self.rows[(scheduled >= start_ns) & (scheduled < end_ns)])

    def _elapsed_ms(self, since: str) -> NDArray[np.float64]:
        elapsed = (self.rows["done_ns"] - self.rows[since]) / 1e6
        return np.where(self.ok, elapsed, np.inf)


def merge(parts: Sequence[NDArray[np.void]]) -> Samples:
    """The rows of all workers in one order: by scheduled time."""
    rows = np.concatenate(parts) if parts else np.empty(0, DTYPE)
    return Samples(rows[np.argsort(rows["scheduled_ns"], kind="stable")])


class NoRoomError(Exception):
    """The disk is full."""


class SampleFile:
    """Rows in a memory-mapped file: written by a worker, read by its parent even while it runs.

    NoRoomError from making one and from `write`.
    """

    def __init__(self, path: Path, rows: int = _GROWTH_ROWS) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._reserve(max(rows, 1))
        self._map = mmap.mmap(self._handle, self._capacity * ROW.size)

    def write(  # noqa: PLR0917  (called for every request: keywords cost)
        self, row: int, scheduled: int, sent: int, done: int, status: int, request: int, batch: int
    ) -> None:
        """Fill one row; the file grows when it must."""
        if row >= self._capacity:
            self._reserve(row + _GROWTH_ROWS)
            self._map.resize(self._capacity * ROW.size)
        ROW.pack_into(self._map, row * ROW.size, scheduled, sent, done, status, request, batch)

    def _reserve(self, rows: int) -> None:
        """Take the room at once: on a full disk, a hole in a mapped file kills whoever touches it."""
        try:
            os.posix_fallocate(self._handle, 0, rows * ROW.size)
        except OSError as error:
            raise NoRoomError(f"no room for the samples: {error.strerror}") from None
        self._capacity = rows

    def close(self) -> None:
        self._map.close()
        os.close(self._handle)


def read_rows(path: Path) -> NDArray[np.void]:
    """The rows of a sample file that were written; rows that never came to be are left out."""
    rows = np.fromfile(path, DTYPE)
    return np.asarray(rows[rows["status"] != PENDING])
