"""Two GPUs of one model: trials at once, each on its own GPU; one repository served on both."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.gpu.network import convolutional, sample
from tests.gpu.test_plan_serving import CLOSE, SPEC, Server, passed, relative_l2
from tritongen.autotune.winner import usable_devices
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.engines.tensorrt import cuda

pytestmark = [pytest.mark.gpu, pytest.mark.server]


def processes_by_gpu() -> list[int]:
    """How many processes compute on each GPU; a container cannot tell whose they are."""
    import pynvml

    pynvml.nvmlInit()
    gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)) for gpu in gpus]


def test_trials_share_the_gpus_and_the_server_answers_on_each(tmp_path: Path) -> None:
    if usable_devices(cuda.device_names())[0] < 2:
        pytest.skip("needs two GPUs of one model")
    model = convolutional(tmp_path / "net.onnx")
    for name, seed in (("calibration", 1), ("validation", 2)):
        np.savez(tmp_path / f"{name}.npz", x=sample(64, seed))
    (tmp_path / "tritongen.yaml").write_text(SPEC.partition("  ids:")[0], encoding="utf-8")
    assert "trials are spread over 2 ×" in passed(tmp_path, "build", "--effort", "quick")
    assert most_at_once(tmp_path / ".tritongen" / "net" / "events.jsonl") == 2

    before = processes_by_gpu()
    items = sample(64, seed=6)
    with Server(tmp_path) as server, OnnxRuntimeRunner(model) as exact, ThreadPoolExecutor(8) as pool:
        # Two instances on each GPU; Triton itself may be there too.
        assert min(now - then for then, now in zip(before, processes_by_gpu(), strict=True)) >= 2
        parts = [items[start : start + 8] for start in range(0, 64, 8)] * 8
        for part, found in zip(parts, pool.map(lambda x: server.infer("net", {"x": x}), parts), strict=True):
            assert relative_l2(found, exact.infer({"x": part})["y"]) < 4 * CLOSE


def most_at_once(journal: Path) -> int:
    """The largest number of trials that were at work together, by the run's journal."""
    at_work: Counter[str] = Counter()
    most = 0
    for line in journal.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["stage"] == "trial" and event["status"] in ("started", "finished", "failed"):
            at_work[event["subject"]] = int(event["status"] == "started")
            most = max(most, sum(at_work.values()))
    return most
