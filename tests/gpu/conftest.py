"""One network and one engine for each file: its timing cache makes the later builds quick."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.network import convolutional
from tritongen.engines.tensorrt import TensorRTEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the network and the engine's cache are."""
    return tmp_path_factory.mktemp("tensorrt")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """The network, as a file."""
    return convolutional(folder / "net.onnx")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TensorRTEngine:
    """TensorRT, with a cache of this file's own."""
    return TensorRTEngine(cache=folder / "cache")
