"""What the last seconds of a run looked like, from its growing sample files: for a person who watches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritongen.loadtest import statistics
from tritongen.loadtest.samples import DTYPE, PENDING, Samples

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


class Live:
    """Reads only what is new; nothing is judged by it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._positions = [0] * len(paths)

    def look(self, start_ns: int, now_ns: int) -> LiveFigures | None:
        """The figures at this moment; None before anything has ended."""
        since = max(start_ns, now_ns - _WINDOW_NS)
        parts = [self._recent(worker, since) for worker in range(len(self._paths))]
        recent = Samples(np.concatenate(parts)) if parts else Samples(np.empty(0, DTYPE))
        if len(recent) == 0 or now_ns <= since:
            return None
        answered = int(recent.ok.sum())
        return LiveFigures(
            rate=answered / ((now_ns - since) / 1e9),
            p99_ms=statistics.percentile(recent.response_ms, 99),
            failed=len(recent) - answered,
        )

    def _recent(self, worker: int, since: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        position = self._positions[worker]
        rows = np.memmap(self._paths[worker], DTYPE, "r")[position : position + _MOST_ROWS]
        ended = rows["status"] != PENDING
        old = ended & (rows["done_ns"] < since)
        if len(old) and (passed := len(old) if old.all() else int(np.argmin(old))):
            self._positions[worker] += passed
        return np.array(rows[ended & ~old])
