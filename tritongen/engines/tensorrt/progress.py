"""What a long build is doing: its phases (IProgressMonitor: 10 and newer), or what it times (8.6)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tritongen.engines.tensorrt import api
from tritongen.runs.events import Event, EventSink

_INTERVAL_S = 0.5
"""Between two events: phases of a small network take milliseconds."""
_ROUNDS_INTERVAL_S = 3.0
_LONGEST = 70
TIMING = "Timing Runner:"
"""In the verbose line that starts a round: all tactics of one kind for one layer in one format."""


class Phases:
    """The phases of a build, nested; tells the innermost one and how far the outermost is."""

    def __init__(self, events: EventSink, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._told = clock()
        self._open: dict[str, tuple[int, int]] = {}
        """(steps done, steps in all) by phase, outermost first."""

    def start(self, phase: str, steps: int) -> None:
        self._open[phase] = (0, max(1, steps))
        self._tell()

    def step(self, phase: str, step: int) -> None:
        """Step number `step`, counted from 0, is done."""
        if phase in self._open:
            self._open[phase] = (step + 1, self._open[phase][1])
        self._tell()

    def finish(self, phase: str) -> None:
        self._open.pop(phase, None)

    def _tell(self) -> None:
        now = self._clock()
        if now - self._told < _INTERVAL_S or not self._open:
            return
        self._told = now
        done, steps = next(iter(self._open.values()))
        name = list(self._open)[-1]
        self._events(Event("trial", "progress", f"TensorRT: {name}", fraction=min(1.0, done / steps)))


class Rounds:
    """How many rounds of tactics were timed; how many there will be, no version without a monitor tells."""

    def __init__(self, events: EventSink, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._told = clock()
        self._count = 0

    def one(self, line: str) -> None:
        """Another round begins, as this line of the log says."""
        self._count += 1
        now = self._clock()
        if now - self._told < _ROUNDS_INTERVAL_S:
            return
        self._told = now
        layer = line.partition(TIMING)[2].strip()
        layer = layer if len(layer) <= _LONGEST else f"{layer[:_LONGEST]}…"
        self._events(Event("trial", "progress", f"TensorRT: timing tactics, round {self._count:,}: {layer}"))


def monitor(trt: Any, phases: Phases) -> Any:
    """An IProgressMonitor that feeds `phases`; None where the version has none."""
    if not api.features(trt).progress_monitor:
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            phases.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True  # go on

    return Monitor()
