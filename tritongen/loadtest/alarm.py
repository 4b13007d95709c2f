"""A timer that is right to some ten microseconds; asyncio's own rounds up to whole milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_NS_PER_S = 1_000_000_000
_LEAD_NS = 60_000
"""How much earlier it wakes, since waking takes time; until the moment it then watches the clock."""
_MOST_WATCHED = 10
"""At most one part in so many of a wait is spent watching."""


class _Specification(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2)."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Alarm:
    """Calls `ring` in the event loop at an absolute CLOCK_MONOTONIC time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._handle < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = loop
        self._ring = ring
        self._due = 0
        self._wakes = 0
        self._is_set = False
        self._specification = _Specification(0, 0, 0, 0)
        self._pointer = ctypes.byref(self._specification)
        loop.add_reader(self._handle, self._wake)

    def set(self, time_ns: int) -> None:
        """Ring at `time_ns`, at once if that is past; replaces what was set before."""
        early = min(_LEAD_NS, max(0, time_ns - time.monotonic_ns()) // _MOST_WATCHED)
        self._due, self._wakes, self._is_set = time_ns, max(time_ns - early, 1), True
        self._specification.value_s, self._specification.value_ns = divmod(self._wakes, _NS_PER_S)
        # Setting it also takes back that it has rung.
        self._libc.timerfd_settime(self._handle, _TFD_TIMER_ABSTIME, self._pointer, None)

    def close(self) -> None:
        self._loop.remove_reader(self._handle)
        os.close(self._handle)

    def _wake(self) -> None:
        now, due = time.monotonic_ns(), self._due
        if now < self._wakes:  # set anew between the poll and this call
            return
        while now < due:
            now = time.monotonic_ns()
        self._is_set = False
        self._ring()
        if not self._is_set:
            with contextlib.suppress(BlockingIOError):
                os.read(self._handle, 8)
