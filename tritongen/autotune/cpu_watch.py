"""The processor while it is measured: how much of the time others had it that the measurement wanted.

Two figures of Linux, and the smaller one counts: for how long the measuring threads were ready and waited
(`/proc/thread-self/schedstat`), and how much of the processors others used (`/proc/stat`). Alone, the first
would blame others where the measurement itself has more threads than processors, and the second would where
a large machine is busy elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

DISTURBED = 0.10
"""A measurement is noisy where others had more than this share of the processor time that it wanted."""

_IDLE = (3, 4)
"""The columns of /proc/stat in which nobody computes: idle, and waiting for a disk."""
_COLUMNS = 8
"""Up to `steal`; those behind it are counted in `user` already."""


@dataclass(frozen=True)
class Schedule:
    """What the kernel did with one thread, in nanoseconds: it ran, or was ready to and waited."""

    ran_ns: int = 0
    waited_ns: int = 0

    def since(self, before: Schedule) -> Schedule:
        """What was added after `before`."""
        return Schedule(self.ran_ns - before.ran_ns, self.waited_ns - before.waited_ns)


@dataclass(frozen=True)
class CpuTimes:
    """Readings of three clocks, in seconds."""

    wall_s: float
    own_s: float
    """Processor time of this process."""
    busy_s: float | None
    """Of the processors that this process may use, by everyone; None where the system does not tell."""
    processors: int

    @classmethod
    def now(cls) -> CpuTimes:
        """The clocks at this moment."""
        allowed = os.sched_getaffinity(0)
        busy_s = _busy_seconds(_read("/proc/stat"), allowed)
        return cls(time.perf_counter(), time.process_time(), busy_s, len(allowed))

    def share_of_others(self, before: CpuTimes) -> float | None:
        """How much of the processors other processes used since `before`, from 0 to 1."""
        if self.busy_s is None or before.busy_s is None or self.wall_s <= before.wall_s:
            return None
        others_s = (self.busy_s - before.busy_s) - (self.own_s - before.own_s)
        return min(1.0, max(0.0, others_s / ((self.wall_s - before.wall_s) * self.processors)))


def this_thread() -> Schedule:
    """What the kernel did with the calling thread so far; nothing where it does not tell."""
    fields = _read("/proc/thread-self/schedstat").split()
    return Schedule(int(fields[0]), int(fields[1])) if len(fields) == 3 else Schedule()  # noqa: PLR2004


def share_taken(schedules: Iterable[Schedule], others: float | None) -> float | None:
    """The share that others had of the time that these threads wanted; `others`: their share of it all."""
    each = list(schedules)
    wanted_ns = sum(one.ran_ns + one.waited_ns for one in each)
    if others is None or not wanted_ns:
        return None
    return min(others, sum(one.waited_ns for one in each) / wanted_ns)


def disturbance(taken: float | None) -> tuple[str, ...]:
    """Why a measurement is noisy of which others took this share, in words; empty: it is not."""
    if taken is None or taken <= DISTURBED:
        return ()
    return (f"other processes had the processor for {100 * taken:.0f} % of the time",)


def _busy_seconds(stat: str, processors: Iterable[int]) -> float | None:
    """Of the text of /proc/stat, summed over these processors; None if it does not tell."""
    names = {f"cpu{number}" for number in processors}
    rows = [line.split() for line in stat.splitlines() if line.partition(" ")[0] in names]
    ticks = [
        sum(int(value) for column, value in enumerate(row[1 : 1 + _COLUMNS]) if column not in _IDLE)
        for row in rows
    ]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as stream:  # noqa: PTH123 - between measurements: quicker than Path
            return stream.read()
    except (OSError, ValueError):
        return ""
