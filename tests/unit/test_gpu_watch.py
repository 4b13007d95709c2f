"""The GPU is watched while it is measured; here through a stand-in for NVML, on a GPU in tests/gpu."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tritongen.autotune.gpu_watch import REPEATS, GpuWatch, noise_in, unwatched, watch_of
from tritongen.autotune.latency import _calmly
from tritongen.runs.records import GpuConditions, LatencyPoint


class NVMLError(Exception):
    pass


def nvml(
    clocks: list[int],
    *,
    reasons: int = 0,
    pids: tuple[int, ...] = (),
    busy: tuple[int, ...] = (),
    **more: Any,
) -> Any:
    """NVML as a GPU would answer; `clocks` one after the other, the last one for ever."""
    left = list(clocks)

    def utilization(_handle: Any, since: int) -> list[Any]:
        if since == 0:
            return [SimpleNamespace(pid=1, smUtil=90, timeStamp=5)]
        return [SimpleNamespace(pid=pid, smUtil=40, timeStamp=since + 1) for pid in busy]

    return SimpleNamespace(
        NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetClockInfo=lambda *_: left.pop(0) if len(left) > 1 else left[0],
        nvmlDeviceGetTemperature=lambda *_: 61,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: reasons,
        nvmlDeviceGetProcessUtilization=utilization,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [SimpleNamespace(pid=pid) for pid in pids],
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=7 << 30),
        **more,
    )  # fmt: skip


def seen(module: Any, seconds: float = 0.25) -> GpuConditions:
    with GpuWatch(module, "gpu").watching() as conditions:
        time.sleep(seconds)
    return conditions()


def test_a_calm_gpu_is_described_and_not_noisy() -> None:
    found = seen(nvml([1980], reasons=0x1 | 0x4, pids=(os.getpid(),)))
    assert (found.clock_mhz, found.temperature_c, found.memory_used_bytes) == (1980, 61, 7 << 30)
    assert found.throttled == ("power cap",)  # idle is no reason, and a steady cap no noise
    assert (found.other_processes, found.busy_processes) == (0, 0)
    assert noise_in(found) == ()


def test_heat_and_others_are_noise() -> None:
    found = seen(nvml([1980], reasons=0x20 | 0x40, pids=(os.getpid(), 77), busy=(os.getpid(), 77)))
    assert (found.other_processes, found.busy_processes) == (1, 1)
    assert noise_in(found) == (
        "thermal slowdown", "hardware thermal slowdown", "1 other process computed on the GPU",
    )  # fmt: skip


def test_a_clock_that_swings_is_noise_and_one_that_rises_in_the_warm_up_is_not() -> None:
    assert noise_in(seen(nvml([345, 1980]))) == ()
    swung = GpuConditions(lowest_clock_mhz=1500, highest_clock_mhz=1980)
    assert noise_in(swung) == ("clock between 1500 and 1980 MHz",)


def test_in_a_container_pids_are_foreign_and_nobody_is_accused() -> None:
    assert seen(nvml([1980], pids=(4242,), busy=(4242,))).busy_processes == 0
    assert seen(nvml([1980], pids=(4242, 4243), busy=(4242, 4243))).busy_processes == 0


def test_what_the_driver_does_not_tell_is_left_out() -> None:
    def refused(*_: Any) -> Any:
        raise NVMLError

    silent = nvml([0])
    for name in vars(silent):
        if name.startswith("nvmlDevice"):
            setattr(silent, name, refused)
    assert seen(silent, 0.1) == GpuConditions()


def test_what_uses_no_gpu_is_not_watched() -> None:
    assert watch_of(object()) is None


def test_that_nobody_watches_the_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert unwatched(()) == ()
    assert "`pip install nvidia-ml-py`" in unwatched(["H100"])[0]
    module = nvml([1980])
    monkeypatch.setitem(sys.modules, "pynvml", module)
    module.nvmlInit = refused
    assert "NVML: Driver Not Loaded" in unwatched(["H100"])[0]
    module.nvmlInit = lambda: None
    assert unwatched(["H100"]) == ()


def point(median_ms: float) -> LatencyPoint:
    return LatencyPoint(
        batch_size=1, instances=1, runtime={}, iterations=1, mean_ms=1, median_ms=median_ms, p99_ms=1,
        throughput=1, spread=0,
    )  # fmt: skip


@pytest.mark.parametrize(("reasons", "times"), [([0x40, 0, 0], 2), ([0x40] * 9, REPEATS + 1)])
def test_a_noisy_measurement_is_repeated_and_marked(reasons: list[int], times: int) -> None:
    left, medians = list(reasons), iter([3.0, 1.0, 2.0])
    module = nvml([1980])
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda _: left[0]
    done = 0

    def once() -> tuple[LatencyPoint, Any]:
        nonlocal done
        done += 1
        left[:] = reasons[done - 1 :]
        median = next(medians)
        return point(median), np.asarray([median])

    found, raw = _calmly(once, GpuWatch(module, "gpu"))
    assert (done, found.repeats, found.median_ms) == (times, times - 1, 1.0)
    assert list(raw) == [1.0]
    assert bool(found.noisy) == (times > 2)
    assert found.gpu is not None
