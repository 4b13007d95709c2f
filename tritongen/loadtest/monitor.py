"""Asks the server for its counts at the edges of the window and in between, and its GPUs, beside the run."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence

from tritongen.errors import TritongenError
from tritongen.runs.loadtest import GpuFigures
from tritongen.serving.control import ServerControl, read_metrics
from tritongen.serving.statistics import ModelStatistics

_PERIOD_S = 1.0
_METRICS_TIMEOUT_S = 2.0
_JOIN_S = 15.0
_SAMPLE = re.compile(r"^(?P<name>nv_gpu_\w+)\{(?P<labels>[^}]*)\}\s+(?P<value>\S+)")
_UUID = re.compile(r'gpu_uuid="([^"]*)"')

Gauges = dict[str, dict[str, float]]
"""GPU → metric → value."""


class Monitor:
    """A thread that lives as long as the run; the control is its own meanwhile."""

    def __init__(self, control: ServerControl, model: str, version: str, *, metrics_url: str | None) -> None:
        self._control = control
        self._model, self._version = model, version
        self._metrics_url = metrics_url
        self._edges: list[int] = []
        self._taken: dict[int, ModelStatistics | None] = {}
        self._last: ModelStatistics | None = None
        self._begun_anew = False
        self._gauges: list[tuple[int, Gauges]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, edges_ns: Sequence[int]) -> None:
        """Take the counts at these times (CLOCK_MONOTONIC) and, to see them fall, every second in between."""
        self._edges = sorted(edges_ns)
        self._thread.start()

    def stop(self) -> None:
        """End; the control may be used again afterwards."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def statistics(self, edge_ns: int) -> ModelStatistics | None:
        """The counts at this edge; None if it did not come to be, or the server has none."""
        return self._taken.get(edge_ns)

    def now(self) -> ModelStatistics | None:
        """The counts at this moment; only after `stop`."""
        try:
            found = self._control.statistics(self._model, self._version)
        except TritongenError:
            return None
        self._begun_anew |= self._last is not None and not found.continues(self._last)
        self._last = found
        return found

    @property
    def begun_anew(self) -> bool:
        """Whether counts fell since the first edge: at the end, new ones may have passed the old ones."""
        return self._begun_anew

    def gpus(self, start_ns: int, end_ns: int) -> tuple[GpuFigures, ...]:
        """What the GPUs did in [start_ns, end_ns)."""
        return summarize_gauges([gauges for time_ns, gauges in self._gauges if start_ns <= time_ns < end_ns])

    def _run(self) -> None:
        edges = list(self._edges)
        next_ns = time.monotonic_ns()
        while edges and not self._end.is_set():
            now = time.monotonic_ns()
            if now >= edges[0]:
                self._taken[edges.pop(0)] = self.now()
            elif now >= next_ns:
                next_ns = now + round(_PERIOD_S * 1e9)
                if self._last is not None:  # else it is the warm-up, or the server has none
                    self.now()
                if self._metrics_url:
                    self._read_gauges(now)
            else:
                self._end.wait((min(edges[0], next_ns) - now) / 1e9)

    def _read_gauges(self, now: int) -> None:
        try:
            gauges = parse_gauges(read_metrics(self._metrics_url or "", _METRICS_TIMEOUT_S))
        except (TritongenError, OSError):
            self._metrics_url = None
            return
        if not gauges:  # no GPU there: nothing will come
            self._metrics_url = None
            return
        self._gauges.append((now, gauges))


def parse_gauges(text: str) -> Gauges:
    """The `nv_gpu_*` samples of a Prometheus page."""
    found: Gauges = {}
    for line in text.splitlines():
        if (match := _SAMPLE.match(line)) and (gpu := _UUID.search(match["labels"])):
            found.setdefault(gpu[1], {})[match["name"]] = float(match["value"])
    return found


def summarize_gauges(seen: Sequence[Gauges]) -> tuple[GpuFigures, ...]:
    """Means over time (memory: the most), one per GPU."""

    def values(gpu: str, name: str) -> list[float]:
        return [gauges[gpu][name] for gauges in seen if name in gauges.get(gpu, {})]

    def mean(numbers: list[float]) -> float | None:
        return sum(numbers) / len(numbers) if numbers else None

    return tuple(
        GpuFigures(
            gpu=gpu,
            utilization_mean=mean(values(gpu, "nv_gpu_utilization")),
            memory_bytes=max(values(gpu, "nv_gpu_memory_used_bytes"), default=None),
            power_w_mean=mean(values(gpu, "nv_gpu_power_usage")),
        )
        for gpu in sorted({gpu for gauges in seen for gpu in gauges})
    )
