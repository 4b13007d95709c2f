"""ONNX Runtime's GPU providers, where a GPU build of it is installed: built, verified, served, answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.gpu.network import convolutional, sample
from tests.gpu.test_plan_serving import CLOSE, Server, passed, relative_l2
from tritongen.engines.onnxruntime import OnnxRuntimeEngine
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner

pytestmark = [pytest.mark.gpu(tensorrt=False), pytest.mark.server]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_model_is_built_and_served_on_the_gpu_by_onnx_runtime(provider: str, tmp_path: Path) -> None:
    if (reason := OnnxRuntimeEngine(provider).unavailable_reason()) is not None:
        pytest.skip(reason)
    model = convolutional(tmp_path / "net.onnx")
    np.savez(tmp_path / "validation.npz", x=sample(32, seed=2))
    passed(
        tmp_path, "build", "net.onnx", "--engine", "onnxruntime", "--execution-provider", provider,
        "--max-batch-size", "8", "--effort", "quick", "--validation-data", "validation.npz",
    )  # fmt: skip
    assert "KIND_GPU" in (tmp_path / "model_repository" / "net" / "config.pbtxt").read_text(encoding="utf-8")
    passed(tmp_path, "verify")
    inputs = {"x": sample(5)}
    with OnnxRuntimeRunner(model) as exact, Server(tmp_path) as server:
        assert relative_l2(server.infer("net", inputs), exact.infer(inputs)["y"]) < CLOSE
