"""A model in a repository, as `build` writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SaveModel
from tests.repository_models import to_write
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
