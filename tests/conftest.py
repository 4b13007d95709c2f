"""Fixtures that every test may use: tiny models on disk, free ports, skips that name their reason."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from tests import models

SaveModel = Callable[..., Path]


def free_port() -> int:
    """A TCP port on the loopback that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pytest_configure() -> None:
    """Let children be interrupted: what a shell starts with `&` ignores Ctrl-C, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_ALONE = (
    "tests/docker/",
    "tests/gpu/",
    "integration/test_demo.py",
    "integration/test_loadtest",
    "test_road.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must not share the machine: other tests' work would show in it as lateness."""
    for item in items:
        if any(part in item.path.as_posix() for part in _ALONE):
            item.add_marker(pytest.mark.alone)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, with the reason."""
    for marker, reason in (("server", _no_server), ("gpu", _no_gpu), ("docker", _no_docker)):
        if item.get_closest_marker(marker) is not None and (why := reason()):
            pytest.skip(why)


def _no_server() -> str | None:
    if importlib.util.find_spec("pytriton") is None:
        return "no embedded Triton: pip install 'tritongen[serve]' (Python 3.10-3.12)"
    return None


def _no_gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA GPU: nvidia-smi is not there"
    if importlib.util.find_spec("tensorrt") is None:
        return "no TensorRT: pip install 'tritongen[tensorrt]'"
    return None


def _no_docker() -> str | None:
    docker = shutil.which("docker")
    if docker is None:
        return "no Docker: the docker command is not there"
    if subprocess.run([docker, "info"], capture_output=True, check=False, timeout=20).returncode != 0:
        return "no Docker: its engine does not answer `docker info`"
    return None


@pytest.fixture
def port() -> int:
    """One free port."""
    return free_port()


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """`save_model("linear")` or `save_model("linear", "name.onnx", external=True)` → the file's path."""

    def save(kind: str, filename: str | None = None, *, external: bool = False) -> Path:
        proto = getattr(models, kind)()
        return models.save(proto, tmp_path / (filename or f"{kind}.onnx"), external=external)

    return save


@pytest.fixture(params=sorted(models.SERVABLE))
def servable_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Each tiny servable model in turn; `path.stem` is its name in tests.models."""
    return models.save(models.SERVABLE[request.param](), tmp_path / f"{request.param}.onnx")


# A busy machine must not fail a property: speed is for benches.
hypothesis.settings.register_profile("tritongen", deadline=None)
hypothesis.settings.load_profile("tritongen")
