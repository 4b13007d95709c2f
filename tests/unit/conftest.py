"""A model in a repository, as `build` writes it; the stand-ins for TensorRT and CUDA."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SaveModel
from tests.repository_models import to_write
from tests.standin.plans import FOLDER
from tritongen.engines.tensorrt import cuda
from tritongen.repository.manifest import Manifest, read_manifest
from tritongen.repository.writer import ModelToWrite, write_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Where a repository may be made."""
    return tmp_path / "repository"


@pytest.fixture
def linear(save_model: SaveModel, tmp_path: Path) -> ModelToWrite:
    """A linear model, to be written as "tiny"."""
    return to_write(save_model("linear"), tmp_path / "runs")


@pytest.fixture
def folder(linear: ModelToWrite, repository: Path) -> Path:
    """The folder of a linear model in `tmp_path`/repository."""
    return write_model(repository, linear).folder


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    """What is written down about the model in `folder`."""
    return read_manifest(folder)


def _imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in ("tensorrt", "cuda")]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for CUDA's runtime, found in place of TensorRT and CUDA for one test."""
    for name in _imported():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(FOLDER))
    cuda.runtime.cache_clear()
    yield cuda.runtime()
    cuda.runtime.cache_clear()
    for name in _imported():
        del sys.modules[name]
