"""The runner on the stand-ins of tests/standin: what it took goes back, whatever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.standin.plans import plan_bytes
from tritongen.engines.tensorrt.profiles import Extent
from tritongen.engines.tensorrt.runner import TensorRTRunner
from tritongen.errors import BuildError

PROFILES = [
    {"x": Extent((1, 4), (1, 4), (1, 4))},
    {"x": Extent((2, 4), (4, 4), (4, 4))},
]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(plan_bytes(models.save(models.linear(), tmp_path / "m.onnx"), PROFILES))
    return path


def refusing(standin: Any, name: str, *, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call of CUDA's fail for want of memory after it worked so many times."""
    real, count = getattr(standin, name), iter(range(1000))

    def call(*arguments: Any) -> Any:
        return real(*arguments) if next(count) < after else (standin.Status.cudaErrorMemoryAllocation, 0)

    monkeypatch.setattr(standin, name, call)


def grow(plan: Path) -> None:
    with TensorRTRunner(plan) as runner:
        for batch in (1, 4):  # the second needs larger buffers in place of the first
            runner.prepare({"x": np.ones((batch, 4), np.float32)})


def test_it_leaves_nothing_behind(standin: Any, plan: Path) -> None:
    with TensorRTRunner(plan) as runner:
        for batch in (1, 4, 2):
            runner.prepare({"x": np.ones((batch, 4), np.float32)})
            assert runner.step() >= 0
        assert standin.live_allocations() > 0
    assert standin.live_allocations() == 0


@pytest.mark.parametrize(("name", "after"), [("cudaMalloc", 1), ("cudaMallocHost", 0), ("cudaMallocHost", 2)])
def test_gpu_memory_that_ran_out_is_said_and_given_back(
    standin: Any, plan: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    refusing(standin, name, after=after, monkeypatch=monkeypatch)
    with pytest.raises(BuildError, match="CUDA"):
        grow(plan)
    assert standin.live_allocations() == 0


def test_what_was_taken_goes_back_where_opening_fails(
    standin: Any, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    destroyed: list[int] = []

    def destroy(stream: int) -> tuple[int]:
        destroyed.append(stream)
        return (0,)

    monkeypatch.setattr(standin, "cudaStreamDestroy", destroy)
    monkeypatch.setattr(tensorrt.ICudaEngine, "create_execution_context", lambda _: None)
    runner = TensorRTRunner(plan)
    with pytest.raises(BuildError, match="no execution context for profile 0"):
        runner.__enter__()
    assert len(destroyed) == 1
    with pytest.raises(BuildError, match="not open"):
        _ = runner.engine
