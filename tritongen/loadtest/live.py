"""What the last seconds of a run looked like, from its growing sample files: for a person who watches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritongen.loadtest import statistics
from tritongen.loadtest.samples import DTYPE, LATE, NOT_SENT, PENDING, Samples

_WINDOW_NS = 5_000_000_000
_MOST_ROWS = 200_000
"""Of one worker at a time."""


@dataclass(frozen=True)
class LiveFigures:
    """The requests that ended within the last five seconds."""

    rate: float
    """Answers per second."""
    p99_ms: float
    failed: int
    """Sent, and not answered well."""
    unsent: int
    """For want of room in flight, or because the sender was behind."""
    late: int
    """Sent, but not on time."""


class Live:
    """Reads only what is new; nothing is judged by it. `late_ms` is the lag from which on a send is late."""

    def __init__(self, paths: Sequence[Path], late_ms: float) -> None:
        self._paths = paths
        self._late_ms = late_ms
        self._positions = [0] * len(paths)

    def look(self, start_ns: int, now_ns: int) -> LiveFigures | None:
        """The figures at this moment; None before anything has ended."""
        since = max(start_ns, now_ns - _WINDOW_NS)
        parts = [self._recent(worker, since) for worker in range(len(self._paths))]
        recent = Samples(np.concatenate(parts)) if parts else Samples(np.empty(0, DTYPE))
        if len(recent) == 0 or now_ns <= since:
            return None
        answered = int(recent.ok.sum())
        sent = ~np.isin(recent.rows["status"], (LATE, NOT_SENT))
        return LiveFigures(
            rate=answered / ((now_ns - since) / 1e9),
            p99_ms=statistics.percentile(recent.response_ms, 99),
            failed=int(sent.sum()) - answered,
            unsent=int((~sent).sum()),
            late=int((sent & (recent.lag_ms > self._late_ms)).sum()),
        )

    def pending(self) -> int:
        """How many requests of an open loop have not ended; all rows of its files are one each."""
        rows = (np.memmap(path, DTYPE, "r") for path in self._paths)
        return sum(
            int((each["status"][position:] == PENDING).sum())
            for each, position in zip(rows, self._positions, strict=True)
        )

    def _recent(self, worker: int, since: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        position = self._positions[worker]
        rows = np.memmap(self._paths[worker], DTYPE, "r")[position : position + _MOST_ROWS]
        ended = rows["status"] != PENDING
        old = ended & (rows["done_ns"] < since)
        if len(old) and (passed := len(old) if old.all() else int(np.argmin(old))):
            self._positions[worker] += passed
        return np.array(rows[ended & ~old])
