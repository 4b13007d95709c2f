"""The tiny models are real: valid ONNX, and ONNX Runtime gives what their docstrings say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests import models


def _run(path: Path, **inputs: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, inputs)
    return outputs


def _inputs(path: Path, batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    made = {}
    for tensor in session.get_inputs():
        sizes = [
            dim if isinstance(dim, int) else (batch if i == 0 else 3) for i, dim in enumerate(tensor.shape)
        ]
        if tensor.type == "tensor(string)":
            made[tensor.name] = np.full(sizes, "cat", dtype=object)
        elif tensor.type == "tensor(int64)":
            made[tensor.name] = rng.integers(0, 50, sizes)
        else:
            dtype = np.float16 if tensor.type == "tensor(float16)" else np.float32
            made[tensor.name] = np.asarray(rng.standard_normal(sizes)).astype(dtype)
    return made


def test_servable_models_are_valid_and_run(servable_model: Path) -> None:
    onnx.checker.check_model(str(servable_model), full_check=True)
    assert _run(servable_model, **_inputs(servable_model, 2))


@pytest.mark.parametrize("name", models.BATCHING)
def test_batching_models_batch(name: str, tmp_path: Path) -> None:
    path = models.save(models.SERVABLE[name](), tmp_path / "m.onnx")
    inputs = _inputs(path, 3)
    together = _run(path, **inputs)
    apart = [_run(path, **{key: array[i : i + 1] for key, array in inputs.items()}) for i in range(3)]
    for i, output in enumerate(together):
        joined = np.concatenate([one[i] for one in apart])
        if output.dtype == object:
            assert (output == joined).all()
        else:
            np.testing.assert_allclose(output, joined, rtol=1e-3, atol=1e-5)


def test_mixing_model_does_not_batch(tmp_path: Path) -> None:
    path = models.save(models.mixes_batch(), tmp_path / "m.onnx")
    (alone,) = _run(path, x=np.ones((1, 4), np.float32))
    (among,) = _run(path, x=np.stack([np.ones(4, np.float32), np.zeros(4, np.float32)]))
    assert not np.allclose(alone[0], among[0])


def test_external_data_is_needed(tmp_path: Path) -> None:
    path = models.save(models.linear(), tmp_path / "m.onnx", external=True)
    assert _run(path, x=np.ones((1, 4), np.float32))
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(Exception, match=r"m\.onnx\.data"):
        _run(path, x=np.ones((1, 4), np.float32))


def test_memory_hungry_fails_when_it_runs(tmp_path: Path) -> None:
    path = models.save(models.memory_hungry(), tmp_path / "m.onnx")
    with pytest.raises(Exception, match=r"(?i)alloc"):
        _run(path, x=np.ones((1, 4), np.float32))
