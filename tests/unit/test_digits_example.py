"""The demo's network: its gradients are right, and its ONNX export computes the same scores."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DIGITS))
    monkeypatch.delitem(sys.modules, "network", raising=False)
    import importlib

    return importlib.import_module("network")


@pytest.fixture
def small(network: ModuleType) -> Any:
    return network.Network.create(8, [(4, 1), (6, 2), (5, 2)], 3, np.random.default_rng(0))


def test_gradients_match_finite_differences(small: Any) -> None:
    rng = np.random.default_rng(1)
    images = rng.standard_normal((5, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 3, 5)
    _, gradients = small.gradients(images, labels)
    for array, gradient in zip(small.parameters(), gradients, strict=True):
        # Along a random direction, so that one difference tests the whole array.
        direction = rng.standard_normal(array.shape).astype(np.float32)
        step = np.float32(1e-2 / np.linalg.norm(direction))
        array[...] += step * direction
        above, _ = small.gradients(images, labels)
        array[...] -= 2 * step * direction
        below, _ = small.gradients(images, labels)
        array[...] += step * direction
        expected = float((gradient * direction).sum())
        assert (above - below) / (2 * step) == pytest.approx(expected, rel=0.05, abs=0.05)


def test_export_computes_the_same_scores(network: ModuleType, small: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(2).standard_normal((3, 8, 8, 1)).astype(np.float32)
    proto = network.to_onnx(small, 8)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(scores, small.scores(images), rtol=1e-4, atol=1e-5)
