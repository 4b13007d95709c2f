"""How much of the processor others had: the arithmetic by hand, and real processes that take it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SaveModel
from tritongen.autotune.cpu_watch import CpuTimes, Schedule, disturbance, share_taken, this_thread
from tritongen.autotune.latency import EFFORTS, measure
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner


def times(wall_s: float, own_s: float, busy_s: float | None) -> CpuTimes:
    return CpuTimes(wall_s, own_s, busy_s, processors=2)


def test_the_share_of_others_is_what_is_neither_idle_nor_ours() -> None:
    start = times(10.0, 5.0, 100.0)
    assert times(12.0, 7.0, 103.0).share_of_others(start) == pytest.approx(0.25)
    assert times(12.0, 7.0, 101.0).share_of_others(start) == 0.0  # ticks are coarse
    assert times(12.0, 7.0, None).share_of_others(start) is None
    assert start.share_of_others(start) is None


def test_waiting_counts_only_as_far_as_others_were_there() -> None:
    waited = [Schedule(60, 40), Schedule(40, 60)]
    assert share_taken(waited, 0.8) == 0.5
    assert share_taken(waited, 0.1) == 0.1  # more threads of its own than processors
    assert share_taken([Schedule(100, 0)], 0.9) == 0.0  # a large machine, busy elsewhere
    assert share_taken([Schedule()], 0.9) is None
    assert share_taken(waited, None) is None


def test_a_little_is_no_disturbance() -> None:
    assert disturbance(None) == disturbance(0.05) == ()
    assert disturbance(0.5) == ("other processes had the processor for 50 % of the time",)


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="the kernel does not tell")
def test_processes_that_compute_beside_it_are_seen_and_mark_the_point(save_model: SaveModel) -> None:
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * len(os.sched_getaffinity(0)))
    ]
    try:
        before = this_thread()
        with OnnxRuntimeRunner(save_model("convolutional"), intra_op_threads=1) as runner:
            import numpy as np

            feeds = {"images": np.zeros((1, 3, 8, 8), np.float32)}
            point, _ = measure([runner], feeds, 1, {}, EFFORTS["normal"], name="p")
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert this_thread().since(before).waited_ns > 0
    assert point.cpu_taken is not None
    assert point.cpu_taken > 0.2
    assert "other processes had the processor" in point.noisy[0]
