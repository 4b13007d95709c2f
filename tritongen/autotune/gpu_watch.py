"""The GPU while it is measured: clocks, throttling, temperature, other processes; through NVML.

A measurement is noisy where the clock swung, where heat or a power brake slowed the GPU down, or where
another process computed on it. A steady power cap is not noise: under that load the GPU always runs so.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from tritongen.runs.records import GpuConditions

CLOCK_SWING = 0.05
"""Clocks may differ by this share of the highest one while one point is measured."""

REPEATS = 2
"""How often a noisy measurement is repeated."""

_INTERVAL_S = 0.05
_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""NVML's bits for why clocks are not higher; idle, fixed and display clocks are left out."""
_STEADY = {"power cap", "sync boost"}


@dataclass
class _Samples:
    clocks_mhz: list[int] = field(default_factory=list)
    temperatures_c: list[int] = field(default_factory=list)
    reasons: int = 0
    busy_others: set[int] = field(default_factory=set)


class GpuWatch:
    """Looks at one GPU every 50 ms while something is measured."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    @contextmanager
    def watching(self) -> Iterator[Callable[[], GpuConditions]]:
        """A function that tells, once the block has ended, what was seen in it."""
        seen, stop = _Samples(), threading.Event()
        since_us = self._newest_sample()
        thread = threading.Thread(target=self._sample, args=(seen, stop), daemon=True)
        thread.start()
        try:
            yield lambda: self._conditions(seen)
        finally:
            stop.set()
            thread.join()
            self._look(seen)
            seen.busy_others = self._busy_others(since_us)

    def _sample(self, seen: _Samples, stop: threading.Event) -> None:
        while not stop.wait(_INTERVAL_S):
            self._look(seen)

    def _look(self, seen: _Samples) -> None:
        nvml, handle = self._nvml, self._handle
        clock = self._asked(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
        heat = self._asked(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        # NVML renamed it with driver 535; older bindings know only the first name.
        reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or (
            nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        )
        seen.clocks_mhz += [clock] if clock else []
        seen.temperatures_c += [heat] if heat else []
        seen.reasons |= self._asked(reasons, handle) or 0

    def _newest_sample(self) -> int:
        newest = self._asked(self._nvml.nvmlDeviceGetProcessUtilization, self._handle, 0) or ()
        return max((one.timeStamp for one in newest), default=0)

    def _busy_others(self, since_us: int) -> set[int]:
        """Other processes that computed on the GPU meanwhile, as far as the driver tells."""
        used = self._asked(self._nvml.nvmlDeviceGetProcessUtilization, self._handle, since_us) or ()
        own = self._own_pid()
        return {one.pid for one in used if one.smUtil > 0 and one.timeStamp > since_us and one.pid != own}

    def _pids(self) -> list[int]:
        return [
            one.pid
            for one in self._asked(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._handle) or ()
        ]

    def _own_pid(self) -> int | None:
        """This process as NVML numbers it: in a container, the only one there is must be ours."""
        pids = self._pids()
        if os.getpid() in pids:
            return os.getpid()
        return pids[0] if len(pids) == 1 else None

    def _conditions(self, seen: _Samples) -> GpuConditions:
        pids = self._pids()
        # The clock rises while the warm-up runs.
        settled = seen.clocks_mhz[len(seen.clocks_mhz) // 3 :]
        memory = self._asked(self._nvml.nvmlDeviceGetMemoryInfo, self._handle)
        return GpuConditions(
            clock_mhz=sorted(settled)[len(settled) // 2] if settled else None,
            lowest_clock_mhz=min(settled, default=None),
            highest_clock_mhz=max(settled, default=None),
            temperature_c=max(seen.temperatures_c, default=None),
            throttled=tuple(name for bit, name in _REASONS.items() if seen.reasons & bit),
            other_processes=max(0, len(pids) - 1),
            busy_processes=len(seen.busy_others) if self._own_pid() is not None else 0,
            memory_used_bytes=int(memory.used) if memory else None,
        )

    def _asked(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """NVML's answer; None where this GPU or driver does not tell."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None


def noise_in(seen: GpuConditions) -> tuple[str, ...]:
    """Why a measurement under these conditions is noisy, in words; empty: it is not."""
    low, high = seen.lowest_clock_mhz, seen.highest_clock_mhz
    found = [reason for reason in seen.throttled if reason not in _STEADY]
    if low is not None and high is not None and low < high * (1 - CLOCK_SWING):
        found.append(f"clock between {low} and {high} MHz")
    if seen.busy_processes:
        found.append(
            f"{seen.busy_processes} other process{'es' * (seen.busy_processes > 1)} computed on the GPU"
        )
    return tuple(found)


def watch_of(runner: Any) -> GpuWatch | None:
    """The watch of the GPU that a runner uses (`gpu`: its PCI bus id); None without a GPU or NVML."""
    bus = getattr(runner, "gpu", None)
    nvml = None if bus is None else _started()[0]
    if nvml is None:
        return None
    try:
        return GpuWatch(nvml, nvml.nvmlDeviceGetHandleByPciBusId(bus))
    except nvml.NVMLError:
        return None


def unwatched(gpus: Sequence[str]) -> tuple[str, ...]:
    """The note that nothing tells of disturbances, where there are GPUs and no NVML."""
    reason = _started()[1] if gpus else None
    if reason is None:
        return ()
    return (f"the GPU is not watched ({reason}): other clocks, heat or processes go unnoticed and unmarked",)


def _started() -> tuple[Any, str | None]:
    """(NVML, None), or (None, why there is none)."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None, "`pip install nvidia-ml-py` brings NVML"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"NVML: {error}"
    return nvml, None
